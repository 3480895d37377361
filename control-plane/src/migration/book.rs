//! All migrations' states in memory, and what becomes of a command or of a changed file. It decides; the
//! caller writes each [`Draft`] to the ledger and only then lets the book [`apply`](Book::apply) it: what is
//! not on the disk is not in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use jiff::Timestamp;

use super::audit::{Action, Record};
use super::stage::{Change, Circumstances, Order, Position, Refusal, State, first, step};
use crate::model::migration::MigrationState;
use crate::objects::{ObjectName, Objects};

/// All states.
#[derive(Debug, Clone, Default)]
pub struct Book {
    states: BTreeMap<ObjectName, State>,
    pending: BTreeMap<ObjectName, (Position, Refusal)>,
    /// Which object of its name a state is of, where the objects' place keeps the states.
    uids: BTreeMap<ObjectName, Arc<str>>,
}

/// A change that was decided and is not written yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The migration.
    pub name: ObjectName,
    /// Its state afterwards.
    pub state: State,
    /// What the audit log is to say; none where the position stays.
    pub record: Option<Record>,
    /// What an operator should know, though it will be done.
    pub warnings: Vec<String>,
}

/// Why a command has no draft.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// No such migration.
    #[error("there is no Migration {0}: `pontoon migration list` shows those that there are")]
    Unknown(ObjectName),
    /// Its object was deleted.
    #[error("the object of Migration {0} is gone, so no route follows it: put its file back to move it")]
    ObjectGone(ObjectName),
    /// The stage machine says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Book {
    /// From the ledger's states.
    pub fn new(states: BTreeMap<ObjectName, State>) -> Book {
        Book { states, ..Book::default() }
    }

    /// The state of a migration.
    pub fn state(&self, name: &ObjectName) -> Option<&State> {
        self.states.get(name)
    }

    /// All states, by name. Includes those whose objects are gone.
    pub fn states(&self) -> &BTreeMap<ObjectName, State> {
        &self.states
    }

    /// What the migration's file asks for and is refused for now.
    pub fn pending(&self, name: &ObjectName) -> Option<&(Position, Refusal)> {
        self.pending.get(name)
    }

    /// As the compiler reads it.
    pub fn in_model(&self) -> BTreeMap<ObjectName, MigrationState> {
        self.states.iter().map(|(name, state)| (name.clone(), state.in_model())).collect()
    }

    /// Takes over what is kept with the objects: another replica may have made changes. What this one has just written
    /// may not be seen there yet, and counts. A state goes with its object.
    pub fn follow(&mut self, objects: &Objects, kept: &OrdMap<ObjectName, (Arc<str>, State)>) {
        self.states.retain(|name, _| objects.migrations.contains_key(name));
        self.uids.retain(|name, _| objects.migrations.contains_key(name));
        for (name, object) in &objects.migrations {
            let uid = object.metadata.uid.as_deref().unwrap_or_default();
            if self.uids.insert(name.clone(), uid.into()).is_some_and(|before| *before != *uid) {
                self.states.remove(name);
            }
            if let Some((of, state)) = kept.get(name)
                && **of == *uid
                && self.states.get(name).is_none_or(|known| known.revision <= state.revision)
            {
                self.states.insert(name.clone(), state.clone());
            }
        }
    }

    /// What the objects' files ask for and was not done yet: new migrations, and changes of stage or weight.
    /// What is refused is remembered as pending and asked for again each time.
    pub fn declarations(
        &mut self,
        objects: &Objects,
        actor: impl Fn(&ObjectName) -> String,
        world: impl Fn(&ObjectName) -> Circumstances,
        now: Timestamp,
    ) -> Vec<Draft> {
        self.pending.retain(|name, _| objects.migrations.contains_key(name));
        let mut drafts = Vec::new();
        for (name, object) in &objects.migrations {
            let declared = Position::declared(&object.spec);
            let actor = actor(name);
            let Some(state) = self.states.get(name) else {
                drafts.push(created(name.clone(), first(declared, actor, now)));
                continue;
            };
            if state.declared == declared {
                self.pending.remove(name);
                continue;
            }
            let order = Order {
                change: Change::Declared(declared),
                actor,
                reason: None,
                expected_revision: None,
                force: false,
            };
            match draft(name, state, order, Action::Declared, None, world(name), now) {
                Ok(draft) => drafts.push(draft),
                Err(refusal) => {
                    let known = self.pending.insert(name.clone(), (declared, refusal.clone()));
                    if known != Some((declared, refusal.clone())) {
                        tracing::warn!(migration = %name, position = %declared, %refusal, "the file's change waits");
                    }
                }
            }
        }
        drafts
    }

    /// What a command comes to. It also settles what the file asked for until now: a rollback is not undone by
    /// a change of the file that was waiting.
    pub fn order(
        &self,
        name: &ObjectName,
        order: Order,
        token: Option<String>,
        objects: &Objects,
        world: Circumstances,
        now: Timestamp,
    ) -> Result<Draft, OrderError> {
        let state = self.states.get(name).ok_or_else(|| OrderError::Unknown(name.clone()))?;
        let object = objects.migrations.get(name).ok_or_else(|| OrderError::ObjectGone(name.clone()))?;
        let action = match order.change {
            Change::Rollback { .. } => Action::Rollback,
            Change::Set { .. } | Change::Declared(_) => Action::Set,
        };
        let mut draft = draft(name, state, order, action, token, world, now)?;
        draft.state.declared = Position::declared(&object.spec);
        Ok(draft)
    }

    /// Takes over a draft that the ledger has.
    pub fn apply(&mut self, draft: &Draft) {
        self.pending.remove(&draft.name);
        self.states.insert(draft.name.clone(), draft.state.clone());
    }
}

fn created(name: ObjectName, state: State) -> Draft {
    let record = record(&name, &state, None, Action::Created, None, false);
    Draft { name, state, record: Some(record), warnings: Vec::new() }
}

fn draft(
    name: &ObjectName,
    state: &State,
    order: Order,
    action: Action,
    token: Option<String>,
    world: Circumstances,
    now: Timestamp,
) -> Result<Draft, Refusal> {
    let step = step(state, order, world, now)?;
    let record =
        step.moved.then(|| record(name, &step.state, Some(state.position), action, token, step.forced));
    Ok(Draft { name: name.clone(), state: step.state, record, warnings: step.warnings })
}

fn record(
    name: &ObjectName,
    state: &State,
    from: Option<Position>,
    action: Action,
    token: Option<String>,
    forced: bool,
) -> Record {
    Record {
        at: state.at,
        actor: state.actor.clone(),
        token,
        action,
        migration: name.to_string(),
        revision: state.revision,
        from,
        to: state.position,
        reason: state.reason.clone(),
        forced,
        config: None,
    }
}

#[cfg(test)]
mod tests;
