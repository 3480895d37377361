//! Copies of requests for other clusters, whose answers nobody reads. A copy costs its original nothing but the
//! copying: it is sent on its own, what does not keep up with the body is dropped, and so is what there is too much of.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response, request};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::body::RequestBody;
use super::exchange::Exchange;
use super::headers::Hop;
use super::service::address;
use crate::route::Mirror;
use crate::upstream::cluster::{Cluster, ClusterSettings, Endpoint};
use crate::upstream::open;
use crate::upstream::pool::Lease;
use crate::worker::local::Worker;

/// Copies in flight on one worker. Above, none is made: an upstream that hangs is not to take memory.
const MOST_IN_FLIGHT: usize = 1_024;
/// For a copy, where its route has no timeout.
const LONGEST: Duration = Duration::from_secs(15);

/// A copy without its body.
pub(super) struct Head {
    parts: request::Parts,
    cluster: Arc<Cluster>,
    settings: Arc<ClusterSettings>,
}

/// The copies that are to be made of a request, as their clusters want them.
pub(super) fn heads(
    exchange: &Exchange,
    mirrors: &[Mirror],
    original: &request::Parts,
    host: &HeaderValue,
    hop: &Hop,
    split_cookies: bool,
) -> Vec<Head> {
    let worker = exchange.worker();
    let wanted = mirrors.iter().filter(|mirror| fastrand::u32(..1_000_000) < mirror.millionths);
    let room = MOST_IN_FLIGHT.saturating_sub(Rc::strong_count(&worker.mirrors));
    let heads = wanted.take(room).filter_map(|mirror| {
        let settings = mirror.cluster.settings.load_full()?;
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = original.method.clone();
        parts.uri = original.uri.clone();
        parts.headers = original.headers.clone();
        let host = if mirror.shadow_host { shadow(host)? } else { host.clone() };
        address(&mut parts, &host, &settings, hop, split_cookies).ok()?;
        // Nobody waits for it.
        parts.headers.remove(http::header::EXPECT);
        Some(Head { parts, cluster: Arc::clone(&mirror.cluster), settings })
    });
    heads.collect()
}

fn shadow(host: &HeaderValue) -> Option<HeaderValue> {
    let text = host.to_str().ok()?;
    let (name, port) =
        text.split_at(text.rfind(':').filter(|at| !text[*at..].contains(']')).unwrap_or(text.len()));
    HeaderValue::try_from(format!("{name}-shadow{port}")).ok()
}

/// Sends the copies, with what passes through `body`.
pub(super) fn send(exchange: &Exchange, heads: Vec<Head>, body: &mut RequestBody, timeout: Option<Duration>) {
    for Head { parts, cluster, settings } in heads {
        let request = Request::from_parts(parts, body.copy(&exchange.worker().mirrors));
        let worker = Rc::clone(exchange.worker());
        // Counts while it lives.
        let counted = Rc::clone(&worker.mirrors);
        tokio::task::spawn_local(async move {
            let sent = one(&worker, &cluster, &settings, request);
            let _ = tokio::time::timeout(timeout.unwrap_or(LONGEST), sent).await;
            drop(counted);
        });
    }
}

/// Sends one, and reads the answer so that its connection can be used again.
async fn one(
    worker: &Worker,
    cluster: &Arc<Cluster>,
    settings: &ClusterSettings,
    request: Request<RequestBody>,
) -> Option<()> {
    let (_, mut lease) = sent(worker, (cluster, settings), &mut Vec::new(), request).await.ok()?;
    while let Some(frame) = lease.frame().await {
        frame.ok()?;
    }
    lease.give_back(Instant::now());
    Some(())
}

/// Sends a request that is no client's to an endpoint, another than those that were `tried`, and waits for the head of
/// its answer. Fails with whether it may be sent again: nobody got it, or its connection was one that had rested.
pub(super) async fn sent(
    worker: &Worker,
    (cluster, settings): (&Arc<Cluster>, &ClusterSettings),
    tried: &mut Vec<Arc<Endpoint>>,
    request: Request<RequestBody>,
) -> Result<(Response<()>, Lease), bool> {
    let now = Instant::now();
    let local = worker.cluster(cluster);
    let picked = open::pick(worker, (cluster, &local, settings), || None, now, tried);
    let endpoint = picked.map_err(|_| false)?;
    let fresh = !tried.is_empty();
    tried.push(Arc::clone(&endpoint));
    let pool = worker.pool(&endpoint);
    let leased = pool.lease(&endpoint, settings, settings.breakers.of(false), fresh, now).await;
    let mut lease = leased.map_err(|error| {
        if error.is_connect() {
            endpoint.outlier.connect_failed(worker.since_epoch_ms(Instant::now()));
        }
        error.is_connect()
    })?;
    if !lease.reused {
        endpoint.outlier.connected();
    }
    match lease.send(request).await {
        Ok(response) => Ok((response, lease)),
        Err(failed) => Err(lease.reused || failed.request.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_keeps_its_port() {
        for (host, expected) in
            [("shop", "shop-shadow"), ("shop:80", "shop-shadow:80"), ("[::1]", "[::1]-shadow")]
        {
            assert_eq!(shadow(&HeaderValue::from_static(host)).unwrap(), expected);
        }
    }
}
