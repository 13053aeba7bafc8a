//! Ctrl-C, a closed terminal and a polite `kill` as a question that a verb asks between two steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit code of a process that Ctrl-C ended, as shells write it.
const INTERRUPTED: i32 = 130;

/// Whether somebody wants the end.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP are noted instead of ending the process at once; the second one does.
    ///
    /// # Errors
    ///
    /// The kernel refuses a handler.
    pub(crate) fn prepare() -> Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: what ends the process looks before the first one is noted.
            flag::register_conditional_shutdown(signal, INTERRUPTED, came.clone())
                .and_then(|_| flag::register(signal, came.clone()))
                .context("watching for Ctrl-C")?;
        }
        Ok(Self(came))
    }

    /// Whether one came.
    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
