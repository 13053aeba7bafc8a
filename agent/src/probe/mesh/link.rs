//! The two ways between this node and one peer, judged from counted and stamped probes.
//!
//! What arrives here tells about the way to this node: the peer numbers its probes, so a gap is a loss. What the
//! peer says it heard tells about the way from here. A way of which nothing can be seen is unknown, never fine.
//! Round trips are compared with the fastest one that was ever seen; which way became slower is told by the
//! one-way differences, whose unknown clock offset is constant as long as neither machine is started anew, which shows.

use std::collections::VecDeque;

use ebpf_records::mesh::ARRIVALS;
use wire::report::{PeerReport, RoundTrip, Stamps, Way, WayState};

/// What the companion counted for one peer, cumulative.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PeerSample {
    /// For how long the peer is probed, ms.
    pub known_ms: u64,
    /// Probes handed to the network.
    pub sequence: u32,
    /// Probes that left by the uplink.
    pub sent: u64,
    /// Session of the peer that the next two speak of; 0 = nothing was ever heard.
    pub heard_session: u32,
    /// The peer's probes that arrived.
    pub heard: u32,
    /// The highest number that is known to have been sent.
    pub heard_highest: u32,
    /// Our probes that arrived there, as the peer says.
    pub peer_heard: u32,
    /// The highest number among them.
    pub peer_highest: u32,
    /// Time since anything of the peer arrived, ms; `None` = never.
    pub silent_ms: Option<u64>,
    /// What the newest probe took that arrived since the last sample, plus the unknown difference of the two clocks, ns.
    pub newest: Option<i64>,
}

impl PeerSample {
    /// Whether one of the two ends counts from nothing since `before`: the differences between the two mean nothing.
    fn begins_anew(&self, before: &Self) -> bool {
        self.heard_session != before.heard_session
            || before.peer_highest == 0 && self.peer_highest > 0
            || self.sequence < before.sequence
            || self.heard < before.heard
            || self.peer_heard < before.peer_heard
    }
}

/// One round trip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trip {
    /// Both ways together, ns.
    pub round_trip: u64,
    /// Way there plus the unknown difference of the two clocks, ns.
    pub outbound: i64,
    /// Who stamped it.
    pub stamps: Stamps,
}

/// Over how many samples loss is judged; a way on which none of them brought a new number is unknown.
const WINDOW: usize = 3;
/// Lost probes within the window that make a way lossy.
const LOST: u32 = 2;
/// Samples for which a way stays lossy after the last such window.
const HOLD: u32 = 5;
/// A batch that is not there so long after its time is not late but lost, ms.
pub const LATE_MS: u64 = 100;
/// Batches that do not come one after the other make a way cut.
const SILENCE: u64 = 2;
/// Round trips that are summed up.
const TRIPS: usize = 16;
const _: () = assert!(ARRIVALS <= TRIPS);
/// Batches that did not come until nothing is told of the way there.
const ONE_BATCH: u64 = 1;
/// Samples that a round trip must be slow before it counts.
const SLOW: u32 = 2;
/// Samples without a round trip after which nothing is told of delay: losses on both ways account for some.
const UNTOLD: u32 = 3;
/// Round trips after which there is something to compare with.
const LEARNT: u32 = 5;
/// Clock drift that is forgiven when directions are compared: two undisciplined crystals, ns per second.
const DRIFT: i64 = 100_000;
/// No packet is so late, ns: a one-way difference that changes by more tells that the peer was started anew, and its clock with it.
const CLOCK_BEGAN_ANEW: u64 = 10_000_000_000;

/// What is remembered of one peer.
#[derive(Debug, Default)]
pub struct Link {
    history: VecDeque<PeerSample>,
    lossy_in: u32,
    lossy_out: u32,
    pace: Delay,
    trips: VecDeque<Trip>,
    out: Way,
    incoming: Way,
}

/// What is remembered of the round trips with one peer.
#[derive(Debug, Default)]
struct Delay {
    learnt: u32,
    fastest: Option<u64>,
    /// Lowest one-way differences, there and back, raised by the forgiven drift.
    there: Option<i64>,
    back: Option<i64>,
    slow_for: u32,
    /// Whether the newest arrival was late: a round trip may be known a sample later than one of its ways.
    is_late: bool,
    /// Samples without a round trip.
    untold: u32,
    /// What the last sample was slower by, there and back, ns; while slow it is kept.
    excess: Option<(i64, i64)>,
}

impl Delay {
    /// Takes the round trips of one sample in.
    fn learn(&mut self, trips: &[Trip], newest: Option<i64>, period_ms: u64) {
        let Some(round_trip) = median(trips.iter().map(|t| t.round_trip)) else {
            self.untold = self.untold.saturating_add(1);
            return;
        };
        self.untold = 0;
        let there = median(trips.iter().map(|t| t.outbound)).unwrap_or_default();
        let back = median(trips.iter().map(|t| t.round_trip as i64 - t.outbound)).unwrap_or_default();
        if self.there.is_some_and(|base| there.abs_diff(base) > CLOCK_BEGAN_ANEW) {
            (self.there, self.back, self.excess) = (None, None, None);
        }
        let user_space = trips.iter().any(|t| t.stamps != Stamps::Kernel);
        let fastest = self.fastest.map_or(round_trip, |f| f.min(round_trip));
        self.fastest = Some(fastest);
        let margin = (4 * fastest).max(if user_space { 20_000_000 } else { 5_000_000 });
        let drift = DRIFT * period_ms as i64 / 1000;
        let base = |base: Option<i64>, now: i64| base.map_or(now, |b| now.min(b + drift));
        let was_late = std::mem::replace(
            &mut self.is_late,
            self.back.zip(newest).is_some_and(|(base, newest)| newest.saturating_sub(base) >= margin as i64),
        );
        if self.learnt >= LEARNT && round_trip - fastest >= margin {
            // The second late arrival in a row, and the first one is known to have made a round trip slow.
            self.slow_for += if self.slow_for == 0 && was_late && self.is_late { 2 } else { 1 };
            if let (Some(base_there), Some(base_back)) = (self.there, self.back) {
                self.excess = Some((there - base_there, back - base_back));
            }
        } else {
            self.slow_for = 0;
            self.there = Some(base(self.there, there));
            self.back = Some(base(self.back, back));
            self.excess = Some((there - self.there.unwrap_or(there), back - self.back.unwrap_or(back)));
        }
        self.learnt = self.learnt.saturating_add(trips.len() as u32);
    }

    /// Whether so long no round trip was known that nothing can be told.
    fn is_untold(&self) -> bool {
        self.untold > UNTOLD
    }

    /// Whether the way there and the way back are slow, and by how much, ms.
    fn verdict(&self) -> [(bool, Option<f64>); 2] {
        let Some((there, back)) = self.excess.filter(|_| self.learnt >= LEARNT && !self.is_untold()) else {
            return [(false, None); 2];
        };
        let slow = self.slow_for >= SLOW;
        // A way is to blame when it has at least a third of the delay: both, when they share it.
        let total = there.max(0) + back.max(0);
        [there, back]
            .map(|excess| (slow && excess * 3 >= total && excess > 0, Some(excess.max(0) as f64 / 1e6)))
    }
}

/// The value in the middle of at most [`TRIPS`].
fn median<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut all = [T::default(); TRIPS];
    let count = all.iter_mut().zip(values).map(|(place, value)| *place = value).count();
    all[..count].sort_unstable();
    all[..count].get(count / 2).copied()
}

impl Link {
    /// Judges both ways by what is counted now, and by the round trips since the last time, at most [`ARRIVALS`]. Once a period.
    pub fn judge(&mut self, sample: PeerSample, trips: &[Trip], period_ms: u64) {
        self.pace.learn(trips, sample.newest, period_ms);
        self.trips.extend(trips);
        self.trips.drain(..self.trips.len().saturating_sub(TRIPS));
        if self.history.back().is_some_and(|last| sample.begins_anew(last)) {
            self.history.clear();
        }
        if self.history.len() > WINDOW {
            self.history.pop_front();
        }
        self.history.push_back(sample);
        let [(slow_out, delay_out), (slow_in, delay_in)] = self.pace.verdict();

        let silent_for =
            |batches: u64| sample.silent_ms.unwrap_or(sample.known_ms) >= period_ms * batches + LATE_MS;
        let lost_in = self.lost(|s| (s.heard, s.heard_highest));
        let lost_out = self.lost(|s| (s.peer_heard, s.peer_highest));
        let young = sample.known_ms < 3 * period_ms;

        let mut incoming = if young && sample.silent_ms.is_none() {
            Way::default()
        } else if silent_for(SILENCE) {
            Way { state: WayState::Cut, loss: Some(1.0), delay_ms: None }
        } else {
            way(lost_in, &mut self.lossy_in, slow_in, delay_in)
        };
        // On a way that is known to lose packets, a batch that did not come is no silence yet.
        let patience = if self.lossy_in > 0 { SILENCE } else { ONE_BATCH };
        let mut out = if young
            || silent_for(patience)
            || sample.heard_session == 0
            || sample.peer_highest > sample.sequence
        {
            // Nothing arrives, so nothing is told of the ways from here; or nonsense is.
            Way::default()
        } else if self.out_is_cut(&sample) {
            Way { state: WayState::Cut, loss: Some(1.0), delay_ms: None }
        } else {
            way(lost_out, &mut self.lossy_out, slow_out, delay_out)
        };
        if self.pace.is_untold() && [&incoming, &out].iter().all(|way| way.state == WayState::Fine) {
            (incoming.state, out.state) = (WayState::Unknown, WayState::Unknown);
        }
        if incoming.state == WayState::Cut {
            self.trips.clear();
        }
        (self.out, self.incoming) = (out, incoming);
    }

    /// Verdicts on the ways there and back.
    pub fn states(&self) -> [WayState; 2] {
        [self.out.state, self.incoming.state]
    }

    /// What is known of both ways.
    pub fn report(&self) -> PeerReport {
        let sample = self.history.back().copied().unwrap_or_default();
        PeerReport {
            sent: sample.sent,
            answered: sample.peer_heard.into(),
            heard: sample.heard.into(),
            out: self.out,
            incoming: self.incoming,
            round_trip: self.round_trip(),
        }
    }

    /// Lost and expected within the window, of the counts (heard, highest) of one direction; `None` when a whole window
    /// brought no new number, so that nothing can be told.
    fn lost(&self, counts: impl Fn(&PeerSample) -> (u32, u32)) -> Option<(u32, u32)> {
        let (then, now) = (counts(self.history.front()?), counts(self.history.back()?));
        let expected = now.1.saturating_sub(then.1);
        let heard = now.0.saturating_sub(then.0);
        (expected > 0 || self.history.len() <= WINDOW).then(|| (expected.saturating_sub(heard), expected))
    }

    /// Two ticks long the peer is heard and has not heard us.
    fn out_is_cut(&self, sample: &PeerSample) -> bool {
        let Some(then) = self.history.iter().rev().nth(2) else { return false };
        sample.sequence > then.sequence && sample.peer_highest == then.peer_highest
    }

    fn round_trip(&self) -> Option<RoundTrip> {
        let us = |ns: u64| ns as f64 / 1000.0;
        let times = || self.trips.iter().map(|t| t.round_trip);
        Some(RoundTrip {
            median_us: us(median(times())?),
            min_us: us(times().min()?),
            max_us: us(times().max()?),
            samples: self.trips.len() as u32,
            stamps: self.trips.iter().map(|t| t.stamps).min()?,
        })
    }
}

fn way(lost: Option<(u32, u32)>, lossy: &mut u32, slow: bool, delay_ms: Option<f64>) -> Way {
    let Some((lost, expected)) = lost else { return Way::default() };
    if lost >= LOST {
        *lossy = HOLD;
    } else {
        *lossy = lossy.saturating_sub(1);
    }
    let state = match (*lossy > 0, slow) {
        (true, _) => WayState::Lossy,
        (false, true) => WayState::Slow,
        (false, false) => WayState::Fine,
    };
    Way { state, loss: (expected > 0).then(|| f64::from(lost) / f64::from(expected)), delay_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: u64 = 1000;

    fn trip(there_us: i64, back_us: i64) -> Trip {
        // The clocks differ by a day.
        let offset = 86_400_000_000_000;
        Trip {
            round_trip: ((there_us + back_us) * 1000) as u64,
            outbound: there_us * 1000 + offset,
            stamps: Stamps::Kernel,
        }
    }

    /// What is told after one more tick.
    fn told(link: &mut Link, sample: PeerSample, trips: &[Trip]) -> PeerReport {
        link.judge(sample, trips, PERIOD);
        assert_eq!(link.states(), [link.report().out.state, link.report().incoming.state]);
        link.report()
    }

    /// One tick of a link: how many of five probes arrive in each direction, and the round trips.
    struct Tick {
        out: u32,
        back: u32,
        trips: Vec<Trip>,
    }

    fn fine() -> Tick {
        Tick { out: 5, back: 5, trips: vec![trip(100, 100); 5] }
    }

    fn play(ticks: impl IntoIterator<Item = Tick>) -> Vec<PeerReport> {
        let (mut link, mut s) = (Link::default(), PeerSample { heard_session: 7, ..PeerSample::default() });
        let (mut silent, mut heard_there) = (0, 0);
        ticks
            .into_iter()
            .map(|tick| {
                s.known_ms += PERIOD;
                s.sequence += 5;
                s.sent += 5;
                heard_there += tick.out;
                if tick.back > 0 {
                    silent = 0;
                    s.heard += tick.back;
                    s.heard_highest = s.sequence;
                    // Feedback travels on the way back.
                    s.peer_heard = heard_there;
                    if tick.out > 0 {
                        s.peer_highest = s.sequence;
                    }
                } else {
                    silent += PERIOD;
                }
                s.silent_ms = Some(silent + 200);
                s.newest = tick.trips.last().map(|trip| trip.round_trip as i64 - trip.outbound);
                told(&mut link, s, &tick.trips)
            })
            .collect()
    }

    fn states(reports: &[PeerReport]) -> Vec<(WayState, WayState)> {
        reports.iter().map(|r| (r.out.state, r.incoming.state)).collect()
    }

    fn many(n: usize, tick: impl Fn() -> Tick) -> impl Iterator<Item = Tick> {
        (0..n).map(move |_| tick())
    }

    use WayState::{Cut, Fine, Lossy, Slow, Unknown};

    #[test]
    fn a_healthy_link_is_fine_both_ways_once_it_is_known() {
        let reports = play(many(5, fine));
        assert_eq!(states(&reports)[2..], [(Fine, Fine); 3]);
        let last = reports[4].round_trip.unwrap();
        assert_eq!((last.median_us, last.stamps), (200.0, Stamps::Kernel));
    }

    #[test]
    fn loss_is_named_in_its_own_direction_at_the_next_tick() {
        let out = play(many(5, fine).chain([Tick { out: 3, ..fine() }]));
        assert_eq!(states(&out)[5], (Lossy, Fine));
        let back = play(many(5, fine).chain([Tick { back: 2, ..fine() }]));
        assert_eq!(states(&back)[5], (Fine, Lossy));
        assert_eq!(back[5].incoming.loss, Some(0.2));
    }

    #[test]
    fn one_lost_probe_is_no_alarm_and_a_lossy_way_recovers() {
        let one = play(many(5, fine).chain([Tick { out: 4, ..fine() }]));
        assert_eq!(states(&one)[5], (Fine, Fine));
        let over = play(many(5, fine).chain([Tick { out: 0, ..fine() }]).chain(many(12, fine)));
        assert_eq!(states(&over)[6], (Lossy, Fine));
        assert_eq!(states(&over)[17], (Fine, Fine));
    }

    #[test]
    fn a_batch_that_a_lossy_way_has_lost_does_not_hide_the_other_way() {
        let silent = || Tick { out: 5, back: 0, trips: vec![] };
        let reports =
            play(many(5, fine).chain([Tick { back: 2, ..fine() }, silent(), fine(), silent(), silent()]));
        assert_eq!(states(&reports)[5..9], [(Fine, Lossy); 4]);
        assert_eq!(states(&reports)[9], (Unknown, Cut));
    }

    #[test]
    fn a_way_that_is_cut_is_named_after_two_ticks_and_the_other_is_unknown_or_fine() {
        let silent = || Tick { out: 0, back: 0, trips: vec![] };
        let back = play(many(5, fine).chain(many(2, silent)));
        assert_eq!(states(&back)[6], (Unknown, Cut));
        let deaf = || Tick { out: 0, back: 5, trips: vec![] };
        let out = play(many(5, fine).chain(many(2, deaf)));
        assert_eq!(states(&out)[6], (Cut, Fine));
    }

    /// Whoever tells that one is cut from whom many others are (a node that is gone) relies on it.
    #[test]
    fn a_silent_peer_is_unknown_for_one_tick_and_then_cut_whatever_the_clocks_say() {
        for (period, late) in
            [500, 1000, 2000, 60_000].iter().flat_map(|p| [0, 99, 100, 200, 499].map(|l| (*p, l)))
        {
            let mut link = Link::default();
            let states: Vec<_> = (0..8_u64)
                .map(|tick| {
                    let silent_ms = Some(late + tick.saturating_sub(3) * period);
                    let (heard, peer_heard) = (5 * (tick.min(3) as u32 + 1), 5 * (tick.min(3) as u32 + 1));
                    let counts = PeerSample {
                        known_ms: (tick + 9) * period,
                        sequence: 5 * (tick as u32 + 1),
                        heard_session: 7,
                        heard,
                        heard_highest: heard,
                        peer_heard,
                        peer_highest: peer_heard,
                        silent_ms,
                        ..PeerSample::default()
                    };
                    link.judge(counts, &[trip(100, 100)], period);
                    (link.out.state, link.incoming.state)
                })
                .collect();
            let missed = states.iter().position(|(out, _)| *out == Unknown).unwrap();
            assert_eq!(missed, if late < LATE_MS { 5 } else { 4 }, "{period} {late}: {states:?}");
            assert_eq!(
                states[missed..missed + 2],
                [(Unknown, Fine), (Unknown, Cut)],
                "{period} {late}: {states:?}"
            );
            assert!(states[..missed].iter().all(|both| *both == (Fine, Fine)), "{period} {late}: {states:?}");
        }
    }

    #[test]
    fn a_peer_that_was_never_heard_is_unknown_first_and_cut_then() {
        let mut link = Link::default();
        let mut judge = |known_ms| {
            let s = PeerSample { known_ms, sequence: known_ms as u32 / 200, ..PeerSample::default() };
            let report = told(&mut link, s, &[]);
            (report.out.state, report.incoming.state)
        };
        assert_eq!(judge(1200), (Unknown, Unknown));
        assert_eq!(judge(3200), (Unknown, Cut));
    }

    #[test]
    fn the_slower_direction_is_named_whatever_the_clocks_say() {
        let slow = |there, back| move || Tick { trips: vec![trip(there, back); 5], ..fine() };
        let there = play(many(5, fine).chain(many(2, slow(50_100, 100))));
        assert_eq!(states(&there)[6], (Slow, Fine));
        assert!((there[6].out.delay_ms.unwrap() - 50.0).abs() < 1.0);
        let back = play(many(5, fine).chain(many(2, slow(100, 50_100))));
        assert_eq!(states(&back)[6], (Fine, Slow));
        let both = play(many(5, fine).chain(many(2, slow(30_000, 30_000))));
        assert_eq!(states(&both)[6], (Slow, Slow));
    }

    #[test]
    fn who_knows_a_round_trip_a_tick_later_names_the_delay_no_later() {
        let tick = |newest_us: i64, back_us| (newest_us * 1000, vec![trip(100, back_us); 5]);
        let mut link = Link::default();
        let mut judge = |tick: u32, (newest, trips): (i64, Vec<Trip>)| {
            let newest = Some(newest - 86_400_000_000_000);
            told(&mut link, PeerSample { newest, ..since(tick, 0, 0) }, &trips).incoming.state
        };
        // The way is late for one tick, and for good then.
        let ways = [100, 100, 100, 100, 50_100, 100, 100, 100, 100, 50_100, 50_100];
        let states: Vec<WayState> =
            (1..ways.len()).map(|i| judge(i as u32 + 10, tick(ways[i], ways[i - 1]))).collect();
        assert_eq!(states[..9], [Fine; 9]);
        assert_eq!(states[9], Slow);
    }

    #[test]
    fn a_link_without_round_trips_is_not_fine() {
        let mut link = Link::default();
        let reports: Vec<PeerReport> = (1..9)
            .map(|tick| {
                let trips = if tick < 4 { vec![trip(100, 100); 5] } else { vec![] };
                told(&mut link, since(tick, 0, 0), &trips)
            })
            .collect();
        assert_eq!(states(&reports)[..6], [(Fine, Fine); 6]);
        assert_eq!(states(&reports)[6..], [(Unknown, Unknown); 2]);
        assert_eq!(reports[7].incoming.delay_ms, None);
    }

    #[test]
    fn a_peer_that_was_started_anew_has_another_clock() {
        const UP: i64 = 3_600_000_000_000;
        let after = |there, back| {
            let mut trip = trip(there, back);
            trip.outbound -= UP;
            move || Tick { trips: vec![trip; 5], ..fine() }
        };
        let reports = play(many(5, fine).chain(many(5, after(100, 100))).chain(many(2, after(50_100, 100))));
        assert!(reports[9].incoming.delay_ms.unwrap() < 1.0, "{:?}", reports[9]);
        assert_eq!(states(&reports)[11], (Slow, Fine));
    }

    #[test]
    fn one_slow_sample_is_no_alarm_and_a_slow_way_stays_slow() {
        let slow = || Tick { trips: vec![trip(50_100, 100); 5], ..fine() };
        assert_eq!(states(&play(many(5, fine).chain([slow()])))[5], (Fine, Fine));
        let reports = play(many(5, fine).chain(many(100, slow)).chain(many(2, fine)));
        assert_eq!(states(&reports)[104], (Slow, Fine));
        assert_eq!(states(&reports)[106], (Fine, Fine));
    }

    #[test]
    fn a_restarted_peer_begins_again_without_an_alarm() {
        let mut link = Link::default();
        let s = |session, heard| PeerSample {
            known_ms: 60_000,
            sequence: 300,
            heard_session: session,
            heard,
            heard_highest: heard,
            silent_ms: Some(200),
            ..PeerSample::default()
        };
        told(&mut link, s(1, 1000), &[]);
        told(&mut link, s(1, 1005), &[]);
        assert_eq!(told(&mut link, s(2, 5), &[]).incoming.state, Fine);
    }

    /// One tick of a healthy peer, of which all that was counted since some moment is left out.
    fn since(tick: u32, heard_since: u32, peer_heard_since: u32) -> PeerSample {
        PeerSample {
            known_ms: 60_000,
            sequence: tick * 5,
            heard_session: 7,
            heard: (tick - heard_since) * 5,
            heard_highest: tick * 5,
            peer_heard: (tick - peer_heard_since) * 5,
            peer_highest: tick * 5,
            silent_ms: Some(200),
            ..PeerSample::default()
        }
    }

    #[test]
    fn an_end_that_counts_from_nothing_again_raises_no_alarm() {
        // The session is heard to be new before the new counts are, and the other way round.
        for (heard_since, peer_heard_since) in [(0, 4), (4, 0)] {
            let mut link = Link::default();
            let ticks = (1..10).map(|tick| match tick {
                1..=4 => since(tick, 0, 0),
                _ => since(tick, heard_since, peer_heard_since),
            });
            let reports: Vec<PeerReport> =
                ticks.map(|sample| told(&mut link, sample, &[trip(100, 100)])).collect();
            assert_eq!(states(&reports), [(Fine, Fine); 9]);
        }
    }

    #[test]
    fn what_was_sent_before_the_peer_listened_is_not_lost() {
        // Who speaks second is told of its own probes a tick after it has heard the peer.
        let mut link = Link::default();
        let reports: Vec<PeerReport> = (2..7)
            .map(|tick| {
                let (peer_heard, peer_highest) =
                    [(0, 0), (0, 0), (5, 15), (10, 20), (15, 25)][tick as usize - 2];
                let sample = PeerSample { peer_heard, peer_highest, ..since(tick, 0, 0) };
                told(&mut link, sample, &[trip(100, 100)])
            })
            .collect();
        assert!(reports.iter().all(|report| report.out.state != Lossy), "{reports:?}");
    }

    #[test]
    fn a_way_on_which_no_new_number_arrives_is_unknown_though_the_peer_is_heard() {
        // As when the peer numbers anew what was numbered higher.
        let mut link = Link::default();
        let reports: Vec<PeerReport> = (1..8)
            .map(|tick| {
                let mut sample = since(tick, 0, 0);
                (sample.heard, sample.heard_highest) = (5, 5);
                told(&mut link, sample, &[trip(100, 100)])
            })
            .collect();
        assert_eq!(states(&reports)[..3], [(Fine, Fine); 3]);
        assert_eq!(states(&reports)[3..], [(Fine, Unknown); 4]);
    }
}
