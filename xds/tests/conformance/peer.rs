//! A client that speaks the protocol message by message, in one variant, over ADS or over a stream for one type.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pontoon_xds::pb::envoy::config::core::v3::Node;
use pontoon_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use pontoon_xds::pb::google::rpc::Status as RpcStatus;
use pontoon_xds::{ResourceType, Variant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::world::{Failed, Held, Target, read};

const QUIET: Duration = Duration::from_millis(100);

/// The one variant and transport of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct On {
    pub(crate) variant: Variant,
    /// One stream for all types; else a stream a type.
    pub(crate) ads: bool,
}

/// What a response says, in either variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) ty: String,
    pub(crate) nonce: String,
    /// Of the response in state of the world.
    pub(crate) version: String,
    /// Name and revision of each resource.
    pub(crate) resources: BTreeMap<String, u32>,
    /// Each resource's own version, in delta.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) removed: BTreeSet<String>,
}

enum Wire {
    Sotw(mpsc::Sender<DiscoveryRequest>, Option<Streaming<DiscoveryResponse>>),
    Delta(mpsc::Sender<DeltaDiscoveryRequest>, Option<Streaming<DeltaDiscoveryResponse>>),
}

/// What is said of one type.
#[derive(Debug, Default, Clone)]
struct Dialogue {
    names: BTreeSet<String>,
    version: String,
    nonce: String,
    held: Held,
}

/// One stream.
pub(crate) struct Peer {
    on: On,
    wire: Wire,
    node: Option<Node>,
    types: BTreeMap<ResourceType, Dialogue>,
    call: tokio::task::JoinHandle<Result<Wire, tonic::Status>>,
    patience: Duration,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.call.abort();
    }
}

impl Peer {
    /// Opens a stream, for `ty` where it is for one type.
    pub(crate) async fn open(target: &Target, on: On, ty: ResourceType) -> Result<Peer, Failed> {
        let channel = Channel::from_shared(format!("http://{}", target.address))
            .map_err(|error| error.to_string())?
            .connect()
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        let path = PathAndQuery::from_static(path(on, ty));
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|error| error.to_string())?;
        // Some servers begin to answer the call with their first response only.
        let (wire, call) = match on.variant {
            Variant::Sotw => {
                let (sender, receiver) = mpsc::channel(16);
                let kept = sender.clone();
                let call = tokio::spawn(async move {
                    let request = tonic::Request::new(ReceiverStream::new(receiver));
                    let answer = client.streaming(request, path, ProstCodec::default()).await?;
                    Ok(Wire::Sotw(kept, Some(answer.into_inner())))
                });
                (Wire::Sotw(sender, None), call)
            }
            Variant::Delta => {
                let (sender, receiver) = mpsc::channel(16);
                let kept = sender.clone();
                let call = tokio::spawn(async move {
                    let request = tonic::Request::new(ReceiverStream::new(receiver));
                    let answer = client.streaming(request, path, ProstCodec::default()).await?;
                    Ok(Wire::Delta(kept, Some(answer.into_inner())))
                });
                (Wire::Delta(sender, None), call)
            }
        };
        let node = Some(Node { id: target.node.clone(), cluster: target.node.clone(), ..Node::default() });
        Ok(Peer { on, wire, node, types: BTreeMap::new(), call, patience: target.patience })
    }

    /// What it has of a type.
    pub(crate) fn held(&self, ty: ResourceType) -> Held {
        self.types.get(&ty).map(|dialogue| dialogue.held.clone()).unwrap_or_default()
    }

    /// The first request of a type, or a change of the names: all that are wanted from now on.
    pub(crate) async fn want(&mut self, ty: ResourceType, names: &[&str]) -> Result<(), Failed> {
        let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let dialogue = self.types.entry(ty).or_default();
        let before = std::mem::replace(&mut dialogue.names, wanted.clone());
        let dialogue = dialogue.clone();
        let node = self.node.take();
        let type_url = ty.type_url().to_owned();
        match self.on.variant {
            Variant::Sotw => {
                let request = DiscoveryRequest {
                    node,
                    type_url,
                    resource_names: wanted.into_iter().collect(),
                    version_info: dialogue.version,
                    response_nonce: dialogue.nonce,
                    ..DiscoveryRequest::default()
                };
                self.send_sotw(request).await
            }
            Variant::Delta => {
                let request = DeltaDiscoveryRequest {
                    node,
                    type_url,
                    resource_names_subscribe: wanted.difference(&before).cloned().collect(),
                    resource_names_unsubscribe: before.difference(&wanted).cloned().collect(),
                    ..DeltaDiscoveryRequest::default()
                };
                self.send_delta(request).await
            }
        }
    }

    /// The first request of a type on a new stream, by a client that has something: `version` is the last response's
    /// in state of the world, `versions` the resources' in delta.
    pub(crate) async fn resume(&mut self, ty: ResourceType, names: &[&str], got: &Got) -> Result<(), Failed> {
        let node = self.node.take();
        let type_url = ty.type_url().to_owned();
        let listed: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let dialogue = self.types.entry(ty).or_default();
        dialogue.names = listed.iter().cloned().collect();
        dialogue.version.clone_from(&got.version);
        dialogue.held.clone_from(&got.resources);
        match self.on.variant {
            Variant::Sotw => {
                let version_info = got.version.clone();
                let request = DiscoveryRequest {
                    node,
                    type_url,
                    resource_names: listed,
                    version_info,
                    ..Default::default()
                };
                self.send_sotw(request).await
            }
            Variant::Delta => {
                let request = DeltaDiscoveryRequest {
                    node,
                    type_url,
                    resource_names_subscribe: listed,
                    initial_resource_versions: got.versions.clone().into_iter().collect(),
                    ..DeltaDiscoveryRequest::default()
                };
                self.send_delta(request).await
            }
        }
    }

    /// Delta alone: a request with just these.
    pub(crate) async fn change(
        &mut self,
        ty: ResourceType,
        subscribe: &[&str],
        unsubscribe: &[&str],
    ) -> Result<(), Failed> {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: ty.type_url().to_owned(),
            resource_names_subscribe: all(subscribe),
            resource_names_unsubscribe: all(unsubscribe),
            ..DeltaDiscoveryRequest::default()
        };
        self.send_delta(request).await
    }

    /// A first request without the type.
    pub(crate) async fn want_untyped(&mut self) -> Result<(), Failed> {
        let node = self.node.take();
        match self.on.variant {
            Variant::Sotw => self.send_sotw(DiscoveryRequest { node, ..Default::default() }).await,
            Variant::Delta => self.send_delta(DeltaDiscoveryRequest { node, ..Default::default() }).await,
        }
    }

    /// Accepts a response.
    pub(crate) async fn ack(&mut self, got: &Got) -> Result<(), Failed> {
        let ty = ResourceType::from_type_url(&got.ty).ok_or("an unknown type")?;
        self.types.entry(ty).or_default().version.clone_from(&got.version);
        self.answer(ty, &got.nonce, None).await
    }

    /// Refuses a response. What it brought is not held; names, version and what was held before stay.
    pub(crate) async fn nack(&mut self, got: &Got) -> Result<(), Failed> {
        let ty = ResourceType::from_type_url(&got.ty).ok_or("an unknown type")?;
        self.answer(ty, &got.nonce, Some("refused by the test")).await
    }

    /// Answers by a nonce that may be another than the last response's.
    pub(crate) async fn answer(
        &mut self,
        ty: ResourceType,
        nonce: &str,
        refusal: Option<&str>,
    ) -> Result<(), Failed> {
        let dialogue = self.types.entry(ty).or_default().clone();
        let error_detail =
            refusal.map(|message| RpcStatus { code: 3, message: message.to_owned(), details: vec![] });
        let (type_url, response_nonce) = (ty.type_url().to_owned(), nonce.to_owned());
        match self.on.variant {
            Variant::Sotw => {
                let request = DiscoveryRequest {
                    type_url,
                    response_nonce,
                    error_detail,
                    resource_names: dialogue.names.into_iter().collect(),
                    version_info: dialogue.version,
                    ..DiscoveryRequest::default()
                };
                self.send_sotw(request).await
            }
            Variant::Delta => {
                let request =
                    DeltaDiscoveryRequest { type_url, response_nonce, error_detail, ..Default::default() };
                self.send_delta(request).await
            }
        }
    }

    async fn send_sotw(&self, request: DiscoveryRequest) -> Result<(), Failed> {
        let Wire::Sotw(sender, _) = &self.wire else { return Err("not in state of the world".into()) };
        sender.send(request).await.map_err(|_| "the stream has ended".into())
    }

    async fn send_delta(&self, request: DeltaDiscoveryRequest) -> Result<(), Failed> {
        let Wire::Delta(sender, _) = &self.wire else { return Err("not in delta".into()) };
        sender.send(request).await.map_err(|_| "the stream has ended".into())
    }

    /// The next response, not yet answered. It counts as held.
    pub(crate) async fn next(&mut self) -> Result<Got, Failed> {
        let patience = self.patience;
        let got = tokio::time::timeout(patience, self.receive()).await;
        let got = got.map_err(|_| format!("no response within {patience:?}"))??;
        let ty = ResourceType::from_type_url(&got.ty).ok_or_else(|| format!("a response of {}", got.ty))?;
        let dialogue = self.types.entry(ty).or_default();
        dialogue.nonce.clone_from(&got.nonce);
        if self.on.variant == Variant::Sotw && ty.is_wildcard_capable() {
            dialogue.held.clear();
        }
        dialogue.held.extend(got.resources.clone());
        dialogue.held.retain(|name, _| !got.removed.contains(name));
        Ok(got)
    }

    /// No response comes, for as long as one that is sent at once would take many times over.
    pub(crate) async fn is_told_nothing(&mut self) -> Result<(), Failed> {
        match tokio::time::timeout(QUIET, self.receive()).await {
            Err(_) => Ok(()),
            Ok(got) => Err(format!("{:?}: a response came that nothing calls for", got?)),
        }
    }

    /// The next response, accepted.
    pub(crate) async fn next_accepted(&mut self) -> Result<Got, Failed> {
        let got = self.next().await?;
        self.ack(&got).await?;
        Ok(got)
    }

    /// Accepts responses until this is what it has.
    pub(crate) async fn until_held(
        &mut self,
        ty: ResourceType,
        wanted: &[(&str, u32)],
    ) -> Result<(), Failed> {
        let wanted: Held = wanted.iter().map(|(name, revision)| ((*name).to_owned(), *revision)).collect();
        loop {
            if self.held(ty) == wanted {
                return Ok(());
            }
            let has = self.held(ty);
            self.next_accepted().await.map_err(|error| format!("{error}, having {has:?} for {wanted:?}"))?;
        }
    }

    async fn receive(&mut self) -> Result<Got, Failed> {
        if matches!(&self.wire, Wire::Sotw(_, None) | Wire::Delta(_, None)) {
            let answered = (&mut self.call).await.map_err(|error| error.to_string())?;
            self.wire = answered.map_err(|status| ended(&status))?;
        }
        match &mut self.wire {
            Wire::Sotw(_, Some(responses)) => {
                let response = responses.message().await.map_err(|status| ended(&status))?;
                let response = response.ok_or("the server ended the stream")?;
                Ok(Got {
                    resources: response.resources.iter().map(read).collect::<Result<_, _>>()?,
                    ty: response.type_url,
                    nonce: response.nonce,
                    version: response.version_info,
                    versions: BTreeMap::new(),
                    removed: BTreeSet::new(),
                })
            }
            Wire::Delta(_, Some(responses)) => {
                let response = responses.message().await.map_err(|status| ended(&status))?;
                let response = response.ok_or("the server ended the stream")?;
                let mut resources = BTreeMap::new();
                for resource in &response.resources {
                    let (name, revision) = read(resource.resource.as_ref().ok_or("an empty resource")?)?;
                    if name != resource.name {
                        return Err(format!("{name} was sent as {}", resource.name));
                    }
                    resources.insert(name, revision);
                }
                let versions =
                    response.resources.into_iter().map(|resource| (resource.name, resource.version));
                Ok(Got {
                    versions: versions.collect(),
                    resources,
                    ty: response.type_url,
                    nonce: response.nonce,
                    version: response.system_version_info,
                    removed: response.removed_resources.into_iter().collect(),
                })
            }
            Wire::Sotw(_, None) | Wire::Delta(_, None) => Err("the call is not answered".into()),
        }
    }
}

fn ended(status: &tonic::Status) -> Failed {
    format!("{:?}: {}", status.code(), status.message())
}

fn path(on: On, ty: ResourceType) -> &'static str {
    let sotw = on.variant == Variant::Sotw;
    if on.ads {
        return match sotw {
            true => "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            false => "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        };
    }
    match (ty, sotw) {
        (ResourceType::Secret, true) => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        (ResourceType::Secret, false) => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        (ResourceType::Cluster, true) => "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
        (ResourceType::Cluster, false) => "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
        (ResourceType::Endpoint, true) => {
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints"
        }
        (ResourceType::Endpoint, false) => {
            "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints"
        }
        (ResourceType::Listener, true) => {
            "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners"
        }
        (ResourceType::Listener, false) => {
            "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners"
        }
        (ResourceType::Route, true) => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
        (ResourceType::Route, false) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
    }
}
