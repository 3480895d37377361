//! Takes part in the [`election`](super::election): reads and writes the lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::election::{DURATION, Election, Held, RETRY, Step};
use super::handover::Handover;
use super::roster::PROXIES;
use crate::objects::ObjectName;

/// The lease's name, [of this installation](crate::objects::Controller::own).
pub const NAME: &str = "pontoon";
/// For one request: a lease that is renewed late is lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// Takes part until `stop`, and then leads no more; gives the lease back, so that another leads at once, when those who
/// write as the leader have ended (`ended`). `lease` is its name; `leads` says whether this replica does. Before it does,
/// the one that led has told it what is to be known (`handover`).
pub async fn run(
    client: Client,
    lease: ObjectName,
    identity: String,
    handover: Handover,
    leads: watch::Sender<bool>,
    stop: CancellationToken,
    ended: CancellationToken,
) {
    let leases = Leases { api: Api::namespaced(client, &lease.namespace), name: lease.name };
    let mut election = Election::new(identity);
    let mut proxies = String::new();
    loop {
        let (until, identity) = (election.leads_until(), election.identity().to_owned());
        let turn = tokio::time::timeout(PATIENCE, turn(&leases, &mut election, &handover));
        let turn = or_step_down(turn, until, &leads, &identity).await;
        let failed = match turn {
            Ok(Ok(on_it)) => {
                proxies = on_it;
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {PATIENCE:?}")),
        };
        if let Some(error) = failed {
            tracing::debug!(%error, "the lease cannot be read or written");
        }
        say(&leads, election.leads(Instant::now()), election.identity());
        // Not all replicas at once.
        let pause = RETRY.mul_f64(0.75 + fastrand::f64() / 4.0);
        let pause = async {
            match election.leads(Instant::now()) {
                true => drop(tokio::time::timeout(pause, handover.roster.changed(&proxies)).await),
                false => tokio::time::sleep(pause).await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = or_step_down(pause, election.leads_until(), &leads, election.identity()) => {}
        }
    }
    if leads.send_replace(false) {
        // While they are connected.
        let mut annotations = BTreeMap::new();
        handover.write(&mut annotations);
        ended.cancelled().await;
        let given_back = tokio::time::timeout(PATIENCE, give_back(&leases, &election, annotations)).await;
        if let Ok(Err(error)) = given_back {
            tracing::debug!(%error, "the lease cannot be given back; it runs out");
        }
    }
}

/// Waits for `work`; says meanwhile, at the moment when it is so, that this replica leads no more.
async fn or_step_down<T>(
    work: impl Future<Output = T>,
    until: Option<Instant>,
    leads: &watch::Sender<bool>,
    identity: &str,
) -> T {
    let mut work = std::pin::pin!(work);
    if let Some(until) = until {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep_until(until) => say(leads, false, identity),
        }
    }
    work.await
}

fn say(leads: &watch::Sender<bool>, now: bool, identity: &str) {
    leads.send_if_modified(|before| {
        let changed = *before != now;
        if changed {
            let what = if now { "this replica leads" } else { "this replica leads no more" };
            tracing::info!(identity, "{what}");
            *before = now;
        }
        changed
    });
}

/// Where the lease is.
struct Leases {
    api: Api<Lease>,
    name: Arc<str>,
}

/// Gives which proxies are on the lease, where it is ours.
async fn turn(
    Leases { api, name }: &Leases,
    election: &mut Election,
    handover: &Handover,
) -> Result<String, kube::Error> {
    let lease = api.get_opt(name).await?;
    let held = lease.as_ref().and_then(|lease| lease.spec.as_ref()).map(|spec| Held {
        holder: spec.holder_identity.clone().unwrap_or_default(),
        renewed: spec.renew_time.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
    });
    let asked = Instant::now();
    let step = election.read(held, asked);
    let is_new = !election.leads(asked);
    if is_new {
        handover.read(lease.as_ref().and_then(|lease| lease.metadata.annotations.as_ref()));
    }
    if step == Step::Wait {
        return Ok(String::new());
    }
    let now = MicroTime(jiff::Timestamp::now());
    let before = lease.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let taken = step == Step::Take;
    let spec = LeaseSpec {
        holder_identity: Some(election.identity().to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: if taken { Some(now.clone()) } else { before.acquire_time },
        lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(i32::from(taken))),
        renew_time: Some(now),
        ..before
    };
    let mut metadata = lease.as_ref().map_or_else(
        || ObjectMeta { name: Some(name.to_string()), ..ObjectMeta::default() },
        |lease| lease.metadata.clone(),
    );
    let annotations = metadata.annotations.get_or_insert_default();
    if !is_new {
        handover.write(annotations);
    }
    let annotations = annotations.clone();
    let written = Lease { metadata, spec: Some(spec) };
    // With the version that was read: of two that try, one does.
    let parameters = PostParams::default();
    match lease {
        Some(_) => api.replace(name, &parameters, &written).await?,
        None => api.create(&parameters, &written).await?,
    };
    if is_new {
        handover.take_over(&annotations);
    }
    election.written(asked);
    Ok(annotations.get(PROXIES).cloned().unwrap_or_default())
}

async fn give_back(
    Leases { api, name }: &Leases,
    election: &Election,
    annotations: BTreeMap<String, String>,
) -> Result<(), kube::Error> {
    let Some(mut lease) = api.get_opt(name).await? else { return Ok(()) };
    match &mut lease.spec {
        Some(spec) if spec.holder_identity.as_deref() == Some(election.identity()) => {
            spec.holder_identity = None;
        }
        _ => return Ok(()),
    }
    lease.metadata.annotations.get_or_insert_default().extend(annotations);
    api.replace(name, &PostParams::default(), &lease).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicBool, Ordering};

    use http::{Method, Request, Response};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use pontoon_xds::server as xds;
    use serde_json::json;

    use super::super::election::DEADLINE;
    use super::super::roster::Roster;
    use super::*;
    use crate::addresses::plan::Aside;

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_hears_nothing_steps_down_at_its_deadline() {
        let answers = Arc::new(AtomicBool::new(true));
        let server_answers = answers.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let answers = server_answers.clone();
            async move {
                if !answers.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
                let is_get = request.method() == Method::GET;
                let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
                let missing = json!({ "kind": "Status", "code": 404, "reason": "NotFound" }).to_string();
                let body = if is_get { missing.into_bytes() } else { body.unwrap_or_default().to_vec() };
                let status = if is_get { 404 } else { 200 };
                Ok::<_, Infallible>(Response::builder().status(status).body(Body::from(body)).unwrap())
            }
        });
        let (leads, mut says) = watch::channel(false);
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let client = Client::new(server, "default");
        let lease = ObjectName::new("default", NAME);
        let server = xds::Server::new(xds::Options::new(|_| Ok(String::new())));
        let roster = Roster { server, pods: None };
        let (aside, heard) = (watch::channel(Arc::default()).1, watch::Sender::default());
        let handover = Handover { roster, aside, heard };
        let running = run(client, lease, "a".into(), handover, leads, stop.clone(), ended);
        tokio::spawn(running);
        says.wait_for(|leads| *leads).await.unwrap();
        let since = Instant::now();
        answers.store(false, Ordering::Relaxed);
        says.wait_for(|leads| !*leads).await.unwrap();
        assert_eq!(since.elapsed().as_secs(), DEADLINE.as_secs());
        stop.cancel();
    }

    /// An API server that has one object.
    fn api_server() -> Client {
        let kept: Arc<std::sync::Mutex<Option<serde_json::Value>>> = Arc::default();
        let server = tower::service_fn(move |request: Request<Body>| {
            let kept = kept.clone();
            async move {
                let is_get = request.method() == Method::GET;
                let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
                let mut kept = kept.lock().unwrap();
                if !is_get {
                    *kept = serde_json::from_slice(&body.unwrap_or_default()).ok();
                }
                let missing = json!({ "kind": "Status", "code": 404, "reason": "NotFound" });
                let (status, body) = kept.clone().map_or((404, missing), |kept| (200, kept));
                let body = Body::from(body.to_string().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        });
        Client::new(server, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn who_leads_next_knows_what_a_leader_knew_that_was_killed() {
        let client = api_server();
        let replica = |name: &str, aside: Aside| {
            let server = xds::Server::new(xds::Options::new(|_| Ok(String::new())));
            let heard = watch::Sender::default();
            let (told, known) = (heard.subscribe(), server.clone());
            let aside = watch::channel(Arc::new(aside)).1;
            let handover = Handover { roster: Roster { server, pods: None }, aside, heard };
            let (leads, says) = watch::channel(false);
            let (lease, stop) = (ObjectName::new("default", NAME), CancellationToken::new());
            let running = run(client.clone(), lease, name.to_owned(), handover, leads, stop.clone(), stop);
            (tokio::spawn(running), known, told, says)
        };
        let aside = Aside { slots: 9, services: BTreeMap::from([("shop/orders".to_owned(), 7)]) };
        let proxy = xds::Client { view: "shop/edge".into(), node: "shop/edge-1".into() };
        let (first, server, _told, mut says) = replica("a", aside.clone());
        says.wait_for(|leads| *leads).await.unwrap();
        server.expect([proxy.clone()]);
        let (_second, server, mut told, mut says) = replica("b", Aside::default());
        told.wait_for(|told| **told == aside).await.unwrap();
        // The proxy came before; it is written with the next renewal at the latest.
        tokio::time::sleep(RETRY).await;
        first.abort();
        assert!(server.known().is_empty(), "another leads");
        says.wait_for(|leads| *leads).await.unwrap();
        assert_eq!(server.known().into_iter().collect::<Vec<_>>(), [proxy]);
    }
}
