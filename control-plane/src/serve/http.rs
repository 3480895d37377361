//! One accept loop for every HTTP/1.1 listener of the control plane. What it decides: how many connections
//! there may be, how long one may say nothing, and that a stop answers what is under way and no more.
//! HTTP/2 is given up here: no Eureka client and no part of the command line needs it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// What one listener allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; further ones wait in the kernel's backlog.
    pub connections: usize,
    /// For a request's head to arrive, and so for a kept-alive connection to be idle. Longer than clients keep
    /// idle connections themselves: else a request meets a connection that we are closing.
    pub head_timeout: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Header lines of a request.
    pub headers: usize,
    /// For requests under way when the process stops.
    pub drain: Duration,
}

impl Limits {
    /// For the API: few clients.
    pub const API: Limits = Limits {
        connections: 512,
        head_timeout: Duration::from_secs(75),
        head_bytes: 32 * 1024,
        headers: 64,
        drain: Duration::from_secs(5),
    };
    /// For Eureka: every instance holds a connection or two, idle for 30 s between heartbeats.
    pub const EUREKA: Limits = Limits {
        connections: 20_000,
        head_timeout: Duration::from_secs(75),
        head_bytes: 64 * 1024,
        headers: 100,
        drain: Duration::from_secs(5),
    };
}

/// After a failed `accept` (out of file descriptors, mostly): time for some to be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` until `stop`, then lets requests under way finish within `limits.drain`.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((permit, stream, remote)) = accepted else { continue };
        // Small answers leave at once: Eureka's heartbeats are a request and one packet back.
        let _ = stream.set_nodelay(true);
        let router = router.clone();
        let service = tower::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(ConnectInfo(remote));
            router.clone().oneshot(request)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .max_buf_size(limits.head_bytes)
            .max_headers(limits.headers)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%remote, %error, "connection ended early");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(after = ?limits.drain, "requests still under way are cut off");
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, remote)) => Some((permit, stream, remote)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection; is the limit of open files too low?");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

#[cfg(test)]
mod tests;
