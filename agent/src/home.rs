//! What Home Assistant was told of this node. Kept on disk, so that what an earlier run announced, under another name or
//! with other probes, is taken back by the next.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use wire::{
    discovery::{Announced, Device, Place, Publication},
    topic::{HomeTopic, Key, Name, NodeTopic, Owner, Platform, Prefix, Topic},
};

use crate::host::state::State;

/// The file in the state directory.
const FILE: &str = "announced.json";
/// How long a component stands as gone before it is left out: Home Assistant must have heard it, and may be restarting.
const GONE_FOR: Duration = Duration::from_secs(60);
/// How long something that is measured may be missing until it is gone: Home Assistant forgets what its owner made of an entity that
/// goes, and after each start some sources are a while in coming.
const MISSING_FOR: Duration = Duration::from_secs(300);

/// The announcement.
#[derive(Debug)]
pub struct Home {
    state: State,
    place: Place,
    announced: Option<Announced>,
    /// What stood elsewhere, until the broker has emptied it; as long, the file tells of it.
    elsewhere: Option<Announced>,
    shape: Option<u64>,
    leave_out_at: Option<Instant>,
    /// What is announced and not there at the moment, and since when.
    missing: BTreeMap<Key, Instant>,
}

impl Home {
    /// Reads what earlier runs announced; from now on it is announced at `place`.
    pub fn open(state: State, place: Place) -> Self {
        let announced = match state.read(FILE) {
            Ok(text) => text.and_then(|text| serde_json::from_str::<Announced>(&text).ok()),
            Err(why) => {
                tracing::warn!("what Home Assistant was told cannot be read: {why}");
                None
            }
        };
        let announced = announced.map(|mut announced| {
            // Whether their end was ever heard is not known: they end once more.
            announced.components.append(&mut announced.gone);
            announced
        });
        let missing = BTreeMap::new();
        Self { state, place, announced, elsewhere: None, shape: None, leave_out_at: None, missing }
    }

    /// What is to be published: nothing while nothing changed, which the device's shape tells. Only to be asked while the
    /// broker is there.
    pub fn announce(
        &mut self,
        shape: u64,
        device: impl FnOnce() -> Device,
        now: Instant,
    ) -> Vec<Publication> {
        let due = self.leave_out_at.is_some_and(|at| now >= at);
        let is_over = |since: &Instant| now.duration_since(*since) >= MISSING_FOR;
        if self.shape == Some(shape) && !due && !self.missing.values().any(is_over) {
            return Vec::new();
        }
        let device = device();
        let elsewhere = self.elsewhere.as_ref().map(Announced::take_back).unwrap_or_default();
        let mut known = self.announced.clone();
        let waiting = self.wait_for(known.as_mut(), &device, now);
        let (publications, mut announced) = match (&known, self.leave_out_at) {
            // What is gone stays so for its time, whatever else changes meanwhile.
            (Some(before), Some(_)) if !due => {
                let mut before = before.clone();
                before.components.append(&mut before.gone);
                device.announce(&self.place, Some(&before))
            }
            (before, _) => device.announce(&self.place, before.as_ref()),
        };
        announced.components.extend(waiting);
        self.shape = Some(shape);
        self.leave_out_at = (!announced.gone.is_empty()).then(|| now + GONE_FOR);
        if self.announced.as_ref() != Some(&announced) {
            let before = self.announced.replace(announced);
            self.elsewhere = self.elsewhere.take().or(before.filter(|before| before.place != self.place));
            if self.elsewhere.is_none() {
                self.keep();
            }
        }
        [elsewhere, publications].concat()
    }

    /// Takes what is missing, and not for long enough to be gone, out of what was announced: left out of the next announcement, it
    /// lives on.
    fn wait_for(
        &mut self,
        known: Option<&mut Announced>,
        device: &Device,
        now: Instant,
    ) -> BTreeMap<Key, Platform> {
        let Some(known) = known.filter(|known| known.place == self.place) else {
            self.missing.clear();
            return BTreeMap::new();
        };
        let is_missing = |key: &Key| key.is_measured() && !device.has(key);
        self.missing.retain(|key, _| known.components.contains_key(key) && is_missing(key));
        for key in known.components.keys().filter(|key| is_missing(key)) {
            self.missing.entry(key.clone()).or_insert(now);
        }
        self.missing.retain(|_, since| now.duration_since(*since) < MISSING_FOR);
        known.components.extract_if(.., |key, _| self.missing.contains_key(key)).collect()
    }

    /// Ids of the readings that are announced, and missing at the moment.
    pub fn missing_readings(&self) -> Vec<String> {
        let id = |key: &Key| Some(key.as_str().strip_prefix("reading_")?.replace('_', "-"));
        self.missing.keys().filter_map(id).collect()
    }

    /// What is to be said once, not retained, with the next announcement: that what stands elsewhere is gone.
    pub fn removal(&self) -> Option<Publication> {
        let before = self.announced.as_ref().filter(|announced| announced.place != self.place);
        self.elsewhere.as_ref().or(before).and_then(Announced::removal)
    }

    /// The broker has everything that was to be published, but for what it refused: nothing is left elsewhere.
    pub fn settled(&mut self, is_refused: impl Fn(&str) -> bool) {
        let is_left =
            |announced: &Announced| announced.take_back().iter().any(|(topic, _)| is_refused(topic));
        if self.elsewhere.take_if(|elsewhere| !is_left(elsewhere)).is_some() {
            self.keep();
        }
    }

    /// Home Assistant or the broker is new, and has to be told everything.
    pub fn begin_anew(&mut self, now: Instant) {
        self.shape = None;
        self.leave_out_at = self.leave_out_at.map(|_| now + GONE_FOR);
    }

    /// All topics of what was announced.
    pub fn topics(&self) -> Vec<String> {
        let publications = self.announced.as_ref().map(Announced::take_back).unwrap_or_default();
        publications.into_iter().map(|(topic, _)| topic).collect()
    }

    /// Nothing is announced any more.
    pub fn forget(&mut self) {
        (self.announced, self.elsewhere) = (None, None);
        if let Err(why) = self.state.remove(FILE) {
            tracing::warn!("what Home Assistant was told cannot be forgotten: {why}");
        }
    }

    fn keep(&self) {
        let text = serde_json::to_string(&self.announced).expect("an announcement is JSON");
        if let Err(why) = self.state.write(FILE, &text) {
            tracing::warn!(
                "what Home Assistant was told cannot be kept: {why}; what goes may stay there as a ghost"
            );
        }
    }
}

/// What a node said under another name, of a cluster.
pub fn topics_of((cluster, node): &(Name, Name), prefix: &Prefix) -> Vec<String> {
    let own = NodeTopic::RETAINED.map(|leaf| Topic::Node(node.clone(), leaf).in_cluster(cluster));
    let device = HomeTopic::Device(Owner::Node(node.clone())).below(prefix, cluster);
    own.into_iter().chain([device]).collect()
}

#[cfg(test)]
mod tests {
    use wire::{
        discovery::{Around, Mode},
        report::{NodeInfo, NodeState},
        topic::{Owner, Prefix},
    };

    use super::*;

    fn node() -> (NodeInfo, NodeState) {
        let info = include_str!("../../wire/golden/v1/info.json");
        let state = include_str!("../../wire/golden/v1/state.json");
        (serde_json::from_str(info).unwrap(), serde_json::from_str(state).unwrap())
    }

    fn components(publications: &[Publication]) -> serde_json::Map<String, serde_json::Value> {
        let [(_, payload)] = publications else { panic!("{publications:?}") };
        let payload: serde_json::Value = serde_json::from_slice(payload).unwrap();
        payload["components"].as_object().unwrap().clone()
    }

    #[test]
    fn what_an_earlier_run_announced_is_taken_back_and_stays_so_for_a_minute() {
        let directory = std::env::temp_dir().join(format!("bramble-home-{}", std::process::id()));
        let (info, mut state) = node();
        let place = Place {
            mode: Mode::Device,
            prefix: Prefix::default(),
            cluster: info.header.cluster.clone(),
            owner: Owner::Node(info.header.node.clone()),
        };
        let open = || Home::open(State::new(&directory), place.clone());
        let announce = |home: &mut Home, state: &NodeState, at| {
            let around = Around::default();
            let shape = Device::shape_of_node(&info, state, &around);
            home.announce(shape, || Device::of_node(&info, state, &around), at)
        };
        let start = Instant::now();
        assert!(components(&announce(&mut open(), &state, start)).contains_key("reading_drops"));

        // The next version has no such probe, and is killed before anybody has heard that.
        state.readings.remove("drops");
        let gone = serde_json::json!({"p": "sensor"});
        let later = start + MISSING_FOR;
        for _ in 0..2 {
            let mut home = open();
            let said = components(&announce(&mut home, &state, start));
            assert!(!said.contains_key("reading_drops"), "it may still come");
            assert!(announce(&mut home, &state, start + MISSING_FOR / 2).is_empty());
            let said = components(&announce(&mut home, &state, later));
            assert_eq!(said["reading_drops"], gone);
        }
        let mut home = open();
        announce(&mut home, &state, start);
        announce(&mut home, &state, later);
        assert!(announce(&mut home, &state, later + GONE_FOR / 2).is_empty());
        state.readings.remove("probe-loss");
        let said = components(&announce(&mut home, &state, later + GONE_FOR / 2));
        assert!(said["reading_drops"] == gone && !said.contains_key("reading_probe_loss"));
        home.begin_anew(later + GONE_FOR);
        assert_eq!(components(&announce(&mut home, &state, later + GONE_FOR))["reading_drops"], gone);
        let said = components(&announce(&mut home, &state, later + GONE_FOR * 2));
        assert!(!said.contains_key("reading_drops") && said.contains_key("reading_cpu_temperature"));
        let said = components(&announce(&mut home, &state, later + GONE_FOR + MISSING_FOR));
        assert_eq!(said["reading_probe_loss"], gone);
        let later = later + GONE_FOR * 2 + MISSING_FOR;
        announce(&mut home, &state, later);
        assert!(announce(&mut home, &state, later + GONE_FOR * 9).is_empty());

        assert_eq!(home.topics(), ["homeassistant/device/n1/bramble-home/config"]);

        // Another name: whoever is killed before the broker has emptied the old topic takes it back again.
        let attic = Owner::Node(wire::topic::Name::new("attic").unwrap());
        let open = || Home::open(State::new(&directory), Place { owner: attic.clone(), ..place.clone() });
        let old = ("homeassistant/device/n1/bramble-home/config".to_owned(), Vec::new());
        let takes_back = |home: &mut Home| announce(home, &state, start).contains(&old);
        let mut home = open();
        assert!(takes_back(&mut home));
        home.begin_anew(start);
        assert!(takes_back(&mut home), "the connection broke");
        let mut home = open();
        assert!(takes_back(&mut home), "it was killed");
        home.settled(|topic| topic == old.0);
        home.begin_anew(start);
        assert!(takes_back(&mut home), "the broker refused it");
        home.settled(|_| false);
        home.begin_anew(start);
        assert!(!takes_back(&mut home) && !takes_back(&mut open()));

        home.forget();
        assert!(open().topics().is_empty());
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_is_a_while_in_coming_stays_and_what_nobody_may_ask_for_goes_at_once() {
        use wire::topic::Verb;
        let directory = std::env::temp_dir().join(format!("bramble-home-waits-{}", std::process::id()));
        let (info, state) = node();
        for mode in [Mode::Device, Mode::Component] {
            let place = Place {
                mode,
                prefix: Prefix::default(),
                cluster: info.header.cluster.clone(),
                owner: Owner::Node(info.header.node.clone()),
            };
            let (whole, none) = (Around { verbs: vec![Verb::Check], ..Around::default() }, Around::default());
            let mut late = state.clone();
            late.readings.remove("drops");
            let start = Instant::now();
            let open = || Home::open(State::new(&directory), place.clone());
            let announce = |home: &mut Home, state, around, at| {
                let shape = Device::shape_of_node(&info, state, around);
                home.announce(shape, || Device::of_node(&info, state, around), at)
            };
            announce(&mut open(), &state, &whole, start);
            // Each start is without it for a moment.
            let (mut home, mut said) = (open(), Vec::new());
            for (state, around, after) in [
                (&late, &whole, 0),
                (&state, &whole, 10),
                (&late, &whole, 20),
                (&state, &whole, 30),
                (&late, &whole, 40),
                (&late, &none, 50),
            ] {
                said.push(announce(&mut home, state, around, start + Duration::from_secs(after)));
            }
            let ends = |publications: &Vec<Publication>, key: &str| {
                publications.iter().any(|(topic, payload)| {
                    let whole: serde_json::Value = serde_json::from_slice(payload).unwrap_or_default();
                    let part = &whole["components"][key];
                    (payload.is_empty() && topic.contains(key))
                        || part.as_object().is_some_and(|p| p.len() == 1)
                })
            };
            assert!(!said.iter().any(|all| ends(all, "reading_drops")), "{mode:?}");
            let button: Vec<bool> = said.iter().map(|all| ends(all, "button_check")).collect();
            assert_eq!(button, [false, false, false, false, false, true], "{mode:?}");
            // Its time is counted from when it went last.
            let mut at =
                |after: Duration| ends(&announce(&mut home, &late, &none, start + after), "reading_drops");
            assert!(!at(MISSING_FOR + Duration::from_secs(39)) && at(MISSING_FOR + Duration::from_secs(40)));
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }
}
