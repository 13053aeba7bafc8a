//! The running kernel's arguments: `/proc/cmdline`. On a Raspberry Pi the firmware's stand before those of
//! cmdline.txt.

use std::ops::Range;

use super::Fact;
use crate::host::Host;

/// A kernel command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline(String);

impl Cmdline {
    /// Takes the text of one line.
    pub fn parse(text: &str) -> Cmdline {
        Cmdline(text.trim().to_string())
    }

    /// The kernel's arguments in order, with their quotes; what stands after a lone `--` is for init.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        words(&self.0.as_bytes()[..of_kernel(self.0.as_bytes())]).map(|word| &self.0[word])
    }

    /// Its length in bytes.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// Whether an argument stands in the line.
    pub fn has(&self, token: &str) -> bool {
        self.tokens().any(|other| other == token)
    }
}

/// Where the arguments of a line stand, as the kernel's `next_arg` takes it apart: blanks between quotes divide nothing.
pub fn words(line: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut end = 0;
    std::iter::from_fn(move || {
        let start = end + line[end..].iter().position(|byte| !byte.is_ascii_whitespace())?;
        let mut quoted = false;
        let length = line[start..].iter().position(|byte| {
            quoted ^= *byte == b'"';
            !quoted && byte.is_ascii_whitespace()
        });
        end = length.map_or(line.len(), |length| start + length);
        Some(start..end)
    })
}

/// How much of a line the kernel takes, in bytes: what stands from a lone `--` on is for init.
pub fn of_kernel(line: &[u8]) -> usize {
    let is_end = |word: &Range<usize>| [&b"--"[..], b"\"--\""].contains(&&line[word.clone()]);
    words(line).find(is_end).map_or(line.len(), |word| word.start)
}

pub(super) fn read(host: &Host) -> Fact<Cmdline> {
    host.text("/proc/cmdline").map(|text| Cmdline::parse(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_init_is_no_argument_of_the_kernel() {
        let line = Cmdline::parse("root=x quiet -- psi=1\n");
        assert!(line.has("quiet") && !line.has("psi=1") && !line.has("--"));
        assert!(Cmdline::parse("a=-- --b psi=1").has("psi=1"));
        assert!(!Cmdline::parse("a \"--\" psi=1").has("psi=1"));
    }

    #[test]
    fn blanks_between_quotes_divide_nothing() {
        let tokens = |line| Cmdline::parse(line).tokens().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(tokens("a dyndbg=\"file a.c +p -- y\"  b\n"), ["a", "dyndbg=\"file a.c +p -- y\"", "b"]);
        assert_eq!(tokens("\"x=1 psi=1\" \"\"c d"), ["\"x=1 psi=1\"", "\"\"c", "d"]);
        assert_eq!(tokens("a=\"never closed psi=1"), ["a=\"never closed psi=1"]);
        assert!(tokens(" ").is_empty());
    }
}
