//! What the host is, read once per pass: plain data.
//!
//! Each part stands for itself: a part that could not be read carries the path and the reason, and hides
//! no other. Reading is here; judging is in `require`. It never writes.

use crate::host::{Host, Unreadable};

pub mod address;
pub mod address_space;
pub mod apparmor;
pub mod board;
pub mod boot_file;
pub mod bpf;
pub mod cgroup;
pub mod cmdline;
pub mod cni;
pub mod dhcpcd;
pub(crate) mod drop_in;
pub mod firewall;
pub mod firmware;
pub mod identity;
pub mod k3s;
pub mod kernel;
pub mod kernel_config;
pub mod leftover;
pub mod link;
pub mod memory;
pub mod module;
pub mod mount;
mod multipath;
pub mod network_manager;
pub mod networkd;
pub mod package;
pub mod port;
pub mod reboot;
pub mod resolver;
pub mod route;
pub mod rule;
pub mod socket;
pub mod swap;
pub mod sysctl;
pub mod sysctl_file;
pub mod table;
pub mod unit;
pub(crate) mod upgrade;
mod usb;

/// One part of the facts, or why it is not known.
pub type Fact<T> = Result<T, Unreadable>;

/// A host at one moment.
#[derive(Debug)]
pub struct Facts {
    /// Model and distribution.
    pub board: board::Board,
    /// Release and architecture of the running kernel.
    pub kernel: kernel::Kernel,
    /// The options the running kernel was built with.
    pub kernel_config: Fact<kernel_config::KernelConfig>,
    /// The modules of the running kernel: on disk, loaded, wanted at boot.
    pub modules: module::Modules,
    /// Page size and address bits of a process.
    pub address_space: address_space::AddressSpace,
    /// BTF and the program types that load.
    pub bpf: bpf::Bpf,
    /// The running kernel's arguments.
    pub cmdline: Fact<cmdline::Cmdline>,
    /// What config.txt says for this board; `None` on a machine that boots another way.
    pub firmware: Fact<Option<firmware::Firmware>>,
    /// The `cmdline.txt` the firmware reads; `None` on a machine that boots another way.
    pub boot_file: Fact<Option<boot_file::BootFile>>,
    /// Whether the machine waits for a reboot.
    pub reboot: reboot::Reboot,
    /// The controllers of the unified hierarchy; `None` without one at `/sys/fs/cgroup`.
    pub controllers: Fact<Option<cgroup::Controllers>>,
    /// What is mounted where.
    pub mounts: Fact<mount::Mounts>,
    /// Errors that ext4 has counted, by device.
    pub disk_errors: Fact<Vec<(String, u64)>>,
    /// USB disks that the driver uas drives, by vendor and product.
    pub uas: Fact<Vec<String>>,
    /// File systems the kernel knows now.
    pub file_systems: Fact<mount::FileSystems>,
    /// Kernel settings, as they are now.
    pub sysctl: sysctl::Sysctls,
    /// Kernel settings, as files set them at boot and for new interfaces.
    pub sysctl_files: Fact<sysctl_file::SysctlFiles>,
    /// Swap in use.
    pub swaps: Fact<Vec<swap::Swap>>,
    /// Memory and pressure accounting.
    pub memory: memory::Memory,
    /// Room on the file system that keeps images and volumes.
    pub room: Fact<crate::host::disk::Room>,
    /// Host name, machine id.
    pub identity: identity::Identity,
    /// The largest error of the clock; `None` when nobody synchronises it.
    pub clock_error: Fact<Option<std::time::Duration>>,
    /// Routes of the main table.
    pub routes: route::Routes,
    /// The rules that lead to routing tables.
    pub rules: rule::Rules,
    /// The host's own IPv4 networks: interface, own address, length of the prefix.
    pub networks: Fact<Vec<(String, std::net::Ipv4Addr, u32)>>,
    /// The host's own IPv6 addresses.
    pub addresses6: Fact<Vec<address::Address6>>,
    /// The host's own IPv4 addresses.
    pub addresses: Fact<Vec<std::net::Ipv4Addr>>,
    /// Network interfaces.
    pub links: link::Links,
    /// `accept_ra` of the IPv6 way out; `None` without IPv6 or a way out.
    pub accept_ra: Fact<Option<(String, String)>>,
    /// Who listens.
    pub listeners: Fact<Vec<socket::Listener>>,
    /// Who answers names.
    pub resolver: resolver::Resolver,
    /// Services that are enabled or running.
    pub units: unit::Units,
    /// What systemd-networkd is told.
    pub networkd: Fact<networkd::Networkd>,
    /// What NetworkManager is told.
    pub network_manager: Fact<network_manager::NetworkManager>,
    /// What dhcpcd is told; `None` without its file.
    pub dhcpcd: Fact<Option<dhcpcd::Dhcpcd>>,
    /// What firewall services are told.
    pub firewalls: firewall::Firewalls,
    /// Packages that are installed.
    pub packages: Fact<package::Packages>,
    /// Whether multipathd leaves plain disks alone.
    pub multipath: Fact<bool>,
    /// What K3s is told, and whether it has run.
    pub k3s: k3s::K3s,
    /// Networks for containers.
    pub cni: Fact<Vec<cni::Network>>,
    /// What other networks and tools left.
    pub leftovers: leftover::Leftovers,
    /// Whether AppArmor is active, and its parser installed.
    pub apparmor: apparmor::AppArmor,
}

impl Facts {
    /// Reads the whole host once.
    pub fn observe(host: &Host) -> Facts {
        let kernel_config = kernel_config::read(host);
        let board = board::read(host);
        let (firmware, mounts) = boot_file::firmware(host, &board, || mount::read(host));
        let cmdline = cmdline::read(host);
        let routes = route::read(host);
        let units = unit::read(host);
        Facts {
            board,
            kernel: kernel::read(host, &kernel_config),
            modules: module::read(host),
            address_space: address_space::read(host, &kernel_config),
            kernel_config,
            bpf: bpf::read(host),
            boot_file: boot_file::read(host, &firmware, &cmdline),
            cmdline,
            firmware,
            reboot: reboot::read(host),
            controllers: cgroup::read(host),
            mounts,
            disk_errors: mount::read_errors(host),
            uas: usb::read(host),
            file_systems: mount::read_file_systems(host),
            sysctl: sysctl::read(host),
            sysctl_files: sysctl_file::read(host),
            swaps: swap::read(host),
            memory: memory::read(host),
            room: host.room("/var"),
            identity: identity::read(host),
            clock_error: host.clock_error(),
            rules: rule::read(host),
            networks: host.networks(),
            addresses6: address::read6(host),
            addresses: address::read(host),
            links: link::read(host, &routes),
            accept_ra: sysctl::read_accept_ra(host, &routes),
            listeners: socket::read(host, &units),
            resolver: resolver::read(host),
            routes,
            units,
            networkd: networkd::read(host),
            network_manager: network_manager::read(host),
            dhcpcd: dhcpcd::read(host),
            firewalls: firewall::read(host),
            packages: package::read(host),
            multipath: multipath::read(host),
            k3s: k3s::read(host),
            cni: cni::read(host),
            leftovers: leftover::read(host),
            apparmor: apparmor::read(host),
        }
    }
}
