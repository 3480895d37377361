//! Resources with a revision that can be read back, and the server that serves them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use pontoon_xds::ResourceType;
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::core::v3::DataSource;
use pontoon_xds::pb::envoy::config::core::v3::data_source::Specifier;
use pontoon_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use pontoon_xds::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use pontoon_xds::pb::envoy::config::listener::v3::Listener;
use pontoon_xds::pb::envoy::config::route::v3::RouteConfiguration;
use pontoon_xds::pb::envoy::extensions::transport_sockets::tls::v3::{GenericSecret, Secret, secret};
use pontoon_xds::pb::google::protobuf::{Any, UInt32Value};
use pontoon_xds::resource::ResourceMessage;
use prost::Message;

/// What is wrong.
pub(crate) type Failed = String;
/// Name and revision of each resource.
pub(crate) type Held = BTreeMap<String, u32>;
/// Type, name and revision.
pub(crate) type World<'w> = &'w [(ResourceType, &'w str, u32)];

type Publish = dyn Fn(Vec<Any>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// A running server, as one node's test sees it.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) node: String,
    /// For a response.
    pub(crate) patience: Duration,
    pub(crate) publish: Box<Publish>,
}

impl Target {
    /// Makes this all that the node should have.
    pub(crate) async fn publish(&self, world: World<'_>) {
        (self.publish)(world.iter().map(|(ty, name, revision)| resource(*ty, name, *revision)).collect())
            .await;
    }
}

fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn packed<M: ResourceMessage>(message: &M) -> Any {
    Any { type_url: M::TYPE.type_url().to_owned(), value: message.encode_to_vec() }
}

fn resource(ty: ResourceType, name: &str, revision: u32) -> Any {
    let name = name.to_owned();
    match ty {
        ResourceType::Secret => {
            let specifier = Some(Specifier::InlineString(revision.to_string()));
            let source = DataSource { specifier, ..DataSource::default() };
            let generic = GenericSecret { secret: Some(source), ..GenericSecret::default() };
            packed(&Secret { name, r#type: Some(secret::Type::GenericSecret(generic)) })
        }
        ResourceType::Cluster => {
            packed(&Cluster { name, alt_stat_name: revision.to_string(), ..Default::default() })
        }
        ResourceType::Endpoint => {
            let policy = Some(Policy { overprovisioning_factor: number(revision), ..Policy::default() });
            packed(&ClusterLoadAssignment { cluster_name: name, policy, ..Default::default() })
        }
        ResourceType::Listener => {
            packed(&Listener { name, stat_prefix: revision.to_string(), ..Default::default() })
        }
        ResourceType::Route => {
            let max_direct_response_body_size_bytes = number(revision);
            packed(&RouteConfiguration { name, max_direct_response_body_size_bytes, ..Default::default() })
        }
    }
}

/// Name and revision.
pub(crate) fn read(any: &Any) -> Result<(String, u32), Failed> {
    fn decoded<M: Message + Default>(any: &Any) -> Result<M, Failed> {
        M::decode(any.value.as_slice()).map_err(|error| format!("{}: {error}", any.type_url))
    }
    let ty = ResourceType::from_type_url(&any.type_url).ok_or_else(|| format!("a {}", any.type_url))?;
    let value = |number: Option<UInt32Value>| number.map_or(0, |number| number.value);
    let parsed = |text: &str| text.parse::<u32>().map_err(|error| format!("{text:?}: {error}"));
    Ok(match ty {
        ResourceType::Secret => {
            let secret: Secret = decoded(any)?;
            let Some(secret::Type::GenericSecret(GenericSecret { secret: Some(source), .. })) =
                &secret.r#type
            else {
                return Err(format!("secret {} is another", secret.name));
            };
            let Some(Specifier::InlineString(text)) = &source.specifier else {
                return Err(format!("secret {} is another", secret.name));
            };
            (secret.name.clone(), parsed(text)?)
        }
        ResourceType::Cluster => {
            let cluster: Cluster = decoded(any)?;
            (cluster.name, parsed(&cluster.alt_stat_name)?)
        }
        ResourceType::Endpoint => {
            let endpoints: ClusterLoadAssignment = decoded(any)?;
            (endpoints.cluster_name, value(endpoints.policy.unwrap_or_default().overprovisioning_factor))
        }
        ResourceType::Listener => {
            let listener: Listener = decoded(any)?;
            (listener.name, parsed(&listener.stat_prefix)?)
        }
        ResourceType::Route => {
            let routes: RouteConfiguration = decoded(any)?;
            (routes.name, value(routes.max_direct_response_body_size_bytes))
        }
    })
}
