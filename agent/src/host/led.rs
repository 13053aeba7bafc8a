//! The board's own light, by which a person finds it: `/sys/class/leds`.
#![allow(clippy::disallowed_methods, reason = "the door")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the kernel shows its lights.
const LEDS: &str = "/sys/class/leds";
/// The names that Raspberry Pi gives its green light, newest first.
const NAMES: [&str; 3] = ["ACT", "led0", "PWR"];

/// Lets the board blink, and then does what it did before.
///
/// # Errors
/// It has no such light, or this process may not switch it.
pub fn blink(time: Duration) -> io::Result<()> {
    blink_at(&light(Path::new(LEDS))?, time)
}

/// Whether there is a light to blink; who may not switch it sees that, too.
///
/// # Errors
/// There is none.
pub fn is_there() -> io::Result<()> {
    light(Path::new(LEDS)).map(drop)
}

fn light(leds: &Path) -> io::Result<PathBuf> {
    let found = NAMES.iter().map(|name| leds.join(name).join("trigger")).find(|trigger| trigger.exists());
    found.ok_or_else(|| {
        let none = format!(
            "this machine has no light to blink ({} in {LEDS}); find it by its address",
            NAMES.join(", ")
        );
        io::Error::new(io::ErrorKind::NotFound, none)
    })
}

fn blink_at(trigger: &Path, time: Duration) -> io::Result<()> {
    let before = chosen(&fs::read_to_string(trigger)?).unwrap_or("none".to_owned());
    fs::write(trigger, "timer")?;
    std::thread::sleep(time);
    fs::write(trigger, before)
}

/// The kernel lists all triggers, and the chosen one in brackets.
fn chosen(list: &str) -> Option<String> {
    Some(list.split_once('[')?.1.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_light_does_afterwards_what_it_did_before() {
        let leds = std::env::temp_dir().join(format!("bramble-led-{}", std::process::id()));
        fs::create_dir_all(leds.join("led0")).unwrap();
        assert!(light(&leds).is_err());
        let trigger = leds.join("led0/trigger");
        fs::write(&trigger, "none timer [mmc0] heartbeat\n").unwrap();
        blink_at(&light(&leds).unwrap(), Duration::ZERO).unwrap();
        assert_eq!(fs::read_to_string(&trigger).unwrap(), "mmc0");
        fs::remove_dir_all(&leds).unwrap();
    }
}
