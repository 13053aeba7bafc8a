//! Ctrl-C, a closed terminal and a polite `kill` as a question that a verb asks between two steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

/// Whether somebody wants the end.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP are noted instead of ending the process at once; the second one does.
    /// To be called before any other thread is started.
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub(crate) fn prepare() -> Result<Self> {
        // Children start with no signal blocked: the standard library sees to that.
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        signals.thread_block().context("blocking signals")?;
        let came = Arc::new(AtomicBool::new(false));
        let note = came.clone();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            while signals.wait().is_ok() {
                if note.swap(true, Ordering::Relaxed) {
                    // Children and namespaces go with us.
                    std::process::exit(130);
                }
            }
        })?;
        Ok(Self(came))
    }

    /// Whether one came.
    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
