//! Watches what bramble prepares: configuration directories and kernel settings by inotify(7), rules, routes, Cilium's links
//! and interface settings by rtnetlink(7). Needs no rights. Costs nothing while nothing happens.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use nix::{
    errno::Errno,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
        },
    },
};

use super::{netlink::split, ready::Ready};

/// Directories whose files decide how the host behaves. Those that are not there are watched once they are: their makers
/// are seen above them.
const DIRECTORIES: [&str; 20] = [
    "/boot",
    "/boot/firmware",
    "/boot/firmware/current",
    "/etc",
    "/etc/NetworkManager",
    "/etc/NetworkManager/conf.d",
    "/etc/cni",
    "/etc/cni/net.d",
    "/etc/default",
    "/etc/modules-load.d",
    "/etc/multipath",
    "/etc/multipath/conf.d",
    "/etc/rancher",
    "/etc/rancher/k3s",
    "/etc/rancher/k3s/config.yaml.d",
    "/etc/sysctl.d",
    "/etc/systemd",
    "/etc/systemd/network",
    "/etc/systemd/networkd.conf.d",
    UNITS,
];

/// Units, and below it drop-ins and what is enabled, one directory for each.
const UNITS: &str = "/etc/systemd/system";

/// Whether a change of this file is seen.
pub fn covers(path: &str) -> bool {
    let Some((directory, name)) = path.rsplit_once('/') else { return false };
    let is_below_units = directory.rsplit_once('/').is_some_and(|(above, _)| above == UNITS);
    (DIRECTORIES.contains(&directory) || is_below_units) && is_ours_or_settings(directory, name)
}

/// Multicast groups of rtnetlink.h: links, routes, rules, interface settings, each for IPv4 and IPv6.
const GROUPS: [u32; 7] = [1, 7, 8, 11, 19, 24, 25];

/// Something that happened to the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A file below a watched directory was written, made, moved or removed.
    File(String),
    /// A policy routing rule came or went.
    Rule,
    /// A route came or went, other than those to one host, as pods have.
    Route,
    /// An interface's forwarding or reverse path filter was set.
    InterfaceSetting,
    /// A setting that is heeded was written, perhaps with the value that it had.
    Setting,
    /// A link of Cilium's went.
    LinkGone(String),
    /// A link of Cilium's came.
    LinkCame(String),
    /// More happened at once than the kernel keeps for us.
    TooMuch,
}

/// The open descriptors.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    /// What is to be watched.
    watched: &'static [&'static str],
    /// What is: directories, and by their paths settings.
    directories: BTreeMap<WatchDescriptorKey, String>,
    settings: BTreeMap<String, WatchDescriptor>,
    netlink: OwnedFd,
    /// Opened when it is first waited for.
    ready: Option<[Ready; 2]>,
    buffer: Vec<u8>,
}

/// nix orders no watch descriptors; their debug text is their number.
type WatchDescriptorKey = String;

fn key(descriptor: WatchDescriptor) -> WatchDescriptorKey {
    format!("{descriptor:?}")
}

impl Watch {
    /// Watches from now on, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses one of the descriptors: usually `fs.inotify.max_user_instances` is used up.
    pub fn open() -> io::Result<Watch> {
        Watch::over(&DIRECTORIES)
    }

    fn over(watched: &'static [&'static str]) -> io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let netlink = listen(&GROUPS)?;
        let mut watch = Watch {
            inotify,
            watched,
            directories: BTreeMap::new(),
            settings: BTreeMap::new(),
            netlink,
            ready: None,
            buffer: vec![0; 32 << 10],
        };
        watch.extend();
        Ok(watch)
    }

    /// Watches directories that came, or that something was mounted on. To be called before a look at the host, so that
    /// nothing happens unseen in between.
    pub fn extend(&mut self) {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        let below = |directory: &str| -> Vec<String> {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            directories.map(|entry| format!("{directory}/{}", entry.file_name().display())).collect()
        };
        let units = if self.watched.contains(&UNITS) { below(UNITS) } else { Vec::new() };
        for directory in self.watched.iter().map(|path| (*path).to_owned()).chain(units) {
            // The kernel knows by itself what it watches already.
            if let Ok(descriptor) = self.inotify.add_watch(directory.as_str(), flags) {
                self.directories.insert(key(descriptor), directory);
            }
        }
    }

    /// Watches these settings as well. Only [`Settings`] that has them open makes that last, and who writes by another mount
    /// of proc, as a container may have, is not seen.
    pub fn heed(&mut self, settings: &Settings) {
        for path in settings.paths() {
            // One that went needs no watching.
            let Ok(descriptor) = self.inotify.add_watch(path, AddWatchFlags::IN_MODIFY) else { continue };
            // Of an interface that was made anew: the kernel never tells that the old file went.
            if let Some(before) = self.settings.insert(path.to_owned(), descriptor)
                && before != descriptor
            {
                let _ = self.inotify.rm_watch(before);
            }
        }
    }

    /// Waits until there is something for [`Watch::seen`], which has to be called then. Needs a tokio runtime. Cancel-safe.
    pub async fn happened(&mut self) {
        let ready = match &mut self.ready {
            Some(ready) => ready,
            none => match Ready::of(self.inotify.as_fd())
                .and_then(|a| Ok([a, Ready::of(self.netlink.as_fd())?]))
            {
                Ok(ready) => none.insert(ready),
                // No descriptor is left: what happened is seen when somebody looks.
                Err(_) => return std::future::pending().await,
            },
        };
        let [files, network] = ready;
        // It ends with the runtime.
        let _ = tokio::select! {
            happened = files.happened() => happened,
            happened = network.happened() => happened,
        };
    }

    /// What happened since the last call, each thing once.
    pub fn seen(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(batch) = self.inotify.read_events() {
            for event in batch {
                let name = event.name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    // It is gone; the kernel gives its number to no other.
                    self.directories.remove(&key(event.wd));
                    continue;
                }
                if self.settings.values().any(|descriptor| *descriptor == event.wd) {
                    events.push(Event::Setting);
                    continue;
                }
                match self.directories.get(&key(event.wd)) {
                    Some(directory) if is_ours_or_settings(directory, &name) => {
                        events.push(Event::File(format!("{directory}/{name}")));
                    }
                    Some(_) => {}
                    None => events.push(Event::TooMuch),
                }
            }
        }
        loop {
            match recv(self.netlink.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => {
                    events.extend(split(&self.buffer[..length]).into_iter().filter_map(|(k, b)| event(k, b)))
                }
                Err(Errno::ENOBUFS) => events.push(Event::TooMuch),
                Err(_) => break,
            }
        }
        events.sort();
        events.dedup();
        events
    }
}

/// Multicast groups of what decides by which link a node is reached: links, IPv4 addresses, routes of both families.
const WAYS: [u32; 4] = [1, 5, 7, 11];

/// Tells whether links, addresses or routes changed. Costs a system call a question.
#[derive(Debug)]
pub struct Ways(Option<OwnedFd>);

impl Ways {
    /// Of the network namespace of the calling thread.
    pub fn open() -> Ways {
        Ways(listen(&WAYS).ok())
    }

    /// Whether something changed since the last call; where the kernel does not tell, perhaps.
    pub fn changed(&self) -> bool {
        let Some(netlink) = &self.0 else { return true };
        let (mut changed, mut buffer) = (false, [0; 64]);
        loop {
            match recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(_) | Err(Errno::ENOBUFS) => changed = true,
                Err(Errno::EINTR) => {}
                Err(_) => return changed,
            }
        }
    }
}

/// Listens to multicast groups of rtnetlink, without waiting.
fn listen(groups: &[u32]) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    let groups = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(netlink)
}

/// Kernel settings that are looked at again and again. Their files stay open: one system call a look instead of five, and
/// [`Watch::heed`] lasts.
#[derive(Debug, Default)]
pub struct Settings {
    open: BTreeMap<String, (File, Vec<u8>)>,
}

impl Settings {
    /// Opens those of these paths that are not open, or whose interface was made anew; what the running kernel does not have is
    /// left out. To be called before a look at the host, so that nothing happens unseen in between.
    pub fn extend(&mut self, paths: impl IntoIterator<Item = String>) {
        for path in paths {
            if self.open.get(&path).is_some_and(|(file, _)| value(file).is_ok()) {
                continue;
            }
            match File::open(&path).and_then(|file| Ok((value(&file)?, file))) {
                Ok((value, file)) => drop(self.open.insert(path, (file, value))),
                Err(_) => drop(self.open.remove(&path)),
            }
        }
    }

    /// Paths of those that have another value than at the last call, with it. One that went has no value.
    pub fn changed(&mut self) -> Vec<(String, String)> {
        let mut changed = Vec::new();
        for (path, (file, before)) in &mut self.open {
            if let Ok(now) = value(file)
                && now != *before
            {
                changed.push((path.clone(), String::from_utf8_lossy(&now).trim().to_owned()));
                *before = now;
            }
        }
        changed
    }

    /// The paths of all.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.open.keys().map(String::as_str)
    }
}

fn value(setting: &File) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 64];
    let length = setting.read_at(&mut buffer, 0)?;
    Ok(buffer[..length].to_vec())
}

/// `/etc` and `/etc/default` are busy with files that say nothing about networks or boot.
fn is_ours_or_settings(directory: &str, name: &str) -> bool {
    match directory {
        "/etc" => matches!(
            name,
            "sysctl.conf"
                | "fstab"
                | "modules"
                | "dhcpcd.conf"
                | "hostname"
                | "multipath.conf"
                | "NetworkManager"
                | "cni"
                | "modules-load.d"
                | "multipath"
                | "rancher"
                | "sysctl.d"
        ),
        "/etc/default" => name == "raspi-extra-cmdline",
        _ => true,
    }
}

/// What a message of rtnetlink tells, if it matters here.
fn event(kind: u16, body: &[u8]) -> Option<Event> {
    match kind {
        libc::RTM_NEWRULE | libc::RTM_DELRULE => Some(Event::Rule),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => is_to_a_network(body).then_some(Event::Route),
        RTM_NEWNETCONF | RTM_DELNETCONF => Some(Event::InterfaceSetting),
        libc::RTM_NEWLINK => cilium_link(body).map(Event::LinkCame),
        libc::RTM_DELLINK => cilium_link(body).map(Event::LinkGone),
        _ => None,
    }
}

/// Whether a route leads to more than one host. Those to the machine's own addresses come and go with each pod.
fn is_to_a_network(body: &[u8]) -> bool {
    // struct rtmsg: family, dst_len, src_len, tos, table.
    let [family, length, _, _, table, ..] = body else { return false };
    let whole = if i32::from(*family) == libc::AF_INET { 32 } else { 128 };
    *length < whole && *table != libc::RT_TABLE_LOCAL
}

/// linux/rtnetlink.h; libc does not name them.
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;

/// The name in a link message, if it is one of the three that every pod's traffic needs.
fn cilium_link(body: &[u8]) -> Option<String> {
    // struct ifinfomsg is 16 bytes; attributes follow, each with its length and kind.
    let mut attributes = body.get(16..)?;
    while let Some((header, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) == libc::IFLA_IFNAME {
            let name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            return name.starts_with("cilium_").then_some(name);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::netlink::{message, text};
    use super::*;

    impl Watch {
        fn files(&mut self) -> Vec<Event> {
            self.seen().into_iter().filter(|event| matches!(event, Event::File(_))).collect()
        }
    }

    #[test]
    fn only_what_matters_here_is_an_event() {
        let link = |name: &str| [vec![0; 16], text(libc::IFLA_IFNAME, name)].concat();
        for (kind, body, expected) in [
            (libc::RTM_DELRULE, vec![2; 12], Some(Event::Rule)),
            (libc::RTM_DELROUTE, vec![2, 0, 0, 0, 254], Some(Event::Route)),
            (libc::RTM_DELROUTE, vec![2, 24, 0, 0, 254], Some(Event::Route)),
            (libc::RTM_DELROUTE, vec![10, 64, 0, 0, 252], Some(Event::Route)),
            (libc::RTM_DELROUTE, vec![2, 32, 0, 0, 254], None),
            (libc::RTM_DELROUTE, vec![10, 8, 0, 0, 255], None),
            (RTM_NEWNETCONF, vec![2], Some(Event::InterfaceSetting)),
            (libc::RTM_DELLINK, link("cilium_host"), Some(Event::LinkGone("cilium_host".to_owned()))),
            (libc::RTM_NEWLINK, link("cilium_vxlan"), Some(Event::LinkCame("cilium_vxlan".to_owned()))),
            (libc::RTM_DELLINK, link("lxc123"), None),
            (libc::RTM_DELLINK, vec![0; 3], None),
            (libc::RTM_DELROUTE, vec![], None),
            (999, vec![], None),
        ] {
            let packed = message(kind, 0, &[&body]);
            let events: Vec<_> = split(&packed).into_iter().filter_map(|(k, b)| event(k, b)).collect();
            assert_eq!(events, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_setting_that_is_written_has_changed_once() {
        let file = std::env::temp_dir().join(format!("bramble-setting-{}", std::process::id()));
        std::fs::write(&file, "0\n").unwrap();
        let shown = file.display().to_string();
        let mut settings = Settings::default();
        let extend =
            |settings: &mut Settings| settings.extend([shown.clone(), "/proc/sys/no/such".to_owned()]);
        extend(&mut settings);
        let mut watch = Watch::over(&[]).unwrap();
        watch.heed(&settings);
        assert!(settings.changed().is_empty() && !watch.seen().contains(&Event::Setting));
        std::fs::write(&file, "1\n").unwrap();
        extend(&mut settings);
        assert!(watch.seen().contains(&Event::Setting));
        assert_eq!(settings.changed(), [(shown.clone(), "1".to_owned())]);
        assert!(settings.changed().is_empty());
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn a_file_that_is_written_is_seen_once() {
        let directory = std::env::temp_dir().join(format!("bramble-watch-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let shown: &'static str = directory.display().to_string().leak();
        let later: &'static str = format!("{shown}/later.d").leak();
        let mut watch = Watch::over(vec![shown, later].leak()).unwrap();
        assert_eq!(watch.files(), []);
        std::fs::OpenOptions::new().create(true).append(true).open(directory.join("a.conf")).unwrap();
        assert_eq!(watch.files(), [Event::File(format!("{shown}/a.conf"))]);
        assert_eq!(watch.files(), []);

        // A directory that is made later, and made anew.
        for _ in 0..2 {
            std::fs::create_dir(later).unwrap();
            assert_eq!(watch.files(), [Event::File(later.to_owned())]);
            watch.extend();
            std::fs::write(format!("{later}/b.conf"), "").unwrap();
            assert_eq!(watch.files(), [Event::File(format!("{later}/b.conf"))]);
            std::fs::remove_dir_all(later).unwrap();
            assert_eq!(
                watch.files(),
                [Event::File(later.to_owned()), Event::File(format!("{later}/b.conf"))]
            );
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
