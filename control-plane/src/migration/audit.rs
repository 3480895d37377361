//! The audit log's form: one JSON object a line, each holding the hash of the one before it, so that a line
//! changed, removed or put in between shows. What a chain cannot show is a tail cut off or a log rewritten as
//! a whole: whoever must prove that ships the lines elsewhere (they are logged under the target `audit` too).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::stage::Position;

/// The `previous` of the first entry.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What closes a line, before the 64 hex digits.
const HASH_FIELD: &str = r#","hash":""#;
const HASH_DIGITS: usize = 64;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The object was seen for the first time.
    Created,
    /// Set by command.
    Set,
    /// Rolled back by command.
    Rollback,
    /// The object's file changed.
    Declared,
}

/// What an entry says, before it has its place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When.
    pub at: Timestamp,
    /// Who, as they name themselves; `file:<name>` for a change of the object's file.
    pub actor: String,
    /// The name of the API token that was shown, where one was.
    pub token: Option<String>,
    /// What.
    pub action: Action,
    /// The migration, `namespace/name`.
    pub migration: String,
    /// Its revision after the change.
    pub revision: u64,
    /// Where it stood.
    pub from: Option<Position>,
    /// Where it stands.
    pub to: Position,
    /// Why, as they said.
    pub reason: Option<String>,
    /// Whether the guard on the target's health was passed by force.
    pub forced: bool,
    /// The xDS version of the configuration that carries the change; none while no route refers to the
    /// migration.
    pub config: Option<String>,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// From 1, without gaps.
    pub seq: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Who, as they name themselves; `file:<name>` for a change of the object's file.
    pub actor: String,
    /// The name of the API token that was shown, where one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// What.
    pub action: Action,
    /// The migration, `namespace/name`.
    pub migration: String,
    /// Its revision after the change.
    pub revision: u64,
    /// Where it stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Position>,
    /// Where it stands.
    pub to: Position,
    /// Why, as they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the guard on the target's health was passed by force.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
    /// The xDS version of the configuration that carries the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// The hash of the entry before.
    pub previous: String,
    /// SHA-256 (hex) of this line up to, not including, `,"hash"`.
    pub hash: String,
}

/// Where the chain ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The last entry's number; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Head {
        Head { seq: 0, hash: GENESIS.to_owned() }
    }
}

/// Why a log is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the audit log is broken at entry {seq}: {problem}; entries from there on prove nothing, compare them with \
     an exported copy"
)]
pub struct Broken {
    /// The first entry that does not fit.
    pub seq: u64,
    /// What does not fit.
    pub problem: &'static str,
}

/// Gives `record` its place after `head`: the line to store and its entry.
pub fn append(head: &Head, record: Record) -> Result<(String, Entry), serde_json::Error> {
    let mut entry = Entry {
        seq: head.seq + 1,
        at: record.at,
        actor: record.actor,
        token: record.token,
        action: record.action,
        migration: record.migration,
        revision: record.revision,
        from: record.from,
        to: record.to,
        reason: record.reason,
        forced: record.forced,
        config: record.config,
        previous: head.hash.clone(),
        hash: String::new(),
    };
    // The last field is the hash and is empty as yet: what stands before it is what it covers.
    let unhashed = serde_json::to_string(&entry)?;
    let covered = unhashed.strip_suffix("\"}").and_then(|s| s.strip_suffix(HASH_FIELD)).unwrap_or(&unhashed);
    entry.hash = digest(covered);
    Ok((serde_json::to_string(&entry)?, entry))
}

/// Checks that `line` follows `head`, and gives the head after it.
pub fn verify(head: &Head, line: &str) -> Result<Head, Broken> {
    let seq = head.seq + 1;
    let broken = |problem| Broken { seq, problem };
    let (covered, rest) = line.rsplit_once(HASH_FIELD).ok_or(broken("it has no hash"))?;
    let hash = rest.strip_suffix("\"}").filter(|h| h.len() == HASH_DIGITS).ok_or(broken("it has no hash"))?;
    if digest(covered) != hash {
        return Err(broken("its text is not what was hashed"));
    }
    let entry: Entry = serde_json::from_str(line).map_err(|_| broken("it is not an entry"))?;
    if entry.seq != seq {
        return Err(broken("an entry before it is missing"));
    }
    if entry.previous != head.hash {
        return Err(broken("it does not follow the entry before it"));
    }
    Ok(Head { seq, hash: hash.to_owned() })
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
