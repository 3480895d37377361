//! The stage machine: plain values and one function, [`step`]. It gives up nothing for convenience: a change
//! that would send more traffic to a pool without a healthy endpoint is refused unless forced, and going back
//! is never refused.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::migration::MigrationState;
use crate::objects::migration::MigrationSpec;

/// Where a migration stands. Ordered: a later stage sends at least as much traffic to the target.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Everything goes to the legacy pool; the target is only looked at.
    Observe,
    /// Requests that the migration's canary match names go to the target.
    Canary,
    /// A sticky share of the keys goes to the target, besides the canary.
    Split,
    /// Everything goes to the target; the legacy pool stands by.
    Cutover,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 4] = [Stage::Observe, Stage::Canary, Stage::Split, Stage::Cutover];

    /// The word used in files, on the command line and in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Observe => "observe",
            Stage::Canary => "canary",
            Stage::Split => "split",
            Stage::Cutover => "cutover",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Stage {
    type Err = UnknownStage;

    fn from_str(text: &str) -> Result<Stage, UnknownStage> {
        let wanted = text.trim();
        Stage::ALL
            .into_iter()
            .find(|stage| stage.as_str().eq_ignore_ascii_case(wanted))
            .ok_or_else(|| UnknownStage(wanted.to_owned()))
    }
}

/// A share of the keys in hundredths of a percent: 0 to 10000. In JSON a number.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    ToSchema,
)]
#[serde(try_from = "u32", into = "u32")]
#[schemars(with = "u32", extend("minimum" = 0, "maximum" = 10_000))]
#[schema(value_type = u32, maximum = 10000)]
pub struct Weight(u16);

impl Weight {
    /// Nobody.
    pub const ZERO: Weight = Weight(0);
    /// Everybody.
    pub const FULL: Weight = Weight(10_000);

    /// Hundredths of a percent.
    pub fn hundredths(self) -> u16 {
        self.0
    }

    /// The share, or the whole where `hundredths` is more than that.
    pub fn saturating(hundredths: u16) -> Weight {
        Weight(hundredths).min(Weight::FULL)
    }
}

impl TryFrom<u32> for Weight {
    type Error = NotAWeight;

    fn try_from(hundredths: u32) -> Result<Weight, NotAWeight> {
        u16::try_from(hundredths)
            .ok()
            .map(Weight)
            .filter(|weight| *weight <= Weight::FULL)
            .ok_or_else(|| NotAWeight(hundredths.to_string()))
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> u32 {
        u32::from(weight.0)
    }
}

/// As a percentage: `5%`, `0.25%`.
impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 100, self.0 % 100);
        let text = match part {
            0 => format!("{whole}%"),
            part if part % 10 == 0 => format!("{whole}.{}%", part / 10),
            part => format!("{whole}.{part:02}%"),
        };
        f.pad(&text)
    }
}

/// `5%`, `0.25%`, or hundredths of a percent without a sign: `500`.
impl FromStr for Weight {
    type Err = NotAWeight;

    fn from_str(text: &str) -> Result<Weight, NotAWeight> {
        let wrong = || NotAWeight(text.to_owned());
        let trimmed = text.trim();
        let Some(percent) = trimmed.strip_suffix('%') else {
            return digits(trimmed).and_then(|n| Weight::try_from(n).ok()).ok_or_else(wrong);
        };
        let (whole, part) = percent.trim_end().split_once('.').unwrap_or((percent.trim_end(), "0"));
        let hundredths = match part.len() {
            1 => digits(part).map(|n| n * 10),
            2 => digits(part),
            _ => None,
        };
        let (Some(whole), Some(hundredths)) = (digits(whole), hundredths) else { return Err(wrong()) };
        Weight::try_from(whole * 100 + hundredths).map_err(|_| wrong())
    }
}

/// At most five ASCII digits, so that the arithmetic after it cannot overflow.
fn digits(text: &str) -> Option<u32> {
    let plain = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// What a stage should have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a stage: use observe, canary, split or cutover")]
pub struct UnknownStage(String);

/// What a weight should have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a weight: use a percentage of at most two decimals (5%, 0.25%) or hundredths of a percent \
     from 0 to 10000 (500 is 5%)"
)]
pub struct NotAWeight(String);

/// A stage and the weight that belongs to it. The weight speaks in `split` only; it is kept in the other
/// stages, so that going on from a canary after a rollback needs no number from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Position {
    /// The stage.
    pub stage: Stage,
    /// The share of the keys that `split` sends to the target.
    pub weight: Weight,
}

impl Position {
    /// Where every migration may begin.
    pub const START: Position = Position { stage: Stage::Observe, weight: Weight::ZERO };

    /// Where the object's file says that the migration is.
    pub fn declared(spec: &MigrationSpec) -> Position {
        let weight = Weight::saturating(spec.weight.unwrap_or(0));
        Position { stage: spec.stage.unwrap_or(Stage::Observe), weight }
    }

    /// How much of the traffic the target sees, for comparing two positions: by stage, then in `split` by
    /// weight.
    fn exposure(self) -> (Stage, Weight) {
        let weight = if self.stage == Stage::Split { self.weight } else { Weight::ZERO };
        (self.stage, weight)
    }

    /// Whether `self` sends more traffic to the target than `other`.
    pub fn exposes_more_than(self, other: Position) -> bool {
        self.exposure() > other.exposure()
    }

    /// The share of the keys without a canary mark that goes to the target.
    pub fn target_share(self) -> Weight {
        match self.stage {
            Stage::Observe | Stage::Canary => Weight::ZERO,
            Stage::Split => self.weight,
            Stage::Cutover => Weight::FULL,
        }
    }
}

/// `split 5%`, `canary`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stage {
            Stage::Split => f.pad(&format!("split {}", self.weight)),
            stage => f.pad(stage.as_str()),
        }
    }
}

/// Everything that is kept of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct State {
    /// Grows by one with each change, from 1.
    pub revision: u64,
    /// Where it stands.
    pub position: Position,
    /// Where it stood before.
    pub previous: Option<Position>,
    /// Who made the last change.
    pub actor: String,
    /// Why, as they said.
    pub reason: Option<String>,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    /// What the object's file said when it was last obeyed: only a change of it acts.
    pub declared: Position,
}

/// A change somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// To any stage, in either direction.
    Set {
        /// Where to.
        stage: Stage,
        /// The weight; without one the present weight stays.
        weight: Option<Weight>,
    },
    /// To an earlier stage. Never refused for want of health.
    Rollback {
        /// Where to; without one to `observe`, which asks nothing of the target.
        to: Option<Stage>,
    },
    /// The object's file says something else than when it was last obeyed.
    Declared(Position),
}

/// A wish with its circumstances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What is wanted.
    pub change: Change,
    /// Who wants it.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// The revision that the wish was formed on; a different one refuses it.
    pub expected_revision: Option<u64>,
    /// Pass the guard on the target's health.
    pub force: bool,
}

/// What [`step`] must know of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// Endpoints of the legacy pool that would take traffic now. `None` where only a proxy can tell (a DNS
    /// name).
    pub legacy: Option<usize>,
    /// The same of the target pool.
    pub target: Option<usize>,
    /// Whether the object says what tells users apart.
    pub keyed: bool,
    /// Whether the object names a canary.
    pub canary: bool,
}

/// What [`step`] decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The new state; equal to the old one where nothing changes.
    pub state: State,
    /// Whether the position changed.
    pub moved: bool,
    /// Whether the guard was passed by force.
    pub forced: bool,
    /// What an operator should know, though it was done.
    pub warnings: Vec<String>,
}

/// Why a change was not made. The message says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Somebody else was faster.
    #[error(
        "the migration is at revision {current} ({position}), not at {expected}: look at it again \
         (`pontoon migration show`) and repeat the change with the revision seen"
    )]
    Conflict {
        /// What was expected.
        expected: u64,
        /// What is.
        current: u64,
        /// Where it stands.
        position: Position,
    },
    /// More traffic for a pool that cannot answer it.
    #[error(
        "{to} would send traffic to the target pool, of which no endpoint is healthy: start the target's \
         instances first, or repeat with --force (recorded in the audit log)"
    )]
    TargetUnhealthy {
        /// The position refused.
        to: Position,
    },
    /// Not back.
    #[error(
        "a rollback goes to an earlier stage than {from}: {wanted} is not; `pontoon migration set` goes on"
    )]
    NotEarlier {
        /// Where it stands.
        from: Position,
        /// The stage asked for.
        wanted: Stage,
    },
    /// Nothing tells users apart.
    #[error(
        "stage split needs to tell users apart, and the Migration has no spec.key: add a key (a header or a \
         cookie) to its file first"
    )]
    KeyMissing,
    /// `split` of nothing.
    #[error("stage split needs a weight: say --weight 5% (or 0.25%, or 500 hundredths of a percent)")]
    WeightMissing,
    /// A weight where none speaks.
    #[error("a weight belongs to stage split only, not to {0}: leave --weight out, or say --stage split")]
    WeightUnused(Stage),
}

impl Refusal {
    /// A stable word for logs and the API.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::Conflict { .. } => "revision_conflict",
            Refusal::TargetUnhealthy { .. } => "target_unhealthy",
            Refusal::NotEarlier { .. } => "not_earlier",
            Refusal::KeyMissing => "key_missing",
            Refusal::WeightMissing => "weight_missing",
            Refusal::WeightUnused(_) => "weight_unused",
        }
    }
}

/// The state of a migration seen for the first time: what its file says, whatever the pools' health, for there
/// is nothing to go on serving instead.
pub fn first(declared: Position, actor: String, at: Timestamp) -> State {
    State { revision: 1, position: declared, previous: None, actor, reason: None, at, declared }
}

/// Decides one change.
pub fn step(state: &State, order: Order, world: Circumstances, at: Timestamp) -> Result<Step, Refusal> {
    if let Some(expected) = order.expected_revision
        && expected != state.revision
    {
        return Err(Refusal::Conflict { expected, current: state.revision, position: state.position });
    }
    let from = state.position;
    let to = destination(from, &order.change)?;
    if to != from && to.stage == Stage::Split && !world.keyed {
        return Err(Refusal::KeyMissing);
    }
    let unhealthy = to.exposes_more_than(from) && world.target == Some(0);
    if unhealthy && !order.force {
        return Err(Refusal::TargetUnhealthy { to });
    }
    let declared = match order.change {
        Change::Declared(position) => position,
        Change::Set { .. } | Change::Rollback { .. } => state.declared,
    };
    let mut warnings = Vec::new();
    if unhealthy {
        warnings.push("no endpoint of the target pool is healthy".to_owned());
    }
    if from.exposes_more_than(to) && world.legacy == Some(0) {
        warnings
            .push("no endpoint of the legacy pool is healthy: what goes back to it finds nobody".to_owned());
    }
    if to.stage == Stage::Canary && !world.canary {
        warnings
            .push("the Migration names no canary (spec.canary), so nobody crosses at this stage".to_owned());
    }
    if to == from {
        return Ok(Step {
            state: State { declared, ..state.clone() },
            moved: false,
            forced: false,
            warnings,
        });
    }
    let state = State {
        revision: state.revision + 1,
        position: to,
        previous: Some(from),
        actor: order.actor,
        reason: order.reason,
        at,
        declared,
    };
    Ok(Step { state, moved: true, forced: unhealthy, warnings })
}

fn destination(from: Position, change: &Change) -> Result<Position, Refusal> {
    match *change {
        Change::Declared(position) => Ok(position),
        Change::Set { stage: Stage::Split, weight } => match weight {
            Some(weight) => Ok(Position { stage: Stage::Split, weight }),
            None if from.weight > Weight::ZERO => Ok(Position { stage: Stage::Split, ..from }),
            None => Err(Refusal::WeightMissing),
        },
        Change::Set { stage, weight: Some(_) } => Err(Refusal::WeightUnused(stage)),
        Change::Set { stage, weight: None } => Ok(Position { stage, ..from }),
        Change::Rollback { to } => {
            let wanted = to.unwrap_or(Stage::Observe);
            // The stage it stands at is no error: a rollback said twice is still a rollback.
            if wanted > from.stage {
                return Err(Refusal::NotEarlier { from, wanted });
            }
            Ok(Position { stage: wanted, ..from })
        }
    }
}

impl State {
    /// As the compiler reads it.
    pub fn in_model(&self) -> MigrationState {
        MigrationState {
            stage: self.position.stage,
            weight: self.position.weight.hundredths(),
            revision: self.revision,
            changed_at: self.at,
            changed_by: self.actor.clone(),
            reason: self.reason.clone().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
