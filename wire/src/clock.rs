//! The two clocks: by the steady one everything is measured, by the wall clock everything is told.
//!
//! A Pi has no clock of its own: it starts years ago and jumps when it hears from a time server. So what is kept is steady
//! time, which never jumps, and how far the wall clock is from it is added when a time is told: after a jump all of them are
//! right, and no age has changed. Pure: who has the clocks looks at them.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Less is no jump: clocks drift a little, and two of them are not looked at in the same moment.
const JUMP: SignedDuration = SignedDuration::from_secs(1);

/// How far the wall clock is ahead of the steady one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wall(SignedDuration);

impl Wall {
    /// What it is when the clocks say this; the same as before unless the wall clock jumped.
    #[must_use]
    pub fn seen(self, steady: Timestamp, wall: Timestamp) -> Self {
        let ahead = wall.duration_since(steady);
        if (ahead - self.0).abs() < JUMP { self } else { Self(ahead) }
    }

    /// A steady time as the wall clock has it.
    pub fn tell(self, steady: Timestamp) -> Timestamp {
        let end = if self.0.is_negative() { Timestamp::MIN } else { Timestamp::MAX };
        steady.checked_add(self.0).unwrap_or(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF_A_CENTURY: SignedDuration = SignedDuration::from_hours(50 * 365 * 24);

    #[test]
    fn a_jump_makes_all_times_right_and_drift_none_wrong() {
        let start: Timestamp = "1976-11-23T06:00:00Z".parse().unwrap();
        let mut wall = Wall::default();
        assert_eq!(wall.tell(start), start);
        for (ahead, told) in [
            (SignedDuration::from_millis(900), SignedDuration::ZERO),
            (HALF_A_CENTURY, HALF_A_CENTURY),
            (HALF_A_CENTURY - SignedDuration::from_millis(900), HALF_A_CENTURY),
            (HALF_A_CENTURY + SignedDuration::from_secs(2), HALF_A_CENTURY + SignedDuration::from_secs(2)),
            (-HALF_A_CENTURY, -HALF_A_CENTURY),
            (SignedDuration::ZERO, SignedDuration::ZERO),
        ] {
            let steady = start + SignedDuration::from_secs(60);
            wall = wall.seen(steady, steady + ahead);
            assert_eq!(wall.tell(start), start + told, "{ahead}");
        }
    }

    #[test]
    fn what_no_calendar_has_is_told_as_its_end() {
        let wall = Wall::default();
        assert_eq!(wall.seen(Timestamp::MIN, Timestamp::MAX).tell(Timestamp::MAX), Timestamp::MAX);
        assert_eq!(wall.seen(Timestamp::MAX, Timestamp::MIN).tell(Timestamp::MIN), Timestamp::MIN);
    }
}
