//! Waits until a descriptor can be read: for those of the kernel that are no sockets.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// Says when there is something to read. Does not read: who was told has to, until nothing is left.
#[derive(Debug)]
pub struct Ready(AsyncFd<OwnedFd>);

impl Ready {
    /// Needs a tokio runtime, and a descriptor that does not block.
    ///
    /// # Errors
    /// Too many open files.
    pub fn of(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let own = descriptor.try_clone_to_owned()?;
        #[allow(unsafe_code, reason = "the runtime has no safe way to wait for a descriptor of this kind")]
        // SAFETY: the descriptor is valid, it is owned from here on, and handed to nobody.
        let fd = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE)? };
        Ok(Self(fd))
    }

    /// Waits until something came since the last time. Cancel-safe.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn happened(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
