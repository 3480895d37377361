//! Matches that no request comes to, for an earlier one of the same listener and host is the same; which is earlier is the
//! Gateway API's precedence. Nothing is refused for it: it is said. Of each only the next before it is named, so that a
//! change of a route, however many have its match, concerns few others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::RouteMatch;
use prost::Message as _;
use twox_hash::XxHash64;

use super::gateway::Gateways;
use super::hostname::Hostname;
use super::route::{self, Order};
use super::standing::{Said, Standings};
use super::status::{ConditionType, Statuses};
use super::view::Routes;
use crate::objects::problem::FieldError;
use crate::objects::{Kind, ObjectName, ObjectRef};

/// The reason of what is said.
pub(super) const NEVER_TAKEN: &str = "NeverTaken";
/// A condition's message names so many of a route's matches.
const NAMED: usize = 4;

/// Tells a match from others.
pub(super) type Sum = u128;

/// Of a match: the order in which it names headers and query parameters means nothing.
pub(super) fn sum(mut matched: RouteMatch) -> Sum {
    matched.headers.sort_by(|a, b| a.name.cmp(&b.name));
    matched.query_parameters.sort_by(|a, b| a.name.cmp(&b.name));
    sum_of(&matched.encode_to_vec())
}

fn sum_of(bytes: &[u8]) -> Sum {
    // Of two different ones half as long it could be said that they are the same.
    let half = |seed| Sum::from(XxHash64::oneshot(seed, bytes));
    half(0) << 64 | half(1)
}

/// A host of a listener.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) gateway: ObjectName,
    /// Into the gateway's listeners.
    pub(super) listener: usize,
    pub(super) host: Hostname,
}

/// A match somewhere: the first by order has its requests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    /// Of the match and the place.
    sum: Sum,
    order: Order,
    route: ObjectRef,
}

/// A match, or a route of connections, that gets nothing at a place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Lost {
    route: ObjectRef,
    rule: usize,
    matched: usize,
    place: Place,
}

/// What goes before it, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Winner {
    pub(super) object: ObjectRef,
    pub(super) why: &'static str,
}

/// What all routes of requests claim, and what of it is in vain.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    claims: BTreeSet<Claim>,
    lost: BTreeMap<ObjectRef, BTreeMap<Lost, Winner>>,
    /// The objects of which something else is to be said than when it was said last.
    changed: BTreeSet<ObjectRef>,
}

/// The object that a route was made of: an Ingress is several.
fn object_of(route: &ObjectRef) -> ObjectRef {
    match (route.kind, route.name.name.split_once(':')) {
        (Kind::Ingress, Some((name, _))) => {
            ObjectRef { kind: Kind::Ingress, name: ObjectName::new(route.name.namespace.clone(), name) }
        }
        _ => route.clone(),
    }
}

impl Claim {
    fn of(place: &Place, sum: Sum, order: &Order, route: &ObjectRef) -> Claim {
        let Place { gateway, listener, host } = place;
        let sum = sum_of(format!("{sum:x} {gateway} {listener} {host:?}").as_bytes());
        Claim { sum, order: order.clone(), route: route.clone() }
    }

    /// Why this one goes before another.
    fn goes_before(&self, other: &Claim) -> Winner {
        let why = match (self.order.rank == other.order.rank, self.order.created < other.order.created) {
            (true, true) => "is older",
            (true, false) => "is the first by name",
            (false, _) => "goes before it",
        };
        Winner { object: object_of(&self.route), why }
    }
}

impl Conflicts {
    /// A route has a place.
    pub(super) fn put(&mut self, place: &Place, route: &ObjectRef, compiled: &route::Compiled) {
        for entry in &compiled.entries {
            let Some(sum) = entry.sum else { continue };
            let claim = Claim::of(place, sum, &entry.order, route);
            // It may hang there twice.
            if self.claims.insert(claim.clone()) {
                let (before, after) = self.beside(&claim);
                self.follow(place, &claim, before.as_ref());
                after.iter().for_each(|after| self.follow(place, after, Some(&claim)));
            }
        }
    }

    /// It does not have it any more, or is another than before.
    pub(super) fn take(&mut self, place: &Place, route: &ObjectRef, compiled: &route::Compiled) {
        for entry in &compiled.entries {
            let Some(sum) = entry.sum else { continue };
            let claim = Claim::of(place, sum, &entry.order, route);
            if self.claims.remove(&claim) {
                let (before, after) = self.beside(&claim);
                self.follow(place, &claim, None);
                after.iter().for_each(|after| self.follow(place, after, before.as_ref()));
            }
        }
    }

    /// A route of connections gets none at a place.
    pub(super) fn lose(&mut self, place: Place, route: &ObjectRef, winner: Winner) {
        let lost = Lost { route: route.clone(), rule: 0, matched: 0, place };
        self.lost.entry(route.clone()).or_default().insert(lost, winner);
        self.changed.insert(route.clone());
    }

    /// The claims next to one.
    fn beside(&self, claim: &Claim) -> (Option<Claim>, Option<Claim>) {
        let is_same = |other: &&Claim| other.sum == claim.sum;
        let before = self.claims.range(..claim).next_back().filter(is_same);
        let after = (Bound::Excluded(claim), Bound::Unbounded);
        (before.cloned(), self.claims.range(after).next().filter(is_same).cloned())
    }

    /// Takes up what goes before a claim.
    fn follow(&mut self, place: &Place, claim: &Claim, before: Option<&Claim>) {
        let object = object_of(&claim.route);
        let Order { rule, matched, .. } = claim.order;
        let lost = Lost { route: claim.route.clone(), rule, matched, place: place.clone() };
        match before {
            Some(before) => {
                self.lost.entry(object.clone()).or_default().insert(lost, before.goes_before(claim));
            }
            None => {
                let Some(all) = self.lost.get_mut(&object) else { return };
                all.remove(&lost);
                if all.is_empty() {
                    self.lost.remove(&object);
                }
            }
        }
        self.changed.insert(object);
    }

    /// Says of these, and of all others of which something else is to be said, what gets nothing of them.
    pub(super) fn say(
        &mut self,
        also: impl IntoIterator<Item = ObjectRef>,
        routes: &Routes,
        gateways: &Gateways,
        statuses: &mut Statuses,
        standings: &mut Standings,
    ) {
        let mut objects = std::mem::take(&mut self.changed);
        objects.extend(also);
        for object in objects {
            let hints = self.hints(&object, routes, gateways);
            statuses.retract(&object, NEVER_TAKEN);
            for hint in &hints {
                statuses.refuse(&object, ConditionType::Effective, hint.clone());
            }
            say_to_parents(&object, &hints, standings);
        }
    }

    fn hints(&self, object: &ObjectRef, routes: &Routes, gateways: &Gateways) -> Vec<FieldError> {
        let mut by_field: BTreeMap<String, (&Lost, &Winner, usize)> = BTreeMap::new();
        for (lost, winner) in self.lost.get(object).into_iter().flatten() {
            let first = by_field.entry(lost.field(routes)).or_insert((lost, winner, 0));
            first.2 += 1;
        }
        let hints = by_field.into_iter().map(|(field, (lost, winner, places))| {
            let is_of_requests = !matches!(object.kind, Kind::TcpRoute | Kind::TlsRoute);
            let what = if is_of_requests { "requests" } else { "connections" };
            let host = match &lost.place.host {
                Hostname::Any => String::new(),
                host => format!(" for {}", host.domain()),
            };
            let why = match (winner.object == *object, is_of_requests) {
                (true, _) => "an earlier one of the same object is the same".to_owned(),
                (false, true) => format!("{} has the same match and {}", winner.object, winner.why),
                (false, false) => format!("they are those of {}, which {}", winner.object, winner.why),
            };
            let more = match places {
                1 => String::new(),
                2 => "; nor in one more place".to_owned(),
                places => format!("; nor in {} more places", places - 1),
            };
            let on = lost.place.words(gateways);
            FieldError::new(field, NEVER_TAKEN, format!("no {what}{host} on {on} come here: {why}{more}"))
        });
        hints.collect()
    }
}

impl Lost {
    /// Where it is written.
    fn field(&self, routes: &Routes) -> String {
        let Lost { route, rule, matched, .. } = self;
        let is_it = |entry: &&route::Entry| (entry.order.rule, entry.order.matched) == (*rule, *matched);
        match route.kind {
            Kind::TcpRoute | Kind::TlsRoute => format!("spec.rules[{rule}]"),
            Kind::Ingress => {
                let entries = routes.requests.get(route).map(|compiled| &compiled.entries);
                let entry = entries.into_iter().flatten().find(is_it);
                entry.map_or(String::new(), |entry| entry.field.to_string())
            }
            _ => format!("spec.rules[{rule}].matches[{matched}]"),
        }
    }
}

impl Place {
    fn words(&self, gateways: &Gateways) -> String {
        let served = gateways.get(&self.gateway).and_then(|parsed| parsed.listeners.get(self.listener));
        served.map_or(String::new(), |served| format!("listener {} of {}", served.name, served.parent))
    }
}

/// Of a route that is accepted, but for some matches or in part.
fn say_to_parents(route: &ObjectRef, hints: &[FieldError], standings: &mut Standings) {
    let mut words: Vec<String> = hints.iter().map(FieldError::words).take(NAMED).collect();
    words.extend((hints.len() > NAMED).then(|| format!("and {} more", hints.len() - NAMED)));
    let message = words.join("; ");
    let is_accepted = |said: &Said| said.kind == "Accepted" && said.status;
    let Some(parents) = standings.routes.get(route) else { return };
    let mut all = parents.iter().flat_map(|parent| &parent.conditions);
    if !all.any(|said| is_accepted(said) && said.message != message) {
        return;
    }
    let mut parents = Vec::clone(parents);
    let all = parents.iter_mut().flat_map(|parent| &mut parent.conditions);
    all.filter(|said| is_accepted(said)).for_each(|said| said.message.clone_from(&message));
    standings.routes.insert(route.clone(), Arc::new(parents));
}

#[cfg(test)]
mod tests;
