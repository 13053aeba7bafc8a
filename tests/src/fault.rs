//! Faults that are really there: packets of one direction dropped or held, a port taken down.
//!
//! They are made on the bed's side of a node's link, so the nodes' own programs and counters know nothing of them.

use std::{fmt, net::Ipv4Addr, str::FromStr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::PerCpuArray,
    programs::{
        SchedClassifier, TcAttachType,
        tc::{NlOptions, TcAttachOptions, qdisc_add_clsact},
    },
};
use ebpf_records::fault::{HIT, SEEN};
use nix::net::if_::if_nametoindex;

use crate::{delay::DelayLine, lab::Lab, namespace::run_in};

/// The program of `ebpf/src/bin/fault.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../ebpf/prebuilt/fault.bpf.o");

/// A fault as it is asked for; its `Display` is what `FromStr` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// `loss:n2-n3` or `loss:n2-n3:30`: of the packets from the first to the second node so many percent are dropped.
    Loss {
        /// The sending node.
        from: String,
        /// The receiving node.
        to: String,
        /// 1 to 100; by chance, except 100.
        percent: u8,
    },
    /// `delay:n2-n3` or `delay:n2-n3:80`: packets from the first to the second node come so many milliseconds late.
    Delay {
        /// The sending node.
        from: String,
        /// The receiving node.
        to: String,
        /// At least one millisecond.
        hold: Duration,
    },
    /// `cut:n2`: the node's cable is out.
    Cut {
        /// The node.
        node: String,
    },
}

/// Why a text is no fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSpec(String);

impl fmt::Display for BadSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no fault; write loss:n2-n3[:PERCENT], delay:n2-n3[:MS] or cut:n2", self.0)
    }
}

impl std::error::Error for BadSpec {}

impl FromStr for Spec {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        parse(text).ok_or_else(|| BadSpec(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Spec> {
    let (kind, rest) = text.split_once(':')?;
    if kind == "cut" {
        return is_node(rest).then(|| Spec::Cut { node: rest.to_owned() });
    }
    let (pair, amount) = match rest.split_once(':') {
        Some((pair, amount)) => (pair, Some(amount.parse::<u16>().ok()?)),
        None => (rest, None),
    };
    let (from, to) = pair.split_once('-').filter(|(from, to)| from != to && is_node(from) && is_node(to))?;
    let (from, to) = (from.to_owned(), to.to_owned());
    match kind {
        "loss" => {
            let percent = u8::try_from(amount.unwrap_or(50)).ok().filter(|p| (1..=100).contains(p))?;
            Some(Spec::Loss { from, to, percent })
        }
        "delay" => {
            let hold = Duration::from_millis(amount.unwrap_or(50).into());
            (!hold.is_zero()).then_some(Spec::Delay { from, to, hold })
        }
        _ => None,
    }
}

/// The bed's nodes are n1, n2, ...
fn is_node(text: &str) -> bool {
    text.strip_prefix('n').and_then(|n| n.parse::<u8>().ok()).is_some_and(|n| n > 0)
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loss { from, to, percent } => write!(f, "loss:{from}-{to}:{percent}"),
            Self::Delay { from, to, hold } => write!(f, "delay:{from}-{to}:{}", hold.as_millis()),
            Self::Cut { node } => write!(f, "cut:{node}"),
        }
    }
}

impl Spec {
    /// What an honest alert is about: the link with its direction, or the node.
    pub fn subject(&self) -> String {
        match self {
            Self::Loss { from, to, .. } | Self::Delay { from, to, .. } => format!("{from} -> {to}"),
            Self::Cut { node } => node.clone(),
        }
    }

    /// Which alert names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Loss { percent: 100, .. } => "path-cut",
            Self::Loss { .. } => "path-loss",
            Self::Delay { .. } => "path-delay",
            Self::Cut { .. } => "node-gone",
        }
    }

    /// The nodes it is about.
    pub fn nodes(&self) -> Vec<&str> {
        match self {
            Self::Loss { from, to, .. } | Self::Delay { from, to, .. } => vec![from, to],
            Self::Cut { node } => vec![node],
        }
    }
}

/// What a fault did to the packets of its direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Packets that came by.
    pub seen: u64,
    /// Packets of them that were dropped or held.
    pub hit: u64,
}

/// A fault that is in force; it ends with [`Fault::heal`], or with the bed.
#[derive(Debug)]
pub struct Fault {
    spec: Spec,
    program: Option<Ebpf>,
    _line: Option<DelayLine>,
}

impl Fault {
    /// Makes it true, from the next packet on. One fault per sending node at a time.
    ///
    /// # Errors
    /// A node that the bed does not have, or that has a fault already.
    pub fn inject(spec: Spec, lab: &Lab) -> Result<Self> {
        let (program, line) = match &spec {
            Spec::Loss { from, to, percent } => {
                (Some(divert(lab, from, to, u32::from(*percent) * 10, 0)?), None)
            }
            Spec::Delay { from, to, hold } => {
                let name = format!("{from}-{to}");
                let line = DelayLine::start(lab.lan(), &name, *hold)?;
                let interface = lab.lan().within(|| Ok(if_nametoindex(name.as_str())?))?;
                (Some(divert(lab, from, to, 1000, interface)?), Some(line))
            }
            Spec::Cut { node } => {
                lab.node(node)?;
                lab.lan().ip(&format!("link set dev {node} down\n"))?;
                (None, None)
            }
        };
        Ok(Self { spec, program, _line: line })
    }

    /// What it is.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What it did so far; a cut cable counts nothing.
    ///
    /// # Errors
    /// The kernel does not hand the counters out.
    pub fn counts(&self) -> Result<Option<Counts>> {
        let Some(program) = &self.program else { return Ok(None) };
        let map = program.map("COUNTS").context("the fault program has no COUNTS")?;
        let counts = PerCpuArray::<_, u64>::try_from(map)?;
        let sum = |index| Ok::<u64, anyhow::Error>(counts.get(&index, 0)?.iter().sum());
        Ok(Some(Counts { seen: sum(SEEN)?, hit: sum(HIT)? }))
    }

    /// Ends it, and returns what it did.
    ///
    /// # Errors
    /// The bed is gone.
    pub fn heal(self, lab: &Lab) -> Result<Option<Counts>> {
        let counts = self.counts()?;
        match &self.spec {
            Spec::Loss { from, .. } | Spec::Delay { from, .. } => {
                run_in(lab.lan(), "tc", &["qdisc", "del", "dev", from, "clsact"])?;
            }
            Spec::Cut { node } => {
                lab.lan().ip(&format!("link set dev {node} up\n"))?;
            }
        }
        Ok(counts)
    }
}

/// Attaches the program where `from`'s packets enter the bridge. `interface` 0 drops what is hit.
fn divert(lab: &Lab, from: &str, to: &str, permille: u32, interface: u32) -> Result<Ebpf> {
    let address = |node: &str| Ok::<u32, anyhow::Error>(in_packet(lab.node(node)?.address()));
    let (source, destination) = (address(from)?, address(to)?);
    ensure!(source != destination, "a link needs two nodes");
    let mut ebpf = EbpfLoader::new()
        .override_global("SOURCE", &source, true)
        .override_global("DESTINATION", &destination, true)
        .override_global("PERMILLE", &permille, true)
        .override_global("REDIRECT", &interface, true)
        .load(OBJECT)
        .context("loading the fault program")?;
    let program: &mut SchedClassifier =
        ebpf.program_mut("fault").context("the object has no program `fault`")?.try_into()?;
    program.load()?;
    lab.lan().within(|| {
        if qdisc_add_clsact(from).is_err() {
            bail!("{from} has a fault already");
        }
        // As a filter and not as a link, on all kernels: it goes with its qdisc and needs no closing in the right namespace.
        let options = TcAttachOptions::Netlink(NlOptions::default());
        let id = program.attach_with_options(from, TcAttachType::Ingress, options)?;
        // Dropping it would look for the filter in the host's namespace.
        std::mem::forget(program.take_link(id)?);
        Ok(())
    })?;
    Ok(ebpf)
}

/// An address as a program reads it from a packet.
fn in_packet(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_read_as_it_is_written() {
        for text in ["loss:n2-n3:30", "loss:n1-n3:100", "delay:n2-n3:80", "cut:n2"] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
        assert_eq!("loss:n2-n3".parse::<Spec>().unwrap().to_string(), "loss:n2-n3:50");
        assert_eq!("delay:n2-n3".parse::<Spec>().unwrap().to_string(), "delay:n2-n3:50");
    }

    #[test]
    fn a_wrong_fault_is_refused_with_what_is_allowed() {
        for text in [
            "",
            "cut",
            "cut:",
            "cut:x",
            "cut:n0",
            "cut:n1-n2",
            "loss:n2",
            "loss:n2-n2",
            "loss:n2-n3:0",
            "loss:n2-n3:101",
            "loss:n2-n3:x",
            "delay:n2-n3:0",
            "burn:n2-n3",
            "loss:n2-n3:5:5",
        ] {
            let error = text.parse::<Spec>().unwrap_err().to_string();
            assert!(error.contains("loss:n2-n3[:PERCENT]"), "{text}: {error}");
        }
    }

    #[test]
    fn the_alert_that_names_a_fault_follows_from_it() {
        for (text, kind, subject) in [
            ("loss:n2-n3", "path-loss", "n2 -> n3"),
            ("loss:n2-n3:100", "path-cut", "n2 -> n3"),
            ("delay:n3-n1", "path-delay", "n3 -> n1"),
            ("cut:n2", "node-gone", "n2"),
        ] {
            let spec: Spec = text.parse().unwrap();
            assert_eq!((spec.kind(), spec.subject().as_str()), (kind, subject));
        }
    }
}
