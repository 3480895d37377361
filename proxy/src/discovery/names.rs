//! Which names a sidecar is subscribed to, and what is known of each: bookkeeping without I/O, driven by requests,
//! by what the store says, and by a given `now`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::on_demand::{Ask, Limits, Name, OnDemand, State};
use crate::config::listener::RouteHandle;
use crate::error::Error;
use crate::route::RouteTable;

/// What the store has of a name.
#[derive(Debug, Clone)]
pub(crate) enum Lookup {
    /// Its routes are in force.
    Routes(Arc<RouteHandle>),
    /// Its listener was refused, and there is no earlier one.
    Refused,
    /// Not arrived, or not all that belongs to it.
    Pending,
}

/// All names of a sidecar.
#[derive(Debug)]
pub(super) struct Names {
    shared: Arc<OnDemand>,
    entries: HashMap<Arc<str>, Entry>,
}

#[derive(Debug)]
enum Entry {
    /// Asked for, not answered.
    Pending { since: Instant, waiters: Vec<oneshot::Sender<Result<Arc<RouteTable>, Error>>> },
    /// Answered.
    Known(Arc<Name>),
}

impl Names {
    pub(super) fn new(shared: Arc<OnDemand>) -> Self {
        Self { shared, entries: HashMap::new() }
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
                let answer = match &name.state {
                    State::Routes(handle) => handle.table.load_full().ok_or(Error::NameTimeout),
                    State::None(error) => Err(*error),
                };
                // Whoever asked may have gone; so below.
                let _ = ask.reply.send(answer);
                false
            }
            Some(Entry::Pending { waiters, .. }) => {
                waiters.retain(|waiter| !waiter.is_closed());
                waiters.push(ask.reply);
                false
            }
            None => {
                if self.entries.len() >= self.shared.limits().max_names && !self.make_room() {
                    let _ = ask.reply.send(Err(Error::TooManyNames));
                    return false;
                }
                self.entries.insert(ask.name, Entry::Pending { since: now, waiters: vec![ask.reply] });
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
                self.know(key, State::None(Error::UnknownName), now);
            }
        }
    }

    /// Brings what is known in line with what the store has.
    pub(super) fn settle(&mut self, now: Instant, lookup: impl Fn(&str) -> Lookup) {
        let keys: Vec<Arc<str>> = self.entries.keys().cloned().collect();
        for key in keys {
            match lookup(&key) {
                Lookup::Routes(handle) => {
                    let same = matches!(self.entries.get(&key), Some(Entry::Known(name))
                        if matches!(&name.state, State::Routes(before) if Arc::ptr_eq(before, &handle)));
                    if !same {
                        self.know(&key, State::Routes(handle), now);
                    }
                }
                Lookup::Refused if matches!(self.entries.get(&key), Some(Entry::Pending { .. })) => {
                    self.know(&key, State::None(Error::NameRefused), now);
                }
                Lookup::Refused | Lookup::Pending => {}
            }
        }
        self.share();
    }

    fn know(&mut self, key: &Arc<str>, state: State, now: Instant) {
        let second = self.shared.second(now);
        let used = match self.entries.get(key) {
            Some(Entry::Known(name)) => name.used(),
            _ => second,
        };
        let before = self.entries.insert(key.clone(), Entry::Known(Name::new(state.clone(), used)));
        if let Some(Entry::Pending { waiters, .. }) = before {
            for waiter in waiters {
                let answer = match &state {
                    State::Routes(handle) => handle.table.load_full().ok_or(Error::NameTimeout),
                    State::None(error) => Err(*error),
                };
                let _ = waiter.send(answer);
            }
        }
    }

    /// Drops what nobody has asked for in a while; gives those names.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<Arc<str>> {
        let limits = self.shared.limits();
        let second = self.shared.second(now);
        let age = |name: &Name| Duration::from_secs(second.saturating_sub(name.used()).into());
        let is_over = |entry: &Entry| match entry {
            Entry::Known(name) => match name.state {
                State::Routes(_) => age(name) >= limits.idle,
                State::None(_) => age(name) >= limits.absent,
            },
            Entry::Pending { since, waiters } => {
                waiters.iter().all(oneshot::Sender::is_closed) && now.duration_since(*since) >= limits.absent
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

    /// What to subscribe to.
    pub(super) fn wanted(&self) -> BTreeSet<Arc<str>> {
        self.entries.keys().cloned().collect()
    }

    fn share(&self) {
        let known = self.entries.iter().filter_map(|(key, entry)| match entry {
            Entry::Known(name) => Some((key.clone(), name.clone())),
            Entry::Pending { .. } => None,
        });
        self.shared.put(known.collect());
    }
}

#[cfg(test)]
mod tests;
