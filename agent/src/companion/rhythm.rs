//! Timers of the companion. A timer of the runtime's wheel wakes the process once or twice before it is due; at one
//! tick a second that is most of what a tick costs, so these are the kernel's own.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::host::clock;

/// A timer that is set again and again.
pub(super) struct Timer {
    fd: AsyncFd<Descriptor>,
}

/// What the runtime wants to know of a timer: its number.
struct Descriptor(TimerFd);

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// A timer that never fires until it is set. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses a timer: too many open files.
    pub(super) fn new() -> std::io::Result<Self> {
        // Relative to the clock that is never set: a wall clock that jumps must not stop the ticks.
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        #[allow(unsafe_code, reason = "the runtime has no safe way to wait for a timerfd")]
        // SAFETY: the descriptor is valid, and `Descriptor` owns it and hands it to nobody.
        let fd = unsafe { AsyncFd::register_with_interest(Descriptor(timer), Interest::READABLE)? };
        Ok(Self { fd })
    }

    /// Fires once, after `wait`.
    ///
    /// # Errors
    /// None that the kernel documents for a valid timer.
    pub(super) fn set(&self, wait: Duration) -> std::io::Result<()> {
        let wait = TimeSpec::from_duration(wait.max(Duration::from_nanos(1)));
        Ok(self.fd.get_ref().0.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())?)
    }

    /// Waits until it fires. Cancel-safe.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub(super) async fn fired(&self) -> std::io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            if ready.try_io(|fd| Ok(fd.get_ref().0.wait()?)).is_ok() {
                // One expiry is one readiness: asking again would only be told so.
                ready.clear_ready();
                return Ok(());
            }
        }
    }
}

/// Time until the next multiple of `period` on the wall clock: ticks of all nodes fall on the same moments, so that one
/// wake-up answers many.
pub(super) fn until_next(period: Duration) -> Duration {
    let now = clock::now().as_nanosecond().unsigned_abs();
    let period = period.as_nanos();
    Duration::from_nanos((period - now % period) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timer_fires_once_for_each_time_it_is_set() {
        let timer = Timer::new().unwrap();
        for _ in 0..2 {
            timer.set(Duration::from_millis(5)).unwrap();
            timer.fired().await.unwrap();
        }
        let silent = tokio::time::timeout(Duration::from_millis(50), timer.fired()).await;
        assert!(silent.is_err());
    }

    #[test]
    fn the_next_tick_is_at_most_one_period_away() {
        let period = Duration::from_secs(1);
        assert!((Duration::from_nanos(1)..=period).contains(&until_next(period)));
    }
}
