//! Orderly end: SIGTERM, SIGINT.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Tells when the process was asked to stop.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Listens from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses a signal handler.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits until the process is asked to stop. Cancel-safe.
    pub async fn wanted(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
