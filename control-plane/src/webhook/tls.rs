//! HTTPS with a certificate that changes while it serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::certificate::Material;

/// The API server is one client with a few connections, several API servers are a few clients.
const CONNECTIONS: usize = 256;
/// For a handshake and for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// For a question and its answer. A connection has one: any pod may open as many as there are, and one that is kept open
/// would be closed at a moment at which the API server asks.
const QUESTION: Duration = Duration::from_secs(15);
/// For what is asked when the process ends. The API server waits for 10 s by default.
const DRAIN: Duration = Duration::from_secs(10);
/// After a failed `accept`.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`, from the moment at which there is a certificate.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    mut certificates: watch::Receiver<Option<Material>>,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut acceptor: Option<TlsAcceptor> = None;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Ok(()) = certificates.changed() => {
                let material = certificates.borrow_and_update().clone();
                match material.as_ref().map(config) {
                    Some(Ok(config)) => acceptor = Some(TlsAcceptor::from(Arc::new(config))),
                    // What is in force goes on.
                    Some(Err(error)) => tracing::error!(%error, "the webhook's Secret has no certificate that can be used"),
                    None => {}
                }
                continue;
            }
            accepted = accept(&listener, &permits), if acceptor.is_some() => accepted,
        };
        let (Ok((permit, stream, remote)), Some(acceptor)) = (accepted, acceptor.clone()) else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (service, watcher) = (TowerToHyperService::new(router.clone()), graceful.watcher());
        tokio::spawn(async move {
            let _permit = permit;
            let stream = match tokio::time::timeout(HEAD, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%remote, %error, "no handshake"),
                Err(_) => return tracing::debug!(%remote, "no handshake in {HEAD:?}"),
            };
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(QUESTION, watcher.watch(connection)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%remote, %error, "connection ended early"),
                Err(_) => tracing::debug!(%remote, "no question in {QUESTION:?}"),
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!(after = ?DRAIN, "requests still under way are cut off");
    }
}

/// One connection more, once there is room for it; further ones wait in the kernel's backlog.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let permit = permits.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, remote) = listener.accept().await?;
    Ok((permit, stream, remote))
}

fn config(material: &Material) -> anyhow::Result<ServerConfig> {
    let chain =
        CertificateDer::pem_slice_iter(material.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(material.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_no_client_auth().with_single_cert(chain, key)?)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::certificate::issue;
    use super::*;

    #[tokio::test]
    async fn who_holds_all_connections_does_not_hold_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let made = issue(&["webhook.test".to_owned()], None, SystemTime::now()).unwrap();
        let (_certificates, mut in_use) = watch::channel(Some(made));
        in_use.mark_changed();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, Router::new(), in_use, stop.clone()));
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS + 2 {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.cancel();
        // Before any of them has been waited for.
        let ends = async {
            while TcpStream::connect(address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(HEAD / 2, ends).await.expect("nobody listens any more");
        serving.abort();
    }
}
