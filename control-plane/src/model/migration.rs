//! Where a migration is. The stage machine (`crate::migration`) decides on it and keeps it; the compiler only
//! reads it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::objects::migration::MigrationSpec;
pub use crate::objects::migration::{Stage, WHOLE};

/// The stage and weight of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationState {
    /// The stage in force.
    pub stage: Stage,
    /// The target's share in stage `split`, in hundredths of a percent, 0 to [`WHOLE`]. Kept, but not in
    /// force, in the other stages.
    pub weight: u16,
    /// Counts the changes; 0 is a migration that was never changed.
    pub revision: u64,
    /// When it was last changed.
    pub changed_at: Timestamp,
    /// Who changed it, as the API knows them.
    pub changed_by: String,
    /// Why, in the words of who changed it.
    pub reason: String,
}

impl MigrationState {
    /// Where a migration starts that was never changed.
    pub fn initial(spec: &MigrationSpec) -> Self {
        Self {
            stage: spec.stage.unwrap_or(Stage::Observe),
            weight: spec.weight.unwrap_or(0).min(WHOLE),
            revision: 0,
            changed_at: Timestamp::UNIX_EPOCH,
            changed_by: String::new(),
            reason: String::new(),
        }
    }

    /// The target's share of users who match no canary, in hundredths of a percent.
    pub fn target_weight(&self) -> u16 {
        match self.stage {
            Stage::Observe | Stage::Canary => 0,
            Stage::Split => self.weight.min(WHOLE),
            Stage::Cutover => WHOLE,
        }
    }

    /// Whether users who match a canary go to the target.
    pub fn canary_in_force(&self) -> bool {
        self.stage >= Stage::Canary
    }
}
