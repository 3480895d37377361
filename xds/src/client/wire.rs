//! One stream of the client, from connecting to its end: moves messages between the wire and [`Session`].

use std::pin::pin;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Streaming};

use super::connection::{self, Connection, LastWords};
use super::session::{Known, Request, Session, Taken};
use super::{Config, Handler, Status, Subscriptions};
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::variant::Variant;

/// A server that does not read acknowledgements is not read either.
const MAX_WAITING: usize = 64;
/// Requests between this task and the wire.
const OUTBOUND: usize = 4;
/// Of what was refused, as it is kept to be shown.
const MAX_SHOWN_BYTES: usize = 4 * 1024;

type Ads = AggregatedDiscoveryServiceClient<Connection>;

/// What differs between the two variants on the wire.
pub(super) trait Protocol {
    const VARIANT: Variant;
    type Request: Send + 'static;
    type Response: Send + 'static;

    fn open(
        client: &mut Ads,
        requests: ReceiverStream<Self::Request>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Response>>, tonic::Status>> + Send;
    fn encode(request: Request) -> Self::Request;
    fn take(session: &mut Session<'_>, response: Self::Response, handler: &mut impl Handler) -> Taken;
}

/// State of the world.
pub(super) struct Sotw;

impl Protocol for Sotw {
    const VARIANT: Variant = Variant::Sotw;
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    async fn open(
        client: &mut Ads,
        requests: ReceiverStream<DiscoveryRequest>,
    ) -> Result<Response<Streaming<DiscoveryResponse>>, tonic::Status> {
        client.stream_aggregated_resources(requests).await
    }

    fn encode(request: Request) -> DiscoveryRequest {
        request.into_sotw()
    }

    fn take(session: &mut Session<'_>, response: DiscoveryResponse, handler: &mut impl Handler) -> Taken {
        session.on_sotw(response, handler, Instant::now())
    }
}

/// Incremental.
pub(super) struct Delta;

impl Protocol for Delta {
    const VARIANT: Variant = Variant::Delta;
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    async fn open(
        client: &mut Ads,
        requests: ReceiverStream<DeltaDiscoveryRequest>,
    ) -> Result<Response<Streaming<DeltaDiscoveryResponse>>, tonic::Status> {
        client.delta_aggregated_resources(requests).await
    }

    fn encode(request: Request) -> DeltaDiscoveryRequest {
        request.into_delta()
    }

    fn take(
        session: &mut Session<'_>,
        response: DeltaDiscoveryResponse,
        handler: &mut impl Handler,
    ) -> Taken {
        session.on_delta(response, handler, Instant::now())
    }
}

/// What a stream is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link<'l> {
    pub(super) config: &'l Config,
    /// Between pings.
    pub(super) keepalive: Duration,
    pub(super) subscriptions: &'l Subscriptions,
    pub(super) words: &'l LastWords,
}

impl Link<'_> {
    /// Gives the reason why the stream ended.
    pub(super) async fn run<P: Protocol>(
        self,
        handler: &mut impl Handler,
        known: &mut Known,
        status: &watch::Sender<Status>,
    ) -> String {
        let Link { config, keepalive, subscriptions, words } = self;
        let connection = match connection::connect(config, keepalive, words).await {
            Ok(connection) => connection,
            Err(error) => return format!("cannot connect: {}", chain(&error)),
        };
        let client = Ads::with_origin(connection, config.server.clone());
        let mut client = client.max_decoding_message_size(config.max_message_bytes);
        let (sender, receiver) = mpsc::channel(OUTBOUND);
        let mut wanted = subscriptions.wanted.subscribe();
        let mut session = Session::new(P::VARIANT, config.node.clone(), known);
        // Many servers begin their answer to the call only with their first response: requests go out meanwhile.
        let mut call = pin!(P::open(&mut client, ReceiverStream::new(receiver)));
        let mut inbound: Option<Streaming<P::Response>> = None;
        session.follow(&wanted.borrow_and_update());
        let mut next: Option<Request> = None;
        loop {
            let now = Instant::now();
            next = next.or_else(|| session.next(now));
            let deadline = session.deadline().filter(|_| next.is_none());
            let may_read = session.waiting() < MAX_WAITING;
            let mut is_new = false;
            tokio::select! {
                permit = sender.reserve(), if next.is_some() => match permit {
                    Ok(permit) => {
                        if let Some(request) = next.take() {
                            permit.send(P::encode(request));
                        }
                    }
                    // The call ends with the reason.
                    Err(_) if inbound.is_none() => next = None,
                    Err(_) => return String::from("the server ended the stream"),
                },
                answer = &mut call, if inbound.is_none() => match answer {
                    Ok(response) => {
                        inbound = Some(response.into_inner());
                        status.send_modify(|s| {
                            s.connected = true;
                            s.since = SystemTime::now();
                            s.streams += 1;
                        });
                    }
                    Err(status) => return format!("the server refuses the stream: {}", describe(&status)),
                },
                message = receive(&mut inbound), if may_read => match message {
                    Ok(Some(response)) => {
                        let taken = P::take(&mut session, response, handler);
                        status.send_modify(|status| note(status, taken));
                    }
                    Ok(None) => return String::from("the server ended the stream"),
                    Err(status) => return describe(&status),
                },
                changed = wanted.changed() => is_new = changed.is_ok(),
                () = until(deadline) => {}
                () = subscriptions.left(), if inbound.is_some() => break,
            }
            // There may be many names to compare.
            if is_new || wanted.has_changed().unwrap_or(true) {
                session.follow(&wanted.borrow_and_update());
            }
        }
        drop(sender);
        // The server's end of the stream says that it has read ours.
        while let Ok(Some(_)) = receive(&mut inbound).await {}
        String::from("we leave")
    }
}

/// Never, before the server has answered the call.
async fn receive<T>(inbound: &mut Option<Streaming<T>>) -> Result<Option<T>, tonic::Status> {
    match inbound {
        Some(inbound) => inbound.message().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn note(status: &mut Status, taken: Taken) {
    let now = SystemTime::now();
    status.updates += 1;
    status.last_update = Some(now);
    let (message, again) = match taken {
        Taken::Whole => return,
        Taken::Refused(message) => (message, false),
        Taken::Again(message) => (message, true),
    };
    if again {
        tracing::debug!(message, "refusing a response for the same reason again");
    } else {
        tracing::warn!(message, "refusing a response");
    }
    status.nacks += 1;
    let shown = message[..message.floor_char_boundary(MAX_SHOWN_BYTES)].to_owned();
    status.last_refusal = Some((now, shown));
}

fn describe(status: &tonic::Status) -> String {
    with_causes(format!("{:?}: {}", status.code(), status.message()), std::error::Error::source(status))
}

fn chain(error: &dyn std::error::Error) -> String {
    with_causes(error.to_string(), error.source())
}

/// Each cause that says something new.
fn with_causes(mut text: String, mut source: Option<&(dyn std::error::Error + 'static)>) -> String {
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
