//! Swap in use: `/proc/swaps`.

use super::Fact;
use crate::host::{Host, Unreadable};

/// One area of swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// The device or file.
    pub path: String,
}

impl Swap {
    /// Whether it is compressed memory and not a disk.
    pub fn is_zram(&self) -> bool {
        self.path.starts_with("/dev/zram")
    }
}

const SWAPS: &str = "/proc/swaps";

pub(super) fn read(host: &Host) -> Fact<Vec<Swap>> {
    let text = host.text_if_present(SWAPS)?;
    // A kernel built without swap has no such file.
    let Some(text) = text else { return Ok(Vec::new()) };
    parse(&text).ok_or_else(|| Unreadable::malformed(SWAPS, "a heading that begins with Filename"))
}

fn parse(text: &str) -> Option<Vec<Swap>> {
    let mut lines = text.lines();
    if !lines.next()?.starts_with("Filename") {
        return None;
    }
    Some(
        lines
            .filter_map(|line| line.split_whitespace().next())
            .map(|path| Swap { path: path.into() })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_read_by_device() {
        let heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert_eq!(parse(heading), Some(vec![]));
        let both = format!("{heading}/dev/zram0 partition\t2097136\t0\t100\n/var/swap file\t204784\t0\t-2\n");
        let swaps = parse(&both).unwrap();
        assert_eq!(swaps.iter().map(Swap::is_zram).collect::<Vec<_>>(), [true, false]);
        assert_eq!(parse(""), None);
        assert_eq!(parse("garbage"), None);
    }
}
