//! Endpoints that only look: proxies, objects, registry, audit log.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};

use super::problem::{Problem, Query};
use super::types::{AuditPage, AuditQuery, ObjectsView, ProxyView, RegistrySummary};
use super::{Api, LINES};
use crate::migration::audit::Entry;

/// Entries of an answer, where the request does not say.
const DEFAULT_ENTRIES: usize = 1_000;
/// Entries of an answer at most.
const MOST_ENTRIES: usize = 10_000;

/// The connected proxies: what each follows, what it has acknowledged, what it refused.
#[utoipa::path(
    get, path = "/api/v1/proxies", operation_id = "listProxies", tag = "look",
    responses((status = 200, body = [ProxyView]), (status = 401, body = Problem)),
    security(("token" = []))
)]
pub(super) async fn proxies(State(api): State<Api>) -> Json<Vec<ProxyView>> {
    let mut proxies = api.inner.proxies.views();
    proxies.sort_by(|a, b| (&a.cluster, &a.node).cmp(&(&b.cluster, &b.node)));
    Json(proxies)
}

/// The objects being served, what is to be said of each, and the files that are refused.
#[utoipa::path(
    get, path = "/api/v1/objects", operation_id = "listObjects", tag = "look",
    responses((status = 200, body = ObjectsView), (status = 401, body = Problem)),
    security(("token" = []))
)]
pub(super) async fn objects(State(api): State<Api>) -> Json<ObjectsView> {
    Json(api.world().objects(&api.inner.proxies))
}

/// What is registered: applications and how many instances of each are in which status.
#[utoipa::path(
    get, path = "/api/v1/registry", operation_id = "showRegistry", tag = "look",
    responses((status = 200, body = RegistrySummary), (status = 401, body = Problem)),
    security(("token" = []))
)]
pub(super) async fn registry(State(api): State<Api>) -> Json<RegistrySummary> {
    Json(api.world().registry())
}

/// The audit log, oldest first. With `Accept: application/x-ndjson`, the lines as they are stored, whose hashes
/// can be checked.
#[utoipa::path(
    get, path = "/api/v1/audit", operation_id = "readAudit", tag = "look", params(AuditQuery),
    responses(
        (status = 200, content((AuditPage = "application/json"), (String = "application/x-ndjson"))),
        (status = 400, body = Problem), (status = 401, body = Problem)
    ),
    security(("token" = []))
)]
pub(super) async fn audit(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(query): Query<AuditQuery>,
) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(DEFAULT_ENTRIES).clamp(1, MOST_ENTRIES);
    let first = query.after.saturating_add(1);
    let lines = api.inner.keeper.lines(first, limit).await;
    let lines = lines.map_err(|error| Problem::internal(error.to_string()))?;
    let as_lines = headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes() == LINES.as_bytes());
    if as_lines {
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        return Ok(([(header::CONTENT_TYPE, LINES)], text).into_response());
    }
    let entries: Vec<Entry> =
        lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>().map_err(|error| {
            Problem::internal(format!("an entry of the audit log cannot be read: {error}"))
        })?;
    let next = entries.last().map_or(query.after, |entry| entry.seq);
    let wanted = |entry: &Entry| query.migration.as_ref().is_none_or(|name| *name == entry.migration);
    let entries = entries.into_iter().filter(wanted).collect();
    Ok(Json(AuditPage { entries, next, broken: api.inner.audit_broken.clone() }).into_response())
}
