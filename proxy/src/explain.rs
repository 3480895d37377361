//! What would become of a request, and why: the same store and the same decision as in serving, with a trace.
//! The control plane calls it over the resources that it has published, the admin port over those in force.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use pontoon_xds::client::Update;
use pontoon_xds::{ResourceType, Snapshot};
use serde::Serialize;
use tokio::time::Instant;

use crate::config::Store;
use crate::config::chains::{Seen, Serves, Transport};
use crate::config::listener::{HttpSettings, Listener};
use crate::route::rbac::{self, Denied};
use crate::route::session::{self, State};
use crate::route::{Action, Decision, NoRoute, Recorded, RequestHead, Route, Step, Trace as _};
use crate::upstream::cluster::{Cluster, EndpointHealth};

/// A request to explain.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Its URL; the host names the virtual host, the port (80 without one) the listener.
    pub uri: Uri,
    /// Its headers.
    pub headers: HeaderMap,
    /// Where it comes from, for source address hashes.
    pub client: Option<IpAddr>,
}

/// What would become of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The listener that would take it.
    pub listener: Option<String>,
    /// The route configuration and its version.
    pub route_configuration: Option<String>,
    /// As the control plane gave it.
    pub version: Option<String>,
    /// The virtual host for its host.
    pub virtual_host: Option<String>,
    /// The route that takes it.
    pub route: Option<String>,
    /// What happens, in one line.
    pub outcome: String,
    /// The cluster it goes to.
    pub cluster: Option<String>,
    /// Its number in a weighted choice.
    pub bucket: Option<u32>,
    /// Whether the cluster depends on a random number, so that the next request may go elsewhere.
    pub random: bool,
    /// The cluster's endpoints.
    pub endpoints: Vec<EndpointView>,
    /// How the decision came about.
    pub steps: Recorded,
}

/// An endpoint that the request could go to, or could not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointView {
    /// Where it is.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// Whether it takes requests.
    pub eligible: bool,
    /// Why not.
    pub reason: Option<&'static str>,
}

/// Explains over resources that need not be in force anywhere.
pub fn explain(snapshot: &Snapshot, request: &Request) -> Explanation {
    let mut store = Store::default();
    let now = Instant::now();
    // Secrets after what names them, endpoints after that: what nothing refers to is not kept.
    let order = [
        ResourceType::Cluster,
        ResourceType::Listener,
        ResourceType::Secret,
        ResourceType::Endpoint,
        ResourceType::Route,
    ];
    for ty in order {
        let changed = snapshot.resources(ty).values().cloned().collect();
        // What the store refuses, a proxy would refuse too; the explanation is over the rest.
        let _refused = store.apply(Update { ty, changed, removed: Vec::new() }, now);
    }
    // Nothing more will arrive: what waits for a cluster waits no longer.
    store.settle(now + Duration::from_secs(3600));
    over(&store, request)
}

/// Explains over what is in force.
pub fn over(store: &Store, request: &Request) -> Explanation {
    let listeners = store.live_listeners();
    let port = request.uri.port_u16().unwrap_or(80);
    let on_port = listeners.iter().find(|l| l.address.port() == port);
    match on_port.or(listeners.first()) {
        Some(listener) => on_listener(listener, request),
        None => nothing("no listener is in force"),
    }
}

fn nothing(outcome: &str) -> Explanation {
    Explanation {
        listener: None,
        route_configuration: None,
        version: None,
        virtual_host: None,
        route: None,
        outcome: outcome.to_owned(),
        cluster: None,
        bucket: None,
        random: false,
        endpoints: Vec::new(),
        steps: Recorded::default(),
    }
}

fn on_listener(listener: &Listener, request: &Request) -> Explanation {
    let host = request.headers.get(http::header::HOST).and_then(|h| h.to_str().ok());
    let host = host.or(request.uri.authority().map(|a| a.as_str())).unwrap_or_default();
    let client = request.client.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let chains = listener.chains.load();
    let seen = Seen {
        destination: listener.address,
        source: SocketAddr::new(client, 0),
        direct_source: client,
        transport: if request.uri.scheme_str() == Some("https") {
            Transport::Tls
        } else {
            Transport::RawBuffer
        },
        server_name: Some(host.split(':').next().unwrap_or_default().to_ascii_lowercase().into()),
        protocols: vec![b"http/1.1".as_slice().into()],
    };
    let Some(chain) = chains.select(&seen) else {
        return nothing("no filter chain of the listener takes such a connection");
    };
    let Some(table) = chain.serves.routes().table.load_full() else {
        return nothing("the listener's routes have not arrived");
    };
    let head = RequestHead {
        method: &request.method,
        uri: &request.uri,
        host,
        headers: &request.headers,
        client,
        random: fastrand::u64(..),
    };
    let mut steps = Recorded::default();
    let decided = table.decide(&head, &mut steps);
    let http = match &chain.serves {
        Serves::Http(settings) => Some(settings.load()),
        Serves::Tcp(_) => None,
    };
    let filters = http.as_deref().map_or(&[][..], |http| &http.rbac);
    let of_route = decided.as_ref().ok().map(|decision| &decision.route.rbac);
    let denied = rbac::denied(filters, of_route, rbac::Asked { head: &head, source: client, peer: client });
    let denied = denied.map(|Denied { filter, policy }| match policy {
        Some(policy) => {
            format!("403 rbac_access_denied: policy {policy:?} of the filter {} keeps it out", filter.name)
        }
        None => format!("403 rbac_access_denied: no policy of the filter {} lets it in", filter.name),
    });
    let mut explanation = Explanation {
        listener: Some(listener.name.to_string()),
        route_configuration: Some(table.name.to_string()),
        version: Some(table.version.to_string()),
        ..nothing("")
    };
    let is_denied = denied.is_some();
    match (&decided, denied) {
        (Ok(decision), denied) => {
            explanation.fill(decision, denied);
            if let Some(http) = http.as_deref().filter(|_| !is_denied) {
                explanation.fill_session(decision, &head, http, &mut steps);
                // Nobody is asked for an explanation's sake.
                for service in http.authz.iter().filter_map(|filter| filter.service(&decision.route.authz)) {
                    explanation
                        .outcome
                        .push_str(&format!(" (if ext_authz, which asks {}, lets it)", service.cluster.name));
                }
            }
        }
        (Err(_), Some(denied)) => explanation.outcome = denied,
        (Err(NoRoute::VirtualHost), None) => {
            explanation.outcome = format!("404 no_route: no virtual host takes the host {:?}", head.host);
        }
        (Err(NoRoute::Route), None) => {
            explanation.outcome =
                String::from("404 no_route: no route of the virtual host takes the request");
        }
    }
    explanation.random = steps.steps.iter().any(|step| match step {
        Step::Weighted { by, .. } => explanation.cluster.is_some() && by.starts_with("random"),
        Step::Lot { .. } => true,
        _ => false,
    });
    explanation.steps = steps;
    explanation
}

impl Explanation {
    fn fill(&mut self, decision: &Decision<'_>, denied: Option<String>) {
        self.virtual_host = Some(decision.virtual_host.name.to_string());
        self.route = Some(decision.route.name.to_string());
        if let Some(denied) = denied {
            self.outcome = denied;
            return;
        }
        self.outcome = outcome(decision.route);
        let Some(target) = &decision.target else { return };
        self.bucket = target.bucket;
        self.cluster = Some(target.cluster.name.to_string());
        self.endpoints = endpoints(target.cluster);
        self.outcome =
            match (target.cluster.settings.load().is_some(), self.endpoints.iter().any(|e| e.eligible)) {
                (false, _) => format!("503 no_cluster: {} is not known", target.cluster.name),
                (true, false) => format!(
                    "503 no_healthy_upstream: {} has no endpoint that takes requests",
                    target.cluster.name
                ),
                (true, true) => format!("sent to {}", target.cluster.name),
            };
    }

    fn fill_session(
        &mut self,
        decision: &Decision<'_>,
        head: &RequestHead<'_>,
        settings: &HttpSettings,
        steps: &mut Recorded,
    ) {
        let (Action::Forward(forward), Some(target)) = (&decision.route.action, &decision.target) else {
            return;
        };
        let session = session::of(&settings.sessions, &forward.sessions);
        let asked = session.and_then(|session| session::Asked::of(session, head.uri.path(), head.headers));
        let Some(asked) = asked else { return };
        let nameable = target.cluster.settings.load().as_ref().map(|settings| settings.nameable);
        let set = target.cluster.endpoints.load();
        let is_there = set.all().any(|(address, _, health)| {
            Some(address) == asked.endpoint && nameable.is_some_and(|nameable| nameable.takes(health))
        });
        let by = match &asked.session.state {
            State::None => return,
            State::Cookie(cookie) => format!("cookie {}", cookie.name),
            State::Header(name) => format!("header {name}"),
        };
        if let Some(endpoint) = asked.endpoint {
            if is_there {
                self.outcome = format!("sent to {endpoint} of {}", target.cluster.name);
            } else if asked.session.strict {
                self.outcome =
                    format!("503 no_healthy_upstream: the session is with {endpoint} and no other");
            }
        }
        steps.step(|| Step::Session { by, endpoint: asked.endpoint, is_there });
    }
}

fn outcome(route: &Arc<Route>) -> String {
    match &route.action {
        Action::Forward(_) => String::from("sent on"),
        Action::Redirect(redirect) => format!("redirected with {}", redirect.status.as_u16()),
        Action::Direct { status, .. } => format!("answered here with {}", status.as_u16()),
    }
}

fn endpoints(cluster: &Cluster) -> Vec<EndpointView> {
    let set = cluster.endpoints.load();
    set.all()
        .map(|(address, weight, health)| {
            let reason = match health {
                EndpointHealth::Healthy => None,
                EndpointHealth::Draining => Some("draining"),
                EndpointHealth::Unhealthy => Some("unhealthy"),
            };
            EndpointView { address, weight, eligible: reason.is_none(), reason }
        })
        .collect()
}
