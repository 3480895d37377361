//! What is published, by view. One that nobody published may have another stand in for it: its clients get that one's
//! resources, until there is one of their own.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::watch;

use super::lock;
use crate::snapshot::Snapshot;

/// Names the view that stands in for one that nobody published.
pub type StandIn = fn(&str) -> Option<&'static str>;

#[derive(Debug)]
pub(super) struct Views {
    stand_in: StandIn,
    places: Mutex<HashMap<String, Place>>,
}

/// What the clients of a view should have; kept as long as it is published or a client waits for it.
#[derive(Debug, Default)]
struct Place {
    /// Whether it was published itself.
    own: bool,
    snapshot: watch::Sender<Option<Snapshot>>,
}

impl Place {
    fn set(&self, snapshot: Option<&Snapshot>) {
        self.snapshot.send_if_modified(|published| {
            let same = match (&*published, snapshot) {
                (Some(before), Some(now)) => before.is_same(now),
                (before, now) => before.is_none() && now.is_none(),
            };
            if !same {
                *published = snapshot.cloned();
            }
            !same
        });
    }

    fn is_unused(&self) -> bool {
        !self.own && self.snapshot.receiver_count() == 0
    }
}

impl Views {
    pub(super) fn new(stand_in: StandIn) -> Views {
        Views { stand_in, places: Mutex::default() }
    }

    /// `None`: it is not published any more.
    pub(super) fn set(&self, view: &str, snapshot: Option<&Snapshot>) {
        let mut places = lock(&self.places);
        let other = self.stand_in_for(view, &places);
        let place = places.entry(view.to_owned()).or_default();
        place.own = snapshot.is_some();
        place.set(snapshot.or(other.as_ref()));
        if place.is_unused() {
            places.remove(view);
        }
        let stands_in = |name: &str| (self.stand_in)(name) == Some(view);
        for (_, place) in places.iter().filter(|(name, place)| !place.own && stands_in(name)) {
            place.set(snapshot);
        }
    }

    /// What the clients of `view` should have.
    pub(super) fn get(&self, view: &str) -> Option<Snapshot> {
        lock(&self.places).get(view).and_then(|place| place.snapshot.borrow().clone())
    }

    pub(super) fn subscribe(&self, view: &str) -> watch::Receiver<Option<Snapshot>> {
        let mut places = lock(&self.places);
        let other = self.stand_in_for(view, &places);
        let new = || Place { own: false, snapshot: watch::Sender::new(other) };
        places.entry(view.to_owned()).or_insert_with(new).snapshot.subscribe()
    }

    fn stand_in_for(&self, view: &str, places: &HashMap<String, Place>) -> Option<Snapshot> {
        places.get((self.stand_in)(view)?)?.snapshot.borrow().clone()
    }

    /// Drops the place of a view that nobody published and nobody waits for any more.
    pub(super) fn release(&self, view: &str) {
        let mut places = lock(&self.places);
        if places.get(view).is_some_and(Place::is_unused) {
            places.remove(view);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views() -> Views {
        Views::new(|view| (!view.contains('/')).then_some(""))
    }

    fn snapshot(name: &str) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.insert(&envoy_types::pb::envoy::config::cluster::v3::Cluster {
            name: name.to_owned(),
            ..Default::default()
        });
        snapshot
    }

    fn first(snapshot: Option<Snapshot>) -> Option<String> {
        let snapshot = snapshot?;
        snapshot.resources(crate::ResourceType::Cluster).keys().next().map(ToString::to_string)
    }

    #[test]
    fn another_stands_in_until_it_is_published() {
        let views = views();
        let mut early = views.subscribe("shop");
        let gateway = views.subscribe("shop/edge");
        assert_eq!(first(early.borrow_and_update().clone()), None);
        views.set("", Some(&snapshot("shared")));
        assert_eq!(
            first(early.borrow_and_update().clone()),
            Some("shared".into()),
            "also for who came before it"
        );
        assert_eq!(first(views.subscribe("bank").borrow().clone()), Some("shared".into()));
        assert_eq!(first(gateway.borrow().clone()), None, "not in every view's stead");
        views.set("shop", Some(&snapshot("own")));
        assert_eq!(first(early.borrow_and_update().clone()), Some("own".into()));
        views.set("", Some(&snapshot("changed")));
        assert!(!early.has_changed().unwrap());
        views.set("shop", None);
        assert_eq!(first(early.borrow_and_update().clone()), Some("changed".into()));
    }

    #[test]
    fn a_place_goes_with_its_last_client() {
        let views = views();
        views.set("", Some(&snapshot("shared")));
        for view in ["shop", "shop/edge"] {
            let client = views.subscribe(view);
            views.release(view);
            assert!(lock(&views.places).contains_key(view));
            drop(client);
            views.release(view);
            assert!(!lock(&views.places).contains_key(view), "{view}");
        }
        views.release("");
        assert!(views.get("").is_some(), "it is published");
    }
}
