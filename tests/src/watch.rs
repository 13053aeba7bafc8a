//! Waiting for what must happen, with a limit and a sentence for when it does not.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Looks again and again until `look` returns something, for at most `within`.
///
/// # Errors
/// Those of `look`, and the limit: then it says `what` was expected.
pub fn until<T>(within: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("not within {within:?}: {what}");
        }
        sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_says_what_was_expected() {
        let error = until(Duration::ZERO, "the sun shines", || Ok(None::<()>)).unwrap_err();
        assert_eq!(error.to_string(), "not within 0ns: the sun shines");
    }
}
