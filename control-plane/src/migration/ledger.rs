//! Keeps migrations' states and the audit log in the embedded database. A change and its entry are one
//! transaction: neither is ever there without the other. Calls block on the disk; the caller sees to it that
//! they run where blocking is allowed.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::audit::{self, Broken, Entry, Head, Record};
use super::stage::State;

/// `namespace/name` to a [`State`] as JSON.
const STATES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("migration_states");
/// Sequence number to the entry's line.
const AUDIT: TableDefinition<'_, u64, &str> = TableDefinition::new("audit");

/// The durable part of the migrations. Clones share the database.
#[derive(Debug, Clone)]
pub struct Ledger {
    database: Arc<Database>,
}

/// What a start finds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// By `namespace/name`.
    pub states: BTreeMap<String, State>,
    /// The log's fault, where it has one. Serving goes on: a control plane that refuses to start helps nobody.
    pub broken: Option<Broken>,
    /// How many entries the log has.
    pub entries: u64,
}

/// The database did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Reading or writing the file failed.
    #[error("the database: {0}; look at the free space and the permissions of the data folder")]
    Database(#[from] redb::Error),
    /// A state that this version does not understand.
    #[error(
        "the state of migration {name} in the database cannot be read: {source}; was it written by a newer version?"
    )]
    State {
        /// `namespace/name`.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The thread that wrote ended early.
    #[error("the database: a write ended early: {0}")]
    Lost(String),
    /// The API server did not do as told.
    #[error("the API server: {0}; look at its state and at this program's permissions on migrations/status")]
    Kubernetes(#[from] kube::Error),
    /// The API server did not answer.
    #[error("the API server did not answer within {0:?}; try again")]
    Unanswered(std::time::Duration),
    /// Another replica made a change that this one has not seen yet.
    #[error(
        "the migration is at revision {found} by now, and this was decided on {expected}; look, and try again"
    )]
    Overtaken {
        /// What this replica knows.
        expected: u64,
        /// What is kept.
        found: u64,
    },
    /// A state or an entry that is not JSON: ours to repair.
    #[error("an audit entry cannot be written or read as JSON: {0}")]
    Entry(#[from] serde_json::Error),
}

impl Ledger {
    /// Over an open database; its tables are made as needed.
    pub fn new(database: Arc<Database>) -> Ledger {
        Ledger { database }
    }

    /// Everything kept, and whether the log is whole.
    pub fn load(&self) -> Result<Loaded, LedgerError> {
        let write = self.database.begin_write().map_err(redb::Error::from)?;
        write.open_table(STATES).map_err(redb::Error::from)?;
        write.open_table(AUDIT).map_err(redb::Error::from)?;
        write.commit().map_err(redb::Error::from)?;

        let read = self.database.begin_read().map_err(redb::Error::from)?;
        let mut loaded = Loaded::default();
        for row in read.open_table(STATES).map_err(redb::Error::from)?.iter().map_err(redb::Error::from)? {
            let (name, state) = row.map_err(redb::Error::from)?;
            let name = name.value().to_owned();
            let state = serde_json::from_slice(state.value())
                .map_err(|source| LedgerError::State { name: name.clone(), source })?;
            loaded.states.insert(name, state);
        }
        let mut head = Head::default();
        for row in read.open_table(AUDIT).map_err(redb::Error::from)?.iter().map_err(redb::Error::from)? {
            let (seq, line) = row.map_err(redb::Error::from)?;
            loaded.entries = seq.value();
            match audit::verify(&head, line.value()) {
                Ok(next) => head = next,
                Err(broken) => {
                    loaded.broken.get_or_insert(broken);
                }
            }
        }
        Ok(loaded)
    }

    /// Writes a state and its audit entry, both or neither, and waits for the disk.
    pub fn commit(&self, name: &str, state: &State, record: Record) -> Result<Entry, LedgerError> {
        let write = self.database.begin_write().map_err(redb::Error::from)?;
        let entry = {
            let mut states = write.open_table(STATES).map_err(redb::Error::from)?;
            let body = serde_json::to_vec(state)?;
            states.insert(name, body.as_slice()).map_err(redb::Error::from)?;
            let mut log = write.open_table(AUDIT).map_err(redb::Error::from)?;
            let head = head(&log)?;
            let (line, entry) = audit::append(&head, record)?;
            log.insert(entry.seq, line.as_str()).map_err(redb::Error::from)?;
            entry
        };
        write.commit().map_err(redb::Error::from)?;
        Ok(entry)
    }

    /// Writes a state that differs in nothing that the log speaks of.
    pub fn put(&self, name: &str, state: &State) -> Result<(), LedgerError> {
        let write = self.database.begin_write().map_err(redb::Error::from)?;
        let body = serde_json::to_vec(state)?;
        write
            .open_table(STATES)
            .map_err(redb::Error::from)?
            .insert(name, body.as_slice())
            .map_err(redb::Error::from)?;
        write.commit().map_err(redb::Error::from)?;
        Ok(())
    }

    /// The lines with these sequence numbers, at most `limit`, oldest first, as they were written.
    pub fn lines(&self, range: RangeInclusive<u64>, limit: usize) -> Result<Vec<String>, LedgerError> {
        let read = self.database.begin_read().map_err(redb::Error::from)?;
        let log = read.open_table(AUDIT).map_err(redb::Error::from)?;
        let mut lines = Vec::new();
        for row in log.range(range).map_err(redb::Error::from)?.take(limit) {
            lines.push(row.map_err(redb::Error::from)?.1.value().to_owned());
        }
        Ok(lines)
    }

    /// The number of the last entry; 0 before the first.
    pub fn last(&self) -> Result<u64, LedgerError> {
        let read = self.database.begin_read().map_err(redb::Error::from)?;
        let log = read.open_table(AUDIT).map_err(redb::Error::from)?;
        Ok(log.last().map_err(redb::Error::from)?.map_or(0, |(seq, _)| seq.value()))
    }
}

fn head(log: &impl ReadableTable<u64, &'static str>) -> Result<Head, LedgerError> {
    let Some((seq, line)) = log.last().map_err(redb::Error::from)? else { return Ok(Head::default()) };
    let last: Entry = serde_json::from_str(line.value())?;
    Ok(Head { seq: seq.value(), hash: last.hash })
}

#[cfg(test)]
mod tests;
