//! Timers of the daemons. A timer of the runtime's wheel wakes the process once or twice before it is due, and once more
//! when it is set; at a tick a second that is most of what a tick costs, so these are the kernel's own.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use super::{clock, ready::Ready};

/// A timer that is set again and again.
#[derive(Debug)]
pub struct Timer {
    timer: TimerFd,
    ready: Ready,
    /// For when it is set, where that was said as a moment.
    until: Option<Instant>,
}

impl Timer {
    /// A timer that never fires until it is set. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses a timer: too many open files.
    pub fn new() -> io::Result<Self> {
        // Relative to the clock that is never set: a wall clock that jumps must not stop the ticks.
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let ready = Ready::of(timer.as_fd())?;
        Ok(Self { timer, ready, until: None })
    }

    /// Fires once, after `wait`.
    ///
    /// # Errors
    /// None that the kernel documents for a valid timer.
    pub fn set(&self, wait: Duration) -> io::Result<()> {
        let wait = TimeSpec::from_duration(wait.max(Duration::from_nanos(1)));
        Ok(self.timer.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())?)
    }

    /// Fires once, at that moment; costs nothing where it is set for it already.
    ///
    /// # Errors
    /// As [`Timer::set`].
    pub fn set_until(&mut self, moment: Instant) -> io::Result<()> {
        if self.until != Some(moment) {
            self.set(moment.saturating_duration_since(Instant::now()))?;
            self.until = Some(moment);
        }
        Ok(())
    }

    /// Waits until it fires. Cancel-safe.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn fired(&mut self) -> io::Result<()> {
        loop {
            self.ready.happened().await?;
            // Set anew meanwhile, it has nothing to tell.
            if self.timer.wait().is_ok() {
                self.until = None;
                return Ok(());
            }
        }
    }
}

/// Time until the wall clock is the next time `after` a multiple of `period`: ticks of all nodes fall on the same moments, so that
/// their probes cross.
pub fn until_next(period: Duration, after: Duration) -> Duration {
    let now = clock::now().as_nanosecond().unsigned_abs();
    Duration::from_nanos(rest(now, period.as_nanos(), after.as_nanos()) as u64)
}

/// From `now` to the next moment that is `after` a multiple of `period`: from 1 to `period`.
fn rest(now: u128, period: u128, after: u128) -> u128 {
    period - (now + period - after % period) % period
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timer_fires_once_for_each_time_it_is_set() {
        let mut timer = Timer::new().unwrap();
        for _ in 0..2 {
            timer.set(Duration::from_millis(5)).unwrap();
            timer.fired().await.unwrap();
        }
        timer.set_until(Instant::now() + Duration::from_millis(5)).unwrap();
        timer.fired().await.unwrap();
        // What is over fires at once.
        timer.set_until(Instant::now() - Duration::from_millis(5)).unwrap();
        timer.fired().await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(50), timer.fired()).await;
        assert!(silent.is_err());
    }

    #[test]
    fn the_next_tick_is_at_most_one_period_away() {
        let period = Duration::from_secs(1);
        assert!((Duration::from_nanos(1)..=period).contains(&until_next(period, Duration::ZERO)));
        let of_ten = |now, after| rest(now, 10, after);
        assert_eq!([of_ten(20, 0), of_ten(23, 0), of_ten(29, 0)], [10, 7, 1]);
        assert_eq!([of_ten(23, 5), of_ten(25, 5), of_ten(27, 5), of_ten(3, 15)], [2, 10, 8, 2]);
    }
}
