//! The running kernel's arguments: `/proc/cmdline`. On a Raspberry Pi the firmware's stand before those of
//! cmdline.txt.

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

    /// The kernel's arguments in order; what stands after a lone `--` is for init. A quoted argument with spaces
    /// comes in pieces, which none of those looked for is.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split_ascii_whitespace().take_while(|token| *token != "--")
    }

    /// Whether an argument stands in the line.
    pub fn has(&self, token: &str) -> bool {
        self.tokens().any(|other| other == token)
    }
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
    }
}
