//! Keeps the registry in the embedded database, so that a restart forgets nobody. Renewals are not written:
//! after a start every lease begins anew anyway. Calls block on the disk.

use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::state::{Batch, Stored};

/// `APP`, a NUL, the instance id (neither holds a NUL) to a [`Stored`] as JSON.
const INSTANCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("eureka_instances");

/// The table of instances.
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
    /// An instance could not be written as JSON: ours to repair.
    #[error("an instance cannot be written as JSON: {0}")]
    Instance(#[from] serde_json::Error),
}

impl Store {
    /// Over an open database; the table is made as needed.
    pub fn new(database: Arc<Database>) -> Store {
        Store { database }
    }

    /// Everything kept. A row that cannot be read is reported and passed over: its client registers again.
    pub fn load(&self) -> Result<Vec<Stored>, StoreError> {
        let write = self.database.begin_write().map_err(redb::Error::from)?;
        write.open_table(INSTANCES).map_err(redb::Error::from)?;
        write.commit().map_err(redb::Error::from)?;
        let read = self.database.begin_read().map_err(redb::Error::from)?;
        let table = read.open_table(INSTANCES).map_err(redb::Error::from)?;
        let mut stored = Vec::new();
        for row in table.iter().map_err(redb::Error::from)? {
            let (key, value) = row.map_err(redb::Error::from)?;
            match serde_json::from_slice(value.value()) {
                Ok(one) => stored.push(one),
                Err(error) => tracing::warn!(
                    instance = %key.value().replace('\0', "/"), %error,
                    "a stored instance cannot be read; was it written by a newer version?"
                ),
            }
        }
        Ok(stored)
    }

    /// Writes a batch whole and waits for the disk.
    pub fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(redb::Error::from)?;
        {
            let mut table = write.open_table(INSTANCES).map_err(redb::Error::from)?;
            if batch.rewrite {
                table.retain(|_, _| false).map_err(redb::Error::from)?;
            }
            for ((app, id), stored) in &batch.writes {
                let key = format!("{app}\0{id}");
                match stored {
                    Some(stored) => {
                        let value = serde_json::to_vec(stored)?;
                        table.insert(key.as_str(), value.as_slice()).map_err(redb::Error::from)?;
                    }
                    None => {
                        table.remove(key.as_str()).map_err(redb::Error::from)?;
                    }
                }
            }
        }
        write.commit().map_err(redb::Error::from)?;
        Ok(())
    }
}
