//! Loads bramble's eBPF objects and hands out their maps. Nothing is pinned: programs, links and maps live as long as the
//! companion that holds them, so a companion that is killed leaves nothing in the kernel, except a tc filter on
//! kernels without tcx, which the next start takes away by its name.
//!
//! On tcx every program runs first and returns "next", on tc it returns "unspecified": what Cilium or anybody else
//! attached runs as before. On tc the first one is the newest of the lowest priority. Never XDP, never a name that begins with `cil_`.

use std::{
    fmt,
    mem::offset_of,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, IterableMap, MapData, PerCpuHashMap, RingBuf},
    programs::{
        CgroupAttachMode, CgroupSysctl, LinkOrder, RawTracePoint, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, TcAttachOptions, TcHandle},
    },
};
use ebpf_records::{
    drop as drop_records,
    mesh::Peer,
    sysctl::{NAME, PROGRAM, VALUE, Written},
};

use crate::{
    config::Attach,
    host::{Host, cgroup},
};

mod batch;
/// The capabilities that the programs take.
pub mod rights;
/// The node's link to its peers.
pub mod uplink;

use uplink::Uplink;

/// Why a program is not running: what was being done to it, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {why}")]
pub struct Refused {
    doing: String,
    why: String,
}

fn refused<E: std::error::Error>(doing: impl Into<String>) -> impl FnOnce(E) -> Refused {
    move |error| {
        // The innermost cause is the kernel's answer; what aya says around it repeats what we were doing.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        let why = cause.to_string();
        // The verifier's log can be hundreds of lines.
        Refused { doing: doing.into(), why: why.lines().next().unwrap_or_default().to_owned() }
    }
}

/// How the mesh's programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attached {
    /// tcx links, gone with the process.
    Tcx,
    /// tc filters, taken away at the end or by the next start.
    Tc,
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Tc => "tc",
        })
    }
}

/// The two programs that stamp probes, attached to the uplink.
#[derive(Debug)]
pub struct MeshPrograms {
    /// Holds programs and links; dropping it detaches.
    _ebpf: Ebpf,
    peers: HashMap<MapData, u32, Peer>,
    /// Room for what is counted of each peer, and for its key.
    counts: Vec<Peer>,
    keys: Vec<u32>,
    /// How they are attached.
    pub attached: Attached,
}

static MESH: &[u8] = aya::include_bytes_aligned!("../../../ebpf/prebuilt/mesh.bpf.o");
static DROP: &[u8] = aya::include_bytes_aligned!("../../../ebpf/prebuilt/drop.bpf.o");
static SYSCTL: &[u8] = aya::include_bytes_aligned!("../../../ebpf/prebuilt/sysctl.bpf.o");

/// Program and direction; the program's name is also the tc filter's, by which a stale one is known as ours.
pub const DIRECTIONS: [(&str, TcAttachType); 2] =
    [("bramble_egress", TcAttachType::Egress), ("bramble_ingress", TcAttachType::Ingress)];

/// Where our filters stand on tc: before Cilium's, whose "OK" is the end of a packet's way. It has the lowest priority as well, and
/// of filters of one priority the newest runs first. With a handle of our own: who asks for one that is taken replaces it.
const FIRST: NlOptions = NlOptions { priority: 1, handle: TcHandle::new(0, 9473), classid: None };

impl MeshPrograms {
    /// Loads and attaches. `session` is the number that our own probes carry.
    ///
    /// # Errors
    /// The kernel's refusal, with the step; nothing stays attached then.
    pub fn attach(uplink: &Uplink, port: u16, session: u32, how: Attach) -> Result<Self, Refused> {
        for (name, direction) in DIRECTIONS {
            // A filter that a killed companion left. "None there" is the usual answer, and any other one will come again
            // when we attach, with a better reason.
            let _ = tc::qdisc_detach_program(&uplink.name, direction, name);
        }
        let mut ebpf = EbpfLoader::new()
            .override_global("L2_LENGTH", &uplink.header_length, true)
            .override_global("PORT", &port, true)
            .override_global("SESSION", &session, true)
            .load(MESH)
            .map_err(refused("loading the mesh programs"))?;
        let attached = match how {
            Attach::Tc => Attached::Tc,
            Attach::Tcx => Attached::Tcx,
            Attach::Auto if uplink::has_tcx() => Attached::Tcx,
            Attach::Auto => Attached::Tc,
        };
        if attached == Attached::Tc {
            match tc::qdisc_add_clsact(&uplink.name) {
                Err(tc::TcError::NetlinkError(error))
                    if error.raw_os_error() != Some(nix::errno::Errno::EEXIST as i32) =>
                {
                    return Err(refused(format!("adding clsact to {}", uplink.name))(error));
                }
                _ => {}
            }
        }
        for (name, direction) in DIRECTIONS {
            let doing = || format!("attaching {name} to {} by {attached}", uplink.name);
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .expect("the object has both programs")
                .try_into()
                .map_err(refused(doing()))?;
            program.load().map_err(refused(format!("loading {name}")))?;
            let mut attach = |options| program.attach_with_options(&uplink.name, direction, options);
            match attached {
                Attached::Tcx => attach(TcAttachOptions::TcxOrder(LinkOrder::first())),
                // A priority holds filters of one kind; where it is another one, the place that the kernel chooses has to do.
                Attached::Tc => attach(TcAttachOptions::Netlink(FIRST))
                    .or_else(|_| attach(TcAttachOptions::Netlink(NlOptions::default()))),
            }
            .map_err(refused(doing()))?;
        }
        let peers = HashMap::try_from(ebpf.take_map("PEERS").expect("the object has the map"))
            .map_err(refused("opening the peers' map"))?;
        Ok(Self { _ebpf: ebpf, peers, counts: Vec::new(), keys: Vec::new(), attached })
    }

    /// Lets the kernel stamp probes to and from `peer`; what was counted before is kept.
    ///
    /// # Errors
    /// The map is full.
    pub fn add_peer(&mut self, peer: Ipv4Addr) -> Result<(), Refused> {
        const NO_EXIST: u64 = 1;
        match self.peers.insert(key(peer), Peer::default(), NO_EXIST) {
            Ok(()) => {
                self.make_room(self.keys.len() + 1);
                Ok(())
            }
            Err(_) if self.peers.get(&key(peer), 0).is_ok() => Ok(()),
            Err(why) => Err(refused(format!("adding {peer} to the peers' map"))(why)),
        }
    }

    /// Stops stamping probes of `peer`.
    pub fn remove_peer(&mut self, peer: Ipv4Addr) {
        // Not there is what we want.
        if self.peers.remove(&key(peer)).is_ok() {
            self.make_room(self.keys.len().saturating_sub(1));
        }
    }

    fn make_room(&mut self, peers: usize) {
        self.keys.resize(peers, 0);
        self.counts.resize(peers, Peer::default());
    }

    /// What the kernel counted for each peer.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn counts(&mut self) -> Result<impl Iterator<Item = (Ipv4Addr, &Peer)>, Refused> {
        let map = self.peers.map().fd().as_fd();
        let count = batch::entries(map, &mut self.keys, &mut self.counts)
            .map_err(refused("reading the peers' map"))?;
        let addresses = self.keys[..count].iter().map(|key| Ipv4Addr::from(key.to_ne_bytes()));
        Ok(addresses.zip(&self.counts))
    }
}

/// As the address lies in the packet.
fn key(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// The program that counts dropped packets by reason.
pub struct DropProgram {
    _ebpf: Ebpf,
    drops: PerCpuHashMap<MapData, u32, u64>,
}

impl DropProgram {
    /// Attaches to `skb:kfree_skb`, whose layout `format` describes.
    ///
    /// # Errors
    /// The kernel's refusal, with the step.
    pub fn attach(format: &TracepointFormat) -> Result<Self, Refused> {
        let has_reason = u32::from(format.has("reason"));
        let mut ebpf = EbpfLoader::new()
            .override_global("HAS_REASON", &has_reason, true)
            .load(DROP)
            .map_err(refused("loading the drop program"))?;
        let mut drops = PerCpuHashMap::try_from(ebpf.take_map("DROPS").expect("the object has the map"))
            .map_err(refused("opening the drops' map"))?;
        // Its place is taken before the reasons can fill the map.
        let zeroes = aya::util::nr_cpus()
            .map_err(|(_, error)| error)
            .and_then(|cpus| aya::maps::PerCpuValues::try_from(vec![0; cpus]))
            .map_err(refused("counting the processors"))?;
        drops.insert(drop_records::OTHER, zeroes, 0).map_err(refused("preparing the drops' map"))?;
        let program: &mut RawTracePoint = ebpf
            .program_mut("kfree_skb")
            .expect("the object has the program")
            .try_into()
            .map_err(refused("loading kfree_skb"))?;
        program.load().map_err(refused("loading kfree_skb"))?;
        program.attach("kfree_skb").map_err(refused("attaching to skb:kfree_skb"))?;
        Ok(Self { _ebpf: ebpf, drops })
    }

    /// Packets dropped since the program was attached, by the kernel's reason number.
    pub fn counts(&self) -> Vec<(u32, u64)> {
        self.drops
            .iter()
            .filter_map(Result::ok)
            .map(|(reason, per_cpu)| (reason, per_cpu.iter().sum()))
            .filter(|(_, packets)| *packets > 0)
            .collect()
    }
}

/// The program that tells who writes a kernel setting.
pub struct SysctlProgram {
    _ebpf: Ebpf,
    asked: HashMap<MapData, [u8; NAME], u8>,
    written: RingBuf<MapData>,
}

/// Somebody wrote a kernel setting, or tried to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// The setting's path.
    pub path: String,
    /// The value that it is to have, without white space around it; empty where it is not known.
    pub value: String,
    /// Name and number of the process.
    pub program: String,
    /// See `program`.
    pub pid: u32,
    /// Inode number of its cgroup in the unified hierarchy.
    pub cgroup: u64,
}

const SETTINGS: &str = "/proc/sys/";

impl SysctlProgram {
    /// Attaches to all control groups: kernel 6.0 or newer, because before a program of this kind is not told who runs.
    ///
    /// # Errors
    /// There is no unified hierarchy; the kernel's refusal, with the step.
    pub fn attach(host: &Host) -> Result<Self, Refused> {
        let root = cgroup::root(host)
            .map_err(|e| Refused { doing: "opening the control groups".to_owned(), why: e.to_string() })?;
        let mut ebpf =
            EbpfLoader::new().load(SYSCTL).map_err(refused("loading the program of the settings"))?;
        let asked = HashMap::try_from(ebpf.take_map("ASKED").expect("the object has the map"))
            .map_err(refused("opening the settings' map"))?;
        let written = RingBuf::try_from(ebpf.take_map("WRITTEN").expect("the object has the map"))
            .map_err(refused("opening the settings' ring"))?;
        let program: &mut CgroupSysctl = ebpf
            .program_mut("bramble_sysctl")
            .expect("the object has the program")
            .try_into()
            .map_err(refused("loading bramble_sysctl"))?;
        program.load().map_err(refused("loading bramble_sysctl"))?;
        // A link may always stand beside others; a kernel that has links knows no word for it.
        program.attach(root, CgroupAttachMode::Single).map_err(refused("attaching to the settings"))?;
        Ok(Self { _ebpf: ebpf, asked, written })
    }

    /// Tells of this setting as well.
    ///
    /// # Errors
    /// The map is full, or the name too long.
    pub fn ask(&mut self, path: &str) -> Result<(), Refused> {
        let name = path.strip_prefix(SETTINGS).unwrap_or(path).as_bytes();
        let mut key = [0; NAME];
        let Some(place) = key.get_mut(..name.len()).filter(|_| name.len() < NAME) else {
            return Err(Refused {
                doing: format!("asking for {path}"),
                why: "its name is too long".to_owned(),
            });
        };
        place.copy_from_slice(name);
        self.asked.insert(key, 0, 0).map_err(refused(format!("asking for {path}")))
    }

    /// What was written since the last call, the last one last.
    pub fn written(&mut self) -> Vec<Writer> {
        let mut all = Vec::new();
        while let Some(item) = self.written.next() {
            all.extend(writer(&item));
        }
        all
    }
}

impl AsFd for SysctlProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.written.as_fd()
    }
}

fn writer(record: &[u8]) -> Option<Writer> {
    let at = |start: usize, length: usize| record.get(start..start + length);
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    Some(Writer {
        path: format!("{SETTINGS}{}", text(at(offset_of!(Written, setting), NAME)?)),
        value: text(at(offset_of!(Written, value), VALUE)?).trim().to_owned(),
        program: text(at(offset_of!(Written, program), PROGRAM)?),
        pid: u32::from_ne_bytes(at(offset_of!(Written, pid), 4)?.try_into().ok()?),
        cgroup: u64::from_ne_bytes(at(offset_of!(Written, cgroup), 8)?.try_into().ok()?),
    })
}

/// A tracepoint's `format` file: which fields it has and what its symbols are called. Both change between kernels.
#[derive(Debug, Default)]
pub struct TracepointFormat {
    text: String,
}

impl TracepointFormat {
    /// Reads the format of `category:name`.
    ///
    /// # Errors
    /// tracefs is not mounted, or not readable: it belongs to root, so the companion needs `CAP_DAC_READ_SEARCH`.
    pub fn read(host: &Host, category: &str, name: &str) -> Result<Self, Refused> {
        let path = format!("/sys/kernel/tracing/events/{category}/{name}/format");
        let text = host.text(&path).map_err(|e| Refused {
            doing: format!("reading the layout of {category}:{name}"),
            why: e.to_string(),
        })?;
        Ok(Self { text })
    }

    /// Whether the event has this field.
    pub fn has(&self, field: &str) -> bool {
        self.text.lines().any(|line| {
            let declaration = line.trim().strip_prefix("field:").and_then(|rest| rest.split(';').next());
            declaration.and_then(|d| d.split_whitespace().last()).is_some_and(|name| {
                name.split('[').next().is_some_and(|name| name.trim_start_matches('*') == field)
            })
        })
    }

    /// Number and name of the values that `print fmt` knows for a field.
    pub fn symbols(&self, field: &str) -> Vec<(u32, String)> {
        let Some((_, list)) = self.text.split_once(&format!("__print_symbolic(REC->{field},")) else {
            return Vec::new();
        };
        list.split('{')
            .filter_map(|pair| {
                let (number, rest) = pair.split_once(',')?;
                Some((number.trim().parse().ok()?, rest.split('"').nth(1)?.to_owned()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 6.1 and 6.18 print it, shortened: the reasons' numbers moved.
    const FORMATS: [(&str, &str); 2] = [
        (
            "name: kfree_skb\nID: 1\nformat:\n\tfield:void * skbaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
             \tfield:unsigned short protocol;\toffset:24;\tsize:2;\tsigned:0;\n\
             \tfield:enum skb_drop_reason reason;\toffset:28;\tsize:4;\tsigned:0;\n\n\
             print fmt: \"skbaddr=%p reason: %s\", REC->skbaddr, __print_symbolic(REC->reason, { 1, \"NOT_SPECIFIED\" }, { 2, \"NO_SOCKET\" })",
            "NO_SOCKET",
        ),
        (
            "\tfield:void * rx_sk;\toffset:24;\tsize:8;\tsigned:0;\n\
             \tfield:enum skb_drop_reason reason;\toffset:36;\tsize:4;\tsigned:0;\n\n\
             print fmt: \"%p\", REC->skbaddr, __print_symbolic(REC->reason, { 2, \"NOT_SPECIFIED\" }, { 3, \"NO_SOCKET\" })",
            "NOT_SPECIFIED",
        ),
    ];

    #[test]
    fn a_record_of_the_kernel_is_read_field_by_field() {
        let mut record = [0; size_of::<Written>()];
        record[..19].copy_from_slice(b"net/ipv4/ip_forward");
        record[64..66].copy_from_slice(b"0\n");
        record[80] = 7;
        record[88] = 9;
        record[96..102].copy_from_slice(b"sysctl");
        let expected = Writer {
            path: "/proc/sys/net/ipv4/ip_forward".to_owned(),
            value: "0".to_owned(),
            program: "sysctl".to_owned(),
            pid: 9,
            cgroup: 7,
        };
        assert_eq!(writer(&record), Some(expected));
        assert_eq!(writer(&record[1..]), None);
    }

    #[test]
    fn fields_and_names_come_from_the_kernel_s_own_text() {
        for (text, name) in FORMATS {
            let format = TracepointFormat { text: text.to_owned() };
            assert!(format.has("reason"));
            assert!(!format.has("color"));
            assert!(format.symbols("reason").contains(&(2, name.to_owned())));
        }
        assert_eq!(TracepointFormat::default().symbols("reason"), []);
    }
}
