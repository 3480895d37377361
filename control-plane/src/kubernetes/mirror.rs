//! What the API server has of one kind, as its watch told. A list counts once it is complete; and one that takes away
//! much of what was known is doubted: after an outage an API server may come back with less than there is (an old
//! backup, a store that is still being filled), and an empty answer is not a deletion. What was deleted one by one,
//! under our eyes, is gone at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// A list that takes away fewer than these is believed, whatever share it is, unless it is empty: in a small system
/// every deletion is a large share.
pub const DOUBT_FROM: usize = 10;
/// A list is doubted when it takes away more than this share of what was known.
pub const DOUBT_PERCENT: usize = 50;
/// Lists have to say the same for this long before a doubted one is believed.
pub const CONFIRM: Duration = Duration::from_secs(120);

/// What a watch says, one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard<K, V> {
    /// A list begins.
    ListBegins,
    /// It has this.
    Listed(K, V),
    /// It is complete.
    ListEnds,
    /// This is new or another than before.
    Applied(K, V),
    /// This was deleted.
    Deleted(K),
}

/// What has come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change<K> {
    /// What is new, another than before, or gone.
    pub keys: BTreeSet<K>,
    /// How many are kept though the last list does not have them: the API server is to be asked for another list
    /// after a while. 0: all is believed.
    pub doubted: usize,
}

impl<K> Default for Change<K> {
    fn default() -> Self {
        Self { keys: BTreeSet::new(), doubted: 0 }
    }
}

/// What is believed to be there.
#[derive(Debug, Clone)]
pub struct Mirror<K, V> {
    known: BTreeMap<K, V>,
    listing: Option<BTreeMap<K, V>>,
    /// What the last list did not have, and since when lists do not have it.
    doubted: Option<(Instant, BTreeSet<K>)>,
    complete: bool,
    /// Every list is taken at its word.
    is_trusting: bool,
}

impl<K, V> Default for Mirror<K, V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), listing: None, doubted: None, complete: false, is_trusting: false }
    }
}

impl<K: Ord + Clone, V: PartialEq> Mirror<K, V> {
    /// One that believes every list: for what must not be taken for there when it is not.
    pub fn trusting() -> Self {
        Self { is_trusting: true, ..Self::default() }
    }

    /// Whether a list was complete once.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// One of them.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.known.get(key)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.known.iter()
    }

    /// How many are kept though lists do not have them.
    pub fn doubted(&self) -> usize {
        self.doubted.as_ref().map_or(0, |(_, keys)| keys.len())
    }

    /// Takes up what was heard.
    pub fn hear(&mut self, heard: Heard<K, V>, now: Instant) -> Change<K> {
        let mut change = Change { keys: BTreeSet::new(), doubted: self.doubted() };
        match heard {
            Heard::ListBegins => self.listing = Some(BTreeMap::new()),
            Heard::Listed(key, value) => {
                self.listing.get_or_insert_default().insert(key, value);
            }
            Heard::ListEnds => return self.take_over(now),
            Heard::Applied(key, value) => {
                self.no_doubt_about(&key);
                if self.known.get(&key) != Some(&value) {
                    self.known.insert(key.clone(), value);
                    change.keys.insert(key);
                }
            }
            Heard::Deleted(key) => {
                self.no_doubt_about(&key);
                if self.known.remove(&key).is_some() {
                    change.keys.insert(key);
                }
            }
        }
        change.doubted = self.doubted();
        change
    }

    fn no_doubt_about(&mut self, key: &K) {
        if let Some((_, keys)) = &mut self.doubted {
            keys.remove(key);
            if keys.is_empty() {
                self.doubted = None;
            }
        }
    }

    fn take_over(&mut self, now: Instant) -> Change<K> {
        let listed = self.listing.take().unwrap_or_default();
        let gone: BTreeSet<K> = self.known.keys().filter(|key| !listed.contains_key(*key)).cloned().collect();
        let much = gone.len() >= DOUBT_FROM && gone.len() * 100 > self.known.len() * DOUBT_PERCENT;
        let doubtful = !self.is_trusting && !gone.is_empty() && (listed.is_empty() || much);
        let since = self.doubted.as_ref().map_or(now, |(since, _)| *since);
        let believed = !doubtful || now.saturating_duration_since(since) >= CONFIRM;
        self.complete = true;

        let mut change = Change::default();
        for (key, value) in listed {
            if self.known.get(&key) != Some(&value) {
                self.known.insert(key.clone(), value);
                change.keys.insert(key);
            }
        }
        if believed {
            gone.iter().for_each(|key| drop(self.known.remove(key)));
            change.keys.extend(gone);
            self.doubted = None;
        } else {
            change.doubted = gone.len();
            self.doubted = Some((since, gone));
        }
        change
    }
}

#[cfg(test)]
mod tests;
