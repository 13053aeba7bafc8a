//! The integration tests: real kernel, real broker, real browser. One module per subject.
//!
//! A test that needs what this machine lacks is shown as ignored with the reason; `cargo xtask test` counts it as skipped.
#![allow(clippy::disallowed_methods, reason = "the doors are the agent's; tests stand outside")]

mod bed;
mod converge;
mod demo;
mod doctor;
mod drift;
mod fit;
mod home;
mod hostile;
mod installed;
mod join;
mod kubernetes;
mod leave;
mod machine;
mod mesh;
mod mqtt;
mod node;
mod package;
mod page;
mod state;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use libtest_mimic::{Arguments, Failed, Trial};
use testbed::lab::{Binaries, Lab};

/// One test: its name is a sentence.
struct Test {
    name: &'static str,
    needs: Needs,
    run: fn() -> Result<()>,
}

/// What a test takes.
#[derive(Clone, Copy)]
enum Needs {
    /// Nothing but the checkout.
    Checkout,
    /// Root, for namespaces and eBPF.
    Root,
    /// Root and a lot of time.
    RootAndTime,
    /// The same, for what another test does once.
    Repetition,
    /// Root, chromium and its driver, and a lot of time.
    Browser,
    /// Root, a kernel that mounts FAT, and a lot of time.
    Fat,
    /// Root, and the older program of iptables.
    LegacyIptables,
    /// systemd's judge of units; none need run.
    Units,
    /// Root and a booted Debian 13.
    Container,
    /// Root, a booted Debian 13, and the Debian packages for it.
    Installed,
    /// Root, a booted Debian 13, and the program of K3s itself.
    RealK3s,
    /// The same, and control groups in which it can be a node.
    RealNode,
    /// Root, and a Home Assistant made for tests.
    HomeAssistant,
    /// The Debian packages.
    Debs,
    /// Root, the Debian packages, and Debian roots to install them in.
    Packages,
}

impl Needs {
    /// Why the test cannot run here and now.
    fn missing(self) -> Option<String> {
        let rootless = || (!nix::unistd::geteuid().is_root()).then(|| "needs root".to_owned());
        let hasty = || std::env::var_os("BRAMBLE_FAST").map(|_| "slow, left out by --fast".to_owned());
        let changing = || std::env::var_os("BRAMBLE_CHANGE").map(|_| "left to cargo xtask test".to_owned());
        match self {
            Self::Checkout => None,
            Self::Root => rootless(),
            Self::RootAndTime => rootless().or_else(hasty),
            Self::Repetition => rootless().or_else(hasty).or_else(changing),
            Self::Fat => rootless().or_else(hasty).or_else(converge::no_fat),
            Self::LegacyIptables => rootless().or_else(converge::no_legacy_iptables),
            Self::Units => package::no_judge(),
            Self::Debs => package::none(),
            Self::Packages => rootless().or_else(hasty).or_else(package::missing),
            Self::Container => machine::lacks("debian13"),
            Self::Installed => {
                machine::lacks("debian13").or_else(|| package::packages().err().map(|why| why.to_string()))
            }
            Self::RealK3s => machine::lacks("debian13").or_else(join::no_real_k3s),
            Self::RealNode => machine::lacks("debian13").or_else(join::no_real_node),
            Self::HomeAssistant => rootless().or_else(home::no_home_assistant),
            Self::Browser => rootless().or_else(hasty).or_else(|| testbed::browser::available().err()),
        }
    }
}

/// Names tests after their functions.
macro_rules! tests {
    ($module:ident, $($needs:ident $name:ident),+ $(,)?) => {
        &[$(Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            needs: Needs::$needs,
            run: $module::$name,
        }),+]
    };
}

const TESTS: &[&[Test]] = &[
    tests![
        tidy,
        Checkout modules_import_only_what_the_house_allows,
        Checkout every_row_of_a_table_is_its_files_name,
        Checkout every_file_says_what_it_is,
        Checkout every_path_in_the_architecture_exists,
        Checkout every_setting_in_the_documents_is_one,
        Checkout nobodys_home_stands_in_the_sources,
    ],
    tests![
        bed,
        Root a_bed_leaves_nothing_behind,
        Root loss_hits_only_its_direction_and_counts_to_the_packet,
        Root delay_holds_every_packet_and_changes_none,
        Root a_cut_node_is_cut_until_it_is_healed,
        Root a_killed_bed_leaves_nothing_behind,
    ],
    tests![
        kubernetes,
        Checkout the_kubelets_certificate_reads_its_node_and_a_foreign_one_does_not,
        RootAndTime kubectl_describe_node_tells_what_the_agent_knows_where_its_owner_wants_that,
    ],
    tests![
        mesh,
        Root three_nodes_find_each_other_and_the_kernel_stamps_their_round_trips,
        Root who_watches_sees_new_numbers_every_second,
        Root loss_is_named_with_its_direction_and_forgotten_when_it_is_over,
        Root delay_is_named_with_its_direction_and_forgotten_when_it_is_over,
        Root a_cut_node_is_one_alert_and_not_one_per_link,
        Root nodes_that_go_together_are_one_alert_each,
        Root a_node_that_nobody_hears_and_one_that_hears_nobody_are_one_alert_each,
        Root a_dead_link_is_named_by_everybody_and_hit_to_the_packet,
        Root a_node_that_sees_flooded_probes_does_not_count_them,
        Root what_a_person_reads_names_the_pair_and_the_direction,
        Repetition loss_is_named_ten_times_out_of_ten,
        Repetition a_dead_link_is_named_ten_times_out_of_ten,
        Repetition delay_is_named_ten_times_out_of_ten,
        Repetition a_cut_is_named_ten_times_out_of_ten,
    ],
    tests![
        node,
        Root a_dead_node_is_offline_by_its_last_will_and_gone_for_its_peers,
        Root a_killed_companion_is_missed_and_its_restart_heals_with_tcx,
        Root a_killed_companion_leaves_no_second_filter_with_tc,
        Root a_restart_of_the_agent_makes_no_news_of_what_stays_so,
        Root reports_keep_their_interval_with_a_companion_and_without,
        Root a_restarted_agent_makes_no_loss_invisible,
        Root programs_that_others_hide_packets_from_are_attached_again_or_given_up,
        Root a_node_without_the_kernels_stamps_says_so_and_still_measures,
        Root a_companion_without_its_capabilities_names_them_and_still_measures,
        Root a_companion_whose_port_is_taken_is_one_alert_with_its_reason,
        Root a_companion_talks_to_nobody_else_and_is_not_disturbed,
        Root dropped_packets_are_counted_and_their_reason_is_named,
        Root why_two_nodes_cannot_probe_each_other_is_told_as_the_cause,
        Root with_the_shipped_interval_the_page_is_whole_and_faults_are_named_in_time,
        Root two_nodes_of_one_name_both_say_so_until_one_is_gone,
        Root without_the_broker_everybody_goes_on_and_comes_back_by_themselves,
        Root stopping_is_orderly_and_in_time,
    ],
    tests![
        mqtt,
        Root tls_is_agreed_on_or_refused_with_the_exact_cause_and_the_next_step,
        RootAndTime renewed_certificates_are_used_without_a_restart_and_wrong_ones_are_told,
        Root what_the_shipped_access_list_refuses_is_named_and_nothing_of_ours_is,
        Root two_clients_of_one_id_do_not_fight_and_say_so,
        Root a_broker_that_breaks_the_protocol_is_named_and_left_and_tried_again,
        Root a_broker_that_drops_in_the_middle_of_its_handshake_is_named_and_tried_again,
        Root an_agent_with_a_narrow_broker_says_what_fits_and_tells_its_owner_the_rest,
        RootAndTime a_link_that_dies_silently_is_given_up_within_its_limit,
        Root a_broker_with_narrow_limits_gets_what_fits_and_the_rest_is_named,
        Root what_a_broker_has_learned_is_used_at_the_next_connection,
        Root a_list_that_lets_nobody_read_or_empty_anything_is_told,
        Root no_change_is_lost_when_broker_and_agent_are_killed_again_and_again,
        Root what_happened_before_a_loss_of_power_is_told_after_it,
        Root a_reload_without_the_password_is_told_and_keeps_the_old_configuration,
        Checkout the_password_that_systemd_hands_over_is_read_also_where_its_file_is_named,
        Checkout an_aggregator_whose_new_address_is_taken_keeps_the_old_one,
        RootAndTime with_a_broker_that_retains_nothing_availability_follows_each_announcement,
        RootAndTime a_restart_is_not_seen_and_an_end_is_after_the_wills_delay,
    ],
    tests![
        drift,
        Root a_setting_that_is_undone_is_named_at_once_and_forgotten_when_it_is_right,
        Root a_setting_of_the_whole_machine_is_named_at_once_with_and_without_a_companion,
        Root who_undid_a_setting_is_named,
        Root a_lost_default_route_is_named_at_once_and_forgotten_when_it_is_back,
        Root a_lost_rule_is_named_at_once_and_forgotten_when_it_is_back,
        Root a_lost_route_is_named_at_once_and_forgotten_when_it_is_back,
        Root what_was_undone_while_the_agent_did_not_run_is_named_when_it_starts,
    ],
    tests![
        home,
        Root everything_that_is_said_agrees_with_its_schema,
        Root every_entity_is_one_that_home_assistant_takes,
        Checkout every_probe_on_every_tree_makes_entities_that_home_assistant_takes,
        Checkout the_shipped_files_for_home_assistant_are_yaml,
        HomeAssistant the_given_home_assistant_shows_what_is_announced_and_nothing_of_who_left,
        Root requests_are_answered_and_only_what_the_owner_listed_is_done,
        Root a_restart_that_others_need_this_node_for_is_refused_and_counts_as_asked,
        Root identify_is_handed_to_systemd_and_lets_the_light_blink,
        Root what_is_said_expires_as_documented,
        Root when_home_assistant_starts_everything_is_said_again_a_little_later,
        Root a_node_that_is_gone_is_forgotten_by_the_aggregators_word,
        Root a_cluster_that_nobody_speaks_for_is_taken_off_the_broker,
        Root another_name_takes_the_entities_along_and_leaves_nothing_behind,
        Root a_name_that_was_left_is_emptied_although_the_agent_was_killed_over_it,
        Root an_agent_that_may_not_speak_yet_sees_and_answers,
        Root a_copied_card_gets_an_id_of_its_own_and_harms_nothing_of_the_originals,
        Repetition a_hundred_rounds_of_coming_and_being_forgotten_leave_nothing,
    ],
    tests![
        fit,
        Root trying_leaves_no_module_link_namespace_or_table_behind,
        Root what_was_tried_agrees_with_ip_and_nft,
        Root without_rights_the_kernels_files_speak_and_nothing_is_called_tried,
    ],
    tests![
        converge,
        Root the_laws_hold_on_every_tree,
        RootAndTime a_run_that_is_killed_at_any_step_is_healed_by_the_next,
        RootAndTime a_revert_that_is_killed_at_any_step_is_brought_to_its_end,
        Fat on_fat_what_is_killed_at_any_step_is_healed,
        Root a_kernel_update_of_debians_keeps_what_was_applied_and_loses_what_was_reverted,
        Root what_a_file_has_besides_its_content_stays_and_comes_back,
        Root a_full_disk_stops_it_and_loses_nothing,
        Fat a_full_boot_partition_stops_it_and_loses_nothing,
        Root what_cannot_be_written_is_named_and_what_was_done_goes_back,
        Root without_rights_it_says_so_and_changes_nothing,
        Root a_second_run_names_the_first,
        Root a_file_that_somebody_else_changed_stays_and_is_shown,
        Root what_a_later_receipt_changed_is_undone_after_it,
        Root what_is_misspelt_is_refused_and_nothing_is_undone,
        Root of_a_tree_that_tells_little_all_is_not_called_well,
        Root what_others_put_into_a_directory_of_ours_stays,
        Root odd_files_are_edited_as_documented_or_left_to_a_person,
        Root a_link_to_nothing_is_left_to_a_person,
        Root a_file_with_two_names_stops_it_with_the_cause,
        Root a_drop_in_of_somebody_else_that_overrules_ours_is_told,
        Root what_a_tree_cannot_do_is_left_to_its_boot_or_to_its_machine,
        Root settings_of_a_running_kernel_are_set_and_put_back,
        Root settings_of_a_running_kernel_come_back_after_a_kill_at_any_step,
        Root a_setting_of_a_vlan_is_set_kept_and_put_back,
        Root a_lost_ipv6_route_is_told_where_the_cluster_has_ipv6,
        LegacyIptables rules_of_legacy_iptables_are_seen,
    ],
    tests![
        hostile,
        Root every_lie_is_counted_by_its_kind_and_changes_nothing,
        Root agents_count_the_lies_about_their_peers,
    ],
    tests![
        demo,
        Root a_fault_in_the_demo_is_told_as_one_json_object,
        Root ctrl_c_ends_the_demo_in_order_and_leaves_nothing,
        Root a_killed_demo_leaves_nothing,
        Root a_demo_of_which_every_process_is_killed_leaves_nothing,
    ],
    tests![
        doctor,
        Root a_good_server_is_good_by_one_certificate_and_by_several,
        Root each_end_of_the_way_to_a_server_has_its_own_name,
        Root certificates_are_judged_as_k3s_judges_them,
        Root a_token_that_does_not_fit_is_named_by_what_is_wrong_with_it,
        Root a_cluster_that_is_another_is_named_and_looking_at_it_changes_nothing_there,
        Container a_name_that_another_node_has_stops_a_join,
    ],
    tests![
        join,
        Container the_stand_in_is_to_a_unit_what_k3s_is,
        Container the_stand_in_tells_troubles_as_k3s_does,
        Checkout every_cause_of_the_doctor_is_shown_by_a_test,
        Container what_stands_in_k3s_way_on_the_node_is_named_before_a_join,
        Container a_url_that_is_none_is_refused_with_what_is_wanted,
        Container a_fresh_node_joins_until_it_is_ready_and_leaves_as_it_was,
        Container the_token_is_nowhere_where_others_look_and_status_tells_of_k3s,
        Container a_join_that_ends_otherwise_has_one_cause_and_one_next_step,
        Container what_is_written_wrong_ends_a_join_and_is_not_tried_again,
        Container the_cause_of_a_join_is_past_once_k3s_was_well,
        Container a_token_that_was_corrected_reaches_a_k3s_that_still_asks_by_the_old_one,
        Container a_joined_node_is_left_as_its_owner_and_its_upgrades_have_it,
        Container a_join_killed_at_any_step_is_healed_or_undone_by_the_next_command,
        Container a_reboot_in_the_middle_of_a_join_is_healed,
        Installed an_installed_node_joins_by_itself_over_a_reboot_and_leaves_as_it_was,
        Container a_first_server_begins_a_cluster_and_another_one_joins_it,
        Container a_server_waits_while_another_one_joins,
        Container the_stand_in_speaks_as_k3s_does,
        RealK3s the_real_server_speaks_as_the_stand_in_and_the_doctor_finds_it_good,
        RealNode the_real_k3s_becomes_a_node_and_leaves,
    ],
    tests![
        leave,
        Container a_node_that_leaves_is_as_it_was_before_it_joined,
        Container pods_are_moved_as_their_budgets_allow,
        Container the_owners_disks_stay_where_they_are_without_k3s_data,
        Container what_k3s_and_its_upgrades_have_put_here_since_goes_too,
        Container what_k3s_keeps_stays_where_its_owner_wants_it_and_goes_with_the_next_leave,
        Container the_scripts_of_a_join_stop_k3s_and_take_it_away,
        Container a_bundle_of_a_node_that_has_joined_tells_how_and_no_secret,
        Container a_node_without_network_leaves_and_says_what_remains,
        Container a_leave_that_is_killed_is_brought_to_its_end_by_the_next,
        Container a_server_takes_its_member_of_etcd_along,
        Container a_server_without_which_etcd_stops_stays_unless_it_is_forced,
        Container the_only_server_stays_while_others_need_it,
        Container what_k3s_installer_has_put_here_goes_by_its_own_script,
    ],
    tests![
        package,
        Units units_are_understood_and_as_hard_as_they_are_meant_to_be,
        Packages a_root_without_systemd_takes_the_packages_and_forgets_them,
        Debs the_packages_hold_all_that_is_promised_of_them,
        Checkout the_catalogue_explains_what_the_journal_refers_to,
        Packages apt_installs_from_the_signed_repository_and_from_no_other,
    ],
    tests![
        page,
        Browser every_pair_has_a_cell_and_a_cut_link_turns_red_by_itself,
        Browser a_node_that_is_cut_off_is_one_alert_and_its_cells_turn_red,
        Browser who_prefers_the_dark_gets_light_words_on_dark_ground,
        Browser what_nodes_say_is_shown_and_never_run,
    ],
];

/// How long nodes may take to find each other, or to get over something.
const SETTLING: Duration = Duration::from_secs(15);

/// The checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where cargo put the programs that it built beside this test.
fn programs() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.ancestors().nth(2).context("the test lies in cargo's target folder")?.to_owned())
}

/// Three nodes with everything running.
fn bed() -> Result<Lab> {
    Lab::start(&Binaries::within(&programs()?)?, 3, 0)
}

/// Adds the end of every program's log to a failure.
fn logged<T>(lab: &Lab, test: impl FnOnce() -> Result<T>) -> Result<T> {
    test().map_err(|error| anyhow!("{error:#}\n{}", lab.logs()))
}

fn main() -> ExitCode {
    // The tests of `converge` start this program as bramble, with steps at which it can be killed.
    if std::env::args_os().next().is_some_and(|name| name == "bramble") {
        return bramble::cli::main();
    }
    let mut arguments = Arguments::from_args();
    // Beds share two cores and the kernel's statistics.
    arguments.test_threads = Some(1);
    let trials = TESTS.iter().copied().flatten().map(|test| {
        let run = test.run;
        let trial = Trial::test(test.name, move || run().map_err(|error| Failed::from(format!("{error:#}"))));
        match test.needs.missing() {
            Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
            None => trial,
        }
    });
    libtest_mimic::run(&arguments, trials.chain(machine::trials()).chain(installed::trials()).collect())
        .exit_code()
}
