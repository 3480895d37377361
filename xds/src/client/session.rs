//! The bookkeeping of the client, without I/O: what is wanted and what the server sends go in, requests come out.
//! Both variants share it. What is held outlives the stream.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use twox_hash::XxHash64;

use super::offer::Offer;
use super::{Handler, Rejected, Update, Wanted};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::pb::google::rpc::Status as RpcStatus;
use crate::resource::ResourceType;
use crate::variant::Variant;

/// Subscribes to everything.
const WILDCARD: &str = "*";
/// gRPC's `INVALID_ARGUMENT`, in a NACK.
const INVALID_ARGUMENT: i32 = 3;
/// Refusals told in one NACK; the rest is counted.
const TOLD_REFUSALS: usize = 16;
/// Many servers send what is refused again as soon as they read the refusal. It is told to them no more often.
pub(super) const SAME_REFUSAL: Duration = Duration::from_secs(1);

/// What the client has, over breaks.
#[derive(Debug, Default)]
pub(super) struct Known {
    types: BTreeMap<ResourceType, Held>,
}

#[derive(Debug, Default)]
struct Held {
    wanted: Wanted,
    /// Every accepted resource by its name.
    resources: HashMap<Arc<str>, Version>,
    /// State of the world: the version of the last response that was accepted as a whole.
    accepted: String,
    /// What is held is of that response and no other.
    is_whole: bool,
    /// Of these another content was refused since they were accepted, or none was accepted.
    refused: HashSet<Arc<str>>,
}

#[derive(Debug)]
struct Version {
    version: Arc<str>,
    /// A hash of the resource: in state of the world what has not changed is sent again and again.
    content: u64,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Session<'k> {
    variant: Variant,
    known: &'k mut Known,
    types: BTreeMap<ResourceType, Dialogue>,
    /// Who we are, until it has been said.
    node: Option<Node>,
}

/// What is said about one type on one stream.
#[derive(Debug, Default)]
struct Dialogue {
    /// What the server knows to be wanted; `None`: it has not been asked for this type.
    told: Option<Wanted>,
    /// Names have been told: from then on an empty list means none, and not all.
    has_named: bool,
    /// State of the world: of the last response.
    nonce: String,
    /// In state of the world one at most: that to the last response.
    answers: VecDeque<Answer>,
    last_refusal: Option<String>,
}

#[derive(Debug)]
struct Answer {
    nonce: String,
    refusal: Option<String>,
    due: Instant,
}

/// A request, not yet in either wire form.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Request {
    node: Option<Node>,
    type_url: &'static str,
    /// Delta: what comes on top of what was told.
    names: Vec<String>,
    unsubscribe: Vec<String>,
    initial: HashMap<String, String>,
    version: String,
    nonce: String,
    refusal: Option<String>,
}

/// What became of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taken {
    Whole,
    /// Something in it was refused, for this reason.
    Refused(String),
    /// The same was refused, for the same reason, just before.
    Again(String),
}

impl<'k> Session<'k> {
    pub(super) fn new(variant: Variant, node: Node, known: &'k mut Known) -> Session<'k> {
        Session { variant, known, types: BTreeMap::new(), node: Some(node) }
    }

    /// Answers that are still to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.types.values().map(|dialogue| dialogue.answers.len()).sum()
    }

    /// When [`Session::next`] should be asked again although nothing happened.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.types.values().filter_map(|dialogue| Some(dialogue.answers.front()?.due)).min()
    }

    /// Takes note of what is wanted from now on. What is dropped is no longer held.
    pub(super) fn follow(&mut self, wanted: &BTreeMap<ResourceType, Wanted>) {
        for (ty, wanted) in wanted {
            self.types.entry(*ty).or_default();
            let held = self.known.types.entry(*ty).or_default();
            if held.wanted == *wanted {
                continue;
            }
            let (before, now) = (&held.wanted.names, &wanted.names);
            held.resources.retain(|name, _| match (before.get(name), now.get(name)) {
                (Some(before), now) => now == Some(before),
                (None, Some(_)) => true,
                (None, None) => wanted.wildcard,
            });
            held.refused.retain(|name| wanted.takes(name));
            held.wanted = wanted.clone();
        }
    }

    /// The next request that may be sent now, if there is one.
    pub(super) fn next(&mut self, now: Instant) -> Option<Request> {
        for (ty, dialogue) in &mut self.types {
            let held = self.known.types.entry(*ty).or_default();
            let request = match self.variant {
                Variant::Sotw => dialogue.next_sotw(held, now),
                Variant::Delta => dialogue.next_delta(held, now),
            };
            if let Some(request) = request {
                return Some(Request { node: self.node.take(), type_url: ty.type_url(), ..request });
            }
        }
        None
    }

    /// Takes a state-of-the-world response.
    pub(super) fn on_sotw(
        &mut self,
        response: DiscoveryResponse,
        handler: &mut impl Handler,
        now: Instant,
    ) -> Taken {
        let Some(ty) = self.asked(&response.type_url) else { return not_asked(&response.type_url) };
        let offer = Offer::of_sotw(ty, response.resources);
        self.take(ty, offer, response.version_info, response.nonce, handler, now)
    }

    /// Takes a delta response.
    pub(super) fn on_delta(
        &mut self,
        response: DeltaDiscoveryResponse,
        handler: &mut impl Handler,
        now: Instant,
    ) -> Taken {
        let Some(ty) = self.asked(&response.type_url) else { return not_asked(&response.type_url) };
        let offer = Offer::of_delta(ty, response.resources, response.removed_resources);
        self.take(ty, offer, response.system_version_info, response.nonce, handler, now)
    }

    fn asked(&self, type_url: &str) -> Option<ResourceType> {
        ResourceType::from_type_url(type_url)
            .filter(|ty| self.types.get(ty).is_some_and(|dialogue| dialogue.told.is_some()))
    }

    fn take(
        &mut self,
        ty: ResourceType,
        offer: Offer,
        version: String,
        nonce: String,
        handler: &mut impl Handler,
        now: Instant,
    ) -> Taken {
        let Offer { resources, mut removed, mut rejected, nameless } = offer;
        let held = self.known.types.entry(ty).or_default();
        let mut seen: HashSet<Arc<str>> = rejected.iter().map(|rejected| rejected.name.clone()).collect();
        let (mut changed, mut contents) = (Vec::new(), Vec::new());
        for mut resource in resources {
            if !seen.insert(resource.name.clone()) {
                let reason = String::from("is in the response twice");
                rejected.push(Rejected { name: resource.name, reason });
                continue;
            }
            if !held.wanted.takes(&resource.name) {
                continue;
            }
            // A name is in memory once, however often what it stands for is sent.
            let named = held.wanted.names.get_key_value(&resource.name).map(|(name, _)| name);
            let known = named.or_else(|| held.resources.get_key_value(&resource.name).map(|(name, _)| name));
            if let Some(name) = known {
                resource.name.clone_from(name);
            }
            let mut content = 0;
            if self.variant == Variant::Sotw {
                content = XxHash64::oneshot(0, &resource.body);
                resource.version = version.as_str().into();
                let is_held = held.resources.get(&resource.name).is_some_and(|held| held.content == content);
                if is_held && !held.refused.contains(&resource.name) {
                    continue;
                }
            }
            contents.push((resource.name.clone(), Version { version: resource.version.clone(), content }));
            changed.push(resource);
        }
        // Which one a nameless resource is nobody knows: it may be any of those that seem to be missing.
        if self.variant == Variant::Sotw && ty.is_wildcard_capable() && !nameless {
            // Also what never was accepted: the handler keeps that it was refused.
            let known = held.resources.keys().chain(&held.refused);
            let gone: BTreeSet<Arc<str>> = known.filter(|name| !seen.contains(*name)).cloned().collect();
            removed = gone.into_iter().collect();
        }
        for name in &removed {
            held.resources.remove(name);
            held.refused.remove(name);
        }
        rejected.extend(handler.apply(Update { ty, changed, removed }));
        let refused: HashSet<Arc<str>> = rejected.iter().map(|rejected| rejected.name.clone()).collect();
        for (name, version) in contents {
            if refused.contains(&name) {
                held.refused.insert(name);
            } else {
                held.refused.remove(&name);
                held.resources.insert(name, version);
            }
        }
        held.is_whole = rejected.is_empty();
        if rejected.is_empty() {
            held.accepted = version;
        }
        let refusal = (!rejected.is_empty()).then(|| refusal(&rejected));
        let dialogue = self.types.entry(ty).or_default();
        let again = refusal.is_some() && dialogue.last_refusal == refusal;
        dialogue.last_refusal.clone_from(&refusal);
        if self.variant == Variant::Sotw {
            dialogue.nonce.clone_from(&nonce);
            dialogue.answers.clear();
        }
        let due = if again { now + SAME_REFUSAL } else { now };
        dialogue.answers.push_back(Answer { nonce, refusal: refusal.clone(), due });
        match refusal {
            None => Taken::Whole,
            Some(reason) if again => Taken::Again(reason),
            Some(reason) => Taken::Refused(reason),
        }
    }
}

impl Dialogue {
    /// Names, acknowledgement and refusal travel together: each request says all that is wanted.
    fn next_sotw(&mut self, held: &Held, now: Instant) -> Option<Request> {
        let wanted = &held.wanted;
        let is_new = match &self.told {
            None => !wanted.is_empty(),
            Some(told) => told != wanted,
        };
        let is_due = self.answers.front().is_some_and(|answer| answer.due <= now);
        if !is_new && !is_due {
            return None;
        }
        let mut telling = wanted.clone();
        let first = self.told.is_none();
        if let Some(told) = &self.told {
            // Dropped and taken up again in between: only who is told both sends it again.
            let stays = |name: &Arc<str>, since: &u64| told.names.get(name).is_none_or(|told| told == since);
            if !telling.names.iter().all(|(name, since)| stays(name, since)) {
                Arc::make_mut(&mut telling.names).retain(|name, since| stays(name, since));
            }
        }
        let mut names: Vec<String> = telling.names.keys().map(ToString::to_string).collect();
        self.has_named |= !names.is_empty();
        if wanted.wildcard && self.has_named {
            names.push(WILDCARD.to_owned());
        }
        self.told = Some(telling);
        let answer = self.answers.pop_front();
        Some(Request {
            names,
            version: if first { held.resumed().to_owned() } else { held.accepted.clone() },
            nonce: self.nonce.clone(),
            refusal: answer.and_then(|answer| answer.refusal),
            ..Request::default()
        })
    }

    /// Answers first, each to its response; then the difference between what is wanted and what was told.
    fn next_delta(&mut self, held: &Held, now: Instant) -> Option<Request> {
        if let Some(answer) = self.answers.pop_front_if(|answer| answer.due <= now) {
            return Some(Request { nonce: answer.nonce, refusal: answer.refusal, ..Request::default() });
        }
        let (wanted, first) = (&held.wanted, self.told.is_none());
        let told = self.told.get_or_insert_default();
        if told == wanted {
            if first {
                self.told = None;
            }
            return None;
        }
        let is_new = |(name, since): &(&Arc<str>, &u64)| told.names.get(*name) != Some(*since);
        let mut names: Vec<String> =
            wanted.names.iter().filter(is_new).map(|(name, _)| name.to_string()).collect();
        if wanted.wildcard && !told.wildcard {
            names.push(WILDCARD.to_owned());
        }
        let dropped = told.names.keys().filter(|name| !wanted.names.contains_key(*name));
        let unsubscribe = dropped.map(ToString::to_string).collect();
        let mut initial = HashMap::new();
        if first {
            let versions = held.resources.iter();
            initial = versions.map(|(name, held)| (name.to_string(), held.version.to_string())).collect();
        }
        *told = wanted.clone();
        Some(Request { names, unsubscribe, initial, ..Request::default() })
    }
}

impl Held {
    /// What a new stream begins with. A server that has this very version may send nothing, so it is said only by
    /// who holds all of it.
    fn resumed(&self) -> &str {
        let has_all = self.wanted.names.keys().all(|name| self.resources.contains_key(name));
        if self.is_whole && has_all { &self.accepted } else { "" }
    }
}

impl Request {
    /// As a state-of-the-world message.
    pub(super) fn into_sotw(self) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: self.version,
            node: self.node,
            resource_names: self.names,
            type_url: self.type_url.to_owned(),
            response_nonce: self.nonce,
            error_detail: self.refusal.map(status),
            ..DiscoveryRequest::default()
        }
    }

    /// As a delta message.
    pub(super) fn into_delta(self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: self.node,
            type_url: self.type_url.to_owned(),
            resource_names_subscribe: self.names,
            resource_names_unsubscribe: self.unsubscribe,
            initial_resource_versions: self.initial,
            response_nonce: self.nonce,
            error_detail: self.refusal.map(status),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// An answer to it would be a subscription, so there is none, as with Envoy.
fn not_asked(type_url: &str) -> Taken {
    Taken::Refused(format!("type {type_url:?} was not asked for"))
}

fn status(message: String) -> RpcStatus {
    RpcStatus { code: INVALID_ARGUMENT, message, details: Vec::new() }
}

fn refusal(rejected: &[Rejected]) -> String {
    let mut message: Vec<String> =
        rejected.iter().take(TOLD_REFUSALS).map(|r| format!("{}: {}", r.name, r.reason)).collect();
    if rejected.len() > TOLD_REFUSALS {
        message.push(format!("and {} more", rejected.len() - TOLD_REFUSALS));
    }
    message.join("; ")
}

#[cfg(test)]
mod tests;
