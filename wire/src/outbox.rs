//! What is to be said to the broker, and what it has not acknowledged yet. Pure: no sockets, no clock.
//!
//! Retained topics keep their newest value, which is said again at every connection. Events keep their order until the
//! broker has them; at the bound the oldest goes. Records, which are told late rather than never, have a bound of their own,
//! and what is given up of them is counted. What the broker cannot take is left out and named, and everything else goes on.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{ConnAckProperties, Packet, PubAckReason, Publish, PublishProperties},
};

/// Packets under way to the broker at once; mosquitto grants 20.
const INFLIGHT: u16 = 16;
/// Records that are kept.
const RECORDS: Load = Load { count: 2048, bytes: 256 * 1024 };
/// Other events that are kept.
const EVENTS: Load = Load { count: 256, bytes: 96 * 1024 };
/// Complaints that are kept; a person reads the first ones.
const COMPLAINTS: usize = 16;

/// What the broker does not do for us, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Complaints {
    /// Topics and filters that it refuses, with its reason.
    pub refused: BTreeMap<String, String>,
    /// Topics whose message is larger than the packets it takes: bytes, and the broker's limit.
    pub too_large: BTreeMap<String, (usize, usize)>,
    /// It keeps no retained messages.
    pub retains_nothing: bool,
    /// It acknowledges nothing: what is under way when the connection breaks is lost.
    pub acknowledges_nothing: bool,
    /// On this connection it has answered everything once: what is not complained of until then may still be refused.
    pub answered: bool,
}

impl Complaints {
    /// Each with its next step.
    pub fn told(&self) -> Vec<String> {
        let refused = self.refused.iter().map(|(topic, reason)| {
            format!("the broker refuses {topic} ({reason}); allow it in the broker's access list (acl_file)")
        });
        let too_large = self.too_large.iter().map(|(topic, (size, limit))| {
            format!(
                "the broker takes packets of {limit} bytes at most, and {topic} has {size}; raise max_packet_size in its configuration"
            )
        });
        let retains_nothing = self.retains_nothing.then(|| {
            "the broker keeps no retained messages, so who connects later sees nothing of this; set retain_available true in its configuration".to_owned()
        });
        let acknowledges_nothing = self.acknowledges_nothing.then(|| {
            "the broker acknowledges nothing (QoS 0), so what is under way is lost with the connection; set max_qos 1 in its configuration".to_owned()
        });
        refused.chain(too_large).chain(retains_nothing).chain(acknowledges_nothing).collect()
    }
}

/// What the broker grants on this connection.
#[derive(Clone, Copy, Debug)]
struct Grant {
    inflight: u16,
    packet: usize,
    acknowledges: bool,
    retains: bool,
}

impl Default for Grant {
    fn default() -> Self {
        Self { inflight: INFLIGHT, packet: usize::MAX, acknowledges: true, retains: true }
    }
}

/// What is to be sent: newest value per retained topic, and a bounded queue of events.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    latest: BTreeMap<String, Value>,
    /// Topics of `latest` that wait, in order, each once.
    waiting: VecDeque<String>,
    events: VecDeque<Happened>,
    /// The next event's number.
    number: u64,
    /// Records that were given up.
    dropped: u64,
    /// Whether the last answer to a record was a refusal.
    record_refused: bool,
    grant: Grant,
    /// Sent on this connection, not yet acknowledged.
    under_way: BTreeMap<u16, Sent>,
    last_id: u16,
    complaints: Complaints,
    /// Whether they changed since somebody asked.
    changed: bool,
}

#[derive(Clone, Debug)]
struct Value {
    payload: Bytes,
    expiry: Option<Duration>,
    set: Instant,
}

/// Something that happened.
#[derive(Debug)]
struct Happened {
    number: u64,
    topic: String,
    payload: Bytes,
    /// When it is worth nothing any more.
    until: Option<Instant>,
    state: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Waiting,
    UnderWay,
    Done,
}

impl Happened {
    fn size(&self) -> usize {
        self.topic.len() + self.payload.len()
    }

    fn is_record(&self) -> bool {
        self.until.is_none()
    }
}

/// Events, and bytes of their payloads and topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Load {
    count: usize,
    bytes: usize,
}

impl Load {
    fn fits(self, bound: Self) -> bool {
        self.count <= bound.count && self.bytes <= bound.bytes
    }
}

/// What a packet id stands for.
#[derive(Debug)]
enum Sent {
    Latest(String),
    Event(u64, String),
    Filters,
}

/// A message that an acknowledgement was about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// A retained topic, or nothing that is known.
    Latest,
    /// Events.
    Events,
}

impl Outbox {
    pub(crate) fn set(&mut self, topic: String, payload: Bytes, expiry: Option<Duration>, now: Instant) {
        self.latest.insert(topic.clone(), Value { payload, expiry, set: now });
        if !self.waiting.contains(&topic) {
            self.waiting.push_back(topic);
        }
    }

    /// Takes an event up that is worth nothing after `expiry`.
    pub(crate) fn event(&mut self, topic: String, payload: Bytes, expiry: Duration, now: Instant) -> u64 {
        self.push(topic, payload, Some(now + expiry))
    }

    /// Takes an event up that is told late rather than never.
    pub(crate) fn record(&mut self, topic: String, payload: Bytes) -> u64 {
        self.push(topic, payload, None)
    }

    fn push(&mut self, topic: String, payload: Bytes, until: Option<Instant>) -> u64 {
        let number = self.number;
        self.number += 1;
        let state = Progress::Waiting;
        let happened = Happened { number, topic, payload, until, state };
        let records = happened.is_record();
        let bound = if records { RECORDS } else { EVENTS };
        if happened.size() > bound.bytes {
            // It would push out all the others and then itself.
            self.dropped += u64::from(records);
            return number;
        }
        self.events.push_back(happened);
        while !self.load(records).fits(bound) {
            let oldest = self.events.iter().position(|event| event.is_record() == records);
            let Some(oldest) = oldest.and_then(|at| self.events.remove(at)) else { break };
            // On its way it may still arrive; then it is counted although it was not lost.
            self.dropped += u64::from(records && oldest.state != Progress::Done);
        }
        number
    }

    /// What is kept of records, or of other events.
    fn load(&self, records: bool) -> Load {
        let all = self.events.iter().filter(|event| event.is_record() == records);
        all.fold(Load::default(), |sum, event| Load { count: sum.count + 1, bytes: sum.bytes + event.size() })
    }

    /// All records with a lower number are with the broker, or were given up.
    pub(crate) fn settled_before(&self) -> u64 {
        let mut records = self.events.iter().filter(|event| event.is_record());
        records.find(|record| record.state != Progress::Done).map_or(self.number, |record| record.number)
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(crate) fn takes_records(&self) -> bool {
        !self.record_refused
    }

    pub(crate) fn complaints(&self) -> &Complaints {
        &self.complaints
    }

    /// Whether the complaints changed since this was asked.
    pub(crate) fn complaints_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// A new connection: the broker may have forgotten everything, so everything is said again, `first` first.
    pub(crate) fn connected(&mut self, first: &str, granted: Option<&ConnAckProperties>) {
        self.under_way.clear();
        self.last_id = 0;
        self.complaints = Complaints::default();
        self.changed = true;
        self.grant = Grant::default();
        if let Some(granted) = granted {
            self.grant = Grant {
                inflight: granted.receive_max.unwrap_or(INFLIGHT).clamp(1, INFLIGHT),
                packet: granted.max_packet_size.map_or(usize::MAX, |size| size as usize),
                acknowledges: granted.max_qos != Some(0),
                retains: granted.retain_available != Some(0),
            };
            self.complaints.acknowledges_nothing = !self.grant.acknowledges;
            self.complaints.retains_nothing = !self.grant.retains;
        }
        for event in &mut self.events {
            if event.state == Progress::UnderWay {
                event.state = Progress::Waiting;
            }
        }
        self.waiting = self.latest.keys().filter(|t| *t != first).cloned().collect();
        if self.latest.contains_key(first) {
            self.waiting.push_front(first.to_owned());
        }
    }

    /// A packet id for the subscription.
    pub(crate) fn id_for_filters(&mut self) -> u16 {
        let id = self.free_id();
        self.under_way.insert(id, Sent::Filters);
        id
    }

    /// Whether `id` was given for the subscription; it is free afterwards.
    pub(crate) fn take_filters(&mut self, id: u16) -> bool {
        let is_it = matches!(self.under_way.get(&id), Some(Sent::Filters));
        if is_it {
            self.under_way.remove(&id);
        }
        is_it
    }

    /// Adds the next packet to `out`, as far as the broker takes more now. What has expired meanwhile is not sent as if
    /// it were fresh.
    pub(crate) fn next(&mut self, now: Instant, out: &mut BytesMut) -> bool {
        if self.under_way.len() >= usize::from(self.grant.inflight) {
            return false;
        }
        while let Some(topic) = self.waiting.pop_front() {
            let Some(value) = self.latest.get(&topic).cloned() else { continue };
            let expiry = match value.expiry {
                None => None,
                Some(expiry) => match expiry.checked_sub(now.duration_since(value.set)) {
                    None => continue,
                    Some(left) => Some(left),
                },
            };
            if let Some(id) = self.write(&topic, value.payload, true, expiry, out) {
                match id {
                    0 => self.forget_removed(&topic),
                    id => drop(self.under_way.insert(id, Sent::Latest(topic))),
                }
                return true;
            }
        }
        let mut at = 0;
        while at < self.events.len() {
            let event = &mut self.events[at];
            if event.state != Progress::Waiting {
                at += 1;
                continue;
            }
            let expiry = match event.until {
                None => None,
                Some(until) => match until.checked_duration_since(now).filter(|left| !left.is_zero()) {
                    Some(left) => Some(left),
                    None => {
                        event.state = Progress::Done;
                        at += 1;
                        continue;
                    }
                },
            };
            let (number, topic, payload) = (event.number, event.topic.clone(), event.payload.clone());
            match self.write(&topic, payload, false, expiry, out) {
                Some(0) => self.events[at].state = Progress::Done,
                Some(id) => {
                    self.events[at].state = Progress::UnderWay;
                    self.under_way.insert(id, Sent::Event(number, topic));
                }
                None => {
                    self.events[at].state = Progress::Done;
                    if self.events[at].is_record() {
                        self.dropped += 1;
                        // The one that tells so may be too large as well.
                        self.record_refused = true;
                    }
                    at += 1;
                    continue;
                }
            }
            self.forget_done();
            return true;
        }
        self.forget_done();
        false
    }

    /// Writes one publication; returns its id, 0 when none will be acknowledged, nothing when the broker does not take it.
    fn write(
        &mut self,
        topic: &str,
        payload: Bytes,
        retain: bool,
        expiry: Option<Duration>,
        out: &mut BytesMut,
    ) -> Option<u16> {
        let id = if self.grant.acknowledges { self.free_id() } else { 0 };
        let is_json = payload.first() == Some(&b'{');
        let packet = Packet::Publish(Publish {
            dup: false,
            qos: if id == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce },
            retain: retain && self.grant.retains,
            topic: Bytes::copy_from_slice(topic.as_bytes()),
            pkid: id,
            payload,
            properties: Some(PublishProperties {
                payload_format_indicator: Some(1),
                // Rounded up: the broker counts in seconds, and none would mean at once.
                message_expiry_interval: expiry
                    .map(|left| u32::try_from(left.as_secs().max(1)).unwrap_or(u32::MAX)),
                content_type: is_json.then(|| "application/json".to_owned()),
                ..PublishProperties::default()
            }),
        });
        let before = out.len();
        // The codec writes whatever can be written; how much that is, is seen best afterwards.
        let written = packet.write(out, None);
        let size = out.len() - before;
        if written.is_err() || size > self.grant.packet {
            out.truncate(before);
            if self.complaints.too_large.len() < COMPLAINTS {
                let before = self.complaints.too_large.insert(topic.to_owned(), (size, self.grant.packet));
                self.changed |= before.is_none();
            }
            return None;
        }
        // Of events, others of the topic may be as large again.
        self.changed |= retain && self.complaints.too_large.remove(topic).is_some();
        Some(id)
    }

    /// The broker has a packet, or refuses it; says what was settled.
    pub(crate) fn acknowledged(&mut self, id: u16, reason: PubAckReason) -> Settled {
        let Some(sent) = self.under_way.remove(&id) else { return Settled::Latest };
        let taken = matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
        let (topic, settled) = match sent {
            Sent::Filters => return Settled::Latest,
            Sent::Latest(topic) => (topic, Settled::Latest),
            Sent::Event(number, topic) => {
                if let Some(event) = self.events.iter_mut().find(|event| event.number == number) {
                    event.state = Progress::Done;
                    if event.is_record() {
                        self.record_refused = !taken;
                        self.dropped += u64::from(!taken);
                    }
                }
                self.forget_done();
                (topic, Settled::Events)
            }
        };
        if taken {
            self.changed |= self.complaints.refused.remove(&topic).is_some();
            if settled == Settled::Latest {
                self.forget_removed(&topic);
            }
        } else {
            self.refused(topic, format!("{reason:?}"));
        }
        settled
    }

    pub(crate) fn refused(&mut self, what: String, reason: String) {
        if self.complaints.refused.len() < COMPLAINTS {
            let before = self.complaints.refused.insert(what, reason.clone());
            self.changed |= before.as_ref() != Some(&reason);
        }
    }

    /// A topic that the broker has emptied needs no word more, unless something of it is still to be said or acknowledged.
    fn forget_removed(&mut self, topic: &str) {
        let is_emptied = self.latest.get(topic).is_some_and(|value| value.payload.is_empty());
        let is_under_way = |sent: &Sent| matches!(sent, Sent::Latest(other) if other == topic);
        if is_emptied
            && !self.waiting.iter().any(|other| other == topic)
            && !self.under_way.values().any(is_under_way)
        {
            self.latest.remove(topic);
        }
    }

    fn forget_done(&mut self) {
        while self.events.pop_front_if(|event| event.state == Progress::Done).is_some() {}
    }

    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.under_way.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Whether the broker has everything; the first time on a connection is a change of what is complained of.
    pub(crate) fn look_whether_idle(&mut self) -> bool {
        let idle = self.idle();
        if idle && !self.complaints.answered {
            self.complaints.answered = true;
            self.changed = true;
        }
        idle
    }

    /// Whether the broker has everything.
    pub(crate) fn idle(&self) -> bool {
        self.waiting.is_empty()
            && self.under_way.is_empty()
            && self.events.iter().all(|event| event.state == Progress::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that would be sent now, acknowledged at once.
    fn sent(outbox: &mut Outbox, now: Instant) -> Vec<Publish> {
        let mut all = Vec::new();
        let mut out = BytesMut::new();
        while outbox.next(now, &mut out) {
            let Packet::Publish(publish) = Packet::read(&mut out, None).unwrap() else { panic!() };
            outbox.acknowledged(publish.pkid, PubAckReason::Success);
            all.push(publish);
        }
        assert!(out.is_empty());
        all
    }

    fn topics(outbox: &mut Outbox, now: Instant) -> Vec<String> {
        sent(outbox, now).into_iter().map(|p| String::from_utf8(p.topic.to_vec()).unwrap()).collect()
    }

    fn granted(set: impl FnOnce(&mut ConnAckProperties)) -> ConnAckProperties {
        let mut granted = ConnAckProperties {
            session_expiry_interval: None,
            receive_max: None,
            max_qos: None,
            retain_available: None,
            max_packet_size: None,
            assigned_client_identifier: None,
            topic_alias_max: None,
            reason_string: None,
            user_properties: Vec::new(),
            wildcard_subscription_available: None,
            subscription_identifiers_available: None,
            shared_subscription_available: None,
            server_keep_alive: None,
            response_information: None,
            server_reference: None,
            authentication_method: None,
            authentication_data: None,
        };
        set(&mut granted);
        granted
    }

    fn record(outbox: &mut Outbox, text: &str) -> u64 {
        outbox.record("history".to_owned(), text.to_owned().into())
    }

    #[test]
    fn only_the_newest_value_of_a_topic_is_sent_and_all_again_after_a_reconnect() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        for (topic, payload) in [("b", "1"), ("availability", "online"), ("b", "2")] {
            outbox.set(topic.to_owned(), payload.into(), None, now);
        }
        let all = sent(&mut outbox, now);
        assert_eq!((&all[0].topic[..], &all[0].payload[..]), (&b"b"[..], &b"2"[..]));
        assert_eq!(&all[1].topic[..], b"availability");
        outbox.connected("availability", None);
        assert_eq!(topics(&mut outbox, now), ["availability", "b"]);
    }

    #[test]
    fn a_removed_topic_is_emptied_once_and_then_forgotten() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.set("a".to_owned(), "x".into(), None, now);
        outbox.set("a".to_owned(), Bytes::new(), None, now);
        let all = sent(&mut outbox, now);
        assert!(all.len() == 1 && all[0].payload.is_empty() && all[0].retain);
        outbox.connected("availability", None);
        assert!(sent(&mut outbox, now).is_empty());
    }

    #[test]
    fn a_removal_is_said_until_the_broker_has_it() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        let set =
            |outbox: &mut Outbox, text: &'static str| outbox.set("a".to_owned(), text.into(), None, now);
        let mut out = BytesMut::new();
        set(&mut outbox, "");
        assert!(outbox.next(now, &mut out));
        // The connection breaks before the broker has answered.
        outbox.connected("availability", None);
        out.clear();
        // Three words are under way, and the first answer is not about the last of them.
        for text in ["", "x", ""] {
            set(&mut outbox, text);
            assert!(outbox.next(now, &mut out));
        }
        outbox.acknowledged(1, PubAckReason::Success);
        outbox.connected("availability", None);
        assert_eq!(topics(&mut outbox, now), ["a"]);
        assert!(outbox.latest.is_empty());
    }

    #[test]
    fn what_expired_during_an_outage_is_not_said_as_if_it_were_fresh() {
        let (mut outbox, then) = (Outbox::default(), Instant::now());
        outbox.set("state".to_owned(), "x".into(), Some(Duration::from_secs(3)), then);
        outbox.event("event".to_owned(), "x".into(), Duration::from_secs(3), then);
        outbox.connected("availability", None);
        let mut out = BytesMut::new();
        assert!(outbox.next(then + Duration::from_secs(1), &mut out));
        let Packet::Publish(publish) = Packet::read(&mut out, None).unwrap() else { panic!() };
        assert_eq!(publish.properties.unwrap().message_expiry_interval, Some(2));
        outbox.connected("availability", None);
        assert!(sent(&mut outbox, then + Duration::from_secs(4)).is_empty());
        assert_eq!((outbox.dropped, outbox.idle()), (0, true), "only records are missed");
    }

    #[test]
    fn what_was_under_way_when_the_connection_broke_is_sent_again_and_acknowledged_by_its_new_number() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        let numbers: Vec<u64> = ["a", "b", "c"].into_iter().map(|t| record(&mut outbox, t)).collect();
        outbox.connected("availability", None);
        let mut out = BytesMut::new();
        while outbox.next(now, &mut out) {}
        assert_eq!(outbox.acknowledged(1, PubAckReason::Success), Settled::Events);
        assert_eq!(outbox.settled_before(), numbers[1]);
        outbox.connected("availability", None);
        outbox.set("new".to_owned(), "x".into(), None, now);
        out.clear();
        while outbox.next(now, &mut out) {}
        // 1 is now the new topic, and an acknowledgement of it is none of an event.
        assert_eq!(outbox.acknowledged(1, PubAckReason::Success), Settled::Latest);
        assert_eq!(outbox.settled_before(), numbers[1]);
        // Out of order: nothing is settled before its elder.
        outbox.acknowledged(3, PubAckReason::Success);
        assert_eq!(outbox.settled_before(), numbers[1]);
        outbox.acknowledged(2, PubAckReason::Success);
        assert_eq!((outbox.settled_before(), outbox.idle()), (numbers[2] + 1, true));
        assert_eq!((outbox.dropped, outbox.events.len()), (0, 0));
    }

    #[test]
    fn records_beyond_the_bounds_are_counted_and_the_newest_stay() {
        let mut outbox = Outbox::default();
        for number in 0..RECORDS.count + 3 {
            record(&mut outbox, &number.to_string());
        }
        let kept = outbox.load(true);
        assert_eq!((kept.count, outbox.dropped, outbox.settled_before()), (RECORDS.count, 3, 3));
        record(&mut outbox, &"x".repeat(RECORDS.bytes - 1000));
        assert!(outbox.load(true).fits(RECORDS) && outbox.dropped > 3);
        // One that is larger than all may be costs no other one.
        let before = (outbox.load(true), outbox.dropped + 1);
        record(&mut outbox, &"x".repeat(RECORDS.bytes));
        assert_eq!((outbox.load(true), outbox.dropped), before);
    }

    #[test]
    fn whatever_else_waits_no_record_is_given_up_for_it() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        // An outage in which each change is told as an event and as a record.
        for number in 0..RECORDS.count {
            let payload = "x".repeat(100);
            outbox.event("event".to_owned(), payload.into(), Duration::from_secs(3600), now);
            record(&mut outbox, &number.to_string());
        }
        assert_eq!((outbox.load(true).count, outbox.load(false).count), (RECORDS.count, EVENTS.count));
        assert_eq!((outbox.dropped, outbox.settled_before()), (0, 1));
        outbox.connected("availability", None);
        let told = sent(&mut outbox, now);
        assert_eq!(told.iter().filter(|p| &p.topic[..] == b"history").count(), RECORDS.count);
        assert_eq!(&told.last().unwrap().payload[..], (RECORDS.count - 1).to_string().as_bytes());
        assert!(outbox.idle());
    }

    #[test]
    fn an_event_that_waits_keeps_no_record_that_was_given_up() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.event("event".to_owned(), "x".into(), Duration::from_secs(3), now);
        let last = (0..RECORDS.count + 3).map(|number| record(&mut outbox, &number.to_string())).last();
        assert_eq!((outbox.dropped, outbox.settled_before()), (3, 4));
        outbox.connected("availability", None);
        sent(&mut outbox, now);
        assert_eq!(Some(outbox.settled_before()), last.map(|last| last + 1));
    }

    #[test]
    fn a_broker_that_takes_no_record_is_not_told_so_by_records() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.connected("availability", Some(&granted(|g| g.max_packet_size = Some(100))));
        record(&mut outbox, &"y".repeat(200));
        assert!(sent(&mut outbox, now).is_empty());
        assert_eq!((outbox.dropped, outbox.takes_records(), outbox.idle()), (1, false, true));
        record(&mut outbox, "y");
        assert_eq!((sent(&mut outbox, now).len(), outbox.takes_records()), (1, true));
    }

    #[test]
    fn nothing_complained_of_is_no_answer_before_everything_was_answered() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.set("a".to_owned(), "x".into(), None, now);
        for _ in 0..2 {
            outbox.connected("availability", None);
            assert!(
                outbox.complaints_changed() && !outbox.look_whether_idle() && !outbox.complaints_changed()
            );
            sent(&mut outbox, now);
            assert!(
                !outbox.complaints().answered && outbox.look_whether_idle() && outbox.complaints_changed()
            );
            assert!(
                outbox.look_whether_idle() && !outbox.complaints_changed() && outbox.complaints().answered
            );
        }
    }

    #[test]
    fn a_packet_over_the_brokers_limit_is_named_and_the_small_ones_go_on() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.set("large".to_owned(), "x".repeat(3000).into(), None, now);
        outbox.set("small".to_owned(), "x".into(), None, now);
        outbox.connected("availability", Some(&granted(|g| g.max_packet_size = Some(2048))));
        record(&mut outbox, &"y".repeat(3000));
        record(&mut outbox, "z");
        assert_eq!(topics(&mut outbox, now), ["small", "history"]);
        let named: Vec<_> = outbox.complaints().too_large.keys().map(String::as_str).collect();
        assert_eq!((named, outbox.dropped, outbox.idle()), (vec!["history", "large"], 1, true));
        outbox.set("large".to_owned(), "x".into(), None, now);
        assert_eq!(topics(&mut outbox, now), ["large"]);
        assert!(!outbox.complaints().too_large.contains_key("large"));
    }

    #[test]
    fn no_more_is_under_way_than_the_broker_receives() {
        for (granted_max, most) in [(None, 16), (Some(3), 3), (Some(0), 1), (Some(500), 16)] {
            let (mut outbox, now) = (Outbox::default(), Instant::now());
            for topic in 0..40 {
                outbox.set(topic.to_string(), "x".into(), None, now);
            }
            outbox.connected("availability", Some(&granted(|g| g.receive_max = granted_max)));
            let mut out = BytesMut::new();
            let count = std::iter::from_fn(|| outbox.next(now, &mut out).then_some(())).count();
            assert_eq!(count, most);
            outbox.acknowledged(1, PubAckReason::Success);
            assert!(outbox.next(now, &mut out) && !outbox.next(now, &mut out));
        }
    }

    #[test]
    fn a_broker_that_acknowledges_and_retains_nothing_is_spoken_to_in_its_way() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.set("a".to_owned(), "x".into(), None, now);
        record(&mut outbox, "y");
        let granted = granted(|g| {
            g.max_qos = Some(0);
            g.retain_available = Some(0);
        });
        outbox.connected("availability", Some(&granted));
        let mut out = BytesMut::new();
        while outbox.next(now, &mut out) {}
        for _ in 0..2 {
            let Packet::Publish(publish) = Packet::read(&mut out, None).unwrap() else { panic!() };
            assert_eq!((publish.qos, publish.retain, publish.pkid), (QoS::AtMostOnce, false, 0));
        }
        assert!(outbox.idle() && outbox.complaints().acknowledges_nothing);
        assert!(outbox.complaints().retains_nothing);
    }

    #[test]
    fn a_refusal_is_named_until_the_broker_takes_the_topic() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        let mut out = BytesMut::new();
        for reason in [PubAckReason::NotAuthorized, PubAckReason::Success] {
            outbox.set("a".to_owned(), "x".into(), None, now);
            assert!(outbox.next(now, &mut out));
            outbox.acknowledged(outbox.last_id, reason);
            assert_eq!(outbox.complaints().refused.contains_key("a"), reason == PubAckReason::NotAuthorized);
        }
        record(&mut outbox, "x");
        assert!(outbox.next(now, &mut out));
        outbox.acknowledged(outbox.last_id, PubAckReason::QuotaExceeded);
        assert_eq!((outbox.dropped, outbox.takes_records(), outbox.idle()), (1, false, true));
        record(&mut outbox, "x");
        outbox.event("event".to_owned(), "x".into(), Duration::from_secs(3), now);
        assert!(outbox.next(now, &mut out) && outbox.next(now, &mut out));
        outbox.acknowledged(outbox.last_id, PubAckReason::NotAuthorized);
        assert_eq!((outbox.dropped, outbox.takes_records()), (1, false), "an event is no record");
        outbox.acknowledged(outbox.last_id - 1, PubAckReason::Success);
        assert!(outbox.takes_records());
    }
}
