//! What the client asks for: names, or everything.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::TypeState;
use crate::resource::Resource;

/// Subscribes to everything.
const WILDCARD: &str = "*";

impl TypeState {
    /// State of the world: the whole list of names, every time.
    pub(in super::super) fn subscribe_exactly(&mut self, names: &[String]) {
        let first = !std::mem::replace(&mut self.asked, true);
        if names.is_empty() && self.ty.is_wildcard_capable() && (first || self.implicit_wildcard) {
            self.implicit_wildcard = true;
            self.set_wildcard(true);
            return;
        }
        self.implicit_wildcard = false;
        self.set_wildcard(names.iter().any(|n| n == WILDCARD));
        let wanted: BTreeSet<Arc<str>> =
            names.iter().filter(|n| *n != WILDCARD).map(|name| self.shared_name(name)).collect();
        let dropped: Vec<Arc<str>> = self.names.difference(&wanted).cloned().collect();
        self.name_bytes = wanted.iter().map(|name| name.len()).sum();
        let added: Vec<Arc<str>> = wanted.difference(&self.names).cloned().collect();
        // That a name does not exist is told by a response without it.
        self.owes_world |= self.sends_world() && !added.is_empty();
        self.dirty.extend(added);
        self.named = wanted.iter().filter(|name| self.published.contains_key(*name)).count();
        self.names = wanted;
        for name in dropped {
            self.forget_unsubscribed(&name);
        }
    }

    /// Delta: the first request of the type may say what the client still has from an earlier stream.
    pub(in super::super) fn start_delta(&mut self, names: &[String], initial: &HashMap<String, String>) {
        if std::mem::replace(&mut self.asked, true) {
            return;
        }
        if names.is_empty() && self.ty.is_wildcard_capable() {
            self.set_wildcard(true);
        }
        for (name, version) in initial {
            let (name, version): (Arc<str>, Arc<str>) = (name.as_str().into(), version.as_str().into());
            self.dirty.insert(name.clone());
            if self.anew.contains(&name) {
                // As in `send_again`.
                self.absent.insert(name);
            } else {
                self.put_sent(Resource { name, version, body: bytes::Bytes::new() });
            }
        }
        self.anew = BTreeSet::new();
        self.acknowledged = self.sent.clone();
        self.acknowledged_fingerprint = self.sent_fingerprint;
    }

    /// Delta: further names. A name that is subscribed already is told anew.
    pub(in super::super) fn subscribe(&mut self, names: &[String]) {
        for name in names {
            // In delta an implicit wildcard is as good as an explicit one: names come on top of it.
            if name == WILDCARD {
                self.set_wildcard(true);
                continue;
            }
            let name = self.shared_name(name);
            // Who asks is answered, also with what it has refused.
            self.refused.remove(&name);
            if self.names.insert(name.clone()) {
                self.name_bytes += name.len();
                self.named += usize::from(self.published.contains_key(&name));
            } else {
                self.forget_sent(&name);
            }
            self.absent.insert(name.clone());
            self.dirty.insert(name);
        }
    }

    /// Delta: names that are no longer wanted.
    pub(in super::super) fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.set_wildcard(false);
                continue;
            }
            if self.names.remove(name.as_str()) {
                self.name_bytes -= name.len();
                self.named -= usize::from(self.published.contains_key(name.as_str()));
                self.absent.remove(name.as_str());
                self.forget_unsubscribed(name);
            }
        }
    }

    /// A name as the published resource has it: a thousand gateways that name ten thousand clusters keep each once.
    fn shared_name(&self, name: &str) -> Arc<str> {
        self.published.get_key_value(name).map_or_else(|| name.into(), |(shared, _)| shared.clone())
    }

    fn set_wildcard(&mut self, wildcard: bool) {
        if self.wildcard == wildcard {
            return;
        }
        self.wildcard = wildcard;
        if wildcard {
            self.owes_world |= self.sends_world();
            if !self.by_name_only {
                self.dirty.extend(self.published.keys().cloned());
            }
            // The client wants, from now on, what is under way to it, and may be gone meanwhile.
            for (name, _) in self.in_flight.iter().flat_map(|under_way| &under_way.resources) {
                self.dirty.insert(name.clone());
                self.absent.insert(name.clone());
            }
        } else {
            let unnamed: Vec<Arc<str>> =
                self.sent.keys().filter(|name| !self.names.contains(*name)).cloned().collect();
            for name in unnamed {
                self.forget_unsubscribed(&name);
            }
        }
    }

    /// The client has dropped it; under a wildcard it is wanted all the same, and told anew, even if what
    /// there is to tell is that it does not exist.
    fn forget_unsubscribed(&mut self, name: &str) {
        self.forget_sent(name);
        if let Some(resource) = self.acknowledged.remove(name) {
            self.acknowledged_fingerprint ^= resource.fingerprint();
        }
        self.refused.remove(name);
        if self.takes_all() {
            self.dirty.insert(name.into());
            self.absent.insert(name.into());
            self.owes_world |= self.sends_world();
        } else {
            self.dirty.remove(name);
        }
    }
}
