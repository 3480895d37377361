//! The HTTP API: what the command line speaks. Everything under `/api/` needs a token; health, metrics and the
//! OpenAPI document do not.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Extension, Router};
use http::StatusCode;
use tokio::sync::{mpsc, watch};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

use super::bridge::Command;
use super::world::{Proxies, World};
use crate::migration::keeper::Keeper;
use auth::Tokens;
use problem::{Json, Problem};

pub mod auth;
mod explain;
mod health;
mod look;
mod migrations;
pub mod problem;
pub mod types;

/// The largest body of a request. All of ours are small.
const BODY_BYTES: usize = 64 * 1024;
/// For one answer, besides waiting on purpose.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest wait on purpose (`wait_ms`).
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The content type of the audit log's stored lines.
pub const LINES: &str = "application/x-ndjson";

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    world: watch::Receiver<Arc<World>>,
    ready: watch::Receiver<bool>,
    commands: mpsc::Sender<Command>,
    proxies: Proxies,
    keeper: Keeper,
    tokens: Tokens,
    audit_broken: Option<String>,
}

impl Api {
    /// Over the running parts.
    pub fn new(
        world: watch::Receiver<Arc<World>>,
        ready: watch::Receiver<bool>,
        commands: mpsc::Sender<Command>,
        proxies: Proxies,
        keeper: Keeper,
        tokens: Tokens,
        audit_broken: Option<String>,
    ) -> Api {
        Api { inner: Arc::new(Inner { world, ready, commands, proxies, keeper, tokens, audit_broken }) }
    }

    /// All routes.
    pub fn router(self) -> Router {
        let of_world = Router::new()
            .route("/migrations", get(migrations::list))
            .route("/migrations/{namespace}/{name}", get(migrations::show))
            .route("/migrations/{namespace}/{name}/stage", put(migrations::set))
            .route("/migrations/{namespace}/{name}/rollback", post(migrations::rollback))
            .route("/explain", post(explain::explain))
            .route("/proxies", get(look::proxies))
            .route("/objects", get(look::objects))
            .layer(middleware::from_fn_with_state(self.clone(), loaded));
        let authenticated = of_world
            .route("/registry", get(look::registry))
            .route("/audit", get(look::audit))
            .layer(middleware::from_fn_with_state(self.clone(), authenticate));
        Self::open()
            .nest("/api/v1", authenticated)
            .route("/openapi.json", get(openapi))
            .fallback(no_such_path)
            .method_not_allowed_fallback(no_such_method)
            .layer(DefaultBodyLimit::max(BODY_BYTES))
            .layer(middleware::from_fn(in_time))
            .with_state(self)
    }

    /// Only what needs no token: health, readiness and metrics.
    pub fn health_router(self) -> Router {
        Self::open().layer(middleware::from_fn(in_time)).with_state(self)
    }

    fn open() -> Router<Api> {
        Router::new()
            .route("/healthz", get(health::healthz))
            .route("/readyz", get(health::readyz))
            .route("/metrics", get(health::metrics))
    }

    fn world(&self) -> Arc<World> {
        self.inner.world.borrow().clone()
    }
}

/// Lets in who shows a token.
async fn authenticate(State(api): State<Api>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let caller = api.inner.tokens.caller(request.headers())?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// Says of nothing that it is not there before all that is there is known.
async fn loaded(State(api): State<Api>, request: Request, next: Next) -> Result<Response, Problem> {
    if *api.inner.ready.borrow() {
        return Ok(next.run(request).await);
    }
    Err(Problem::busy("the control plane is still loading, or stopping; try again"))
}

/// Gives up on answers that do not come.
async fn in_time(request: Request, next: Next) -> Result<Response, Problem> {
    let limit = ANSWER_TIMEOUT + LONGEST_WAIT;
    tokio::time::timeout(limit, next.run(request)).await.map_err(|_| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", "the answer took too long; try again")
    })
}

async fn no_such_path() -> Problem {
    Problem::not_found("no_such_path", "there is nothing here; /openapi.json lists what there is")
}

async fn no_such_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "no_such_method",
        "this path knows other methods; /openapi.json lists them",
    )
}

async fn openapi() -> axum::Json<utoipa::openapi::OpenApi> {
    axum::Json(document())
}

/// The OpenAPI document of this API.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_default().add_security_scheme("token", bearer);
    document
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Pontoon", description = "The control plane's API. Errors are RFC 9457 problems."),
    paths(
        migrations::list,
        migrations::show,
        migrations::set,
        migrations::rollback,
        explain::explain,
        look::proxies,
        look::objects,
        look::registry,
        look::audit,
        health::healthz,
        health::readyz,
        health::metrics,
    )
)]
struct Document;

#[cfg(test)]
mod tests;

type Answer<T> = Result<axum::Json<T>, Problem>;
type Caller = Extension<auth::Caller>;
type Body<T> = Json<T>;
