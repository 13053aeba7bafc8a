//! What the eBPF programs cost per packet, by the kernel's own two clocks: `BPF_PROG_TEST_RUN` and run-time statistics.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::HashMap,
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use ebpf_records::mesh::{MAGIC, Packet, Peer};
use serde::Serialize;

static MESH: &[u8] = aya::include_bytes_aligned!("../../ebpf/prebuilt/mesh.bpf.o");
static NOP: &[u8] = aya::include_bytes_aligned!("../../ebpf/prebuilt/nop.bpf.o");

/// How often a program runs in one go.
const REPEAT: u32 = 200_000;
/// How many rounds, all cases in each, so that a busy machine hits all alike.
const ROUNDS: usize = 7;

const NODE: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 2);
const PORT: u16 = ebpf_records::mesh::DEFAULT_PORT;
const SESSION: u32 = 7;

/// The cost of one case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Program and packet.
    pub case: &'static str,
    /// Nanoseconds per packet, the median of the rounds.
    pub ns: f64,
    /// Nanoseconds above the empty program in the same round, the median of the rounds.
    pub above_nop_ns: f64,
}

/// Runs each program on prepared packets, round by round.
///
/// # Errors
/// Not root, or a kernel that does not load or run one of the programs.
pub fn test_run() -> Result<Vec<Cost>> {
    let mut nop = Ebpf::load(NOP)?;
    let mut mesh = EbpfLoader::new()
        .override_global("PORT", &PORT, true)
        .override_global("SESSION", &SESSION, true)
        .load(MESH)?;
    {
        let mut peers: HashMap<_, u32, Peer> =
            mesh.map_mut("PEERS").context("mesh has no PEERS")?.try_into()?;
        for address in [NODE, PEER] {
            peers.insert(u32::from_ne_bytes(address.octets()), Peer::default(), 0)?;
        }
    }
    load(&mut nop, "bramble_nop")?;
    load(&mut mesh, "bramble_egress")?;
    load(&mut mesh, "bramble_ingress")?;
    let program = |name: &'static str| -> Result<&SchedClassifier> {
        let ebpf = if name == "bramble_nop" { &nop } else { &mesh };
        Ok(ebpf.program(name).context(name)?.try_into()?)
    };
    let other =
        frame(NODE, PEER, 53, b"a datagram that is none of ours, as most packets of a node are; 1234567");
    let packet = Packet { magic: MAGIC, session: SESSION, sequence: 1, ..Packet::default() };
    let probe = frame(NODE, PEER, PORT, &packet.to_bytes());
    let cases = [
        ("empty program", program("bramble_nop")?, &other),
        ("egress, other packet", program("bramble_egress")?, &other),
        ("ingress, other packet", program("bramble_ingress")?, &other),
        ("egress, probe stamped", program("bramble_egress")?, &probe),
        ("ingress, probe that came twice", program("bramble_ingress")?, &probe),
    ];
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    for _ in 0..ROUNDS {
        let round = cases.iter().map(|(case, program, frame)| {
            let mut options = TestRunOptions::new();
            options.data_in = Some(frame);
            options.repeat = REPEAT;
            let result = program.test_run(options).with_context(|| format!("running {case}"))?;
            ensure!(result.return_value.cast_signed() == -1, "{case}: verdict {}", result.return_value);
            Ok(result.duration.as_nanos() as f64)
        });
        rounds.push(round.collect::<Result<_>>()?);
    }
    let of = |index: usize| rounds.iter().map(move |round| (round[index], round[index] - round[0]));
    Ok((0..cases.len())
        .map(|index| Cost {
            case: cases[index].0,
            ns: median(of(index).map(|(ns, _)| ns)),
            above_nop_ns: median(of(index).map(|(_, above)| above)),
        })
        .collect())
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program: &mut SchedClassifier = ebpf.program_mut(name).context("no such program")?.try_into()?;
    program.load().with_context(|| format!("loading {name}"))
}

/// The value in the middle; of none, not a number.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => values[count / 2 - 1].midpoint(values[count / 2]),
    }
}

/// An Ethernet frame with a UDP datagram without checksum. The destination is the address of the loopback device, on
/// which `BPF_PROG_TEST_RUN` lets packets arrive: others would count as somebody else's.
fn frame(source: Ipv4Addr, destination: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let udp = (payload.len() + 8) as u16;
    let mut frame = vec![0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0x08, 0x00, 0x45, 0];
    frame.extend((udp + 20).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(40_000u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// Run-time statistics of one loaded program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunTime {
    /// As the kernel names it.
    pub program: String,
    /// How often all programs of this name ran.
    pub runs: u64,
    /// Nanoseconds per run; the kernel's own measuring, about 50 ns, is included.
    pub ns: f64,
}

/// What the kernel counted for our loaded programs since statistics were switched on with
/// `aya::sys::enable_stats`; those that never ran are left out.
pub fn run_time() -> Vec<RunTime> {
    let mut sums: std::collections::BTreeMap<String, (u64, f64)> = Default::default();
    for program in aya::programs::loaded_programs().flatten() {
        let Some(name) = program.name_as_str().filter(|name| crate::leftover::is_ours(name)) else {
            continue;
        };
        let sum = sums.entry(name.to_owned()).or_default();
        sum.0 += program.run_count();
        sum.1 += program.run_time().as_nanos() as f64;
    }
    sums.retain(|_, (runs, _)| *runs > 0);
    sums.into_iter().map(|(program, (runs, ns))| RunTime { program, runs, ns: ns / runs as f64 }).collect()
}

/// Switches the kernel's run-time statistics on until the result is dropped, also by force.
///
/// # Errors
/// Not root, or Linux before 5.8.
pub fn count_run_time() -> Result<std::os::fd::OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).context("switching the kernel's run-time statistics on")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }
}
