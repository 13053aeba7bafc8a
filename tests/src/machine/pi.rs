//! A Raspberry Pi 4 that boots from its card: QEMU's model of the board, Debian's kernel, and a stand-in for the firmware.
//!
//! Real: the board's name, the card as `/dev/mmcblk0`, no clock that survives, the reboot through the board's watchdog.
//! Played by the bed: the firmware, which reads `cmdline.txt` off the card before every boot and puts its own arguments
//! in front; it takes the kernel from Debian's package and not off the card. The device tree is Debian's, less what
//! QEMU's model has not got. There is no Ethernet, sensor or radio of a Pi in it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Answer, Gift, Machine, PATIENCE,
    board::NETWORK_CARD,
    card::{self, Card},
    kernel::{self, Flavour, Kernel},
    qemu::Qemu,
    shell::Shell,
    store::{Scratch, Store},
    wait_for_network, wait_until_running,
};
use crate::process::{bound, run};

/// What Raspberry Pi's firmware itself puts in front, and what K3s stumbles over; and what Raspberry Pi's kernel does by
/// itself and Debian's only when told.
const FIRMWARE: &str = "cgroup_disable=memory psi=0";
/// The bed's own, in front of all: a quiet console with the bed's shell on it.
const BED: &str = "console=ttyAMA0,115200 quiet loglevel=1 systemd.show_status=0 bed.shell=ttyAMA0";

/// What the card is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// QEMU's model of the Pi 4.
    Pi4,
    /// QEMU's general machine under the Pi's name. It has no card slot: the card is its disk. Boots in half the time.
    General,
}

/// A running Pi; it is off when dropped.
#[derive(Debug)]
pub struct Pi {
    // Dropped from top to bottom: the machine before its card.
    running: Option<(Qemu, Shell)>,
    card: Card,
    name: &'static str,
    slot: Slot,
    kernel: Kernel,
    initramfs: PathBuf,
    device_tree: PathBuf,
    booted_in: Duration,
    scratch: Scratch,
}

impl Slot {
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Pi4 => &[
                "sdhci_iproc",
                "dwc2",
                "phy_generic",
                "usbnet",
                "cdc_ether",
                "crc32c_generic",
                "ext4",
                "vfat",
                "nls_cp437",
                "nls_ascii",
            ],
            Self::General => &[
                "virtio_pci",
                "virtio_blk",
                "virtio_net",
                "virtio_console",
                "crc32c_generic",
                "ext4",
                "vfat",
                "nls_cp437",
                "nls_ascii",
            ],
        }
    }
}

/// A Pi's parts in the store, the last one made last.
pub(super) fn parts(suite: &str) -> [String; 2] {
    [kernel::part(suite, Flavour::General), card::part(suite)]
}

/// Builds the card.
pub(super) fn build(store: &Store, suite: &str) -> Result<PathBuf> {
    let kernel = kernel::fetch(store, suite, Flavour::General)?;
    card::build(store, suite, &kernel)
}

/// Debian's device tree of the Pi 4, less what QEMU's model has not got; each was found by a boot that hung on it.
fn fit_device_tree(kernel: &Kernel, to: &Path) -> Result<()> {
    std::fs::copy(kernel.device_tree("broadcom/bcm2711-rpi-4-b.dtb"), to)?;
    let edit = |program: &str, before: &[&str], after: &[&str]| {
        let mut command = bound(program);
        command.args(before).arg(to).args(after);
        run(command)
    };
    let set =
        |node: &str, property: &str, value: &str| edit("fdtput", &["-t", "s"], &[node, property, value]);
    // Displays and cameras: reading their registers is a bus error.
    const ABSENT: [&str; 13] = [
        "interrupt-controller@7ef",
        "hdmi@",
        "clock@7ef",
        "i2c@7ef",
        "pixelvalve@",
        "hvs@",
        "vec@",
        "txp@",
        "dsi@",
        "dpi@",
        "csi",
        "avs-monitor",
        // The mini UART, whose interrupt never ends.
        "serial@7e215040",
    ];
    for node in edit("fdtget", &["-l"], &["/soc"])?.lines() {
        if ABSENT.iter().any(|absent| node.starts_with(absent)) {
            set(&format!("/soc/{node}"), "status", "disabled")?;
        }
    }
    for (bus, nodes) in [
        ("", ["gpu"].as_slice()),
        ("/scb", &["usb@7e9c0000", "gpu@7ec00000"]),
        ("/emmc2bus", &["mmc@7e340000"]),
    ] {
        let there = edit("fdtget", &["-l"], &[if bus.is_empty() { "/" } else { bus }])?;
        for node in nodes.iter().filter(|node| there.lines().any(|line| line == **node)) {
            set(&format!("{bus}/{node}"), "status", "disabled")?;
        }
    }
    // The only USB port there is, for the network.
    set("/soc/usb@7e980000", "dr_mode", "host")?;
    // Without Bluetooth the good UART is ttyAMA0.
    edit("fdtput", &["-r"], &["/soc/serial@7e201000/bluetooth"])?;
    set("/chosen", "stdout-path", "serial0:115200n8")?;
    // QEMU's card is where the board has its Wi-Fi.
    let slot = "/soc/mmc@7e300000";
    edit("fdtput", &["-d"], &[slot, "mmc-pwrseq", "non-removable"])?;
    edit("fdtput", &["-r"], &[&format!("{slot}/wifi@1")])?;
    edit("fdtput", &[], &[slot, "broken-cd"])?;
    Ok(())
}

/// What the general machine's own device tree depends on.
const GENERAL_BOARD: [(&str, &str); 4] =
    [("-M", "virt"), ("-cpu", "cortex-a72"), ("-smp", "2"), ("-m", "768")];

/// The general machine's device tree under the name of a Pi, which is all that tells a program what board it is on.
fn rename_general_board(to: &Path) -> Result<()> {
    let mut dump = bound("qemu-system-aarch64");
    for (option, value) in GENERAL_BOARD {
        dump.args([option, value]);
    }
    dump.args(["-nodefaults", "-display", "none", "-M"]).arg(format!("dumpdtb={}", to.display()));
    run(dump)?;
    let mut rename = bound("fdtput");
    rename.args(["-t", "s"]).arg(to).args(["/", "model", "Raspberry Pi 4 Model B Rev 1.5"]);
    run(rename).map(drop)
}

impl Pi {
    /// Puts `gifts` onto a copy of the card and switches on.
    pub(super) fn start(
        store: &Store,
        name: &'static str,
        suite: &str,
        slot: Slot,
        gifts: &[Gift],
    ) -> Result<Self> {
        let image = build(store, suite)?;
        let kernel = kernel::fetch(store, suite, Flavour::General)?;
        let modules = slot.modules();
        let recipe = format!("{} {modules:?} {}", kernel.version(), kernel::INIT);
        let initramfs =
            store.made(&format!("{name}.initramfs"), &recipe, |to| kernel.write_initramfs(modules, to))?;
        let scratch = store.scratch()?;
        let device_tree = scratch.path("device-tree");
        match slot {
            Slot::Pi4 => fit_device_tree(&kernel, &device_tree)?,
            Slot::General => rename_general_board(&device_tree)?,
        }
        let card = Card::copy(&image, scratch.path("card"))?;
        gifts.iter().try_for_each(|gift| card.put(gift))?;
        let booted_in = Duration::ZERO;
        let mut pi =
            Self { running: None, card, name, slot, kernel, initramfs, device_tree, booted_in, scratch };
        pi.switch_on()?;
        Ok(pi)
    }

    /// What the firmware hands to the kernel: its own arguments, and the first line of the card's file.
    fn arguments_from_card(&self) -> Result<String> {
        let file = self.card.boot_file("cmdline.txt")?;
        let text = String::from_utf8_lossy(&file);
        let line = text.lines().next().unwrap_or_default().trim();
        Ok(match self.slot {
            Slot::Pi4 => format!("{BED} {FIRMWARE} {line}"),
            Slot::General => format!("{BED} {FIRMWARE} {}", line.replace("/dev/mmcblk0p", "/dev/vda")),
        })
    }

    /// Plays the firmware and waits until the machine is up.
    fn switch_on(&mut self) -> Result<()> {
        let mut arguments: Vec<String> = ["-no-reboot", "-serial", "chardev:shell"].map(str::to_owned).into();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("-kernel", self.kernel.image().display().to_string());
        add("-initrd", self.initramfs.display().to_string());
        add("-append", self.arguments_from_card()?);
        let card = self.card.path().display();
        match self.slot {
            Slot::Pi4 => {
                add("-M", "raspi4b".to_owned());
                add("-drive", format!("file={card},format=raw,if=sd,cache=unsafe"));
                add("-netdev", "user,id=net".to_owned());
                add("-device", "usb-net,netdev=net".to_owned());
            }
            Slot::General => {
                for (option, value) in GENERAL_BOARD {
                    add(option, value.to_owned());
                }
                add("-drive", format!("file={card},format=raw,if=none,id=card,cache=unsafe"));
                add("-device", "virtio-blk-pci,drive=card".to_owned());
                add("-netdev", "user,id=net".to_owned());
                add("-device", NETWORK_CARD.to_owned());
            }
        }
        add("-dtb", self.device_tree.display().to_string());
        let began = Instant::now();
        let (qemu, shell) = Qemu::start(self.name, &self.scratch.path("console"), &arguments)?;
        let (qemu, shell) = self.running.insert((qemu, shell));
        let answered = shell.wait(PATIENCE, || qemu.check_alive());
        answered.with_context(|| self.log())?;
        wait_until_running(self).and_then(|()| wait_for_network(self)).with_context(|| self.log())?;
        self.booted_in = began.elapsed();
        Ok(())
    }

    fn log(&self) -> String {
        self.running.as_ref().map(|(qemu, _)| qemu.log()).unwrap_or_default()
    }

    /// Asks the system to go down, and waits until the power is off.
    fn go_down(&mut self, command: &str) -> Result<()> {
        let (mut qemu, mut shell) = self.running.take().context("the machine is off")?;
        shell.tell(command)?;
        let status = qemu.wait_for_end(PATIENCE)?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, qemu.log());
        Ok(())
    }
}

impl Machine for Pi {
    fn name(&self) -> &str {
        self.name
    }

    fn run(&mut self, command: &str) -> Result<Answer> {
        let (qemu, shell) = self.running.as_mut().context("the machine is off")?;
        shell.run(command, PATIENCE).with_context(|| qemu.log())
    }

    fn booted_in(&self) -> Duration {
        self.booted_in
    }

    fn reboot(&mut self) -> Result<()> {
        self.go_down("systemctl reboot --no-block")?;
        self.switch_on()
    }

    fn lose_power(&mut self) -> Result<()> {
        // Killed, with all that it had not written to the card.
        self.running = None;
        self.switch_on()
    }

    fn stop(mut self: Box<Self>) -> Result<()> {
        self.go_down("systemctl poweroff --no-block")
    }
}
