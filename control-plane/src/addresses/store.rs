//! Keeps the slots in the embedded database. Calls block on the disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::plan::{Changes, Row};

/// `namespace/service` to a [`Row`] as JSON.
const SLOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("virtual_addresses");

/// The table of slots. Clones share the database.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Database>,
}

/// The database did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing the file failed.
    #[error("the database: {0}; look at the free space and the permissions of the data folder")]
    Database(#[from] redb::Error),
    /// A row that this version does not understand. Passed over, it would be given to another service.
    #[error(
        "the virtual address of {service} in the database cannot be read: {source}; was it written by a newer version?"
    )]
    Row {
        /// `namespace/service`.
        service: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A row could not be written as JSON: ours to repair.
    #[error("a virtual address cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The thread that wrote ended early.
    #[error("the database: a write ended early: {0}")]
    Lost(String),
}

impl Store {
    /// Over an open database; the table is made as needed.
    pub fn new(database: Arc<Database>) -> Store {
        Store { database }
    }

    /// Everything kept.
    ///
    /// # Errors
    /// When the database or a row cannot be read.
    pub fn load(&self) -> Result<BTreeMap<Arc<str>, Row>, StoreError> {
        let write = self.database.begin_write().map_err(redb::Error::from)?;
        write.open_table(SLOTS).map_err(redb::Error::from)?;
        write.commit().map_err(redb::Error::from)?;
        let read = self.database.begin_read().map_err(redb::Error::from)?;
        let table = read.open_table(SLOTS).map_err(redb::Error::from)?;
        let mut rows = BTreeMap::new();
        for entry in table.iter().map_err(redb::Error::from)? {
            let (service, row) = entry.map_err(redb::Error::from)?;
            let service = service.value();
            let row = serde_json::from_slice(row.value())
                .map_err(|source| StoreError::Row { service: service.to_owned(), source })?;
            rows.insert(service.into(), row);
        }
        Ok(rows)
    }

    /// Writes changes, all or none, and waits for the disk.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn write(&self, changes: &Changes) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(redb::Error::from)?;
        {
            let mut table = write.open_table(SLOTS).map_err(redb::Error::from)?;
            for (service, row) in changes {
                match row {
                    Some(row) => {
                        let row = serde_json::to_vec(row)?;
                        table.insert(&**service, row.as_slice()).map_err(redb::Error::from)?;
                    }
                    None => {
                        table.remove(&**service).map_err(redb::Error::from)?;
                    }
                }
            }
        }
        write.commit().map_err(redb::Error::from)?;
        Ok(())
    }
}
