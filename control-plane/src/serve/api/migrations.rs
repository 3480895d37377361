//! Migrations: look, wait, move.

use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::problem::{Path, Problem, Query};
use super::types::{Changed, MigrationView, Progress, RollbackRequest, SetRequest, WaitQuery};
use super::{ANSWER_TIMEOUT, Answer, Api, Body, Caller, LONGEST_WAIT};
use crate::migration::book::OrderError;
use crate::migration::stage::{Change, Order, Stage};
use crate::objects::ObjectName;
use crate::serve::bridge::{Command, CommandError};

/// Characters of a reason that are kept.
const LONGEST_REASON: usize = 1024;

/// All migrations, by name.
#[utoipa::path(
    get, path = "/api/v1/migrations", operation_id = "listMigrations", tag = "migrations",
    responses((status = 200, body = [MigrationView]), (status = 401, body = Problem)),
    security(("token" = []))
)]
pub(super) async fn list(State(api): State<Api>) -> Json<Vec<MigrationView>> {
    Json(api.world().migrations(&api.inner.proxies))
}

/// One migration. With `wait_ms`, once it is in force.
#[utoipa::path(
    get, path = "/api/v1/migrations/{namespace}/{name}", operation_id = "showMigration", tag = "migrations",
    params(("namespace" = String, Path), ("name" = String, Path), WaitQuery),
    responses(
        (status = 200, body = MigrationView), (status = 401, body = Problem), (status = 404, body = Problem)
    ),
    security(("token" = []))
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<WaitQuery>,
) -> Answer<MigrationView> {
    let name = ObjectName::new(namespace, name);
    let wait = Duration::from_millis(query.wait_ms.unwrap_or(0)).min(LONGEST_WAIT);
    let deadline = Instant::now() + wait;
    // Marked as seen before each look, so that what comes during the look ends the wait.
    let mut world = api.inner.world.clone();
    let mut proxies = api.inner.proxies.server.changes();
    loop {
        let now = world.borrow_and_update().clone();
        proxies.borrow_and_update();
        let view = now.migration(&name, &api.inner.proxies).ok_or_else(|| unknown(&name))?;
        if view.in_force.progress != Progress::Waiting {
            return Ok(Json(view));
        }
        tokio::select! {
            Ok(()) = world.changed() => {}
            Ok(()) = proxies.changed() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(Json(view)),
        }
    }
}

/// Moves a migration to a stage. The answer comes once the change is made and published; `in_force` says how
/// far it has come, and `GET` with `wait_ms` waits for the rest.
#[utoipa::path(
    put, path = "/api/v1/migrations/{namespace}/{name}/stage", operation_id = "setMigration",
    tag = "migrations", params(("namespace" = String, Path), ("name" = String, Path)), request_body = SetRequest,
    responses(
        (status = 200, body = Changed), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)
    ),
    security(("token" = []))
)]
pub(super) async fn set(
    State(api): State<Api>,
    Extension(caller): Caller,
    Path((namespace, name)): Path<(String, String)>,
    body: Body<SetRequest>,
) -> Answer<Changed> {
    let SetRequest { stage, weight, reason, expected_revision, force } = body.0;
    let stage = match (stage, weight) {
        (Some(stage), _) => stage,
        (None, Some(_)) => Stage::Split,
        (None, None) => return Err(Problem::bad_request("say a stage, or a weight for stage split")),
    };
    let change = Change::Set { stage, weight };
    let order = Order { change, actor: caller.actor.clone(), reason, expected_revision, force };
    change_it(&api, ObjectName::new(namespace, name), order, caller.token).await
}

/// Takes a migration back to an earlier stage. Never refused for want of health.
#[utoipa::path(
    post, path = "/api/v1/migrations/{namespace}/{name}/rollback", operation_id = "rollbackMigration",
    tag = "migrations", params(("namespace" = String, Path), ("name" = String, Path)),
    request_body = RollbackRequest,
    responses(
        (status = 200, body = Changed), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 404, body = Problem), (status = 409, body = Problem), (status = 503, body = Problem)
    ),
    security(("token" = []))
)]
pub(super) async fn rollback(
    State(api): State<Api>,
    Extension(caller): Caller,
    Path((namespace, name)): Path<(String, String)>,
    body: Body<RollbackRequest>,
) -> Answer<Changed> {
    let RollbackRequest { to, reason, expected_revision } = body.0;
    let change = Change::Rollback { to };
    let order = Order { change, actor: caller.actor.clone(), reason, expected_revision, force: false };
    change_it(&api, ObjectName::new(namespace, name), order, caller.token).await
}

async fn change_it(api: &Api, name: ObjectName, order: Order, token: String) -> Answer<Changed> {
    if order.reason.as_ref().is_some_and(|reason| reason.chars().count() > LONGEST_REASON) {
        return Err(Problem::bad_request(format!("the reason is longer than {LONGEST_REASON} characters")));
    }
    let (reply, answer) = oneshot::channel();
    let command = Command { name: name.clone(), order, token: Some(token), at: Instant::now(), reply };
    api.inner.commands.try_send(command).map_err(|error| match error {
        TrySendError::Full(_) => Problem::busy("too many changes wait; try again"),
        TrySendError::Closed(_) => Problem::busy("the control plane is stopping"),
    })?;
    let done = tokio::time::timeout(ANSWER_TIMEOUT, answer)
        .await
        .map_err(|_| {
            Problem::busy("the change takes too long; look whether it was made before trying again")
        })?
        .map_err(|_| Problem::busy("the control plane is stopping"))?
        .map_err(problem)?;
    let view = api.world().migration(&name, &api.inner.proxies).ok_or_else(|| unknown(&name))?;
    Ok(Json(Changed { changed: done.changed, warnings: done.warnings, migration: view }))
}

fn problem(error: CommandError) -> Problem {
    match error {
        CommandError::Order(OrderError::Unknown(name)) => unknown(&name),
        CommandError::Order(error @ OrderError::ObjectGone(_)) => {
            Problem::new(StatusCode::CONFLICT, "object_gone", error.to_string())
        }
        CommandError::Order(OrderError::Refused(refusal)) => refusal.into(),
        error @ (CommandError::Ledger(_) | CommandError::Compiler) => Problem::internal(error.to_string()),
    }
}

pub(super) fn unknown(name: &ObjectName) -> Problem {
    Problem::not_found("no_such_migration", OrderError::Unknown(name.clone()).to_string())
}
