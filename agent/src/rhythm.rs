//! When the agent reports: at its interval, and together with a sample of the companion's where one comes at about that time.
//! Who is awake already reports at less cost, and says what is newest.

use std::time::{Duration, Instant};

/// The next report, as it is known now.
#[derive(Debug)]
pub struct Rhythm {
    interval: Duration,
    /// How long a report waits for its sample, and how much earlier than expected that may come.
    late: Duration,
    due: Instant,
    /// Whether the next report does not wait for a sample yet: the last one came by the clock.
    is_free: bool,
}

impl Rhythm {
    /// Reports every `interval` from `now` on; the companion probes once a `period`.
    pub fn new(interval: Duration, period: Duration, now: Instant) -> Self {
        Self { interval, late: (period / 2).min(interval / 4), due: now, is_free: true }
    }

    /// When the next report is made, if no sample comes before.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Whether it is time; if it is, the next one is an interval later.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if self.due > now {
            return false;
        }
        self.due = (self.due + self.interval).max(now);
        self.is_free = true;
        true
    }

    /// A sample came, and the next regular one comes `between` later. Whether it is time to report with this one.
    pub fn goes_with(&mut self, sample: Instant, between: Duration) -> bool {
        // Only where every report can go with a sample.
        if self.interval.as_millis().checked_rem(between.as_millis()) != Some(0) {
            return false;
        }
        let early = if self.is_free { between / 2 } else { 2 * self.late };
        if self.due <= sample + early {
            self.due = sample + self.interval + self.late;
            self.is_free = false;
            return true;
        }
        if self.is_free {
            // With the one that will come next after it was due.
            let wait = self.due.saturating_duration_since(sample).as_nanos();
            let samples = u32::try_from(wait.div_ceil(between.as_nanos())).unwrap_or(u32::MAX);
            self.due = sample + between * samples + self.late;
            self.is_free = false;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Times between reports, s, of so many samples at these times; the clock is looked at in between as it is set.
    fn gaps(interval: f64, period: f64, between: f64, samples: impl IntoIterator<Item = f64>) -> Vec<f64> {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(seconds(interval), seconds(period), start);
        let mut reports = Vec::new();
        for at in samples {
            let at = start + seconds(at);
            while rhythm.due() < at {
                let now = rhythm.due();
                assert!(rhythm.is_due(now));
                reports.push(now);
            }
            if rhythm.goes_with(at, seconds(between)) {
                reports.push(at);
            }
        }
        let all = reports.windows(2).map(|two| two[1].duration_since(two[0]).as_secs_f64());
        all.collect()
    }

    /// Every `between` from `first` on, now early and now late by so much.
    fn samples(first: f64, between: f64, by: f64, count: u32) -> impl Iterator<Item = f64> {
        (0..count).map(move |i| first + f64::from(i) * between + [by, -by, 0.0, -by, by][i as usize % 5])
    }

    #[test]
    fn each_report_goes_with_a_sample_that_is_a_little_early_or_late() {
        for (interval, period) in [(10.0, 1.0), (1.0, 1.0), (60.0, 60.0), (3.0, 1.0), (0.5, 0.5)] {
            for first in [0.01, 0.2, 0.5, 0.9] {
                let late: f64 =
                    gaps(interval, period, interval, samples(first * interval, interval, 0.02 * period, 50))
                        .into_iter()
                        .skip(2)
                        .map(|gap| (gap - interval).abs())
                        .fold(0.0, f64::max);
                assert!(late <= 0.05 * period, "{interval} {period} {first}: {late}");
            }
        }
    }

    #[test]
    fn no_gap_is_half_as_long_again_whatever_becomes_of_the_samples() {
        let are_kept = |gaps: &[f64], interval: f64| {
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            gaps.iter().skip(1).all(|gap| *gap <= 1.5 * interval && *gap >= 0.5 * interval)
                && mean >= 0.9 * interval
        };
        // A companion that is started anew, at another phase each time.
        let mut at = 0.0;
        let restarted = (0..40).flat_map(|i| {
            at += 10.0 * 12.0 + f64::from(i) * 0.77;
            samples(at, 10.0, 0.001, 12)
        });
        let seen = gaps(10.0, 1.0, 10.0, restarted.collect::<Vec<_>>());
        assert!(are_kept(&seen, 10.0), "{seen:?}");
        // Every seventh sample is late.
        let late = (0..100).map(|i| f64::from(i) * 10.0 + if i % 7 == 6 { 0.7 } else { 0.0 });
        let seen = gaps(10.0, 1.0, 10.0, late);
        assert!(are_kept(&seen, 10.0), "{seen:?}");
        // Watched, samples come every period; and none comes at times at which reports could go.
        for (between, every) in [(10.0, 1.0), (7.0, 7.0), (60.0, 60.0)] {
            let seen = gaps(10.0, 1.0, between, samples(0.3, every, 0.001, 300));
            assert!(are_kept(&seen, 10.0), "{between} {every}: {seen:?}");
        }
        // None at all.
        let seen = gaps(10.0, 1.0, 10.0, [1000.0]);
        assert!(seen.len() >= 99 && are_kept(&seen, 10.0), "{seen:?}");
    }
}
