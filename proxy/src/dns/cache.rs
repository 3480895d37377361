//! What upstreams have answered, for as long as it holds: by TTL, by RFC 2308 for what does not exist, and for a
//! while after that for the case that no upstream answers (RFC 8767). Bounded in bytes; what was asked for least
//! recently goes first. Pure: driven by a given `now`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::time::Instant;

/// No answer is kept for longer, whatever its TTL says.
const LONGEST: Duration = Duration::from_secs(86_400);
/// The same for what does not exist: 3 h, the most that RFC 2308 calls sensible.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(3 * 3_600);
/// What a client may keep an answer for that has run out (RFC 8767 recommends 30 s).
const STALE_TTL: u32 = 30;
/// An upstream that failed to renew an answer is not asked for it again before (RFC 8767 recommends 30 s).
const RECHECK: Duration = Duration::from_secs(30);
/// A TTL with the highest bit set is none (RFC 2181).
const HIGHEST_TTL: u32 = i32::MAX as u32;
/// What an entry costs beside the bytes of its name and its answer.
const OVERHEAD: usize = 256;

/// What an answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// In lower case.
    pub(super) name: String,
    pub(super) ty: RecordType,
    /// The client wants DNSSEC records.
    pub(super) dnssec: bool,
    /// The client wants answers that are not checked.
    pub(super) unchecked: bool,
}

/// What is here of a key.
#[derive(Debug)]
pub(super) enum Found {
    /// It holds.
    Fresh(Message),
    /// It has run out. `ask`: it is time to ask an upstream for a newer one.
    Stale { answer: Message, ask: bool },
    /// Nothing that may be told.
    Nothing,
}

/// The answers.
#[derive(Debug)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    /// The keys by when they were last asked for.
    order: BTreeMap<u64, Key>,
    tick: u64,
    bytes: usize,
    most_bytes: usize,
    max_stale: Duration,
}

#[derive(Debug)]
struct Entry {
    /// Encoded: a decoded message takes several times as much.
    answer: Box<[u8]>,
    stored: Instant,
    ttl: Duration,
    /// Not to be asked for again before.
    recheck: Option<Instant>,
    tick: u64,
}

impl Cache {
    pub(super) fn new(most_bytes: usize, max_stale: Duration) -> Self {
        let (entries, order) = (HashMap::new(), BTreeMap::new());
        Self { entries, order, tick: 0, bytes: 0, most_bytes, max_stale }
    }

    /// Entries and bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    /// What is here, with what is left of its TTLs.
    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Found {
        let Some(entry) = self.entries.get_mut(key) else { return Found::Nothing };
        let age = now.saturating_duration_since(entry.stored);
        let decoded = Message::from_vec(&entry.answer).ok();
        let Some(mut answer) = decoded.filter(|_| age < entry.ttl + self.max_stale) else {
            self.remove(key);
            return Found::Nothing;
        };
        self.tick += 1;
        if let Some(key) = self.order.remove(&entry.tick) {
            self.order.insert(self.tick, key);
        }
        entry.tick = self.tick;
        if age < entry.ttl {
            let gone = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            each_ttl(&mut answer, |ttl| ttl.saturating_sub(gone));
            return Found::Fresh(answer);
        }
        each_ttl(&mut answer, |_| STALE_TTL);
        Found::Stale { answer, ask: entry.recheck.is_none_or(|at| now >= at) }
    }

    /// Takes an upstream's answer, if it is one that may be kept.
    pub(super) fn put(&mut self, key: Key, answer: &Message, now: Instant) {
        let Some(ttl) = ttl(answer, key.ty).filter(|ttl| !ttl.is_zero()) else { return };
        let Ok(encoded) = answer.to_vec() else { return };
        self.remove(&key);
        let cost = cost(&key, &encoded);
        if cost > self.most_bytes {
            return;
        }
        while self.bytes + cost > self.most_bytes {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.remove(&oldest);
        }
        self.tick += 1;
        self.bytes += cost;
        self.order.insert(self.tick, key.clone());
        let entry =
            Entry { answer: encoded.into_boxed_slice(), stored: now, ttl, recheck: None, tick: self.tick };
        self.entries.insert(key, entry);
    }

    /// No upstream would renew an answer.
    pub(super) fn not_renewed(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.recheck = Some(now + RECHECK);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.tick);
            self.bytes -= cost(key, &entry.answer);
        }
    }
}

fn cost(key: &Key, answer: &[u8]) -> usize {
    // The name is a key twice.
    OVERHEAD + 2 * key.name.len() + answer.len()
}

fn each_ttl(answer: &mut Message, change: impl Fn(u32) -> u32) {
    let Message { answers, authorities, additionals, .. } = answer;
    for record in answers.iter_mut().chain(authorities).chain(additionals) {
        record.ttl = change(record.ttl);
    }
}

/// How long an answer holds; `None`: it is not to be kept.
fn ttl(answer: &Message, asked: RecordType) -> Option<Duration> {
    let metadata = &answer.metadata;
    if metadata.truncation {
        return None;
    }
    let seconds = |record: &Record| if record.ttl > HIGHEST_TTL { 0 } else { record.ttl };
    let least = answer.answers.iter().map(seconds).min();
    let is_asked_for = |record: &Record| asked == RecordType::ANY || record.record_type() == asked;
    let positive = metadata.response_code == ResponseCode::NoError && answer.answers.iter().any(is_asked_for);
    if positive {
        return Some(Duration::from_secs(least?.into()).min(LONGEST));
    }
    if !matches!(metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return None;
    }
    // Without a SOA it is not said how long there will be nothing.
    let of_soa = answer.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(seconds(record).min(soa.minimum)),
        _ => None,
    })?;
    Some(Duration::from_secs(least.unwrap_or(u32::MAX).min(of_soa).into()).min(LONGEST_NEGATIVE))
}

impl Key {
    pub(super) fn new(question: &Query, dnssec: bool, unchecked: bool) -> Self {
        let name = question.name().to_lowercase().to_ascii();
        Self { name, ty: question.query_type(), dnssec, unchecked }
    }
}

#[cfg(test)]
mod tests;
