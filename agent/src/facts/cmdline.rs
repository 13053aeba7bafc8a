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

    /// The arguments in order. A quoted argument with spaces comes in pieces, which none of those
    /// looked for is.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split_ascii_whitespace()
    }

    /// Whether an argument stands in the line.
    pub fn has(&self, token: &str) -> bool {
        self.tokens().any(|other| other == token)
    }
}

pub(super) fn read(host: &Host) -> Fact<Cmdline> {
    host.text("/proc/cmdline").map(|text| Cmdline::parse(&text))
}
