//! What the API says and is told. The command line reads the same types.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::migration::audit::Entry;
use crate::migration::stage::{Position, Stage, Weight};

/// A migration and everything known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationView {
    /// `namespace/name`.
    pub name: String,
    /// The service it moves. None where the object is gone.
    pub service: Option<String>,
    /// The stage.
    pub stage: Stage,
    /// The share of the keys that `split` sends to the target; kept in other stages.
    pub weight: Weight,
    /// The share of the keys without a canary mark that goes to the target now.
    pub target_share: Weight,
    /// Grows by one with each change.
    pub revision: u64,
    /// Where it stood before the last change.
    pub previous: Option<Position>,
    /// Who made the last change.
    pub actor: String,
    /// Why, as they said.
    pub reason: Option<String>,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Whether its object is there. Where it is gone, the state is kept and no route follows it.
    pub object: bool,
    /// What its file asks for and is refused for now: done once nothing speaks against it.
    pub pending: Option<Pending>,
    /// Serves at `observe`.
    pub legacy: Option<PoolView>,
    /// Serves at `cutover`.
    pub target: Option<PoolView>,
    /// Whether proxies do what `stage` says.
    pub in_force: InForce,
}

impl MigrationView {
    /// Stage and weight as one.
    pub fn position(&self) -> Position {
        Position { stage: self.stage, weight: self.weight }
    }
}

/// A change of the file that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pending {
    /// What the file says.
    pub position: Position,
    /// Why it is refused.
    pub refusal: String,
}

/// One side of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// `eureka INVENTORY`, `pool default/inventory-new`.
    pub name: String,
    /// Endpoints that would take traffic now; none where only the proxies can tell (a DNS name).
    pub healthy: Option<usize>,
    /// Endpoints known; none where only the proxies can tell.
    pub known: Option<usize>,
}

/// How far a change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Every connected proxy that follows the routes concerned has acknowledged them.
    InForce,
    /// Some proxy has not acknowledged yet, or has refused.
    Waiting,
    /// No proxy that follows the routes concerned is connected.
    NoProxies,
    /// No route of any gateway refers to the migration.
    NoRoute,
}

/// Whether proxies do what the state says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InForce {
    /// How far.
    pub progress: Progress,
    /// The version of the configuration concerned: of one route configuration its xDS version, of several the
    /// hash of theirs.
    pub version: Option<String>,
    /// How long the last change took from its command to the last acknowledgement, in milliseconds. None while
    /// it waits, and for changes of an earlier run of the server.
    pub took_ms: Option<f64>,
    /// The route configurations concerned.
    pub routes: Vec<RouteVersion>,
}

/// One route configuration and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteVersion {
    /// The gateway, `namespace/name`: the xDS view.
    pub view: String,
    /// The route configuration's name.
    pub name: String,
    /// Its version, a hash of its content.
    pub version: String,
    /// The node ids of the proxies that have acknowledged it.
    pub acknowledged: Vec<String>,
    /// The proxies that have not: connected ones, and ones that broke off and are expected back.
    pub waiting: Vec<Straggler>,
    /// Those of the gateway, or of the namespace's sidecars, that broke off in the last 10 minutes and have not come back
    /// in time. They are not waited for, and serve what they had if they still do.
    #[serde(default)]
    pub lost: Vec<String>,
}

/// A proxy that has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Straggler {
    /// Its node id.
    pub node: String,
    /// What it refused and why, where it did.
    pub refused: Option<String>,
    /// Whether it is connected. A proxy that broke off serves what it had.
    pub connected: bool,
}

/// A change of stage or weight.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRequest {
    /// The new stage. May be left out where a weight is given: `split`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// The weight, for `split`, in hundredths of a percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// Why: kept in the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The revision the change was decided on: at any other it is refused with 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_revision: Option<u64>,
    /// Send traffic to a target without a healthy endpoint all the same.
    #[serde(default)]
    pub force: bool,
}

/// Back to an earlier stage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// The stage; `observe` where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Stage>,
    /// Why: kept in the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The revision the rollback was decided on: at any other it is refused with 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_revision: Option<u64>,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// Whether anything changed: asking for what is already so changes nothing.
    pub changed: bool,
    /// What an operator should know, though it was done.
    pub warnings: Vec<String>,
    /// The migration afterwards.
    pub migration: MigrationView,
}

/// How long an answer may wait.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Answer only once the migration is in force, or after this many milliseconds (at most 60000).
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

/// Which part of the audit log.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only entries with a greater number.
    #[serde(default)]
    pub after: u64,
    /// At most so many (1000 where left out, 10000 at most).
    #[serde(default)]
    pub limit: Option<usize>,
    /// Only entries of this migration, `namespace/name`.
    #[serde(default)]
    pub migration: Option<String>,
}

/// A part of the audit log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// Oldest first.
    pub entries: Vec<Entry>,
    /// The number to give as `after` for what follows.
    pub next: u64,
    /// What the check at the last start found wrong with the log, where it did.
    pub broken: Option<String>,
}

/// A connected proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProxyView {
    /// Its node id.
    pub node: String,
    /// Its node cluster: the gateway it serves, `namespace/name`.
    pub cluster: String,
    /// What it says it is.
    pub user_agent: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub connected_at: Timestamp,
    /// Whether there is no such gateway: it is told nothing until there is.
    pub unknown_gateway: bool,
    /// By resource type (`CDS`, `EDS`, `LDS`, `RDS`): what it follows.
    pub types: BTreeMap<String, ProxyType>,
}

/// What a proxy follows of one resource type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProxyType {
    /// Whether it follows all resources of its gateway.
    pub wildcard: bool,
    /// The names it follows one by one.
    pub names: Vec<String>,
    /// Whether it has acknowledged all that is published of what it follows.
    pub in_sync: bool,
    /// By resource: the version it has acknowledged.
    pub acknowledged: BTreeMap<String, String>,
    /// What of it is not as it should be.
    pub differs: Vec<Difference>,
    /// Its last refusal, while it stands.
    pub last_nack: Option<NackView>,
}

/// A resource of which a proxy has another version than is published, or that only one of the two has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// Its name.
    pub resource: String,
    /// The version that should be in force; none: it is to go.
    pub published: Option<String>,
    /// The version that is in force; none: it has not been taken yet.
    pub acknowledged: Option<String>,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NackView {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What the proxy said.
    pub message: String,
    /// The resources that were in the refused answer.
    pub resources: Vec<String>,
}

/// An object and what is to be said of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ObjectView {
    /// `Gateway`, `HTTPRoute`, `Migration`, `Pool`.
    pub kind: String,
    /// `namespace/name`.
    pub name: String,
    /// The file it was read from.
    pub file: Option<String>,
    /// Nothing wrong with it.
    pub ok: bool,
    /// What is to be said of it.
    pub messages: Vec<String>,
}

/// The objects, and what is wrong in their folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ObjectsView {
    /// In force.
    pub objects: Vec<ObjectView>,
    /// What is wrong in the folder, as `pontoon validate` says it: file, line, object, field, reason.
    pub problems: Vec<String>,
}

/// What the registry holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegistrySummary {
    /// By name, in upper case.
    pub applications: BTreeMap<String, ApplicationSummary>,
}

/// One Eureka application.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ApplicationSummary {
    /// Instances by status.
    pub instances: BTreeMap<String, usize>,
    /// Only expired leases are left, and they are kept: nobody said that they went.
    pub held: bool,
}

/// A request to explain.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// `http://host[:port]/path?query`.
    pub url: String,
    /// GET where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Header lines, in order.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The gateway, `namespace/name`. May be left out where there is one, or where `migration` is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Explain as to this migration, `namespace/name`: its gateway is taken, and the answer says its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<String>,
}

/// Why a request goes where it goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExplainResponse {
    /// The gateway whose configuration was asked.
    pub gateway: String,
    /// The serving code's own account.
    #[schema(value_type = Object)]
    pub explanation: serde_json::Value,
    /// The migrations that the chosen pool is a side of.
    pub migrations: Vec<ExplainedMigration>,
}

/// A migration that decided on a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExplainedMigration {
    /// The side that the request goes to.
    pub side: SplitSide,
    /// The migration as it stands.
    pub migration: MigrationView,
}

/// A side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SplitSide {
    /// The new pool.
    Target,
    /// The old one.
    Legacy,
}

/// Whether the process serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ready`, or what it waits for.
    pub status: String,
}
