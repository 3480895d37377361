//! HTTPS with a certificate that changes while it serves.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::certificate::Material;

/// The API server is one client with a few connections, several API servers are a few clients.
const CONNECTIONS: usize = 256;
/// For a handshake and for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
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
            accepted = listener.accept(), if acceptor.is_some() => accepted,
        };
        let (Ok((stream, remote)), Some(acceptor)) = (accepted, acceptor.clone()) else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
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
                .header_read_timeout(Duration::from_secs(120))
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%remote, %error, "connection ended early");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!(after = ?DRAIN, "requests still under way are cut off");
    }
}

fn config(material: &Material) -> anyhow::Result<ServerConfig> {
    let chain =
        CertificateDer::pem_slice_iter(material.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(material.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_no_client_auth().with_single_cert(chain, key)?)
}
