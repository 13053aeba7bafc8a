//! What a unit wrote into systemd's journal, asked of journalctl(1): its files have no format that others may read.
//!
//! Of the writing half, because it runs a program.

use std::time::Duration;

use jiff::Timestamp;

use super::write::{HostMut, NotDone};

const PATIENCE: Duration = Duration::from_secs(20);

impl HostMut {
    /// The newest messages of a unit since a moment, at most `lines` of them, the oldest first.
    pub fn journal(&self, unit: &str, since: Timestamp, lines: u32) -> Result<Vec<String>, NotDone> {
        let (unit, lines) = (format!("--unit={unit}"), format!("--lines={lines}"));
        // In whole seconds: older journalctl knows no others.
        let since = format!("--since=@{}", since.as_second());
        let argv = ["journalctl", "--quiet", "--no-pager", "--output=cat", &unit, &since, &lines];
        let text = self.succeed(&argv, PATIENCE)?;
        Ok(text.lines().map(str::to_owned).filter(|line| !line.trim().is_empty()).collect())
    }
}
