//! Eureka over HTTP: from a path to an operation, from the operation to the registry, and back in the format
//! that the client takes. Nothing is decided here that a client could not see.

pub(super) mod body;
mod format;
mod operation;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;

use self::operation::{Operation, Query};
use super::answers::{What, gzip};
use super::peers::{Deed, REPLICA};
use super::refusal::Refusal;
use super::state::NotRenewed;
use super::wire::incoming::Scalar;
use super::wire::json::{Batch, Replicated, Replied, Served};
use super::wire::{Detail, Format, Listed, ListedApplication, json, xml};
use super::{Eureka, now, page};
use crate::model::instance::InstanceStatus;

/// Below that, gzip makes an answer larger or saves nothing.
const GZIP_FROM_BYTES: usize = 512;

pub(super) fn router(eureka: Eureka) -> Router {
    Router::new()
        .route("/", any(front))
        .route("/lastn", any(lately))
        .route("/eureka", any(serve))
        .route("/eureka/", any(serve))
        .route("/eureka/{*rest}", any(serve))
        .with_state(eureka)
}

async fn front(State(eureka): State<Eureka>) -> Html<String> {
    Html(page::front(&eureka))
}

async fn lately(State(eureka): State<Eureka>) -> Html<String> {
    Html(page::lately(&eureka))
}

async fn serve(State(eureka): State<Eureka>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let answered = match operation::of(&head.method, head.uri.path()) {
        Ok(operation) => eureka.answer(operation, &head, body).await,
        Err(refusal) => Err(refusal),
    };
    let mut answer = answered.unwrap_or_else(|refusal| {
        eureka.counters().refused(&refusal);
        tracing::debug!(method = %head.method, path = head.uri.path(), %refusal, "refused");
        refusal.into_response()
    });
    answer.headers_mut().insert(REPLICA, eureka.shared.peers.replica.clone());
    answer
}

/// What the client takes, read once.
#[derive(Debug, Clone, Copy)]
struct Wants {
    format: Format,
    detail: Detail,
    gzip: bool,
}

impl Wants {
    fn of(head: &Parts) -> Result<Wants, Refusal> {
        let header = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        Ok(Wants {
            format: format::accepted(header(ACCEPT)).ok_or(Refusal::NotAcceptable)?,
            detail: match head.headers.get("x-eureka-accept") {
                Some(word) if word.as_bytes().eq_ignore_ascii_case(b"compact") => Detail::Compact,
                _ => Detail::Full,
            },
            gzip: format::takes_gzip(header(ACCEPT_ENCODING)),
        })
    }

    fn instance(self, status: StatusCode, of: &Listed) -> Result<Response, Refusal> {
        let body = match self.format {
            Format::Json => json::instance(of, self.detail)?,
            Format::Xml => xml::instance(of, self.detail),
        };
        self.body(status, body)
    }

    fn application(self, of: &ListedApplication) -> Result<Response, Refusal> {
        let body = match self.format {
            Format::Json => json::application(of, self.detail)?,
            Format::Xml => xml::application(of, self.detail),
        };
        self.body(StatusCode::OK, body)
    }

    fn body(self, status: StatusCode, plain: Vec<u8>) -> Result<Response, Refusal> {
        if !self.gzip || plain.len() < GZIP_FROM_BYTES {
            return Ok(self.respond(status, plain.into(), false));
        }
        let zipped = gzip(&plain).map_err(|error| Refusal::Encoding(error.to_string()))?;
        Ok(self.respond(status, zipped.into(), true))
    }

    fn respond(self, status: StatusCode, body: Bytes, zipped: bool) -> Response {
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.format.content_type()));
        headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding, x-eureka-accept"));
        if zipped {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

impl Eureka {
    async fn answer(&self, operation: Operation, head: &Parts, body: Body) -> Result<Response, Refusal> {
        let query = Query::of(&head.uri);
        let from_peer = head
            .headers
            .get("x-netflix-discovery-replication")
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"));
        // What a peer tells is not told on.
        let tell = |app: &str, id: &str, deed| {
            if !from_peer {
                self.tell(app, id, deed);
            }
        };
        match operation {
            Operation::Applications => self.fetch(What::Full, head).await,
            Operation::Delta => self.fetch(What::Delta, head).await,
            Operation::Application(app) => {
                let wants = Wants::of(head)?;
                let found = self.registry().application(&app);
                wants.application(&found.ok_or(Refusal::NotRegistered(app))?)
            }
            Operation::Instance(app, id) => {
                let wants = Wants::of(head)?;
                let found = self.registry().instance(&app, &id);
                wants.instance(
                    StatusCode::OK,
                    &found.ok_or_else(|| Refusal::NotRegistered(format!("{app}/{id}")))?,
                )
            }
            Operation::ById(id) => {
                let wants = Wants::of(head)?;
                let found = self.registry().by_id(&id);
                wants.instance(StatusCode::OK, &found.ok_or(Refusal::NotRegistered(id))?)
            }
            Operation::ByVip { name, secure } => {
                let wants = Wants::of(head)?;
                let listing = self.registry().by_vip(&name, secure);
                let body = match wants.format {
                    Format::Json => json::applications(&listing, wants.detail)?,
                    Format::Xml => xml::applications(&listing, wants.detail),
                };
                wants.body(StatusCode::OK, body)
            }
            Operation::Register(app) => self.register(app, from_peer, head, body).await,
            Operation::Renew(app, id) => {
                let dirty_ms = query.dirty_ms()?;
                let renewed =
                    self.change(|registry, now| registry.renew(&app, &id, dirty_ms, from_peer, now));
                self.counters().renewed(renewed.is_ok());
                match renewed {
                    Ok(()) => {
                        tell(&app, &id, Deed::Renew);
                        Ok(StatusCode::OK.into_response())
                    }
                    Err(NotRenewed::Unknown) => Err(Refusal::NotRegistered(format!("{app}/{id}"))),
                    Err(NotRenewed::Conflict(ours)) => Wants::of(head)?.instance(StatusCode::CONFLICT, &ours),
                }
            }
            Operation::Cancel(app, id) => {
                let revision = self.change(|registry, now| registry.cancel(&app, &id, now))?;
                self.counters().cancelled();
                tell(&app, &id, Deed::Cancel);
                self.done(revision, StatusCode::OK).await
            }
            Operation::SetOverride(app, id) => {
                let status = query.status()?.ok_or(Refusal::Missing("value"))?;
                let dirty_ms = query.dirty_ms()?;
                let revision =
                    self.change(|registry, now| registry.set_override(&app, &id, status, dirty_ms, now))?;
                tell(&app, &id, Deed::Override(status));
                self.done(revision, StatusCode::OK).await
            }
            Operation::DeleteOverride(app, id) => {
                let (value, dirty_ms) = (query.status()?, query.dirty_ms()?);
                let revision =
                    self.change(|registry, now| registry.delete_override(&app, &id, value, dirty_ms, now))?;
                tell(&app, &id, Deed::EndOverride(value));
                self.done(revision, StatusCode::OK).await
            }
            Operation::MergeMetadata(app, id) => {
                let revision =
                    self.change(|registry, now| registry.merge_metadata(&app, &id, query.0, now))?;
                tell(&app, &id, Deed::Register);
                self.done(revision, StatusCode::OK).await
            }
            Operation::Batch => self.batch(head, body).await,
            Operation::Status => Ok(axum::Json(page::status(self)).into_response()),
            Operation::Lately => Ok(Html(page::lately(self)).into_response()),
        }
    }

    async fn fetch(&self, what: What, head: &Parts) -> Result<Response, Refusal> {
        let wants = Wants::of(head)?;
        // Clients keep the list that they have; replicas that start together copy each other.
        if !self.has_joined() && !head.headers.contains_key(REPLICA) {
            return Err(Refusal::Joining);
        }
        match what {
            What::Full => self.counters().fetched_full(),
            What::Delta => self.counters().fetched_delta(),
        }
        let revision = self.registry().revision();
        let listing = || match what {
            What::Full => Some(self.registry().full()),
            What::Delta => self.registry().delta(now()),
        };
        let encoded = self.shared.answers.get(what, wants.format, wants.detail, revision, listing).await?;
        let body = if wants.gzip { encoded.gzip } else { encoded.plain };
        Ok(wants.respond(StatusCode::OK, body, wants.gzip))
    }

    async fn register(
        &self,
        app: String,
        from_peer: bool,
        head: &Parts,
        body: Body,
    ) -> Result<Response, Refusal> {
        let format = format::of_body(&head.headers)?;
        let body = body::read(&head.headers, body, self.shared.options.body_bytes, &self.shared.large_bodies)
            .await?;
        let info = match format {
            Format::Json => json::read_instance(&body)?,
            Format::Xml => xml::read_instance(&body)?,
        };
        if *info.app != *app {
            return Err(Refusal::Mismatched { path: app, body: info.app.to_string() });
        }
        let (app, id) = (info.app.clone(), info.id.clone());
        let revision = self.change(|registry, now| registry.register(info, from_peer, now))?;
        self.counters().registered();
        if !from_peer {
            self.tell(&app, &id, Deed::Register);
        }
        self.done(revision, StatusCode::NO_CONTENT).await
    }

    async fn done(&self, revision: u64, status: StatusCode) -> Result<Response, Refusal> {
        self.durable(revision).await;
        Ok(status.into_response())
    }

    async fn batch(&self, head: &Parts, body: Body) -> Result<Response, Refusal> {
        if format::of_body(&head.headers)? != Format::Json {
            return Err(Refusal::MediaType);
        }
        let body =
            body::read(&head.headers, body, self.shared.options.batch_bytes, &self.shared.large_bodies)
                .await?;
        let Batch { replication_list } = json::read_batch(&body)?;
        let outcomes: Vec<(StatusCode, Option<Box<Listed>>)> =
            replication_list.into_iter().map(|item| self.replicate(item)).collect();
        let revision = self.registry().revision();
        self.durable(revision).await;
        let replies: Vec<Replied<'_>> = outcomes
            .iter()
            .map(|(status, ours)| Replied {
                status_code: status.as_u16(),
                response_entity: ours.as_deref().map(|listed| Served::new(listed, Detail::Full)),
            })
            .collect();
        let wants = Wants { format: Format::Json, detail: Detail::Full, gzip: false };
        wants.body(StatusCode::OK, json::replies(&replies)?)
    }

    /// One item of a peer's batch, answered as the single call would be.
    fn replicate(&self, item: Replicated) -> (StatusCode, Option<Box<Listed>>) {
        self.counters().replicated();
        match self.apply(item) {
            Ok(ours) if ours.is_some() => (StatusCode::CONFLICT, ours),
            Ok(_) => (StatusCode::OK, None),
            Err(refusal) => {
                self.counters().refused(&refusal);
                (refusal.status(), None)
            }
        }
    }

    fn apply(&self, item: Replicated) -> Result<Option<Box<Listed>>, Refusal> {
        let word =
            |value: Scalar, name| value.0.filter(|word| !word.is_empty()).ok_or(Refusal::Missing(name));
        let action = word(item.action, "action")?;
        let status = operation::status(item.status.0.as_deref())?;
        let dirty_ms = operation::dirty_ms(item.last_dirty_timestamp.0.as_deref())?;
        if action == "Register" {
            let info = item.instance_info.ok_or(Refusal::Missing("instanceInfo"))?.check()?;
            self.change(|registry, now| registry.register(info, true, now))?;
            return Ok(None);
        }
        let app = word(item.app_name, "appName")?.to_uppercase();
        let id = word(item.id, "id")?;
        let unknown = || Refusal::NotRegistered(format!("{app}/{id}"));
        self.change(|registry, now| match action.as_str() {
            "Heartbeat" => match registry.renew(&app, &id, dirty_ms, true, now) {
                Ok(()) => Ok(None),
                Err(NotRenewed::Unknown) => Err(unknown()),
                Err(NotRenewed::Conflict(ours)) => Ok(Some(ours)),
            },
            "Cancel" => registry.cancel(&app, &id, now).map(|_| None),
            "StatusUpdate" => {
                let status = status.ok_or(Refusal::Missing("status"))?;
                registry.set_override(&app, &id, status, dirty_ms, now).map(|_| None)
            }
            "DeleteStatusOverride" => {
                // A peer names the status that is left; it knows no "not said".
                let status = status.filter(|status| *status != InstanceStatus::Unknown);
                registry.delete_override(&app, &id, status, dirty_ms, now).map(|_| None)
            }
            _ => Err(Refusal::invalid("action", "is none that is known here")),
        })
    }
}
