//! The gRPC side of the server: one task a stream moves messages between the wire and [`Stream`]. There is a service
//! for all types together (ADS), and one for each type.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::service::Routes;
use tonic::{Request, Status, Streaming};

use super::frames::{Framed, Outbound};
use super::stream::{Outcome, Response, Stream, TooMuch, shortened};
use super::{Caller, Open, Peer, Server, lock};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::cluster::v3::cluster_discovery_service_server as cds;
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_server as ads;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::pb::envoy::service::endpoint::v3::endpoint_discovery_service_server as eds;
use crate::pb::envoy::service::listener::v3::listener_discovery_service_server as lds;
use crate::pb::envoy::service::route::v3::route_discovery_service_server as rds;
use crate::pb::envoy::service::secret::v3::secret_discovery_service_server as sds;
use crate::resource::ResourceType;
use crate::snapshot::Snapshot;
use crate::variant::Variant;

/// A client that returns after a break names all that it has, with versions: 100,000 of them fit.
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;
/// Longer ids and clusters are refused: they are kept and shown.
const MAX_ID_BYTES: usize = 1024;
/// Responses between a stream's task and the wire; a slow reader holds this many and no more.
const OUTBOUND: usize = 1;
/// A stream that says nothing for so long takes the place of another.
const FIRST_REQUEST: Duration = Duration::from_secs(15);

/// Serves the streams of one [`Server`].
#[derive(Debug, Clone)]
struct Discovery {
    server: Server,
}

/// All services of a server.
pub(super) fn routes(server: Server) -> Routes {
    const MAX: usize = MAX_REQUEST_BYTES;
    let all = Discovery { server };
    let ads = ads::AggregatedDiscoveryServiceServer::new(all.clone()).max_decoding_message_size(MAX);
    let sds = sds::SecretDiscoveryServiceServer::new(all.clone()).max_decoding_message_size(MAX);
    let cds = cds::ClusterDiscoveryServiceServer::new(all.clone()).max_decoding_message_size(MAX);
    let eds = eds::EndpointDiscoveryServiceServer::new(all.clone()).max_decoding_message_size(MAX);
    let lds = lds::ListenerDiscoveryServiceServer::new(all.clone()).max_decoding_message_size(MAX);
    let rds = rds::RouteDiscoveryServiceServer::new(all).max_decoding_message_size(MAX);
    Routes::new(Framed(ads))
        .add_service(Framed(sds))
        .add_service(Framed(cds))
        .add_service(Framed(eds))
        .add_service(Framed(lds))
        .add_service(Framed(rds))
}

/// What tonic is given to send: nothing, as [`Framed`] does that.
type Nothing<T> = tokio_stream::Empty<Result<T, Status>>;

impl Discovery {
    /// `only`: the type that the stream is for; `None`: all of them.
    fn serve<P: Protocol, T>(
        &self,
        request: Request<Streaming<P::Request>>,
        only: Option<ResourceType>,
    ) -> Result<tonic::Response<Nothing<T>>, Status> {
        let peer = request.extensions().get::<Peer>();
        let in_use = peer.map(Peer::stream);
        let address = peer.map(|peer| peer.address).or_else(|| request.remote_addr());
        let address = address.map(|address| address.ip().to_canonical());
        let inbound = request.into_inner();
        let stream = Stream::new(P::VARIANT, only, &self.server.shared.options);
        let max = self.server.shared.options.max_streams;
        let full = move || Status::resource_exhausted(format!("this server takes at most {max} xDS streams"));
        let Open { id, stream, replaced, .. } = self.server.open(stream, address).ok_or_else(full)?;
        let (sender, receiver) = mpsc::channel(OUTBOUND);
        let server = self.server.clone();
        tokio::spawn(async move {
            let ended = {
                let _in_use = in_use;
                let mut close = CloseStream { server: &server, id, left: false };
                let ended = tokio::select! {
                    ended = run::<P>(&server, &stream, address, inbound, &sender) => ended,
                    () = replaced.notified() => Err(full()),
                };
                close.left = matches!(ended, Ok(End::Left));
                ended
            };
            if let Err(status) = ended {
                tracing::info!(code = ?status.code(), reason = status.message(), "an xDS stream ended");
                // The stream may be gone already; then nobody needs to be told.
                let _gone = sender.send(Err(status)).await;
            }
        });
        let mut answer = tonic::Response::new(tokio_stream::empty());
        answer.extensions_mut().insert(Outbound::new(P::VARIANT, receiver));
        Ok(answer)
    }
}

macro_rules! service {
    (
        $service:path, $only:expr,
        $sotw:ident: $sotw_stream:ident, $delta:ident: $delta_stream:ident $(, $fetch:ident)?
    ) => {
        #[tonic::async_trait]
        impl $service for Discovery {
            type $sotw_stream = Nothing<DiscoveryResponse>;
            type $delta_stream = Nothing<DeltaDiscoveryResponse>;

            async fn $sotw(
                &self,
                request: Request<Streaming<DiscoveryRequest>>,
            ) -> Result<tonic::Response<Self::$sotw_stream>, Status> {
                self.serve::<Sotw, _>(request, $only)
            }

            async fn $delta(
                &self,
                request: Request<Streaming<DeltaDiscoveryRequest>>,
            ) -> Result<tonic::Response<Self::$delta_stream>, Status> {
                self.serve::<Delta, _>(request, $only)
            }

            $(async fn $fetch(
                &self,
                _request: Request<DiscoveryRequest>,
            ) -> Result<tonic::Response<DiscoveryResponse>, Status> {
                Err(Status::unimplemented("resources are served on streams alone"))
            })?
        }
    };
}

service!(
    ads::AggregatedDiscoveryService, None,
    stream_aggregated_resources: StreamAggregatedResourcesStream,
    delta_aggregated_resources: DeltaAggregatedResourcesStream
);
service!(
    sds::SecretDiscoveryService, Some(ResourceType::Secret),
    stream_secrets: StreamSecretsStream, delta_secrets: DeltaSecretsStream, fetch_secrets
);
service!(
    cds::ClusterDiscoveryService, Some(ResourceType::Cluster),
    stream_clusters: StreamClustersStream, delta_clusters: DeltaClustersStream, fetch_clusters
);
service!(
    eds::EndpointDiscoveryService, Some(ResourceType::Endpoint),
    stream_endpoints: StreamEndpointsStream, delta_endpoints: DeltaEndpointsStream, fetch_endpoints
);
service!(
    lds::ListenerDiscoveryService, Some(ResourceType::Listener),
    stream_listeners: StreamListenersStream, delta_listeners: DeltaListenersStream, fetch_listeners
);
service!(
    rds::RouteDiscoveryService, Some(ResourceType::Route),
    stream_routes: StreamRoutesStream, delta_routes: DeltaRoutesStream, fetch_routes
);

/// What differs between the two variants on the wire.
trait Protocol: 'static {
    const VARIANT: Variant;
    type Request: Send + 'static;

    fn node(request: &Self::Request) -> Option<&Node>;
    fn type_url(request: &Self::Request) -> &str;
    fn take(stream: &mut Stream, ty: ResourceType, request: &Self::Request) -> Result<Outcome, TooMuch>;
    fn error(request: &Self::Request) -> Option<&str>;
}

struct Sotw;

impl Protocol for Sotw {
    const VARIANT: Variant = Variant::Sotw;
    type Request = DiscoveryRequest;

    fn node(request: &DiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn type_url(request: &DiscoveryRequest) -> &str {
        &request.type_url
    }

    fn take(stream: &mut Stream, ty: ResourceType, request: &DiscoveryRequest) -> Result<Outcome, TooMuch> {
        stream.on_sotw(ty, request)
    }

    fn error(request: &DiscoveryRequest) -> Option<&str> {
        request.error_detail.as_ref().map(|e| e.message.as_str())
    }
}

struct Delta;

impl Protocol for Delta {
    const VARIANT: Variant = Variant::Delta;
    type Request = DeltaDiscoveryRequest;

    fn node(request: &DeltaDiscoveryRequest) -> Option<&Node> {
        request.node.as_ref()
    }

    fn type_url(request: &DeltaDiscoveryRequest) -> &str {
        &request.type_url
    }

    fn take(
        stream: &mut Stream,
        ty: ResourceType,
        request: &DeltaDiscoveryRequest,
    ) -> Result<Outcome, TooMuch> {
        stream.on_delta(ty, request)
    }

    fn error(request: &DeltaDiscoveryRequest) -> Option<&str> {
        request.error_detail.as_ref().map(|e| e.message.as_str())
    }
}

/// How a stream ended that broke no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client said so.
    Left,
    /// It does not read any more, or we stop.
    Broken,
}

/// Until the client ends the stream, breaks the protocol, or goes.
async fn run<P: Protocol>(
    server: &Server,
    stream: &Arc<Mutex<Stream>>,
    address: Option<IpAddr>,
    mut inbound: Streaming<P::Request>,
    outbound: &mpsc::Sender<Result<Response, Status>>,
) -> Result<End, Status> {
    let first = tokio::time::timeout(FIRST_REQUEST, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no request came on this stream"))??;
    let Some(first) = first else { return Ok(End::Left) };
    let node = P::node(&first).ok_or_else(|| Status::invalid_argument("the first request names no node"))?;
    let view = identify(server, &Caller { node, address }, stream)?;
    tracing::info!(node = %node.id, view, variant = ?P::VARIANT, "an xDS stream opened");
    let _release = ReleaseView { server, view: &view };
    let mut published = server.shared.views.subscribe(&view);
    let mut dismissed = server.shared.dismissed.subscribe();
    take::<P>(server, stream, &first)?;

    // At most one response waits for its place on the wire.
    let mut waiting: Option<Response> = None;
    loop {
        let mut deadline = None;
        if waiting.is_none() {
            waiting = next(stream, &published);
            deadline = lock(stream).deadline();
        }
        tokio::select! {
            permit = outbound.reserve(), if waiting.is_some() => {
                let Ok(permit) = permit else { return Ok(End::Broken) };
                if let Some(response) = waiting.take() {
                    permit.send(Ok(response));
                }
            }
            message = inbound.message() => match message? {
                Some(request) => take::<P>(server, stream, &request)?,
                None => return Ok(End::Left),
            },
            changed = published.changed() => {
                if changed.is_err() {
                    return Ok(End::Broken);
                }
            }
            _ = dismissed.changed() => return Err(Status::unavailable("another server is to be asked")),
            () = until(deadline) => {}
        }
    }
}

fn next(stream: &Mutex<Stream>, published: &watch::Receiver<Option<Snapshot>>) -> Option<Response> {
    let snapshot = published.borrow().clone()?;
    lock(stream).next(&snapshot, Instant::now())
}

fn take<P: Protocol>(server: &Server, stream: &Mutex<Stream>, request: &P::Request) -> Result<(), Status> {
    let type_url = P::type_url(request);
    let only = lock(stream).only();
    let ty = match only {
        // Here the type says itself.
        Some(only) if type_url.is_empty() || type_url == only.type_url() => Some(only),
        Some(only) => {
            let reason = format!("type_url is {type_url:?}, but this stream is for {}", only.type_url());
            return Err(Status::invalid_argument(reason));
        }
        None if type_url.is_empty() => {
            return Err(Status::invalid_argument(
                "type_url is missing, which tells the types of an ADS stream apart",
            ));
        }
        None => ResourceType::from_type_url(type_url),
    };
    let Some(ty) = ty else {
        // Envoy asks for types (secrets, runtimes) that may not exist here: there are none, and no answer.
        tracing::debug!(type_url, "a client asks for a type that is not served");
        return Ok(());
    };
    let (outcome, node) = {
        let mut stream = lock(stream);
        let outcome = P::take(&mut stream, ty, request).map_err(|error| match error {
            TooMuch::Name => Status::invalid_argument(error.to_string()),
            TooMuch::Names { .. } | TooMuch::NameBytes { .. } => {
                Status::resource_exhausted(error.to_string())
            }
        })?;
        (outcome, stream.node_id().to_owned())
    };
    if outcome == Outcome::Nack {
        let reason = shortened(P::error(request).unwrap_or_default());
        tracing::warn!(node, ty = ty.short_name(), reason, "a client refuses a response");
    }
    if outcome != Outcome::None {
        server.bump();
    }
    Ok(())
}

fn identify(server: &Server, caller: &Caller<'_>, stream: &Mutex<Stream>) -> Result<String, Status> {
    let node = caller.node;
    if node.id.is_empty() || node.id.len() > MAX_ID_BYTES || node.cluster.len() > MAX_ID_BYTES {
        return Err(Status::invalid_argument(format!(
            "node.id must have 1 to {MAX_ID_BYTES} bytes, and node.cluster at most as many"
        )));
    }
    let view = (server.shared.options.view_of)(caller).map_err(Status::permission_denied)?;
    lock(stream).identify(node, &view);
    server.bump_members();
    Ok(view)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Closes also when the stream's task is dropped or panics.
struct CloseStream<'s> {
    server: &'s Server,
    id: u64,
    left: bool,
}

impl Drop for CloseStream<'_> {
    fn drop(&mut self) {
        self.server.close(self.id, self.left);
    }
}

struct ReleaseView<'s> {
    server: &'s Server,
    view: &'s str,
}

impl Drop for ReleaseView<'_> {
    fn drop(&mut self) {
        // Declared before the stream's receiver, so dropped after it.
        self.server.shared.views.release(self.view);
    }
}
