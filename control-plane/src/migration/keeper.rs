//! Where states and their history are kept: in the embedded database, or in Kubernetes in the status of the `Migration`
//! itself. There every replica can carry out a command: what it writes names the version that it was decided on, so
//! of two at once one is refused.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::audit::{self, Entry, Head};
use super::book::Draft;
use super::ledger::{Ledger, LedgerError};
use super::stage::State;
use crate::objects::kubernetes::Observations;
use crate::objects::kubernetes::store::STATE;
use crate::objects::{Kind, ObjectName};

/// The field of the status that has the history's last lines, as they were hashed.
pub const HISTORY: &str = "history";
/// Lines that are kept of one migration. All of them are in the log (target `audit`).
const HISTORY_LINES: usize = 20;
/// Who writes states, as server-side apply names it; conditions are written under another name.
const FIELD_MANAGER: &str = "pontoon-state";
/// For a change to be written. The proxies' updates wait for it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Times that a write is tried which crossed another: a status that was just being written.
const TRIES: usize = 3;

/// The place that keeps states.
#[derive(Debug, Clone)]
pub enum Keeper {
    /// The embedded database.
    Database(Ledger),
    /// The API server.
    Kubernetes(Statuses),
}

/// The statuses of migrations.
#[derive(Clone)]
pub struct Statuses {
    client: Client,
    observations: watch::Receiver<Observations>,
}

impl std::fmt::Debug for Statuses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Statuses").finish_non_exhaustive()
    }
}

impl Keeper {
    /// In the API server.
    pub fn in_kubernetes(client: Client, observations: watch::Receiver<Observations>) -> Keeper {
        Keeper::Kubernetes(Statuses { client, observations })
    }

    /// Writes a decided change down, with its entry in the history where it has one.
    ///
    /// # Errors
    /// When it is not written: then it did not happen.
    pub async fn write(&self, draft: Draft) -> Result<Option<Entry>, LedgerError> {
        match self {
            Keeper::Database(ledger) => {
                let ledger = ledger.clone();
                let written = tokio::task::spawn_blocking(move || {
                    let name = draft.name.to_string();
                    match draft.record {
                        Some(record) => ledger.commit(&name, &draft.state, record).map(Some),
                        None => ledger.put(&name, &draft.state).map(|()| None),
                    }
                });
                written.await.map_err(|error| LedgerError::Lost(error.to_string()))?
            }
            Keeper::Kubernetes(statuses) => {
                let written = tokio::time::timeout(PATIENCE, statuses.write(draft)).await;
                written.unwrap_or_else(|_| Err(LedgerError::Unanswered(PATIENCE)))
            }
        }
    }

    /// Lines of the history, oldest first: those from number `first` on, at most `limit`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn lines(&self, first: u64, limit: usize) -> Result<Vec<String>, LedgerError> {
        match self {
            Keeper::Database(ledger) => {
                let ledger = ledger.clone();
                let lines = tokio::task::spawn_blocking(move || ledger.lines(first..=u64::MAX, limit));
                lines.await.map_err(|error| LedgerError::Lost(error.to_string()))?
            }
            Keeper::Kubernetes(statuses) => {
                let skipped = usize::try_from(first.saturating_sub(1)).unwrap_or(usize::MAX);
                Ok(statuses.history().into_iter().skip(skipped).take(limit).collect())
            }
        }
    }
}

impl Statuses {
    /// The histories of all migrations, by time.
    fn history(&self) -> Vec<String> {
        let observations = self.observations.borrow().clone();
        let of_migrations = observations.iter().filter(|(object, _)| object.kind == Kind::Migration);
        let mut lines: Vec<(Entry, String)> = of_migrations
            .flat_map(|(_, observation)| lines_of(&observation.status))
            .filter_map(|line| Some((serde_json::from_str(&line).ok()?, line)))
            .collect();
        lines.sort_by(|(a, _), (b, _)| (a.at, &a.migration, a.seq).cmp(&(b.at, &b.migration, b.seq)));
        lines.into_iter().map(|(_, line)| line).collect()
    }

    async fn write(&self, draft: Draft) -> Result<Option<Entry>, LedgerError> {
        let api = migrations(&self.client, &draft.name);
        let mut last = None;
        for _ in 0..TRIES {
            match self.try_to_write(&api, &draft).await {
                Err(LedgerError::Kubernetes(kube::Error::Api(status))) if status.code == 409 => {
                    last = Some(LedgerError::Kubernetes(kube::Error::Api(status)));
                }
                written => return written,
            }
        }
        Err(last.unwrap_or_else(|| LedgerError::Lost("it was not tried".to_owned())))
    }

    async fn try_to_write(
        &self,
        api: &Api<DynamicObject>,
        draft: &Draft,
    ) -> Result<Option<Entry>, LedgerError> {
        let object = api.get(&draft.name.name).await?;
        let status = object.data.get("status").cloned().unwrap_or_default();
        let found = match status.get(STATE).cloned().map(serde_json::from_value::<State>).transpose() {
            Ok(state) => state.map_or(0, |state| state.revision),
            Err(source) => return Err(LedgerError::State { name: draft.name.to_string(), source }),
        };
        let expected = draft.state.revision.saturating_sub(u64::from(draft.record.is_some()));
        if found != expected {
            return Err(LedgerError::Overtaken { expected, found });
        }
        let mut lines = lines_of(&status);
        let entry = match draft.record.clone() {
            None => None,
            Some(record) => {
                // A history that was cut off by hand begins anew.
                let last = lines.last().and_then(|line| serde_json::from_str::<Entry>(line).ok());
                let head = last.map_or_else(Head::default, |last| Head { seq: last.seq, hash: last.hash });
                let (line, entry) = audit::append(&head, record)?;
                lines.push(line);
                Some(entry)
            }
        };
        let kept = lines.len().saturating_sub(HISTORY_LINES);
        let patch = json!({
            "apiVersion": Kind::Migration.api_version(),
            "kind": Kind::Migration.as_str(),
            "metadata": {
                "name": &*draft.name.name,
                "namespace": &*draft.name.namespace,
                "uid": object.metadata.uid,
                "resourceVersion": object.metadata.resource_version,
            },
            "status": { STATE: draft.state, HISTORY: lines.get(kept..).unwrap_or_default() },
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        api.patch_status(&draft.name.name, &parameters, &Patch::Apply(patch)).await?;
        Ok(entry)
    }
}

fn lines_of(status: &Json) -> Vec<String> {
    let lines = status.get(HISTORY).and_then(Json::as_array);
    lines.into_iter().flatten().filter_map(|line| line.as_str().map(str::to_owned)).collect()
}

fn migrations(client: &Client, name: &ObjectName) -> Api<DynamicObject> {
    let (group, version) = Kind::Migration.api_version().split_once('/').unwrap_or_default();
    let gvk = GroupVersionKind::gvk(group, version, Kind::Migration.as_str());
    let resource = ApiResource::from_gvk_with_plural(&gvk, &Kind::Migration.plural());
    Api::namespaced_with(client.clone(), &name.namespace, &resource)
}
