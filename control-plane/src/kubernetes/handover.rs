//! What a replica that leads leaves to the next one, in annotations of the Lease: the proxies that follow routes
//! ([`roster`](super::roster)), and which services' virtual addresses are not where their names say. No further object,
//! right or request is needed, and whoever takes the Lease has read them by then.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::roster::{PROXIES, Roster};
use crate::addresses::plan::Aside;
use crate::news::tell;

/// The annotation of the Lease: JSON.
pub const ADDRESSES: &str = "pontoon.dev/addresses";
/// Nearly all services are where their names say; in ranges that are nearly full many are not. Annotations together may
/// have 256 KiB.
const MAX_BYTES: usize = 64 * 1024;

/// An object's annotations.
type Annotations = BTreeMap<String, String>;

/// What is left, and where it goes to.
#[derive(Debug)]
pub struct Handover {
    /// Who follows routes.
    pub roster: Roster,
    /// Who is aside here.
    pub aside: watch::Receiver<Arc<Aside>>,
    /// Who is aside where another leads.
    pub heard: watch::Sender<Arc<Aside>>,
}

impl Handover {
    /// Writes what the next one is to know.
    pub fn write(&self, annotations: &mut Annotations) {
        annotations.insert(PROXIES.to_owned(), self.roster.written());
        let aside = self.aside.borrow().clone();
        match serde_json::to_string(&*aside).ok().filter(|text| text.len() <= MAX_BYTES) {
            Some(text) => drop(annotations.insert(ADDRESSES.to_owned(), text)),
            None => {
                tracing::warn!(
                    services = aside.services.len(),
                    "the Lease has no room for the virtual addresses that do not follow from names: they may be others \
                     when another replica leads; give larger ranges"
                );
                annotations.remove(ADDRESSES);
            }
        }
    }

    /// Reads what is to be known before this replica leads.
    pub fn read(&self, annotations: Option<&Annotations>) {
        let Some(text) = annotations.and_then(|annotations| annotations.get(ADDRESSES)) else { return };
        match serde_json::from_str::<Aside>(text) {
            Ok(aside) => tell(&self.heard, aside),
            Err(error) => tracing::debug!(%error, "the Lease's annotation {ADDRESSES} cannot be read"),
        }
    }

    /// Takes over from the replica that led before.
    pub fn take_over(&self, annotations: &Annotations) {
        self.roster.take_over(annotations.get(PROXIES).map(String::as_str));
    }
}

#[cfg(test)]
mod tests {
    use pontoon_xds::server::{Options, Server};

    use super::*;

    fn handover(aside: Aside) -> Handover {
        let server = Server::new(Options::new(|_| Ok(String::new())));
        let roster = Roster { server, pods: None };
        Handover { roster, aside: watch::channel(Arc::new(aside)).1, heard: watch::Sender::default() }
    }

    #[test]
    fn who_reads_has_what_was_written() {
        let aside = Aside { slots: 100, services: BTreeMap::from([("shop/orders".to_owned(), 7)]) };
        let mut annotations = Annotations::new();
        handover(aside.clone()).write(&mut annotations);
        let next = handover(Aside::default());
        let mut heard = next.heard.subscribe();
        next.read(Some(&annotations));
        assert_eq!(**heard.borrow_and_update(), aside);
        next.read(Some(&annotations));
        assert!(!heard.has_changed().unwrap(), "it is the same");
        for text in ["", "?", "{\"slots\": -1}"] {
            annotations.insert(ADDRESSES.to_owned(), text.to_owned());
            next.read(Some(&annotations));
            assert!(!heard.has_changed().unwrap(), "{text}");
        }
    }

    #[test]
    fn too_many_are_left_out() {
        let services = (0..10_000).map(|number| (format!("shop/orders-{number}"), number)).collect();
        let mut annotations = Annotations::from([(ADDRESSES.to_owned(), "before".to_owned())]);
        handover(Aside { slots: 20_000, services }).write(&mut annotations);
        assert_eq!(annotations.keys().collect::<Vec<_>>(), [PROXIES]);
    }
}
