//! A tap on the wire between one client and its registry: it passes every request on and keeps who asked what,
//! when, and how it was answered. It judges a registry from outside, ours and Netflix's alike. Where the registry
//! is away, the client's connection breaks, as it would without the tap.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Exchanges kept; a client that asks more often has gone mad, and the test has failed before.
const MAX_KEPT: usize = 100_000;

/// One request and its answer.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// When it was answered.
    pub at: Instant,
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// The status; none where the registry did not answer.
    pub status: Option<u16>,
}

impl Exchange {
    /// Answered, and not refused.
    pub fn is_good(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }

    /// A fetch of all there is.
    pub fn is_full_fetch(&self) -> bool {
        self.method == Method::GET && self.path.trim_end_matches('/').ends_with("/apps")
    }

    /// A fetch of what has changed.
    pub fn is_delta(&self) -> bool {
        self.method == Method::GET && self.path.ends_with("/apps/delta")
    }

    /// A registration, or the notice of a new status.
    pub fn is_register(&self) -> bool {
        self.method == Method::POST && self.path.contains("/apps/")
    }

    /// A renewal.
    pub fn is_renew(&self) -> bool {
        self.method == Method::PUT && !self.path.contains("/status") && self.path.contains("/apps/")
    }

    /// A deregistration.
    pub fn is_cancel(&self) -> bool {
        self.method == Method::DELETE && !self.path.contains("/status")
    }
}

type Kept = Arc<Mutex<Vec<Exchange>>>;
type Passing = Client<HttpConnector, Full<Bytes>>;

/// A running tap. Dropping it ends it.
#[derive(Debug)]
pub struct Tap {
    /// Where the client is to be sent.
    pub address: SocketAddr,
    kept: Kept,
    stop: CancellationToken,
}

impl Tap {
    /// Starts one before the registry at the address.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(registry: SocketAddr) -> anyhow::Result<Tap> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::ports::free()?)).await?;
        let tap =
            Tap { address: listener.local_addr()?, kept: Kept::default(), stop: CancellationToken::new() };
        let client: Passing = Client::builder(TokioExecutor::new()).build_http();
        let (kept, stop) = (tap.kept.clone(), tap.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (client, kept) = (client.clone(), kept.clone());
                let service =
                    service_fn(move |request| pass(client.clone(), kept.clone(), registry, request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        }));
        Ok(tap)
    }

    /// What has passed so far.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many such exchanges have passed.
    pub fn count(&self, which: impl Fn(&Exchange) -> bool) -> usize {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|one| which(one)).count()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn pass(
    client: Passing,
    kept: Kept,
    registry: SocketAddr,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Full<Bytes>>> {
    let (mut head, body) = request.into_parts();
    let method = head.method.clone();
    let path = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let answered = async {
        let body = body.collect().await?.to_bytes();
        head.uri =
            Uri::builder().scheme("http").authority(registry.to_string()).path_and_query(&path).build()?;
        // Framing is the connection's own.
        head.headers.remove(http::header::TRANSFER_ENCODING);
        let response = client.request(Request::from_parts(head, Full::new(body))).await?;
        let (mut head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        head.headers.remove(http::header::TRANSFER_ENCODING);
        anyhow::Ok(Response::from_parts(head, Full::new(body)))
    }
    .await;
    let status = answered.as_ref().ok().map(|response| response.status().as_u16());
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() < MAX_KEPT {
        kept.push(Exchange { at: Instant::now(), method, path, status });
    }
    drop(kept);
    answered
}
