//! Takes part in the [`election`](super::election): reads and writes the lease.

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
use super::roster::{PROXIES, Roster};
use crate::objects::ObjectName;

/// The lease's name, [of this installation](crate::objects::Controller::own).
pub const NAME: &str = "pontoon";
/// For one request: a lease that is renewed late is lost.
const PATIENCE: Duration = Duration::from_secs(3);

/// Takes part until `stop`, and then leads no more; gives the lease back, so that another leads at once, when those who
/// write as the leader have ended (`ended`). `lease` is its name; `leads` says whether this replica does. Before it does,
/// the proxies of the one that led are expected (`roster`).
pub async fn run(
    client: Client,
    lease: ObjectName,
    identity: String,
    roster: Roster,
    leads: watch::Sender<bool>,
    stop: CancellationToken,
    ended: CancellationToken,
) {
    let leases = Leases { api: Api::namespaced(client, &lease.namespace), name: lease.name };
    let mut election = Election::new(identity);
    let mut proxies = String::new();
    loop {
        let (until, identity) = (election.leads_until(), election.identity().to_owned());
        let turn = tokio::time::timeout(PATIENCE, turn(&leases, &mut election, &roster));
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
                true => drop(tokio::time::timeout(pause, roster.changed(&proxies)).await),
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
        let proxies = roster.written();
        ended.cancelled().await;
        let given_back = tokio::time::timeout(PATIENCE, give_back(&leases, &election, proxies)).await;
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
    roster: &Roster,
) -> Result<String, kube::Error> {
    let lease = api.get_opt(name).await?;
    let held = lease.as_ref().and_then(|lease| lease.spec.as_ref()).map(|spec| Held {
        holder: spec.holder_identity.clone().unwrap_or_default(),
        renewed: spec.renew_time.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
    });
    let asked = Instant::now();
    let step = election.read(held, asked);
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
    let is_new = !election.leads(asked);
    let mut metadata = lease.as_ref().map_or_else(
        || ObjectMeta { name: Some(name.to_string()), ..ObjectMeta::default() },
        |lease| lease.metadata.clone(),
    );
    let annotations = metadata.annotations.get_or_insert_default();
    if !is_new {
        annotations.insert(PROXIES.to_owned(), roster.written());
    }
    let proxies = annotations.get(PROXIES).cloned();
    let written = Lease { metadata, spec: Some(spec) };
    // With the version that was read: of two that try, one does.
    let parameters = PostParams::default();
    match lease {
        Some(_) => api.replace(name, &parameters, &written).await?,
        None => api.create(&parameters, &written).await?,
    };
    if is_new {
        roster.take_over(proxies.as_deref());
    }
    election.written(asked);
    Ok(proxies.unwrap_or_default())
}

async fn give_back(
    Leases { api, name }: &Leases,
    election: &Election,
    proxies: String,
) -> Result<(), kube::Error> {
    let Some(mut lease) = api.get_opt(name).await? else { return Ok(()) };
    match &mut lease.spec {
        Some(spec) if spec.holder_identity.as_deref() == Some(election.identity()) => {
            spec.holder_identity = None;
        }
        _ => return Ok(()),
    }
    lease.metadata.annotations.get_or_insert_default().insert(PROXIES.to_owned(), proxies);
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
    use super::*;

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
        let running = run(client, lease, "a".into(), roster, leads, stop.clone(), ended);
        tokio::spawn(running);
        says.wait_for(|leads| *leads).await.unwrap();
        let since = Instant::now();
        answers.store(false, Ordering::Relaxed);
        says.wait_for(|leads| !*leads).await.unwrap();
        assert_eq!(since.elapsed().as_secs(), DEADLINE.as_secs());
        stop.cancel();
    }
}
