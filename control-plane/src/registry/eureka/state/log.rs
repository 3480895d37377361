//! What changed lately: each instance once, with what was last done to it. Bounded; when a flood of changes
//! pushes out what is not yet old, no delta is given until that has passed, and clients fetch everything.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::registry::eureka::wire::Listed;

/// Changes kept. A delta of more would be larger than most registries.
pub(super) const CAPACITY: usize = 20_000;
/// What they may take in memory: a change of a large instance keeps its old form alive.
const CAPACITY_BYTES: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct Log {
    retention: Duration,
    /// By a number that goes up: the oldest first.
    entries: BTreeMap<u64, (Instant, Listed)>,
    latest: HashMap<(Arc<str>, Arc<str>), u64>,
    next: u64,
    bytes: usize,
    incomplete_until: Option<Instant>,
}

impl Log {
    pub(super) fn new(retention: Duration) -> Log {
        Log {
            retention,
            entries: BTreeMap::new(),
            latest: HashMap::new(),
            next: 0,
            bytes: 0,
            incomplete_until: None,
        }
    }

    pub(super) fn push(&mut self, listed: Listed, now: Instant) {
        let key = (listed.info.app.clone(), listed.info.id.clone());
        if let Some(before) = self.latest.insert(key, self.next) {
            self.remove(before);
        }
        self.bytes += listed.info.size_bytes();
        self.entries.insert(self.next, (now, listed));
        self.next += 1;
        while self.entries.len() > CAPACITY || self.bytes > CAPACITY_BYTES {
            let Some((at, listed)) = self.pop() else { break };
            tracing::debug!(app = %listed.info.app, "more changes than a delta holds; clients fetch everything");
            self.incomplete_until = Some(at + self.retention);
        }
    }

    /// Whether anything went.
    pub(super) fn prune(&mut self, now: Instant) -> bool {
        let mut went = false;
        while let Some((_, (at, _))) = self.entries.first_key_value() {
            if now.saturating_duration_since(*at) < self.retention {
                break;
            }
            self.pop();
            went = true;
        }
        went
    }

    pub(super) fn entries(&self, now: Instant) -> Option<impl Iterator<Item = &Listed>> {
        if self.incomplete_until.is_some_and(|until| now < until) {
            return None;
        }
        Some(self.entries.values().map(|(_, listed)| listed))
    }

    fn pop(&mut self) -> Option<(Instant, Listed)> {
        let oldest = *self.entries.first_key_value()?.0;
        let (at, listed) = self.remove(oldest)?;
        self.latest.remove(&(listed.info.app.clone(), listed.info.id.clone()));
        Some((at, listed))
    }

    fn remove(&mut self, number: u64) -> Option<(Instant, Listed)> {
        let (at, listed) = self.entries.remove(&number)?;
        self.bytes -= listed.info.size_bytes();
        Some((at, listed))
    }
}
