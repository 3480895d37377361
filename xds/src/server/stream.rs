//! The bookkeeping of one stream, without I/O: requests and snapshots go in, responses come out. One response
//! per type is under way at most; what changes meanwhile is coalesced, so a slow reader costs no memory and
//! gets the newest state next.
//!
//! Order: clusters and endpoints, then (when the client has acknowledged or refused all of those that are new to it)
//! listeners and routes; removals last, when everything else is answered. A peer that does not answer delays the order by
//! [`super::Options::order_timeout`] at most. What a refused listener or route may still lead to in its earlier version is
//! not removed while the refusal stands.

mod resources;
mod type_state;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

pub(super) use self::resources::Left;
pub use self::resources::Resources;
use self::type_state::TypeState;
pub(super) use self::type_state::shortened;
use super::away::End;
use super::status::{Acknowledged, Client, NodeStatus, Refusal};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::config::core::v3::node::UserAgentVersionType;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::resource::ResourceType;
use crate::snapshot::Snapshot;
use crate::variant::Variant;

/// What came back for a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was acknowledged or refused (a subscription, or a stale nonce).
    None,
    /// The response under way was acknowledged.
    Ack,
    /// It was refused.
    Nack,
}

/// A response, not yet in either wire form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The type.
    pub ty: ResourceType,
    /// Names this response in the answer to it.
    pub nonce: String,
    /// Version of all that the client has once it has accepted this.
    pub version: String,
    /// New and changed resources; in state of the world for CDS and LDS: all.
    pub resources: Resources,
    /// Names that are gone or never were (delta only).
    pub removed: Vec<Arc<str>>,
}

/// A client that asked for too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// Of names.
    #[error("a stream may subscribe to at most {max} names of one type")]
    Names {
        /// The limit.
        max: usize,
    },
    /// Of one name.
    #[error("a resource name may have at most {MAX_NAME_BYTES} bytes")]
    Name,
    /// Of all names.
    #[error("the names of one type that a stream subscribes to may have at most {max} bytes together")]
    NameBytes {
        /// The limit.
        max: usize,
    },
}

/// Longer names are refused.
pub const MAX_NAME_BYTES: usize = 1024;
/// Room for each of [`super::Options::max_names`], on average.
const BYTES_PER_NAME: usize = 96;
/// A client that answers, and is never through as there is always something new, delays the order by so many times
/// [`super::Options::order_timeout`].
const LONGEST_HOLD: u32 = 12;

/// One stream.
#[derive(Debug)]
pub struct Stream {
    variant: Variant,
    only: Option<ResourceType>,
    max_names: usize,
    max_response_bytes: usize,
    order_timeout: Duration,
    connected_at: SystemTime,
    identity: Option<Identity>,
    types: [TypeState; ResourceType::ALL.len()],
    next_nonce: u64,
    held: Option<Held>,
    /// The client has answered something that others wait for.
    came_on: bool,
}

/// Something is held back for the sake of the order.
#[derive(Debug, Clone, Copy)]
struct Held {
    since: Instant,
    /// When what it waits for last came on: a large world comes in many parts.
    came_on: Instant,
}

#[derive(Debug)]
struct Identity {
    client: Client,
    cluster: String,
    user_agent: String,
}

impl Stream {
    /// A stream that has just been opened. `only`: the type that it is for; `None`: all of them.
    pub fn new(variant: Variant, only: Option<ResourceType>, options: &super::Options) -> Stream {
        Stream {
            variant,
            only,
            max_names: options.max_names,
            max_response_bytes: options.max_response_bytes,
            order_timeout: options.order_timeout,
            connected_at: SystemTime::now(),
            identity: None,
            types: ResourceType::ALL.map(|ty| TypeState::new(ty, variant)),
            next_nonce: 1,
            held: None,
            came_on: false,
        }
    }

    /// Who the client is; said in the stream's first request.
    pub fn identify(&mut self, node: &Node, view: &str) {
        let version = match &node.user_agent_version_type {
            Some(UserAgentVersionType::UserAgentVersion(version)) => format!("/{version}"),
            Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
                .version
                .as_ref()
                .map(|v| format!("/{}.{}.{}", v.major_number, v.minor_number, v.patch))
                .unwrap_or_default(),
            None => String::new(),
        };
        self.identity = Some(Identity {
            client: Client { view: view.to_owned(), node: node.id.clone() },
            cluster: node.cluster.clone(),
            user_agent: format!("{}{version}", node.user_agent_name),
        });
    }

    pub(super) fn only(&self) -> Option<ResourceType> {
        self.only
    }

    /// What its client is expected back for, once it has said who it is.
    pub(super) fn end(&self) -> Option<End> {
        self.client().map(|client| (client.clone(), self.only))
    }

    pub(super) fn node_id(&self) -> &str {
        self.client().map_or("", |client| &client.node)
    }

    /// Takes a state-of-the-world request.
    ///
    /// # Errors
    /// When it subscribes to too many names.
    pub fn on_sotw(&mut self, ty: ResourceType, request: &DiscoveryRequest) -> Result<Outcome, TooMuch> {
        self.bounded(&request.resource_names, None)?;
        let nack = request.error_detail.as_ref().map(|e| e.message.as_str());
        // A stale nonce acknowledges nothing. The names are those that the client wanted when it sent the
        // request all the same, and requests come in order.
        let outcome = self.answered(ty, &request.response_nonce, nack);
        self.types[ty.index()].subscribe_exactly(&request.resource_names);
        Ok(outcome)
    }

    /// Takes a delta request.
    ///
    /// # Errors
    /// When it subscribes to too many names.
    pub fn on_delta(
        &mut self,
        ty: ResourceType,
        request: &DeltaDiscoveryRequest,
    ) -> Result<Outcome, TooMuch> {
        if request.initial_resource_versions.len() > self.max_names {
            return Err(TooMuch::Names { max: self.max_names });
        }
        self.bounded_initial(&request.initial_resource_versions)?;
        self.bounded(&request.resource_names_subscribe, Some(&self.types[ty.index()]))?;
        let nack = request.error_detail.as_ref().map(|e| e.message.as_str());
        let outcome = self.answered(ty, &request.response_nonce, nack);
        let state = &mut self.types[ty.index()];
        state.start_delta(&request.resource_names_subscribe, &request.initial_resource_versions);
        state.subscribe(&request.resource_names_subscribe);
        state.unsubscribe(&request.resource_names_unsubscribe);
        Ok(outcome)
    }

    /// Takes the answer to what is under way of a type, if it is that.
    fn answered(&mut self, ty: ResourceType, nonce: &str, nack: Option<&str>) -> Outcome {
        let state = &mut self.types[ty.index()];
        let brought_new = state.brings_new();
        let outcome = state.answered(nonce, nack);
        self.came_on |= brought_new && outcome != Outcome::None;
        outcome
    }

    /// The next response that may be sent now, if there is one.
    pub fn next(&mut self, snapshot: &Snapshot, now: Instant) -> Option<Response> {
        for ty in ResourceType::ALL {
            self.types[ty.index()].catch_up(snapshot.resources(ty), snapshot.is_by_name_only());
        }
        if std::mem::take(&mut self.came_on)
            && let Some(held) = &mut self.held
        {
            held.came_on = now;
        }
        let overdue = self.deadline().is_some_and(|deadline| now >= deadline);
        let change = self.next_change(overdue);
        let waits_for_nothing = change.as_ref().is_some_and(|response| !refers(response.ty));
        let response = change.or_else(|| self.next_removal(overdue));
        let holding = ResourceType::ALL.into_iter().any(|ty| {
            let state = &self.types[ty.index()];
            let has_work =
                if self.is_withheld(ty) { state.has_more_than_removals() } else { state.has_work() };
            !state.is_in_flight() && has_work
        });
        match (holding, &response) {
            (false, _) => self.held = None,
            (true, None) => {
                self.held.get_or_insert(Held { since: now, came_on: now });
            }
            // The order is kept again for what comes next.
            (true, Some(_)) if overdue && !waits_for_nothing => self.held = None,
            (true, Some(_)) => {}
        }
        response
    }

    /// When [`Stream::next`] should be asked again although nothing happened.
    pub fn deadline(&self) -> Option<Instant> {
        let longest = self.order_timeout.saturating_mul(LONGEST_HOLD);
        self.held.map(|held| (held.came_on + self.order_timeout).min(held.since + longest))
    }

    fn next_change(&mut self, overdue: bool) -> Option<Response> {
        for ty in ResourceType::ALL {
            // A change of what the client has holds up nobody: endpoints may change faster than a client answers.
            if refers(ty) && !overdue && self.types[ty.index()].has_work() && self.holds_up_referrers() {
                return None;
            }
            if let Some(part) = self.types[ty.index()].take_changes(self.max_response_bytes) {
                if ty == ResourceType::Cluster {
                    self.warm(&part);
                }
                return Some(self.respond(ty, part));
            }
        }
        None
    }

    /// Whether the client has yet to answer something new that listeners and routes may name.
    fn holds_up_referrers(&self) -> bool {
        let mut referred = ResourceType::ALL.into_iter().filter(|ty| !refers(*ty));
        referred.any(|ty| self.types[ty.index()].holds_up())
    }

    /// A client that gets a changed cluster sets up a new one in its place, and waits for endpoints of that
    /// name before using it, even if they are what it had. One that has come back says first which clusters it has, and
    /// only then which endpoints.
    fn warm(&mut self, clusters: &type_state::Part) {
        let (earlier, later) = self.types.split_at_mut(ResourceType::Endpoint.index());
        let has =
            |name: &Arc<str>| earlier[ResourceType::Cluster.index()].acknowledged_version(name).is_some();
        let Some(endpoints) = later.first_mut() else { return };
        endpoints.drop_anew(has);
        for cluster in clusters.changed.iter().filter(|cluster| has(&cluster.name)) {
            endpoints.send_again(&cluster.name);
        }
    }

    /// Referrers go before what they refer to.
    fn next_removal(&mut self, overdue: bool) -> Option<Response> {
        const REMOVAL_ORDER: [ResourceType; 5] = [
            ResourceType::Listener,
            ResourceType::Route,
            ResourceType::Endpoint,
            ResourceType::Cluster,
            ResourceType::Secret,
        ];
        for ty in REMOVAL_ORDER {
            if !overdue && self.any_in_flight(&ResourceType::ALL) {
                return None;
            }
            if self.is_withheld(ty) {
                continue;
            }
            if let Some(part) = self.types[ty.index()].take_removals(self.max_response_bytes) {
                return Some(self.respond(ty, part));
            }
        }
        None
    }

    /// Whether nothing of this type is taken from the client for now: it has refused what may lead there, and goes on with
    /// what it had of that. Which of them that names nobody reads here, so it is all of them, up to a number.
    fn is_withheld(&self, ty: ResourceType) -> bool {
        let referrers: &[ResourceType] = match ty {
            ResourceType::Listener => &[],
            ResourceType::Route => &[ResourceType::Listener],
            ResourceType::Endpoint | ResourceType::Cluster => &[ResourceType::Listener, ResourceType::Route],
            ResourceType::Secret => &[ResourceType::Listener, ResourceType::Route, ResourceType::Cluster],
        };
        referrers.iter().any(|referrer| self.types[referrer.index()].stands_refused())
            && self.types[ty.index()].waiting() <= self.max_names
    }

    fn any_in_flight(&self, types: &[ResourceType]) -> bool {
        types.iter().any(|ty| self.types[ty.index()].is_in_flight())
    }

    fn respond(&mut self, ty: ResourceType, part: type_state::Part) -> Response {
        let nonce = self.next_nonce.to_string();
        self.next_nonce += 1;
        let state = &mut self.types[ty.index()];
        let version = state.sent(&nonce, &part);
        let resources = match state.world() {
            Some(world) => Resources::All(world.clone()),
            None => Resources::Listed(part.changed),
        };
        Response { ty, nonce, version, resources, removed: part.removed }
    }

    /// `to`: what `names` come on top of.
    fn bounded(&self, names: &[String], to: Option<&TypeState>) -> Result<(), TooMuch> {
        if names.iter().any(|name| name.len() > MAX_NAME_BYTES) {
            return Err(TooMuch::Name);
        }
        let is_new = |name: &&String| to.is_none_or(|state| !state.names().contains(name.as_str()));
        let (count, bytes) = names
            .iter()
            .filter(is_new)
            .fold(to.map_or((0, 0), TypeState::size), |(n, bytes), name| (n + 1, bytes + name.len()));
        if count > self.max_names {
            return Err(TooMuch::Names { max: self.max_names });
        }
        let max = self.most_name_bytes();
        if bytes > max { Err(TooMuch::NameBytes { max }) } else { Ok(()) }
    }

    /// What a client says that it has is kept until it is told what changed.
    fn bounded_initial(&self, versions: &HashMap<String, String>) -> Result<(), TooMuch> {
        if versions.iter().any(|(name, version)| name.len().max(version.len()) > MAX_NAME_BYTES) {
            return Err(TooMuch::Name);
        }
        let max = self.most_name_bytes();
        let bytes = versions.iter().map(|(name, version)| name.len() + version.len()).sum::<usize>();
        if bytes > max { Err(TooMuch::NameBytes { max }) } else { Ok(()) }
    }

    fn most_name_bytes(&self) -> usize {
        self.max_names.saturating_mul(BYTES_PER_NAME).max(MAX_NAME_BYTES)
    }

    pub(super) fn status(&self) -> Option<NodeStatus> {
        let identity = self.identity.as_ref()?;
        Some(NodeStatus {
            id: identity.client.node.clone(),
            cluster: identity.cluster.clone(),
            user_agent: identity.user_agent.clone(),
            view: identity.client.view.clone(),
            delta: self.variant == Variant::Delta,
            connected_at: self.connected_at,
            types: self.types.iter().filter_map(TypeState::status).collect(),
        })
    }

    /// Who the client is, once it has said so.
    pub(super) fn client(&self) -> Option<&Client> {
        self.identity.as_ref().map(|identity| &identity.client)
    }

    /// The client has gone: keeps who it is and what it followed. Gives the bytes of that, roughly.
    pub(super) fn put_aside(&mut self) -> usize {
        self.types.iter_mut().map(TypeState::put_aside).sum()
    }

    pub(super) fn follows(&self, ty: ResourceType, name: &str) -> bool {
        self.types[ty.index()].is_subscribed(name)
    }

    pub(super) fn follows_any(&self, ty: ResourceType) -> bool {
        self.types[ty.index()].is_subscribed_to_any()
    }

    pub(super) fn has_acknowledged(&self, ty: ResourceType) -> bool {
        self.types[ty.index()].has_acknowledged()
    }

    pub(super) fn tell_acknowledged(
        &self,
        view: &str,
        ty: ResourceType,
        name: &str,
        version: &str,
        answer: &mut Acknowledged,
    ) {
        if let Some((client, has)) = self.client().zip(self.has_version(view, ty, name, version)) {
            if has { &mut answer.yes } else { &mut answer.no }.push(client.node.clone());
        }
    }

    /// Whether the client has acknowledged this version; `None` if it is of another view or does not follow the
    /// resource.
    pub(super) fn has_version(
        &self,
        view: &str,
        ty: ResourceType,
        name: &str,
        version: &str,
    ) -> Option<bool> {
        self.client().filter(|client| client.view == view)?;
        let state = &self.types[ty.index()];
        let has = || state.acknowledged_version(name).is_some_and(|v| &**v == version);
        state.is_subscribed(name).then(has)
    }

    /// The client's last words against resources, while they stand.
    pub(super) fn refusals(&self, client: &Client) -> impl Iterator<Item = Refusal> {
        self.types.iter().filter_map(|state| {
            let (ty, nack) = state.refusal()?;
            Some(Refusal { client: client.clone(), ty, nack: nack.clone() })
        })
    }
}

/// Whether resources of this type lead traffic to those of the others.
fn refers(ty: ResourceType) -> bool {
    matches!(ty, ResourceType::Listener | ResourceType::Route)
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
