//! Which proxies there are, kept over a restart: one that has not come back yet serves what it had, and a change
//! is not in force before it has the new state or has stayed away for too long.

use std::collections::BTreeSet;
use std::sync::Arc;

use pontoon_xds::server::{Client, Server};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio_util::sync::CancellationToken;

/// View and node id of each.
const PROXIES: TableDefinition<'_, (&str, &str), ()> = TableDefinition::new("proxies");

/// The durable list.
#[derive(Debug, Clone)]
pub struct Roster {
    database: Arc<Database>,
}

impl Roster {
    /// Over an open database; its table is made as needed.
    pub fn new(database: Arc<Database>) -> Roster {
        Roster { database }
    }

    /// The proxies known when it was last written.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn load(&self) -> Result<BTreeSet<Client>, redb::Error> {
        let write = self.database.begin_write()?;
        write.open_table(PROXIES)?;
        write.commit()?;
        let mut known = BTreeSet::new();
        for row in self.database.begin_read()?.open_table(PROXIES)?.iter()? {
            let (key, ()) = (row?.0, ());
            let (view, node) = key.value();
            known.insert(Client { view: view.to_owned(), node: node.to_owned() });
        }
        Ok(known)
    }

    fn change(&self, before: &BTreeSet<Client>, after: &BTreeSet<Client>) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(PROXIES)?;
            for client in before.difference(after) {
                table.remove((client.view.as_str(), client.node.as_str()))?;
            }
            for client in after.difference(before) {
                table.insert((client.view.as_str(), client.node.as_str()), ())?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Keeps the list true until `stop`, and gives up on those who stay away. `kept` is what the database holds.
    pub async fn follow(self, server: Server, mut kept: BTreeSet<Client>, stop: CancellationToken) {
        let mut members = server.members();
        let mut lost: BTreeSet<Client> = BTreeSet::new();
        loop {
            members.borrow_and_update();
            for client in server.give_up() {
                tracing::warn!(
                    node = client.node,
                    view = client.view,
                    "a proxy has not come back; changes no longer wait for it"
                );
            }
            let known = server.known();
            let now_lost = |client: &&Client| server.snapshot(&client.view).is_none();
            let now_lost: BTreeSet<Client> = known.iter().filter(now_lost).cloned().collect();
            for Client { node, view } in now_lost.difference(&lost) {
                tracing::warn!(
                    node,
                    gateway = view,
                    "a proxy serves a gateway that does not exist; it gets nothing"
                );
            }
            lost = now_lost;
            if known != kept {
                let (this, before, after) = (self.clone(), kept.clone(), known.clone());
                match tokio::task::spawn_blocking(move || this.change(&before, &after)).await {
                    Ok(Ok(())) => kept = known,
                    // Tried again with the next change; it matters after a restart only.
                    Ok(Err(error)) => tracing::error!(%error, "the list of proxies cannot be written"),
                    Err(error) => tracing::error!(%error, "writing the list of proxies ended early"),
                }
            }
            let overdue = async {
                match server.overdue_at() {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = members.changed() => if changed.is_err() { return },
                () = overdue => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_known_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state.redb");
        let client = |node: &str| Client { view: "default/edge".into(), node: node.into() };
        {
            let roster = Roster::new(Arc::new(Database::create(&file).unwrap()));
            assert_eq!(roster.load().unwrap(), BTreeSet::new());
            let two = BTreeSet::from([client("a"), client("b")]);
            roster.change(&BTreeSet::new(), &two).unwrap();
            roster.change(&two, &BTreeSet::from([client("b"), client("c")])).unwrap();
        }
        let roster = Roster::new(Arc::new(Database::create(&file).unwrap()));
        assert_eq!(roster.load().unwrap(), BTreeSet::from([client("b"), client("c")]));
    }
}
