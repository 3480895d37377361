//! What the API server calls: HTTPS with a certificate that we issue and renew ourselves ([`certificate`]). All
//! replicas serve with the one that is in a Secret; whichever finds it due renews it ([`keeper`]), and the API server
//! is told whom to believe in the webhooks' configuration. Nothing here needs the rest of the control plane.

pub mod certificate;
mod keeper;
mod tls;
mod validate;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::inject::{Settings, review};
pub use keeper::Names;

/// An object is 1.5 MiB at most, which is what etcd takes; a review of a change has two of them and a few lines.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// What a webhook is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the API server calls.
    pub listen: SocketAddr,
    /// How it is called, and where its certificate is kept.
    pub names: Names,
    /// What pods are given.
    pub settings: Settings,
}

/// Why a webhook does not start.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The port is taken, or the address is not ours.
    #[error("cannot listen on {address}: {source}; say another address with --listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no cluster.
    #[error("no Kubernetes cluster is known: {0}; set KUBECONFIG, or run in a pod with a service account")]
    Cluster(#[source] kube::Error),
}

/// Serves until `stop`. The API server is asked for the certificate until it gives it: a webhook does not end because
/// that is away.
///
/// # Errors
/// When it cannot begin.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), WebhookError> {
    let Options { listen: address, names, settings } = options;
    let listen = |source| WebhookError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let client = kube::Client::try_default().await.map_err(WebhookError::Cluster)?;
    let (certificate, in_use) = tokio::sync::watch::channel(None);
    let keeping = tokio::spawn(keeper::keep(client, names, certificate, stop.clone()));
    let router = router(settings);
    tracing::info!(%address, "webhook starts");
    tls::serve(listener, router, in_use, stop).await;
    // It ends by the same word.
    let _ = keeping.await;
    Ok(())
}

fn router(settings: Settings) -> Router {
    Router::new()
        .route("/inject", post(inject))
        .route("/validate", post(validate))
        // Whoever has come so far has met a certificate.
        .route("/ready", get(|| async { "READY\n" }))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(settings))
}

async fn inject(State(settings): State<Arc<Settings>>, body: Bytes) -> Response {
    answered(&body, |review| {
        let answer = review::answer(review, &settings)?;
        let request = &review["request"];
        tracing::info!(
            namespace = request["namespace"].as_str(),
            pod = request["object"]["metadata"]["name"].as_str(),
            generate_name = request["object"]["metadata"]["generateName"].as_str(),
            injected = answer["response"].get("patch").is_some(),
            refused = answer["response"]["status"]["message"].as_str(),
            "asked about a pod"
        );
        Some(answer)
    })
}

async fn validate(body: Bytes) -> Response {
    answered(&body, |review| {
        let answer = validate::answer(review)?;
        let request = &review["request"];
        tracing::info!(
            kind = request["kind"]["kind"].as_str(),
            namespace = request["namespace"].as_str(),
            name = request["name"].as_str(),
            refused = answer["response"]["status"]["message"].as_str(),
            "asked about an object"
        );
        Some(answer)
    })
}

fn answered(body: &[u8], answer: impl FnOnce(&Value) -> Option<Value>) -> Response {
    let review: Value = match serde_json::from_slice(body) {
        Ok(review) => review,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("not JSON: {error}\n")).into_response(),
    };
    match answer(&review) {
        Some(answer) => axum::Json(answer).into_response(),
        None => (StatusCode::BAD_REQUEST, "expected an AdmissionReview with a request\n").into_response(),
    }
}
