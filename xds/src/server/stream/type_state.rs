//! One resource type of one stream: what is subscribed, what was sent, what was acknowledged or refused, and
//! what is still to be told.

mod part;
mod subscribe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

pub(super) use self::part::Part;
use self::part::shorten;
pub(in crate::server) use self::part::shortened;
use super::Outcome;
use crate::resource::{Resource, ResourceType};
use crate::server::status::{Nack, TypeStatus};
use crate::snapshot::{ResourceMap, changed_names};
use crate::variant::Variant;

/// A name's place in the set, and what counts those who share it.
const BYTES_PER_KEPT_NAME: usize = 32;

/// Where a name is, by what the client knows of it:
///
/// | | `dirty` | `sent` | `acknowledged` | besides |
/// |---|---|---|---|---|
/// | to be sent for the first time | yes | | | |
/// | under way | | yes | the version before, if any | `in_flight` |
/// | in force | | yes | the same | |
/// | changed | yes | yes | the same as sent | |
/// | gone, and the client has it | yes | yes | yes | not `published` |
/// | asked for, and to be told that there is none | yes | | | `absent`, not `published` |
/// | to be sent again unchanged | yes | | yes | `absent`, should it go meanwhile; `anew` alone until the type is asked for |
/// | refused alone | | as acknowledged | the version before, if any | `refused` |
/// | refused with others | yes | as acknowledged | the version before, if any | `halves`, until its half is sent; `absent` |
///
/// `dirty` may have more: names that turn out to have nothing to be told are dropped when it is next looked through.
#[derive(Debug)]
pub(super) struct TypeState {
    ty: ResourceType,
    variant: Variant,
    /// A request of this type has come.
    asked: bool,
    wildcard: bool,
    /// Something has been sent. A client that wants everything is told even that there is nothing.
    told: bool,
    /// The wildcard came from an empty first request, so that the first name ends it.
    implicit_wildcard: bool,
    /// What is published is for those who name it: a wildcard is answered with nothing.
    by_name_only: bool,
    names: BTreeSet<Arc<str>>,
    /// Of all `names` together.
    name_bytes: usize,
    /// How many of the published resources are in `names`.
    named: usize,
    /// The published resources as last looked at.
    published: ResourceMap,
    /// What the client has been sent; shared with `published` once the client has all of it.
    sent: ResourceMap,
    sent_fingerprint: u64,
    acknowledged: ResourceMap,
    acknowledged_fingerprint: u64,
    /// Names whose state may have to be told.
    dirty: BTreeSet<Arc<str>>,
    /// Names that do not exist and of which the client must be told so (delta).
    absent: BTreeSet<Arc<str>>,
    /// To be sent whatever the client will say that it has of them, once it asks for the type (delta).
    anew: BTreeSet<Arc<str>>,
    /// Versions that were refused; not sent again.
    refused: BTreeMap<Arc<str>, Arc<str>>,
    /// After a refusal of many, they are sent again in halves, to find out which are at fault (delta).
    halves: Vec<Vec<Arc<str>>>,
    /// The next response is due even if nothing in it is new: after a refusal nobody knows how much of that
    /// state of the world a client took, and a new name is to be answered even if it does not exist.
    owes_world: bool,
    in_flight: Option<InFlight>,
    nack: Option<Nack>,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    /// Name and version of each resource in it.
    resources: Vec<(Arc<str>, Arc<str>)>,
    /// What the client loses with it, by name.
    losing: Vec<Arc<str>>,
    /// Something in it the client did not have in any version, so that nothing may refer to it yet.
    brings_new: bool,
}

impl TypeState {
    pub(super) fn new(ty: ResourceType, variant: Variant) -> TypeState {
        TypeState {
            ty,
            variant,
            asked: false,
            told: false,
            wildcard: false,
            implicit_wildcard: false,
            by_name_only: false,
            names: BTreeSet::new(),
            name_bytes: 0,
            named: 0,
            published: ResourceMap::new(),
            sent: ResourceMap::new(),
            sent_fingerprint: 0,
            acknowledged: ResourceMap::new(),
            acknowledged_fingerprint: 0,
            dirty: BTreeSet::new(),
            absent: BTreeSet::new(),
            anew: BTreeSet::new(),
            refused: BTreeMap::new(),
            halves: Vec::new(),
            owes_world: false,
            in_flight: None,
            nack: None,
        }
    }

    pub(super) fn names(&self) -> &BTreeSet<Arc<str>> {
        &self.names
    }

    /// Number and total length of the subscribed names.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.names.len(), self.name_bytes)
    }

    /// Whether each response carries all resources, so that what is missing in it is gone.
    fn sends_world(&self) -> bool {
        self.variant == Variant::Sotw && self.ty.is_wildcard_capable()
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether something is under way that the client did not have.
    pub(super) fn brings_new(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|in_flight| in_flight.brings_new)
    }

    /// Whether what refers to these has to wait: something that the client does not have is under way to it, or waits
    /// behind what is. What it has refused holds up nobody.
    pub(super) fn holds_up(&self) -> bool {
        let waits = |name: &Arc<str>| self.is_new(name) && self.change(name).is_some();
        self.in_flight.is_some() && (self.brings_new() || self.dirty.iter().any(waits))
    }

    /// Whether the client has it in no version, or is about to lose it.
    fn is_new(&self, name: &Arc<str>) -> bool {
        let loses = |in_flight: &InFlight| in_flight.losing.binary_search(name).is_ok();
        !self.acknowledged.contains_key(name) || self.in_flight.as_ref().is_some_and(loses)
    }

    pub(super) fn is_subscribed(&self, name: &str) -> bool {
        self.takes_all() || self.names.contains(name)
    }

    pub(super) fn is_subscribed_to_any(&self) -> bool {
        self.takes_all() || !self.names.is_empty()
    }

    fn takes_all(&self) -> bool {
        self.wildcard && !self.by_name_only
    }

    pub(super) fn has_acknowledged(&self) -> bool {
        !self.acknowledged.is_empty()
    }

    pub(super) fn acknowledged_version(&self, name: &str) -> Option<&Arc<str>> {
        self.acknowledged.get(name).map(|r| &r.version)
    }

    pub(super) fn refusal(&self) -> Option<(ResourceType, &Nack)> {
        self.nack.as_ref().map(|nack| (self.ty, nack))
    }

    /// An ACK or NACK for the response under way; anything else is stale and ignored.
    pub(super) fn answered(&mut self, nonce: &str, nack: Option<&str>) -> Outcome {
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
                self.refuse(&in_flight.resources);
                self.nack = Some(Nack {
                    at: SystemTime::now(),
                    message: shortened(message),
                    resources: in_flight.resources,
                });
                Outcome::Nack
            }
        }
    }

    /// The client keeps what it had before. One of many may be at fault: each half is tried again alone.
    fn refuse(&mut self, resources: &[(Arc<str>, Arc<str>)]) {
        for (name, version) in resources {
            if self.sent.get(name).is_some_and(|r| r.version == *version) {
                match self.acknowledged.get(name).cloned() {
                    Some(earlier) => self.put_sent(earlier),
                    None => self.forget_sent(name),
                }
            }
        }
        let is_one = resources.len() == 1;
        // Of a name that was dropped meanwhile nothing is held against the client: it may ask for it anew.
        let resources: Vec<_> =
            resources.iter().filter(|(name, _)| self.is_subscribed(name)).cloned().collect();
        if !self.sends_world() && !is_one {
            let (left, right) = resources.split_at(resources.len() / 2);
            for half in [right, left].into_iter().filter(|half| !half.is_empty()) {
                self.halves.push(half.iter().map(|(name, _)| name.clone()).collect());
            }
            // The client may have taken the good ones: should they be withdrawn now, it has to be told.
            self.absent.extend(resources.iter().map(|(name, _)| name.clone()));
        } else {
            let is_published = |(name, version): &&(Arc<str>, Arc<str>)| {
                self.published.get(name).is_some_and(|resource| resource.version == *version)
            };
            let (lasting, outdated): (Vec<_>, Vec<_>) = resources.iter().partition(is_published);
            if !self.sends_world() {
                // Withdrawn meanwhile, some of it: that is told, and with the answer nothing is held against the client.
                self.absent.extend(outdated.iter().map(|(name, _)| name.clone()));
            }
            self.refused.extend(lasting.into_iter().cloned());
            self.owes_world |= self.sends_world() && !outdated.is_empty();
        }
        self.dirty.extend(resources.iter().map(|(name, _)| name.clone()));
    }

    /// Looks at what is published now.
    pub(super) fn catch_up(&mut self, published: &ResourceMap, by_name_only: bool) {
        self.by_name_only = by_name_only;
        let changed = changed_names(&self.published, published);
        let before = std::mem::replace(&mut self.published, published.clone());
        let (mut is_concerned, had_refused) = (false, !self.refused.is_empty());
        for name in changed {
            self.refused.remove(&name);
            if self.names.contains(&name) {
                self.named += usize::from(published.contains_key(&name));
                self.named -= usize::from(before.contains_key(&name));
            }
            if self.is_subscribed(&name) {
                self.dirty.insert(name);
                is_concerned = true;
            }
        }
        if had_refused && self.refused.is_empty() && self.halves.is_empty() && !self.sends_world() {
            // What was refused is withdrawn, or about to be sent in a new version.
            self.nack = None;
        }
        self.owes_world |= is_concerned && self.sends_world() && self.nack.is_some();
    }

    /// Sends a resource again although it has not changed, because the client is about to forget it.
    pub(super) fn send_again(&mut self, name: &Arc<str>) {
        if !self.asked && self.variant == Variant::Delta {
            self.anew.insert(name.clone());
        } else if self.sent.contains_key(name)
            && self.published.contains_key(name)
            && self.is_subscribed(name)
        {
            self.forget_sent(name);
            self.dirty.insert(name.clone());
            // Should it be withdrawn before it is sent: the client has it still.
            self.absent.insert(name.clone());
        }
    }

    /// What the client has lost needs no sending again.
    pub(super) fn drop_anew(&mut self, has: impl Fn(&Arc<str>) -> bool) {
        self.anew.retain(has);
    }

    pub(super) fn has_work(&self) -> bool {
        self.asked && (!self.dirty.is_empty() || self.owes_first() || self.owes_world)
    }

    /// Whether there is more to tell than what is gone.
    pub(super) fn has_more_than_removals(&self) -> bool {
        let says_more = |name: &Arc<str>| !self.is_gone(name);
        self.asked && (self.owes_first() || self.owes_world || self.dirty.iter().any(says_more))
    }

    /// How many names wait to be told of.
    pub(super) fn waiting(&self) -> usize {
        self.dirty.len()
    }

    /// Whether the client has refused something that is published still, or may have: it goes on with what it had before.
    pub(super) fn stands_refused(&self) -> bool {
        // What it no longer asks for may be among them still.
        let is_untold = |name: &Arc<str>| self.change(name).is_some();
        self.refused.keys().any(|name| self.is_subscribed(name))
            || self.halves.iter().flatten().any(is_untold)
    }

    fn owes_first(&self) -> bool {
        self.wildcard && !self.told
    }

    /// New and changed resources, and names that do not exist, if nothing is under way.
    pub(super) fn take_changes(&mut self, max_bytes: usize) -> Option<Part> {
        if self.in_flight.is_some() || !self.has_work() {
            return None;
        }
        self.reinstate();
        let mut part = Part::default();
        while let Some(half) = self.halves.pop() {
            part.changed = half.iter().filter_map(|name| self.change(name)).collect();
            if !part.changed.is_empty() {
                break;
            }
        }
        if part.changed.is_empty() && !self.sends_world() {
            part = self.gather(max_bytes);
        } else {
            if part.changed.is_empty() {
                part.changed = self.dirty.iter().filter_map(|name| self.change(name)).collect();
                part.removed = self.dirty.iter().filter(|name| self.is_absent(name)).cloned().collect();
            }
            self.told_of(&part);
            self.dirty_settled();
        }
        match self.variant {
            Variant::Delta => {
                let says = !part.changed.is_empty() || !part.removed.is_empty() || self.owes_first();
                if !says {
                    self.share();
                }
                says.then_some(part)
            }
            Variant::Sotw => {
                part.removed.clear();
                if part.changed.is_empty() && !self.owes_first() && !self.owes_world {
                    return None;
                }
                Some(part)
            }
        }
    }

    /// As much as one response takes, at least one. What the client does not have comes first, as what refers to it waits
    /// for it; and in a large world that is new each part costs what is in it.
    fn gather(&mut self, max_bytes: usize) -> Part {
        let (mut part, mut settled) = (Part::default(), Vec::new());
        let mut left = Some(max_bytes);
        let is_new = |name: &&Arc<str>| self.is_new(name);
        let (new, other) = (self.dirty.iter().filter(is_new), self.dirty.iter().filter(|name| !is_new(name)));
        for name in new.chain(other) {
            let change = self.change(name);
            let bytes = match &change {
                Some(resource) => resource.body.len() + 2 * resource.name.len() + resource.version.len(),
                // State of the world has no words for it.
                None if self.is_absent(name) && self.variant == Variant::Sotw => 0,
                None if self.is_absent(name) => name.len(),
                None => {
                    if !self.is_gone(name) {
                        settled.push(name.clone());
                    }
                    continue;
                }
            };
            left = left.and_then(|left| left.checked_sub(bytes));
            if left.is_none() && !(part.changed.is_empty() && part.removed.is_empty()) {
                break;
            }
            match change {
                Some(resource) => part.changed.push(resource),
                None => part.removed.push(name.clone()),
            }
        }
        self.told_of(&part);
        for name in settled {
            self.dirty.remove(&name);
        }
        part
    }

    /// What is in a response need not be told any more.
    fn told_of(&mut self, part: &Part) {
        for name in part.changed.iter().map(|resource| &resource.name).chain(&part.removed) {
            self.dirty.remove(name);
            self.absent.remove(name);
        }
    }

    /// The good ones of a refused state of the world were refused with it. The next one must not lack them,
    /// or it would remove them.
    fn reinstate(&mut self) {
        if !self.sends_world() || self.refused.is_empty() {
            return;
        }
        if self.owes_world || self.dirty.iter().any(|name| self.change(name).is_some()) {
            self.dirty.extend(std::mem::take(&mut self.refused).into_keys());
        }
    }

    /// What is gone, if nothing is under way.
    pub(super) fn take_removals(&mut self, max_bytes: usize) -> Option<Part> {
        if !self.asked || self.in_flight.is_some() || self.dirty.is_empty() {
            return None;
        }
        let mut gone: Vec<Arc<str>> = self.dirty.iter().filter(|name| self.is_gone(name)).cloned().collect();
        if self.variant == Variant::Delta {
            shorten(&mut gone, max_bytes, |name| name.len());
        }
        for name in &gone {
            self.dirty.remove(name);
        }
        self.dirty_settled();
        if gone.is_empty() {
            return None;
        }
        let mut part = Part { gone, ..Part::default() };
        if self.sends_world() {
            // As in `reinstate`.
            part.changed = self.refused.keys().filter_map(|name| self.published.get(name).cloned()).collect();
        }
        if self.variant == Variant::Delta {
            part.removed = part.gone.clone();
        }
        // State of the world has no words for the end of an endpoint set or a route configuration.
        let said = self.variant == Variant::Delta || self.ty.is_wildcard_capable();
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

    fn is_gone(&self, name: &Arc<str>) -> bool {
        self.sent.contains_key(name) && !self.published.contains_key(name)
    }

    fn is_absent(&self, name: &Arc<str>) -> bool {
        self.absent.contains(name)
            && self.is_subscribed(name)
            && !self.published.contains_key(name)
            && !self.sent.contains_key(name)
    }

    /// Drops the names about which nothing is left to say.
    fn dirty_settled(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|name| self.change(name).is_some() || self.is_absent(name) || self.is_gone(name));
        self.dirty = dirty;
    }

    /// A client that has all that is published shares its memory. One that came back with what it had told each name
    /// and version anew: a thousand of them would hold each a thousand times.
    fn share(&mut self) {
        let has_all = self.takes_all() || self.named == self.published.len();
        if !has_all || !self.dirty.is_empty() || !self.refused.is_empty() || !self.halves.is_empty() {
            return;
        }
        self.sent = self.published.clone();
        if self.in_flight.is_none() && self.acknowledged_fingerprint == self.sent_fingerprint {
            self.acknowledged = self.sent.clone();
        }
    }

    /// The client has gone: keeps what it followed, and whether it had acknowledged anything. Gives the bytes of that,
    /// roughly.
    pub(super) fn put_aside(&mut self) -> usize {
        let bytes = self.name_bytes + BYTES_PER_KEPT_NAME * self.names.len();
        let names = std::mem::take(&mut self.names);
        let left = TypeState::new(self.ty, self.variant);
        let (wildcard, by_name_only) = (self.wildcard, self.by_name_only);
        *self = TypeState { names, wildcard, by_name_only, ..left };
        bytes
    }

    /// What a response carries in the place of what is new to the client: all that it has been sent, with that.
    pub(super) fn world(&self) -> Option<&ResourceMap> {
        self.sends_world().then_some(&self.sent)
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
        self.share();
        self.told = true;
        self.owes_world = false;
        let resources = part.changed.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
        let mut losing: Vec<Arc<str>> = part.removed.iter().chain(&part.gone).cloned().collect();
        losing.sort_unstable();
        let brings_new = part.changed.iter().any(|resource| self.is_new(&resource.name));
        self.in_flight = Some(InFlight { nonce: nonce.to_owned(), resources, losing, brings_new });
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
