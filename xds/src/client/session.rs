//! One stream of the client, from connecting to its end.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::{Config, Handler, Rejected, Status, Subscriptions, Update, Wanted, marked};
use crate::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::pb::google::rpc::Status as RpcStatus;
use crate::resource::{Resource, ResourceType};

/// gRPC's `INVALID_ARGUMENT`, in a NACK.
const INVALID_ARGUMENT: i32 = 3;
/// Refusals told in one NACK; the rest is counted.
const TOLD_REFUSALS: usize = 16;
/// A server that does not read acknowledgements is not read either.
const MAX_WAITING: usize = 64;
/// Requests between this task and the wire.
const OUTBOUND: usize = 4;

/// What the client has, over breaks: name and version of every accepted resource.
#[derive(Debug, Default)]
pub(super) struct Known {
    versions: BTreeMap<ResourceType, HashMap<Arc<str>, Arc<str>>>,
}

/// Gives the reason why the stream ended.
pub(super) async fn run(
    config: &Config,
    endpoint: &Endpoint,
    subscriptions: &Subscriptions,
    handler: &mut impl Handler,
    known: &mut Known,
    status: &watch::Sender<Status>,
) -> String {
    let channel = match marked::connect(endpoint, config.mark).await {
        Ok(channel) => channel,
        Err(error) => return format!("cannot connect: {}", chain(&error)),
    };
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(config.max_message_bytes);
    let (sender, receiver) = mpsc::channel(OUTBOUND);
    let mut changed = subscriptions.wanted.subscribe();
    let mut session = Session::new(config, known);
    session.follow(&changed.borrow_and_update().clone());
    // Many servers begin their answer to the call only with their first response: requests go out meanwhile.
    let mut call = pin!(client.delta_aggregated_resources(ReceiverStream::new(receiver)));
    let mut inbound = loop {
        tokio::select! {
            answer = &mut call => match answer {
                Ok(response) => break response.into_inner(),
                Err(status) => return format!("the server refuses the stream: {}", describe(&status)),
            },
            Ok(permit) = sender.reserve(), if !session.outbound.is_empty() => {
                if let Some(request) = session.outbound.pop_front() {
                    permit.send(request);
                }
            }
            _ = changed.changed() => session.follow(&changed.borrow_and_update().clone()),
        }
    };
    status.send_modify(|s| {
        s.connected = true;
        s.since = SystemTime::now();
        s.streams += 1;
    });
    loop {
        tokio::select! {
            permit = sender.reserve(), if !session.outbound.is_empty() => {
                let Ok(permit) = permit else { return String::from("the server ended the stream") };
                if let Some(request) = session.outbound.pop_front() {
                    permit.send(request);
                }
            }
            message = inbound.message(), if session.outbound.len() < MAX_WAITING => match message {
                Ok(Some(response)) => session.take(response, handler, status),
                Ok(None) => return String::from("the server ended the stream"),
                Err(status) => return describe(&status),
            },
            _ = changed.changed() => {}
            () = subscriptions.left() => break,
        }
        session.follow(&changed.borrow_and_update().clone());
    }
    drop(sender);
    // The server's end of the stream says that it has read ours.
    while let Ok(Some(_)) = inbound.message().await {}
    String::from("we leave")
}

struct Session<'c> {
    config: &'c Config,
    known: &'c mut Known,
    subscribed: BTreeMap<ResourceType, Wanted>,
    /// One acknowledgement a response and one request a change of subscriptions: about [`MAX_WAITING`].
    outbound: VecDeque<DeltaDiscoveryRequest>,
    introduced: bool,
}

impl<'c> Session<'c> {
    fn new(config: &'c Config, known: &'c mut Known) -> Session<'c> {
        Session { config, known, subscribed: BTreeMap::new(), outbound: VecDeque::new(), introduced: false }
    }

    /// Asks for the difference between what is wanted and what is subscribed.
    fn follow(&mut self, wanted: &BTreeMap<ResourceType, Wanted>) {
        for (ty, wanted) in wanted {
            let first = !self.subscribed.contains_key(ty);
            let before = self.subscribed.get(ty).cloned().unwrap_or_default();
            if before == *wanted {
                continue;
            }
            let versions = self.known.versions.entry(*ty).or_default();
            if !wanted.wildcard {
                versions.retain(|name, _| wanted.names.contains(name));
            }
            let mut request = DeltaDiscoveryRequest {
                type_url: ty.type_url().to_owned(),
                resource_names_subscribe: texts(wanted.names.difference(&before.names)),
                resource_names_unsubscribe: texts(before.names.difference(&wanted.names)),
                ..DeltaDiscoveryRequest::default()
            };
            if wanted.wildcard && !before.wildcard {
                request.resource_names_subscribe.push(String::from("*"));
            }
            if first {
                request.initial_resource_versions =
                    versions.iter().map(|(name, version)| (name.to_string(), version.to_string())).collect();
            }
            self.subscribed.insert(*ty, wanted.clone());
            self.push(request);
        }
    }

    fn push(&mut self, mut request: DeltaDiscoveryRequest) {
        if !std::mem::replace(&mut self.introduced, true) {
            request.node = Some(self.config.node.clone());
        }
        self.outbound.push_back(request);
    }

    fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
        handler: &mut impl Handler,
        status: &watch::Sender<Status>,
    ) {
        let mut answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        let rejected = self.apply(response, handler);
        status.send_modify(|s| {
            s.updates += 1;
            s.nacks += u64::from(!rejected.is_empty());
            s.last_update = Some(SystemTime::now());
        });
        if !rejected.is_empty() {
            let message = refusal(&rejected);
            tracing::warn!(type_url = answer.type_url, message, "refusing a response");
            answer.error_detail = Some(RpcStatus { code: INVALID_ARGUMENT, message, details: Vec::new() });
        }
        self.push(answer);
    }

    fn apply(&mut self, response: DeltaDiscoveryResponse, handler: &mut impl Handler) -> Vec<Rejected> {
        let Some(ty) = ResourceType::from_type_url(&response.type_url) else {
            let reason = format!("type {} was not asked for", response.type_url);
            return vec![Rejected { name: "*".into(), reason }];
        };
        let mut rejected = Vec::new();
        let mut changed = Vec::with_capacity(response.resources.len().min(1024));
        for resource in response.resources {
            let name: Arc<str> = resource.name.into();
            match resource.resource {
                Some(any) if any.type_url == ty.type_url() => {
                    changed.push(Resource { name, version: resource.version.into(), body: any.value.into() });
                }
                Some(any) => {
                    let reason = format!("holds a {} where a {} belongs", any.type_url, ty.type_url());
                    rejected.push(Rejected { name, reason });
                }
                None => rejected.push(Rejected { name, reason: String::from("holds no resource") }),
            }
        }
        let removed: Vec<Arc<str>> = response.removed_resources.into_iter().map(Arc::from).collect();
        let offered: Vec<(Arc<str>, Arc<str>)> =
            changed.iter().map(|r: &Resource| (r.name.clone(), r.version.clone())).collect();
        let gone = removed.clone();
        rejected.extend(handler.apply(Update { ty, changed, removed }));

        let versions = self.known.versions.entry(ty).or_default();
        for name in &gone {
            versions.remove(name);
        }
        let refused: BTreeSet<&str> = rejected.iter().map(|r| &*r.name).collect();
        versions.extend(offered.into_iter().filter(|(name, _)| !refused.contains(&**name)));
        rejected
    }
}

fn texts<'n>(names: impl Iterator<Item = &'n Arc<str>>) -> Vec<String> {
    names.map(ToString::to_string).collect()
}

fn refusal(rejected: &[Rejected]) -> String {
    let mut message: Vec<String> =
        rejected.iter().take(TOLD_REFUSALS).map(|r| format!("{}: {}", r.name, r.reason)).collect();
    if rejected.len() > TOLD_REFUSALS {
        message.push(format!("and {} more", rejected.len() - TOLD_REFUSALS));
    }
    message.join("; ")
}

fn describe(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
