//! What Home Assistant was told of this node. Kept on disk, so that what an earlier run announced, under another name or
//! with other probes, is taken back by the next.

use std::time::{Duration, Instant};

use wire::discovery::{Announced, Device, Place, Publication};

use crate::host::state::State;

/// The file in the state directory.
const FILE: &str = "announced.json";
/// How long a component stands as gone before it is left out: Home Assistant must have heard it, and may be restarting.
const GONE_FOR: Duration = Duration::from_secs(60);

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
        Self { state, place, announced, elsewhere: None, shape: None, leave_out_at: None }
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
        if self.shape == Some(shape) && !due {
            return Vec::new();
        }
        let device = device();
        let elsewhere = self.elsewhere.as_ref().map(Announced::take_back).unwrap_or_default();
        let (publications, announced) = match (&self.announced, self.leave_out_at) {
            // What is gone stays so for its time, whatever else changes meanwhile.
            (Some(before), Some(_)) if !due => {
                let mut before = before.clone();
                before.components.append(&mut before.gone);
                device.announce(&self.place, Some(&before))
            }
            (before, _) => device.announce(&self.place, before.as_ref()),
        };
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

    /// The broker has everything that was to be published: nothing is left elsewhere.
    pub fn settled(&mut self) {
        if self.elsewhere.take().is_some() {
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
        for _ in 0..2 {
            let said = components(&announce(&mut open(), &state, start));
            assert_eq!(said["reading_drops"], gone);
        }
        let mut home = open();
        announce(&mut home, &state, start);
        assert!(announce(&mut home, &state, start + GONE_FOR / 2).is_empty());
        state.readings.remove("probe-loss");
        let said = components(&announce(&mut home, &state, start + GONE_FOR / 2));
        assert_eq!((&said["reading_drops"], &said["reading_probe_loss"]), (&gone, &gone));
        home.begin_anew(start + GONE_FOR);
        assert_eq!(components(&announce(&mut home, &state, start + GONE_FOR))["reading_drops"], gone);
        let said = components(&announce(&mut home, &state, start + GONE_FOR * 2));
        assert!(!said.contains_key("reading_drops") && said.contains_key("reading_cpu_temperature"));
        assert!(announce(&mut home, &state, start + GONE_FOR * 9).is_empty());

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
        home.settled();
        home.begin_anew(start);
        assert!(!takes_back(&mut home) && !takes_back(&mut open()));

        home.forget();
        assert!(open().topics().is_empty());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
