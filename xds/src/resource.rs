//! One resource, encoded once. Its version is the hash of its bytes: equal content has an equal version on
//! every replica and after every restart.

use std::sync::Arc;

use bytes::Bytes;
use twox_hash::XxHash64;

use crate::messages::Coded;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use crate::wire;

/// The resource types that are served, in the order in which changes are pushed: what is referred to goes
/// before what refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// `Secret` (SDS): certificates and whom to trust.
    Secret,
    /// `Cluster` (CDS).
    Cluster,
    /// `ClusterLoadAssignment` (EDS).
    Endpoint,
    /// `Listener` (LDS).
    Listener,
    /// `RouteConfiguration` (RDS).
    Route,
}

impl ResourceType {
    /// All of them, in push order.
    pub const ALL: [ResourceType; 5] = [
        ResourceType::Secret,
        ResourceType::Cluster,
        ResourceType::Endpoint,
        ResourceType::Listener,
        ResourceType::Route,
    ];

    /// The type URL on the wire.
    pub fn type_url(self) -> &'static str {
        match self {
            ResourceType::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            ResourceType::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            ResourceType::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            ResourceType::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            ResourceType::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The type with this URL, if it is one of ours.
    pub fn from_type_url(url: &str) -> Option<ResourceType> {
        ResourceType::ALL.into_iter().find(|t| t.type_url() == url)
    }

    /// Whether an empty first subscription means all resources (the protocol's rule for CDS and LDS), and
    /// whether a state-of-the-world response carries all of them, so that absence is removal.
    pub fn is_wildcard_capable(self) -> bool {
        matches!(self, ResourceType::Cluster | ResourceType::Listener)
    }

    /// As in logs and status output.
    pub fn short_name(self) -> &'static str {
        match self {
            ResourceType::Secret => "SDS",
            ResourceType::Cluster => "CDS",
            ResourceType::Endpoint => "EDS",
            ResourceType::Listener => "LDS",
            ResourceType::Route => "RDS",
        }
    }

    /// Brings the entries of those maps in which we write several into one order: prost writes them in another each
    /// time. For a message of this type, or some of its fields, just encoded; what cannot be read is left as it is.
    pub fn sort_maps(self, body: &mut [u8]) {
        if self == ResourceType::Route {
            // virtual_hosts, routes, typed_per_filter_config.
            let _ = wire::sort(body, &[2, 3, 13]);
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// A message that is served as a resource.
pub trait ResourceMessage: Coded {
    /// Its type.
    const TYPE: ResourceType;

    /// The name that it is subscribed by.
    fn resource_name(&self) -> &str;
}

macro_rules! resource_message {
    ($($message:ty => $kind:ident, $name:ident;)+) => {$(
        impl ResourceMessage for $message {
            const TYPE: ResourceType = ResourceType::$kind;

            fn resource_name(&self) -> &str {
                &self.$name
            }
        }
    )+};
}

resource_message! {
    Secret => Secret, name;
    Cluster => Cluster, name;
    ClusterLoadAssignment => Endpoint, cluster_name;
    Listener => Listener, name;
    RouteConfiguration => Route, name;
}

/// A resource as it travels: cheap to clone, encoded once, shared by all streams that send it.
#[derive(Clone)]
pub struct Resource {
    /// What it is subscribed by.
    pub name: Arc<str>,
    /// For resources made here: the hash of `body`, in hexadecimal. From the wire: as the server gave it.
    pub version: Arc<str>,
    /// The encoded message.
    pub body: Bytes,
}

impl Resource {
    /// Encodes a message and derives its version.
    pub fn encode<M: ResourceMessage>(message: &M) -> Resource {
        let mut body = message.encoded();
        M::TYPE.sort_maps(&mut body);
        Resource::of_body(message.resource_name(), body)
    }

    /// Of a message of this name that is encoded already.
    pub fn of_body(name: &str, body: Vec<u8>) -> Resource {
        let version = format!("{:016x}", XxHash64::oneshot(0, &body));
        Resource { name: name.into(), version: version.into(), body: body.into() }
    }

    /// Decodes the message again.
    ///
    /// # Errors
    /// When the bytes are not of that type.
    pub fn decode<M: ResourceMessage>(&self) -> Result<M, prost::DecodeError> {
        M::decoded(&self.body)
    }

    /// A number that stands for name and version; the exclusive or of many stands for the set of them.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut text = Vec::with_capacity(self.name.len() + self.version.len() + 1);
        text.extend_from_slice(self.name.as_bytes());
        text.push(0);
        text.extend_from_slice(self.version.as_bytes());
        XxHash64::oneshot(0, &text)
    }
}

/// By name and version: the version stands for the content.
impl PartialEq for Resource {
    fn eq(&self, other: &Resource) -> bool {
        self.version == other.version && self.name == other.name
    }
}

impl Eq for Resource {}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{} ({} bytes)", self.name, self.version, self.body.len())
    }
}
