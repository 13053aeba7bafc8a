//! A node whose programs are killed, restarted, or cannot do all: what it and the others say.

use std::{
    fs,
    net::UdpSocket,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use testbed::{
    broker::log_to,
    fault::Fault,
    lab::{Binaries, Lab, Node, Settings},
    mesh::{Ear, raised, settle},
    namespace::run_in,
    naming::{self, LIMIT},
    process::Process,
    watch::until,
};
use wire::{
    report::{EventType, NodeEvent, OFFLINE, Stamps, Status, WayState},
    topic::NodeTopic,
};

use crate::{SETTLING, bed, logged, programs};

/// A node whose programs were killed, so that the kernel closes their connections: its last will and its peers both say so, each in time.
pub(crate) fn a_dead_node_is_offline_by_its_last_will_and_gone_for_its_peers() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let node = lab.node_mut("n2")?;
    let died = Instant::now();
    node.agent().context("the agent runs")?.kill();
    node.companion().context("the companion runs")?.kill();
    logged(&lab, || {
        let heard = until(LIMIT, "the broker says that n2 is offline", || {
            Ok(ear.newest("n2", NodeTopic::Availability)?.filter(|heard| heard.payload == OFFLINE.as_bytes()))
        })?;
        ensure!(heard.at.duration_since(died) <= LIMIT, "after {:?}", heard.at.duration_since(died));
        let left = LIMIT.saturating_sub(died.elapsed());
        until(left, "its peers say that nothing of it arrives", || {
            let all = ["n1", "n3"].into_iter().all(|peer| {
                let row = ear.row(peer);
                row.is_some_and(|row| {
                    row.peers
                        .iter()
                        .any(|(name, report)| name.as_str() == "n2" && report.incoming.state == WayState::Cut)
                })
            });
            Ok(all.then_some(()))
        })?;
        until(SETTLING, "there is one alert, that n2 is gone", || {
            let alerts: Vec<_> =
                ear.alerts().into_iter().map(|(alert, _)| (alert.kind, alert.subject)).collect();
            Ok((alerts == [("node-gone".to_owned(), "n2".to_owned())]).then_some(()))
        })
    })
}

pub(crate) fn a_killed_companion_is_missed_and_its_restart_heals_with_tcx() -> Result<()> {
    kill_and_restart_companion("tcx")
}

pub(crate) fn a_killed_companion_leaves_no_second_filter_with_tc() -> Result<()> {
    kill_and_restart_companion("tc")
}

/// What stays raised is told with its first date, and not as something that happened; what ends meanwhile is told as over.
pub(crate) fn a_restart_of_the_agent_makes_no_news_of_what_stays_so() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    let listener = lab.broker().listen("bramble/demo/node/n1/event")?;
    settle(&lab, &ear, SETTLING)?;
    let seen = || -> Option<(Status, jiff::Timestamp)> {
        let state = ear.state("n1")?;
        state.conditions.iter().find(|c| c.id == "companion").map(|c| (c.status, c.since))
    };
    let told = || -> Option<(NodeEvent, Instant)> {
        let heard = listener.newest("bramble/demo/node/n1/event")?;
        let event: NodeEvent = serde_json::from_slice(&heard.payload).ok()?;
        (event.condition.id == "companion").then_some((event, heard.at))
    };
    lab.node_mut("n1")?.companion().context("the companion runs")?.kill();
    let since = logged(&lab, || {
        until(SETTLING, "n1 misses its companion", || {
            Ok(told().and(seen()).filter(|(status, _)| *status == Status::Raised).map(|(_, since)| since))
        })
    })?;
    // The report after the one that tells of it.
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..2 {
        let restarted = Instant::now();
        lab.node_mut("n1")?.start_agent()?;
        logged(&lab, || {
            until(SETTLING, "n1 misses it again", || {
                let heard = ear.newest("n1", NodeTopic::State)?.context("n1 reported")?;
                Ok((heard.at > restarted + Duration::from_secs(3)).then_some(()))
            })?;
            ensure!(seen() == Some((Status::Raised, since)), "{:?} and not since {since}", seen());
            let (event, at) = told().with_context(|| {
                let newest = listener.newest("bramble/demo/node/n1/event");
                format!("{:?}", newest.map(|heard| String::from_utf8_lossy(&heard.payload).into_owned()))
            })?;
            ensure!(at < restarted, "it is told again: {event:?}");
            Ok(())
        })?;
    }
    // It is back before the agent is.
    let restarted = Instant::now();
    lab.node_mut("n1")?.agent().context("the agent runs")?.kill();
    lab.node_mut("n1")?.start_companion()?;
    lab.node_mut("n1")?.start_agent()?;
    logged(&lab, || {
        until(SETTLING, "its end is told", || {
            Ok(told().filter(|(event, at)| *at > restarted && event.event_type == EventType::Cleared))
        })
    })
    .map(drop)
}

fn kill_and_restart_companion(attach: &'static str) -> Result<()> {
    let mut lab = bed()?;
    lab.node("n2")?.configure(lab.broker(), Settings { attach, ..Settings::default() })?;
    lab.node_mut("n2")?.start_companion()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    for _ in 0..3 {
        lab.node_mut("n2")?.companion().context("the companion runs")?.kill();
        logged(&lab, || {
            until(SETTLING, "n2 misses its companion", || {
                let state = ear.state("n2").context("n2 reports")?;
                Ok(raised(&state).iter().any(|(id, _)| id == "companion").then_some(()))
            })
        })?;
        lab.node_mut("n2")?.start_companion()?;
        logged(&lab, || {
            until(SETTLING, "n2 has its companion back", || {
                let state = ear.state("n2").context("n2 reports")?;
                let has =
                    state.tier.stamps == Stamps::Kernel && state.tier.attached.as_deref() == Some(attach);
                Ok((has && raised(&state).is_empty()).then_some(()))
            })?;
            let pairs = settle(&lab, &ear, SETTLING)?;
            ensure!(pairs.iter().all(|pair| pair.stamps == Stamps::Kernel), "{pairs:?}");
            Ok(())
        })?;
        for direction in ["ingress", "egress"] {
            let count = attached(lab.node("n2")?, attach, direction)?;
            ensure!(count == 1, "{count} programs of ours at {direction} of n2");
        }
    }
    let node = lab.node_mut("n2")?;
    let status = node.companion().context("the companion runs")?.stop(Duration::from_secs(5))?;
    ensure!(status.success(), "the companion ended with {status}");
    for direction in ["ingress", "egress"] {
        let count = attached(lab.node("n2")?, attach, direction)?;
        ensure!(count == 0, "{count} programs of ours stay at {direction} of n2");
    }
    Ok(())
}

/// How many programs of ours are attached to a node's uplink.
fn attached(node: &Node, attach: &str, direction: &str) -> Result<usize> {
    match attach {
        "tc" => {
            let list = run_in(node.namespace(), "tc", &["filter", "show", "dev", "eth0", direction])?;
            Ok(list.lines().filter(|line| line.contains("bramble_")).count())
        }
        "tcx" => node.namespace().within(|| {
            let at = if direction == "ingress" { TcAttachType::Ingress } else { TcAttachType::Egress };
            let (_, programs) = SchedClassifier::query_tcx("eth0", at)?;
            Ok(programs.iter().filter(|p| p.name_as_str().is_some_and(|n| n.starts_with("bramble_"))).count())
        }),
        other => bail!("no way to attach is called {other}"),
    }
}

/// The companion goes on: whom it probes and how it numbers must go on as well, whenever the broker is there again.
pub(crate) fn a_restarted_agent_makes_no_loss_invisible() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    drop(ear);
    // Numbers that began anew would be below those of before for as long as these ran.
    std::thread::sleep(LIMIT * 5);
    lab.broker_goes_away();
    lab.node_mut("n2")?.start_agent()?;
    logged(&lab, || {
        until(SETTLING, "n2's new agent sees its peers without a broker", || {
            Ok(sees_two_fine_peers(lab.node("n2")?))
        })
    })?;
    lab.broker_comes_back()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING * 3)?;
        // An empty broker tells the new agent of one peer after the other, and who is new is known after three periods.
        std::thread::sleep(LIMIT * 2);
        settle(&lab, &ear, SETTLING)?;
        until(SETTLING, "the alerts of before are over", || Ok(ear.alerts().is_empty().then_some(())))?;
        let fault = Fault::inject("loss:n2-n3".parse()?, &lab)?;
        let namings = naming::watch(&lab, &ear, fault.spec(), Instant::now())?;
        ensure!(namings.are_right(), "{namings:?}");
        Ok(())
    })
}

/// Whether a node says that it hears two peers, both fine.
fn sees_two_fine_peers(node: &Node) -> Option<()> {
    let status = node.status().ok()?;
    let peers = status["mesh"]["peers"].as_object()?;
    let fine = peers.values().filter(|peer| peer["in"]["state"] == "fine" && peer["out"]["state"] == "fine");
    (fine.count() == 2).then_some(())
}

/// On tc a program that says "OK" is the end of the way for all behind it, as Cilium's are; and any filter can be taken away.
pub(crate) fn programs_that_others_hide_packets_from_are_attached_again_or_given_up() -> Result<()> {
    let mut lab = bed()?;
    lab.node_mut("n2")?.companion().context("the companion runs")?.kill();
    let node = lab.node("n2")?;
    run_in(node.namespace(), "tc", &["qdisc", "add", "dev", "eth0", "clsact"])?;
    accept_all(node, "1")?;
    node.configure(lab.broker(), Settings { attach: "tc", ..Settings::default() })?;
    lab.node_mut("n2")?.start_companion()?;
    let node = lab.node("n2")?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        let tier = || -> Result<_> {
            let state = ear.state("n2").context("n2 reports")?;
            let alarms = raised(&state).into_iter().map(|(id, _)| id);
            let false_ones: Vec<_> =
                alarms.filter(|id| id == "isolated" || id.starts_with("path-")).collect();
            ensure!(false_ones.is_empty(), "{false_ones:?} on a healthy network");
            Ok(state.tier)
        };
        let pairs = settle(&lab, &ear, SETTLING)?;
        ensure!(pairs.iter().all(|pair| pair.stamps == Stamps::Kernel), "{pairs:?}");
        ensure!(tier()?.attached.as_deref() == Some("tc"), "{:?}", tier()?);

        run_in(node.namespace(), "tc", &["qdisc", "del", "dev", "eth0", "clsact"])?;
        until(SETTLING, "the programs are attached again", || {
            tier()?;
            let both = attached(node, "tc", "ingress")? == 1 && attached(node, "tc", "egress")? == 1;
            Ok(both.then_some(()))
        })?;
        let end = Instant::now() + LIMIT * 2;
        while Instant::now() < end {
            ensure!(tier()?.stamps == Stamps::Kernel, "{:?}", tier()?);
            std::thread::sleep(Duration::from_millis(200));
        }
        settle(&lab, &ear, SETTLING)?;

        accept_all(node, "2")?;
        until(SETTLING, "n2 stamps in user space and says who hides the packets", || {
            let tier = tier()?;
            let told = tier.stamps == Stamps::User && tier.why.contains("does not see the probes");
            Ok(told.then_some(()))
        })?;
        let end = Instant::now() + LIMIT * 2;
        while Instant::now() < end {
            tier()?;
            std::thread::sleep(Duration::from_millis(200));
        }
        settle(&lab, &ear, SETTLING)?;
        Ok(())
    })
}

/// A filter with the lowest priority that lets every packet through and ends its way, both ways.
fn accept_all(node: &Node, handle: &str) -> Result<()> {
    for direction in ["ingress", "egress"] {
        let filter = ["filter", "add", "dev", "eth0", direction, "prio", "1", "handle", handle];
        let program = ["bpf", "direct-action", "bytecode", "1,6 0 0 0"];
        run_in(node.namespace(), "tc", &[&filter[..], &program].concat())?;
    }
    Ok(())
}

/// As in a container or under a unit that somebody narrowed: root by number only.
pub(crate) fn a_companion_without_its_capabilities_names_them_and_still_measures() -> Result<()> {
    let mut lab = bed()?;
    let node = lab.node_mut("n2")?;
    node.companion().context("the companion runs")?.kill();
    let mut command = node.namespace().command("setpriv");
    command.args(["--bounding-set", "-bpf,-perfmon,-sys_admin,-net_admin", "--"]).arg(node.program());
    command.args(["probe", "--config", "/run/bed/bramble.toml"]);
    log_to(&mut command, node.namespace(), "probe.log")?;
    let _companion = Process::spawn("a companion without capabilities", command)?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        let why = until(SETTLING, "n2 stamps in user space", || {
            let tier = ear.state("n2").map(|state| state.tier);
            Ok(tier.filter(|tier| tier.stamps == Stamps::User).map(|tier| tier.why))
        })?;
        ensure!(why.ends_with("bramble probe lacks CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"), "{why}");
        until(SETTLING, "n2 says which of its readings that costs", || {
            let state = ear.state("n2").context("n2 reports")?;
            let said = |id, status| {
                let mut conditions = state.conditions.iter();
                conditions.any(|c| c.id == id && c.status == status && c.evidence.contains("lacks CAP_BPF"))
            };
            let all = said("user-space-stamps", Status::Raised) && said("drop-reasons", Status::Unknown);
            Ok(all.then_some(()))
        })?;
        settle(&lab, &ear, SETTLING)?;
        Ok(())
    })
}

pub(crate) fn a_companion_whose_port_is_taken_is_one_alert_with_its_reason() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let node = lab.node_mut("n2")?;
    node.companion().context("the companion runs")?.kill();
    let taken = node.namespace().within(|| Ok(UdpSocket::bind("0.0.0.0:9473")?))?;
    node.start_companion()?;
    logged(&lab, || {
        let began = Instant::now();
        let mut is_named = false;
        // For a moment nothing answers at all, which is over a few seconds later; its links are never blamed.
        while began.elapsed() < LIMIT * 4 {
            for (alert, _) in ear.alerts() {
                let is_new = || alert.kind == "companion" && began.elapsed() < LIMIT * 3;
                ensure!(alert.subject == "n2" && (alert.kind == "probing" || is_new()), "{alert:?}");
                let why = alert.evidence.iter().any(|line| line.contains("UDP port 9473 is taken"));
                is_named |= alert.kind == "probing" && why;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(is_named, "{:?}", ear.alerts());
        drop(taken);
        until(SETTLING * 2, "the alert is over and all links are fine", || {
            Ok((ear.alerts().is_empty() && settle(&lab, &ear, Duration::ZERO).is_ok()).then_some(()))
        })
    })
}

pub(crate) fn a_companion_talks_to_nobody_else_and_is_not_disturbed() -> Result<()> {
    const SOCKET: &str = "/run/bramble/probe.sock";
    const TALK: &str = "$SIG{PIPE} = 'IGNORE'; my ($path, $text) = @ARGV;
        my $socket = IO::Socket::UNIX->new(Peer => $path) or die \"connecting: $!\";
        $socket->print($text); my $line = <$socket>; print $line // 'nothing';";
    let lab = bed()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING)?;
        let node = lab.node("n2")?;
        for path in ["/run/bramble", SOCKET] {
            // So that only the companion itself stands in the way.
            fs::set_permissions(node.namespace().path(path), fs::Permissions::from_mode(0o777))?;
        }
        let talk = ["perl", "-MIO::Socket::UNIX", "-e", TALK, SOCKET];
        let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
        let empty = "{\"peers\":{}}\n";
        let heard = run_in(node.namespace(), "setpriv", &[&nobody[..], &talk, &[empty]].concat())?;
        ensure!(heard == "nothing", "a stranger was told: {heard}");
        ensure!(node.log().contains("the other end belongs to user 65534"), "{}", node.log());
        ensure!(!node.log().contains("ended the conversation"), "{}", node.log());
        let before = ear.row("n2").context("n2 reports")?;
        until(SETTLING, "n2 still probes its two peers and tells its agent", || {
            let row = ear.row("n2").context("n2 reports")?;
            let on = row.peers.iter().filter(|(name, now)| now.sent > before.peers[*name].sent + 10);
            Ok((on.count() == 2).then_some(()))
        })?;
        ensure!(!node.log().contains("ended the conversation"), "{}", node.log());
        // Somebody who is trusted is told, unless the agent, which is then the newest, comes back before the period is over.
        until(SETTLING, "root is told", || {
            let heard = run_in(node.namespace(), "setpriv", &[&["--"], &talk[..], &[""]].concat())?;
            Ok(heard.contains("\"period_ms\":1000").then_some(()))
        })
    })
}

pub(crate) fn dropped_packets_are_counted_and_their_reason_is_named() -> Result<()> {
    const PACKETS: u16 = 20_000;
    let lab = bed()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        let dropped = || ear.state("n1")?.readings.get("dropped-packets")?.value;
        let before = until(SETTLING, "n1 counts", || Ok(dropped()))?;
        lab.node("n1")?.namespace().within(|| {
            let closed = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            for _ in 0..PACKETS {
                socket.send_to(b"nobody listens", closed)?;
            }
            Ok(())
        })?;
        until(SETTLING * 2, "n1 counts them", || {
            Ok(dropped().filter(|now| *now >= before + f64::from(PACKETS)))
        })?;
        // Counts are read less often than reports are made: all those between tell the same.
        let end = Instant::now() + LIMIT;
        while Instant::now() < end {
            let state = ear.state("n1").context("n1 reports")?;
            let said =
                state.conditions.iter().find(|c| c.id == "drop-reasons").context("it speaks of drops")?;
            ensure!(said.evidence.contains("NO_SOCKET"), "{}", said.evidence);
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })
}

pub(crate) fn why_two_nodes_cannot_probe_each_other_is_told_as_the_cause() -> Result<()> {
    let mut lab = Lab::network(&Binaries::within(&programs()?)?, 2, 0)?;
    let path = lab.node("n2")?.namespace().path("/run/bed/bramble.toml");
    let own = fs::read_to_string(&path)?;
    fs::write(&path, own.replace("[probe]\n", "[probe]\nport = 9500\n"))?;
    lab.start_programs()?;
    // As a node says it that runs what came before layouts were told; nobody is there, as far as probes go.
    let older = r#"{"v":1,"ts":"2026-11-23T06:00:00Z","cluster":"demo","node":"n9","id":"00c0ffee","version":"0.0.9",
        "address":"198.18.77.99","probe_port":9473,"model":null,"kernel":null,"os":null}"#;
    lab.broker().publish("bramble/demo/node/n9/info", older.as_bytes(), true)?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        let layout = format!(
            "its bramble 0.0.9 and that of this node, {}, do not understand each other's probes",
            env!("CARGO_PKG_VERSION")
        );
        let port = |its, own| format!("its probe.port is {its}, and that of this node {own}");
        for (node, subject, cause) in [
            ("n1", "n2 -> n1", port(9500, 9473)),
            ("n2", "n1 -> n2", port(9473, 9500)),
            ("n1", "n9 -> n1", layout),
        ] {
            until(SETTLING, "the cause is told", || {
                let Some(state) = ear.state(node) else { return Ok(None) };
                let told = state.conditions.iter().any(|c| {
                    c.id == "path-cut" && c.subject.as_deref() == Some(subject) && c.evidence.contains(&cause)
                });
                Ok(told.then_some(()))
            })
            .with_context(|| format!("{:?}", ear.state(node)))?;
        }
        Ok(())
    })
}

pub(crate) fn a_node_without_the_kernels_stamps_says_so_and_still_measures() -> Result<()> {
    let mut lab = bed()?;
    lab.node("n2")?.configure(lab.broker(), Settings { stamps: "user", ..Settings::default() })?;
    lab.node_mut("n2")?.start_companion()?;
    logged(&lab, || {
        let ear = Ear::open(&lab)?;
        until(SETTLING, "n2 stamps in user space and says why", || {
            let tier = ear.state("n2").map(|state| state.tier);
            Ok(tier.filter(|tier| tier.stamps == Stamps::User && !tier.why.is_empty()))
        })?;
        let pairs = until(SETTLING, "all pairs are fine and stamped by whom they can be", || {
            let Ok(pairs) = settle(&lab, &ear, Duration::ZERO) else { return Ok(None) };
            let right = pairs.iter().all(|pair| {
                let wanted = match (pair.from.as_str(), pair.to.as_str()) {
                    ("n2", _) | (_, "n2") => Stamps::Mixed,
                    _ => Stamps::Kernel,
                };
                pair.stamps == wanted
            });
            Ok(right.then_some(pairs))
        });
        pairs.with_context(|| format!("{:?}", ear.pairs(&lab)))?;
        Ok(())
    })
}

/// As shipped: the bed's other tests let nodes report every second.
pub(crate) fn with_the_shipped_interval_the_page_is_whole_and_faults_are_named_in_time() -> Result<()> {
    let mut lab = Lab::network(&Binaries::within(&programs()?)?, 3, 0)?;
    for node in lab.nodes() {
        node.configure(lab.broker(), Settings { report: "10s", ..Settings::default() })?;
    }
    lab.start_programs()?;
    logged(&lab, || {
        let states = || -> Result<Vec<String>> {
            let cluster = lab.cluster()?;
            let links = cluster["links"].as_array().context("the page has links")?;
            Ok(links.iter().filter_map(|link| Some(link["state"].as_str()?.to_owned())).collect())
        };
        let fine = |states: &[String]| states.len() == 6 && states.iter().all(|state| state == "fine");
        until(SETTLING * 2, "all links are fine", || Ok(fine(&states()?).then_some(())))?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(12) {
            let states = states()?;
            ensure!(fine(&states), "{states:?} after {:?}", began.elapsed());
            std::thread::sleep(Duration::from_millis(200));
        }
        let ear = Ear::open(&lab)?;
        for fault in ["loss:n2-n3", "delay:n3-n1", "loss:n1-n3:100", "cut:n3"] {
            let fault = Fault::inject(fault.parse()?, &lab)?;
            let namings = naming::watch(&lab, &ear, fault.spec(), Instant::now())?;
            ensure!(namings.are_right(), "{namings:?}");
            fault.heal(&lab)?;
            until(SETTLING * 2, "all links are fine again, and the alerts over", || {
                Ok((fine(&states()?) && ear.alerts().is_empty()).then_some(()))
            })?;
        }
        Ok(())
    })
}

/// Reports go with the companion's samples, and come as often whether those come, come more often because somebody watches, or
/// do not come at all.
pub(crate) fn reports_keep_their_interval_with_a_companion_and_without() -> Result<()> {
    const INTERVAL: f64 = 2.0;
    let mut lab = Lab::network(&Binaries::within(&programs()?)?, 1, 0)?;
    lab.node("n1")?.configure(lab.broker(), Settings { report: "2s", ..Settings::default() })?;
    let ear = Ear::open(&lab)?;
    lab.start_programs()?;
    let newest =
        || -> Result<Option<Instant>> { Ok(ear.newest("n1", NodeTopic::State)?.map(|heard| heard.at)) };
    // Seconds between the reports that come while something else is done again and again.
    let gaps = |mut meanwhile: Box<dyn FnMut() -> Result<()> + '_>| -> Result<Vec<f64>> {
        let (began, mut reports, mut last) = (Instant::now(), Vec::new(), newest()?);
        while began.elapsed().as_secs_f64() < 5.0 * INTERVAL {
            let now = newest()?;
            if now != last {
                reports.extend(now);
                last = now;
            }
            meanwhile()?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(reports.windows(2).map(|two| two[1].duration_since(two[0]).as_secs_f64()).collect())
    };
    let are_kept = |gaps: &[f64]| {
        let all: f64 = gaps.iter().sum();
        gaps.iter().all(|gap| *gap <= 1.5 * INTERVAL) && all / gaps.len() as f64 >= 0.8 * INTERVAL
    };
    // What is learned at first is news, and told at once; and within ten seconds of the aggregator's first word everything is said
    // once more.
    std::thread::sleep(Duration::from_secs(12));
    let quiet = gaps(Box::new(|| Ok(())))?;
    ensure!(are_kept(&quiet), "with a companion: {quiet:?}");
    let watched = gaps(Box::new(|| lab.node("n1")?.status().map(drop)))?;
    ensure!(are_kept(&watched), "watched: {watched:?}");
    lab.node_mut("n1")?.companion().context("the companion runs")?.kill();
    until(SETTLING, "n1 misses its companion", || {
        let state = ear.state("n1").context("n1 reported")?;
        Ok(raised(&state).iter().any(|(id, _)| id == "companion").then_some(()))
    })?;
    let alone = gaps(Box::new(|| Ok(())))?;
    ensure!(are_kept(&alone), "without a companion: {alone:?}");
    Ok(())
}

/// A copied card: both say so, and when it is gone the mesh is as it was.
pub(crate) fn two_nodes_of_one_name_both_say_so_until_one_is_gone() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    let path = lab.node("n3")?.namespace().path("/run/bed/bramble.toml");
    let own = fs::read_to_string(&path)?;
    fs::write(&path, own.replace("name = \"n3\"", "name = \"n2\""))?;
    lab.node_mut("n3")?.start_agent()?;
    let says = |node: &Node| -> Result<bool> {
        let Ok(status) = node.status() else { return Ok(false) };
        let conditions = status["state"]["conditions"].as_array().context("a status has conditions")?;
        Ok(conditions.iter().any(|c| c["id"] == "name-taken" && c["status"] == "raised"))
    };
    logged(&lab, || {
        for node in ["n2", "n3"] {
            until(SETTLING, "each of the two says that its name is taken", || {
                Ok(says(lab.node(node)?)?.then_some(()))
            })
            .with_context(|| node.to_owned())?;
        }
        Ok(())
    })?;
    fs::write(&path, own)?;
    lab.node_mut("n3")?.start_agent()?;
    logged(&lab, || {
        until(SETTLING, "nobody says so any more", || {
            Ok((!says(lab.node("n2")?)? && !says(lab.node("n3")?)?).then_some(()))
        })?;
        settle(&lab, &ear, SETTLING)?;
        Ok(())
    })
}

pub(crate) fn without_the_broker_everybody_goes_on_and_comes_back_by_themselves() -> Result<()> {
    let mut lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    drop(ear);
    lab.broker_goes_away();
    logged(&lab, || {
        until(SETTLING, "the page says that the broker is away", || {
            let broker = &lab.cluster()?["broker"];
            Ok((broker["connected"] == false && broker["why"] != "").then_some(()))
        })?;
        for node in lab.nodes() {
            until(SETTLING, "every node says that the broker is away, and still measures", || {
                let status = node.status()?;
                let conditions =
                    status["state"]["conditions"].as_array().context("a status has conditions")?;
                let said = conditions.iter().any(|c| c["id"] == "broker" && c["status"] == "raised");
                let peers = status["mesh"]["peers"].as_object().context("a status has peers")?;
                let fine = peers.values().filter(|peer| peer["in"]["state"] == "fine").count();
                Ok((said && fine == 2).then_some(()))
            })?;
        }
        Ok(())
    })?;
    lab.broker_comes_back()?;
    let casualties = lab.casualties();
    ensure!(casualties.is_empty(), "{casualties:?}");
    logged(&lab, || {
        // The empty broker is told everything again.
        let ear = Ear::open(&lab)?;
        settle(&lab, &ear, SETTLING * 3)?;
        until(SETTLING, "the page is whole again", || {
            let cluster = lab.cluster()?;
            let whole = cluster["broker"]["connected"] == true
                && cluster["nodes"]
                    .as_array()
                    .is_some_and(|nodes| nodes.iter().all(|n| n["state"] == "online"));
            Ok(whole.then_some(()))
        })
    })
}

pub(crate) fn stopping_is_orderly_and_in_time() -> Result<()> {
    let lab: Lab = bed()?;
    let ear = Ear::open(&lab)?;
    settle(&lab, &ear, SETTLING)?;
    drop(ear);
    let complaints = lab.stop();
    ensure!(complaints.is_empty(), "{complaints:?}");
    Ok(())
}
