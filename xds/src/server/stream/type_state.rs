//! One resource type of one stream: what is subscribed, what was sent, what was acknowledged or refused, and
//! what is still to be told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use super::{Outcome, Variant};
use crate::resource::{Resource, ResourceType};
use crate::server::status::{Nack, TypeStatus};
use crate::snapshot::{ResourceMap, changed_names};

/// Subscribes to everything.
const WILDCARD: &str = "*";

#[derive(Debug)]
pub(super) struct TypeState {
    ty: ResourceType,
    /// A request of this type has come.
    asked: bool,
    wildcard: bool,
    /// Something has been sent. A client that wants everything is told even that there is nothing.
    told: bool,
    /// The wildcard came from an empty first request, so that the first name ends it.
    implicit_wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// The published resources as last looked at.
    published: ResourceMap,
    /// What the client has been sent; under a wildcard shared with `published` once they agree.
    sent: ResourceMap,
    sent_fingerprint: u64,
    acknowledged: ResourceMap,
    acknowledged_fingerprint: u64,
    /// Names whose state may have to be told.
    dirty: BTreeSet<Arc<str>>,
    /// Subscribed names that do not exist and of which the client must be told so (delta).
    absent: BTreeSet<Arc<str>>,
    /// Versions that were refused; not sent again.
    refused: BTreeMap<Arc<str>, Arc<str>>,
    /// After a refusal of many, they are sent again in halves, to find out which are at fault (delta).
    halves: Vec<Vec<Arc<str>>>,
    in_flight: Option<InFlight>,
    nack: Option<Nack>,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    /// Name and version of each resource in it.
    resources: Vec<(Arc<str>, Arc<str>)>,
}

/// The contents of a response.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) resources: Vec<Resource>,
    pub(super) removed: Vec<Arc<str>>,
    /// What of `resources` is new to the client.
    changed: Vec<Resource>,
    /// What the client is rid of with this response.
    gone: Vec<Arc<str>>,
}

impl TypeState {
    pub(super) fn new(ty: ResourceType) -> TypeState {
        TypeState {
            ty,
            asked: false,
            told: false,
            wildcard: false,
            implicit_wildcard: false,
            names: BTreeSet::new(),
            published: ResourceMap::new(),
            sent: ResourceMap::new(),
            sent_fingerprint: 0,
            acknowledged: ResourceMap::new(),
            acknowledged_fingerprint: 0,
            dirty: BTreeSet::new(),
            absent: BTreeSet::new(),
            refused: BTreeMap::new(),
            halves: Vec::new(),
            in_flight: None,
            nack: None,
        }
    }

    pub(super) fn names(&self) -> &BTreeSet<Arc<str>> {
        &self.names
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    pub(super) fn is_subscribed(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    pub(super) fn acknowledged_version(&self, name: &str) -> Option<&Arc<str>> {
        self.acknowledged.get(name).map(|r| &r.version)
    }

    /// State of the world: a request counts only if it answers the newest response, or is the first.
    pub(super) fn is_current(&self, nonce: &str) -> bool {
        match &self.in_flight {
            Some(in_flight) => nonce.is_empty() || in_flight.nonce == nonce,
            None => true,
        }
    }

    /// An ACK or NACK for the response under way; anything else is stale and ignored.
    pub(super) fn answered(&mut self, nonce: &str, nack: Option<&str>, may_split: bool) -> Outcome {
        let Some(in_flight) = self.in_flight.take_if(|f| f.nonce == nonce) else { return Outcome::None };
        match nack {
            None => {
                self.acknowledged = self.sent.clone();
                self.acknowledged_fingerprint = self.sent_fingerprint;
                if self.refused.is_empty() {
                    self.nack = None;
                }
                Outcome::Ack
            }
            Some(message) => {
                self.refuse(&in_flight.resources, may_split);
                self.nack = Some(Nack {
                    at: SystemTime::now(),
                    message: message.to_owned(),
                    resources: in_flight.resources,
                });
                Outcome::Nack
            }
        }
    }

    /// The client keeps what it had before. One of many may be at fault: each half is tried again alone.
    fn refuse(&mut self, resources: &[(Arc<str>, Arc<str>)], may_split: bool) {
        for (name, version) in resources {
            if self.sent.get(name).is_some_and(|r| r.version == *version) {
                match self.acknowledged.get(name).cloned() {
                    Some(earlier) => self.put_sent(earlier),
                    None => self.forget_sent(name),
                }
            }
        }
        if may_split && resources.len() > 1 {
            let (left, right) = resources.split_at(resources.len() / 2);
            for half in [right, left] {
                self.halves.push(half.iter().map(|(name, _)| name.clone()).collect());
            }
        } else {
            self.refused.extend(resources.iter().cloned());
        }
        self.dirty.extend(resources.iter().map(|(name, _)| name.clone()));
    }

    /// State of the world: the whole list of names, every time.
    pub(super) fn subscribe_exactly(&mut self, names: &[String]) {
        let first = !std::mem::replace(&mut self.asked, true);
        if names.is_empty() && self.ty.is_wildcard_capable() && (first || self.implicit_wildcard) {
            self.implicit_wildcard = true;
            self.set_wildcard(true);
            return;
        }
        self.implicit_wildcard = false;
        self.set_wildcard(names.iter().any(|n| n == WILDCARD));
        let wanted: BTreeSet<Arc<str>> =
            names.iter().filter(|n| *n != WILDCARD).map(|n| Arc::from(n.as_str())).collect();
        let dropped: Vec<Arc<str>> = self.names.difference(&wanted).cloned().collect();
        self.dirty.extend(wanted.difference(&self.names).cloned());
        self.names = wanted;
        for name in dropped {
            self.forget_unsubscribed(&name);
        }
    }

    /// Delta: the first request of the type may say what the client still has from an earlier stream.
    pub(super) fn start_delta(&mut self, names: &[String], initial: &HashMap<String, String>) {
        if std::mem::replace(&mut self.asked, true) {
            return;
        }
        if names.is_empty() && self.ty.is_wildcard_capable() {
            self.implicit_wildcard = true;
            self.set_wildcard(true);
        }
        for (name, version) in initial {
            let (name, version): (Arc<str>, Arc<str>) = (name.as_str().into(), version.as_str().into());
            self.dirty.insert(name.clone());
            self.put_sent(Resource { name, version, body: bytes::Bytes::new() });
        }
        self.acknowledged = self.sent.clone();
        self.acknowledged_fingerprint = self.sent_fingerprint;
    }

    /// Delta: further names. A name that is subscribed already is told anew.
    pub(super) fn subscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.implicit_wildcard = false;
                self.set_wildcard(true);
                continue;
            }
            if std::mem::take(&mut self.implicit_wildcard) {
                self.set_wildcard(false);
            }
            let name: Arc<str> = name.as_str().into();
            if !self.names.insert(name.clone()) {
                self.forget_sent(&name);
            }
            self.absent.insert(name.clone());
            self.dirty.insert(name);
        }
    }

    /// Delta: names that are no longer wanted.
    pub(super) fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.implicit_wildcard = false;
                self.set_wildcard(false);
            } else {
                self.names.remove(name.as_str());
                self.absent.remove(name.as_str());
                self.forget_unsubscribed(name);
            }
        }
    }

    fn set_wildcard(&mut self, wildcard: bool) {
        if self.wildcard == wildcard {
            return;
        }
        self.wildcard = wildcard;
        if wildcard {
            self.dirty.extend(self.published.keys().cloned());
        } else {
            let unnamed: Vec<Arc<str>> =
                self.sent.keys().filter(|name| !self.names.contains(*name)).cloned().collect();
            for name in unnamed {
                self.forget_unsubscribed(&name);
            }
        }
    }

    /// The client has dropped it; under a wildcard it is wanted all the same, and told anew.
    fn forget_unsubscribed(&mut self, name: &str) {
        self.forget_sent(name);
        if let Some(resource) = self.acknowledged.remove(name) {
            self.acknowledged_fingerprint ^= resource.fingerprint();
        }
        self.refused.remove(name);
        if self.wildcard {
            self.dirty.insert(name.into());
        } else {
            self.dirty.remove(name);
        }
    }

    /// Looks at what is published now.
    pub(super) fn catch_up(&mut self, published: &ResourceMap) {
        for name in changed_names(&self.published, published) {
            if self.is_subscribed(&name) {
                self.dirty.insert(name);
            }
        }
        self.published = published.clone();
    }

    pub(super) fn has_work(&self) -> bool {
        self.asked && (!self.dirty.is_empty() || self.owes_first())
    }

    fn owes_first(&self) -> bool {
        self.wildcard && !self.told
    }

    /// New and changed resources, and names that do not exist, if nothing is under way.
    pub(super) fn take_changes(&mut self, variant: Variant) -> Option<Part> {
        if self.in_flight.is_some() || !self.has_work() {
            return None;
        }
        let mut part = Part::default();
        while let Some(half) = self.halves.pop() {
            part.changed = half.iter().filter_map(|name| self.change(name)).collect();
            if !part.changed.is_empty() {
                break;
            }
        }
        if part.changed.is_empty() {
            part.changed = self.dirty.iter().filter_map(|name| self.change(name)).collect();
            part.removed = self.dirty.iter().filter(|name| self.is_absent(name)).cloned().collect();
        }
        for resource in &part.changed {
            self.dirty.remove(&resource.name);
            self.absent.remove(&resource.name);
        }
        for name in &part.removed {
            self.dirty.remove(name);
            self.absent.remove(name);
        }
        self.dirty_settled();
        match variant {
            Variant::Delta => {
                part.resources = part.changed.clone();
                let says = !part.resources.is_empty() || !part.removed.is_empty() || self.owes_first();
                says.then_some(part)
            }
            Variant::Sotw => {
                part.removed.clear();
                if part.changed.is_empty() && !self.owes_first() {
                    return None;
                }
                part.resources = self.world(&part);
                Some(part)
            }
        }
    }

    /// What is gone, if nothing is under way.
    pub(super) fn take_removals(&mut self, variant: Variant) -> Option<Part> {
        if !self.asked || self.in_flight.is_some() || self.dirty.is_empty() {
            return None;
        }
        let is_gone = |name: &&Arc<str>| self.sent.contains_key(*name) && !self.published.contains_key(*name);
        let gone: Vec<Arc<str>> = self.dirty.iter().filter(is_gone).cloned().collect();
        for name in &gone {
            self.dirty.remove(name);
        }
        self.dirty_settled();
        if gone.is_empty() {
            return None;
        }
        let mut part = Part { gone, ..Part::default() };
        match variant {
            Variant::Delta => part.removed = part.gone.clone(),
            Variant::Sotw => part.resources = self.world(&part),
        }
        // State of the world has no words for the end of an endpoint set or a route configuration.
        let said = variant == Variant::Delta || self.ty.is_wildcard_capable();
        if said {
            Some(part)
        } else {
            for name in &part.gone {
                self.forget_sent(name);
            }
            None
        }
    }

    /// The resource to send for a dirty name: published, wanted, new to the client, and not refused.
    fn change(&self, name: &Arc<str>) -> Option<Resource> {
        let resource = self.published.get(name).filter(|_| self.is_subscribed(name))?;
        let has = self.sent.get(name).is_some_and(|sent| sent.version == resource.version);
        let refused = self.refused.get(name).is_some_and(|version| *version == resource.version);
        (!has && !refused).then(|| resource.clone())
    }

    fn is_absent(&self, name: &Arc<str>) -> bool {
        self.absent.contains(name) && !self.published.contains_key(name) && !self.sent.contains_key(name)
    }

    /// Drops the names about which nothing is left to say.
    fn dirty_settled(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|name| {
            self.change(name).is_some()
                || self.is_absent(name)
                || (self.sent.contains_key(name) && !self.published.contains_key(name))
        });
        self.dirty = dirty;
    }

    /// All that a state-of-the-world response carries. For EDS and RDS the changed ones are enough.
    fn world(&self, part: &Part) -> Vec<Resource> {
        if !self.ty.is_wildcard_capable() {
            return part.changed.clone();
        }
        let mut all = self.sent.clone();
        for name in &part.gone {
            all.remove(name);
        }
        for resource in &part.changed {
            all.insert(resource.name.clone(), resource.clone());
        }
        all.values().cloned().collect()
    }

    /// Notes that a response is on its way; gives the version of all that the client then has.
    pub(super) fn sent(&mut self, nonce: &str, part: &Part) -> String {
        for resource in &part.changed {
            self.put_sent(resource.clone());
            self.refused.remove(&resource.name);
        }
        for name in &part.gone {
            self.forget_sent(name);
            self.refused.remove(name);
        }
        if self.wildcard && self.dirty.is_empty() && self.refused.is_empty() && self.halves.is_empty() {
            // Equal by now; share the memory.
            self.sent = self.published.clone();
        }
        self.told = true;
        let resources = part.changed.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
        self.in_flight = Some(InFlight { nonce: nonce.to_owned(), resources });
        format!("{:016x}", self.sent_fingerprint)
    }

    fn put_sent(&mut self, resource: Resource) {
        self.sent_fingerprint ^= resource.fingerprint();
        if let Some(earlier) = self.sent.insert(resource.name.clone(), resource) {
            self.sent_fingerprint ^= earlier.fingerprint();
        }
    }

    fn forget_sent(&mut self, name: &str) {
        if let Some(resource) = self.sent.remove(name) {
            self.sent_fingerprint ^= resource.fingerprint();
        }
    }

    pub(super) fn status(&self) -> Option<TypeStatus> {
        self.asked.then(|| TypeStatus {
            ty: self.ty,
            wildcard: self.wildcard,
            names: self.names.iter().cloned().collect(),
            acknowledged_version: format!("{:016x}", self.acknowledged_fingerprint),
            sent_version: format!("{:016x}", self.sent_fingerprint),
            in_sync: self.dirty.is_empty() && self.in_flight.is_none() && self.refused.is_empty(),
            acknowledged: self
                .acknowledged
                .values()
                .map(|resource| (resource.name.clone(), resource.version.clone()))
                .collect(),
            nack: self.nack.clone(),
        })
    }
}
