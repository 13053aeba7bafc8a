//! Which of the companion's capabilities this process lacks: the kernel refuses with a number that names none.

use crate::host::Host;

/// A capability, and the numbers of all that grant what it does (linux/capability.h).
type Capability = (&'static str, &'static [u32]);

/// What the programs take: `CAP_SYS_ADMIN` holds what `CAP_BPF` and `CAP_PERFMON` were split from, `CAP_DAC_OVERRIDE` reads
/// as well.
pub const PROGRAMS: &[Capability] = &[
    ("CAP_BPF", &[39, 21]),
    ("CAP_NET_ADMIN", &[12]),
    ("CAP_PERFMON", &[38, 21]),
    ("CAP_DAC_READ_SEARCH", &[2, 1]),
];
/// What the kernel's log takes where it is not for everybody; `CAP_SYS_ADMIN` once granted it.
pub const LOG: &[Capability] = &[("CAP_SYSLOG", &[34, 21])];

/// The end of a refusal's sentence: what of `needed` this process lacks; empty when it lacks nothing, so that the cause is
/// another.
pub fn missing(host: &Host, needed: &[Capability]) -> String {
    host.text("/proc/self/status").map_or_else(|_| String::new(), |status| of(&status, needed))
}

/// The same of a `/proc/PID/status`.
fn of(status: &str, needed: &[Capability]) -> String {
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(held) = held.and_then(|held| u64::from_str_radix(held.trim(), 16).ok()) else {
        return String::new();
    };
    let lacking: Vec<&str> = needed
        .iter()
        .filter(|(_, grants)| !grants.iter().any(|number| held >> number & 1 == 1))
        .map(|(name, _)| *name)
        .collect();
    if lacking.is_empty() { String::new() } else { format!("; bramble probe lacks {}", lacking.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named_and_nothing_else() {
        for (held, said) in [
            ("000001ffffffffff", ""),
            ("000000c000001004", ""),
            ("0000000000201004", ""),
            ("0000008000001004", "; bramble probe lacks CAP_PERFMON"),
            ("000000c000000000", "; bramble probe lacks CAP_NET_ADMIN, CAP_DAC_READ_SEARCH"),
            (
                "0000000000000000",
                "; bramble probe lacks CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_DAC_READ_SEARCH",
            ),
            ("nonsense", ""),
        ] {
            let status = format!("Name:\tx\nCapEff:\t{held}\nCapBnd:\t0\n");
            assert_eq!(of(&status, PROGRAMS), said, "{held}");
        }
        assert_eq!(of("CapEff:\t000000c000001004\n", LOG), "; bramble probe lacks CAP_SYSLOG");
        assert_eq!(of("CapEff:\t0000000400000000\n", LOG), "");
    }
}
