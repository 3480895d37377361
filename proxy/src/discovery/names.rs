//! Which names a sidecar is subscribed to, and what is known of each: bookkeeping without I/O, driven by requests,
//! by what the store says, and by a given `now`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::on_demand::{Ask, Known, Limits, Name, OnDemand, Reply, State};
use crate::config::listener::RouteHandle;
use crate::config::virtual_address::VirtualAddress;
use crate::error::Error;

/// What the store has of a name.
#[derive(Debug, Clone)]
pub(crate) enum Lookup {
    /// Its routes are in force; and what it resolves to.
    Routes(Arc<RouteHandle>, Option<Arc<VirtualAddress>>),
    /// It exists, and resolves to this; not all that belongs to it has arrived.
    Arriving(Option<Arc<VirtualAddress>>),
    /// Its listener was refused, and there is no earlier one.
    Refused,
    /// Not arrived.
    Pending,
}

/// All names of a sidecar.
#[derive(Debug)]
pub(super) struct Names {
    shared: Arc<OnDemand>,
    entries: HashMap<Arc<str>, Entry>,
    /// When there was last no control plane that could have told a name again: idle time begins then.
    away: u32,
}

#[derive(Debug)]
enum Entry {
    /// Asked for, not answered, or only that it exists.
    Pending { since: Instant, waiters: Vec<Reply>, exists: Option<Arc<Name>> },
    /// Answered.
    Known(Arc<Name>),
}

impl Names {
    pub(super) fn new(shared: Arc<OnDemand>) -> Self {
        Self { shared, entries: HashMap::new(), away: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn limits(&self) -> Limits {
        self.shared.limits()
    }

    /// A request wants a name. Says whether the name is new.
    pub(super) fn ask(&mut self, ask: Ask, now: Instant) -> bool {
        match self.entries.get_mut(&ask.name) {
            Some(Entry::Known(name)) => {
                // It was answered while the question was under way.
                ask.reply.answer(name);
                false
            }
            Some(Entry::Pending { waiters, exists, .. }) => {
                match (exists, ask.reply) {
                    (Some(name), reply @ Reply::Address(_)) => reply.answer(name),
                    (_, reply) => {
                        waiters.retain(|waiter| !waiter.is_closed());
                        waiters.push(reply);
                    }
                }
                false
            }
            None => {
                if self.entries.len() >= self.shared.limits().max_names && !self.make_room() {
                    ask.reply.refuse(Error::TooManyNames);
                    return false;
                }
                self.entries
                    .insert(ask.name, Entry::Pending { since: now, waiters: vec![ask.reply], exists: None });
                true
            }
        }
    }

    /// Drops the name that nobody serves and that was asked for least recently.
    fn make_room(&mut self) -> bool {
        let absent = self.entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Known(name) if matches!(name.state, State::None(_)) => Some((name.used(), key)),
            _ => None,
        });
        let Some(oldest) = absent.min().map(|(_, key)| key.clone()) else { return false };
        self.entries.remove(&oldest);
        true
    }

    /// The control plane says that these do not exist.
    pub(super) fn removed(&mut self, gone: &[Arc<str>], now: Instant) {
        for key in gone {
            if self.entries.contains_key(key) {
                self.shared.told_absence();
                self.know(key, State::None(Error::UnknownName), None, now);
            }
        }
    }

    /// Brings what is known in line with what the store has.
    pub(super) fn settle(&mut self, now: Instant, lookup: impl Fn(&str) -> Lookup) {
        let keys: Vec<Arc<str>> = self.entries.keys().cloned().collect();
        for key in keys {
            match lookup(&key) {
                Lookup::Routes(handle, address) => {
                    let same = matches!(self.entries.get(&key), Some(Entry::Known(name))
                        if name.address == address
                            && matches!(&name.state, State::Routes(before) if Arc::ptr_eq(before, &handle)));
                    if !same {
                        self.know(&key, State::Routes(handle), address, now);
                    }
                }
                Lookup::Arriving(address) => self.exists(&key, address, now),
                Lookup::Refused if matches!(self.entries.get(&key), Some(Entry::Pending { .. })) => {
                    self.know(&key, State::None(Error::NameRefused), None, now);
                }
                Lookup::Refused | Lookup::Pending => {}
            }
        }
        self.share();
    }

    fn know(&mut self, key: &Arc<str>, state: State, address: Option<Arc<VirtualAddress>>, now: Instant) {
        let used = match self.entries.get(key) {
            Some(Entry::Known(name) | Entry::Pending { exists: Some(name), .. }) => name.used(),
            _ => self.shared.second(now),
        };
        let name = Name::new(state, address, used);
        let before = self.entries.insert(key.clone(), Entry::Known(name.clone()));
        if let Some(Entry::Pending { waiters, .. }) = before {
            waiters.into_iter().for_each(|waiter| waiter.answer(&name));
        }
    }

    /// A name's listener is there, and its routes are not yet: who wants no more than its address need not wait.
    fn exists(&mut self, key: &Arc<str>, address: Option<Arc<VirtualAddress>>, now: Instant) {
        let second = self.shared.second(now);
        let Some(Entry::Pending { waiters, exists, .. }) = self.entries.get_mut(key) else { return };
        let used = exists.as_ref().map_or(second, |name| name.used());
        if exists.as_ref().is_some_and(|name| name.address == address) {
            return;
        }
        let name = Name::new(State::Arriving, address, used);
        for waiter in std::mem::take(waiters) {
            match waiter {
                Reply::Address(_) => waiter.answer(&name),
                Reply::Table(_) => waiters.push(waiter),
            }
        }
        *exists = Some(name);
    }

    /// Drops what nobody has asked for in a while; gives those names. While there is no control plane all that is known
    /// stays.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<Arc<str>> {
        let limits = self.shared.limits();
        let second = self.shared.second(now);
        if !self.shared.is_connected() {
            self.away = second;
        }
        let age = |name: &Name| Duration::from_secs(second.saturating_sub(name.used().max(self.away)).into());
        let is_over = |entry: &Entry| match entry {
            Entry::Known(name) => match name.state {
                State::Routes(_) | State::Arriving => age(name) >= limits.idle,
                State::None(_) => age(name) >= limits.absent,
            },
            Entry::Pending { since, waiters, .. } => {
                waiters.iter().all(Reply::is_closed) && now.duration_since(*since) >= limits.absent
            }
        };
        let over: Vec<Arc<str>> =
            self.entries.iter().filter(|(_, entry)| is_over(entry)).map(|(key, _)| key.clone()).collect();
        for key in &over {
            self.entries.remove(key);
        }
        if !over.is_empty() {
            self.share();
        }
        over
    }

    /// Whether the control plane says that there is no such name.
    pub(super) fn is_absent(&self, key: &str) -> bool {
        matches!(self.entries.get(key), Some(Entry::Known(name)) if matches!(name.state, State::None(Error::UnknownName)))
    }

    /// What to subscribe to.
    pub(super) fn wanted(&self) -> BTreeSet<Arc<str>> {
        self.entries.keys().cloned().collect()
    }

    fn share(&self) {
        let known = self.entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Known(name) => Some((key.clone(), name.clone())),
            Entry::Pending { exists, .. } => Some((key.clone(), exists.clone()?)),
        });
        self.shared.put(Known::new(known.collect()));
    }
}

#[cfg(test)]
mod tests;
