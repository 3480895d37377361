//! Health, readiness and metrics: no token, no secrets.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};

use super::Api;
use super::problem::Problem;
use super::types::Health;
use crate::serve::metrics;

/// Whether the process runs.
#[utoipa::path(get, path = "/healthz", operation_id = "healthz", tag = "health",
    responses((status = 200, body = Health)))]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "alive".to_owned() })
}

/// Whether everything is loaded and the proxies are served.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "health",
    responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(super) async fn readyz(State(api): State<Api>) -> Response {
    if *api.inner.ready.borrow() {
        Json(Health { status: "ready".to_owned() }).into_response()
    } else {
        let health = Health { status: "still loading objects and registry".to_owned() };
        (StatusCode::SERVICE_UNAVAILABLE, Json(health)).into_response()
    }
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "health",
    responses((status = 200, body = String, content_type = "text/plain"), (status = 500, body = Problem)))]
pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let audit_ok = api.inner.audit_broken.is_none();
    let text = metrics::render(&api.world(), &api.inner.proxies, *api.inner.ready.borrow(), audit_ok)
        .map_err(|error| Problem::internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
