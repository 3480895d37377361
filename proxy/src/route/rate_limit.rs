//! How many requests are taken: token buckets as Envoy's local rate limit has them, one for all requests and one for each
//! client. A bucket is one number, the time at which it is full again, so that all workers share it without a lock.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::filters::ByFilter;
use crate::overload;

/// Places that a client's bucket can be at.
const WAYS: usize = 8;

/// Tokens that come evenly, and are kept up to a number; in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Until there is one more.
    token: u64,
    /// Until an empty bucket is full.
    whole: u64,
}

impl Rate {
    /// `per_interval` come in each `interval`, and at most `most` are kept. None of them is 0.
    pub fn new(most: u32, per_interval: u32, interval: Duration) -> Self {
        let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        let token = (nanos / u64::from(per_interval.max(1))).max(1);
        Self { token, whole: token.saturating_mul(u64::from(most.max(1))) }
    }

    /// Takes a token of the bucket that is full at `full_at`.
    fn take(self, full_at: &AtomicU64, now: u64) -> bool {
        let taken = |full: u64| {
            let after = full.max(now).saturating_add(self.token);
            (after - now <= self.whole).then_some(after)
        };
        full_at.fetch_update(Relaxed, Relaxed, taken).is_ok()
    }
}

/// A bucket for each client, of as many as were seen last.
#[derive(Debug)]
struct Clients {
    rate: Rate,
    /// Who chooses addresses does not know where their buckets are.
    seed: RandomState,
    slots: Box<[Slot]>,
}

/// A client's hash, 0 for none, and its bucket.
#[derive(Debug, Default)]
struct Slot {
    client: AtomicU64,
    full_at: AtomicU64,
}

impl Clients {
    fn new(rate: Rate, most: usize) -> Self {
        let slots = most.max(1).next_multiple_of(WAYS);
        Self { rate, seed: RandomState::new(), slots: (0..slots).map(|_| Slot::default()).collect() }
    }

    fn take(&self, client: IpAddr, now: u64) -> bool {
        let key = self.seed.hash_one(overload::source(client)).max(1);
        let group = (key % (self.slots.len() / WAYS) as u64) as usize;
        let ways = &self.slots[group * WAYS..][..WAYS];
        let known = ways.iter().find(|slot| slot.client.load(Relaxed) == key);
        let slot = known.or_else(|| {
            // With the fullest bucket the least is forgotten. Who comes in between has one token more or less.
            let slot = ways.iter().min_by_key(|slot| slot.full_at.load(Relaxed))?;
            slot.client.store(key, Relaxed);
            slot.full_at.store(0, Relaxed);
            Some(slot)
        });
        slot.is_none_or(|slot| self.rate.take(&slot.full_at, now))
    }
}

/// What a filter, or a route of it, allows.
#[derive(Debug)]
pub struct RateLimit {
    began: Instant,
    all: Rate,
    full_at: AtomicU64,
    clients: Option<Clients>,
    /// Requests that a client's bucket has a token for take one of this, too.
    also_all: bool,
}

impl RateLimit {
    /// So many of all together.
    pub fn new(all: Rate) -> Self {
        Self { began: Instant::now(), all, full_at: AtomicU64::new(0), clients: None, also_all: false }
    }

    /// Of each client so many instead, or (`also_all`) as well; buckets are kept for `most` clients.
    #[must_use]
    pub fn of_each_client(self, rate: Rate, most: usize, also_all: bool) -> Self {
        Self { clients: Some(Clients::new(rate, most)), also_all, ..self }
    }

    /// Whether one more is taken, of this client. An IPv6 client is its /64.
    pub fn takes(&self, client: IpAddr, now: Instant) -> bool {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX);
        let all = || self.all.take(&self.full_at, now);
        match &self.clients {
            Some(clients) => clients.take(client, now) && (!self.also_all || all()),
            None => all(),
        }
    }
}

/// A listener's filter.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Its name in the listener.
    pub name: Box<str>,
    /// For routes that say nothing of it.
    pub limit: Option<Arc<RateLimit>>,
}

/// Whether all of these take one more request of this client, with what its route says of them.
pub fn take(
    filters: &[Filter],
    of_route: &ByFilter<Option<Arc<RateLimit>>>,
    client: IpAddr,
    now: Instant,
) -> bool {
    filters.iter().all(|filter| {
        let limit = of_route.of(&filter.name).unwrap_or(&filter.limit);
        limit.as_ref().is_none_or(|limit| limit.takes(client, now))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn tokens_come_evenly_and_are_kept_up_to_a_number() {
        let limit = RateLimit::new(Rate::new(3, 2, SECOND));
        let after = |ms| limit.began + Duration::from_millis(ms);
        let taken = |ms| (0..10).filter(|_| limit.takes(ip("192.0.2.1"), after(ms))).count();
        assert_eq!([0, 499, 500, 1_000, 1_250, 9_000].map(taken), [3, 0, 1, 1, 0, 3]);
    }

    #[test]
    fn each_client_has_its_own() {
        let one = Rate::new(1, 1, SECOND);
        let limit = RateLimit::new(one).of_each_client(one, 100, false);
        let takes = |client: &str| limit.takes(ip(client), limit.began);
        assert_eq!(["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(takes), [true, false, true]);
        // The same IPv4 address, and the same /64.
        assert_eq!(
            ["::ffff:192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(takes),
            [false, true, false, true]
        );
        let limit = RateLimit::new(Rate::new(2, 1, SECOND)).of_each_client(one, 100, true);
        let takes = |client: &str| limit.takes(ip(client), limit.began);
        // What is refused to a client takes none of all.
        assert_eq!(
            ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"].map(takes),
            [true, false, true, false]
        );
    }

    #[test]
    fn of_too_many_clients_the_one_that_took_least_lately_is_forgotten() {
        let limit = RateLimit::new(Rate::new(1, 1, SECOND));
        let limit = limit.of_each_client(Rate::new(100, 1, SECOND), WAYS, false);
        let (busy, now) = (ip("192.0.2.1"), limit.began);
        assert!((0..100).all(|_| limit.takes(busy, now)) && !limit.takes(busy, now));
        for other in 0..200 {
            assert!(limit.takes(ip(&format!("198.51.100.{other}")), now));
        }
        assert!(!limit.takes(busy, now));
    }

    proptest! {
        /// However requests come, no more are taken in a time than were kept and came in it.
        #[test]
        fn never_more_than_the_rate(gaps in prop::collection::vec(0_u64..400, 1..200), most in 1_u32..20, per in 1_u32..20) {
            let limit = RateLimit::new(Rate::new(most, per, SECOND));
            let (mut at, mut taken) = (0, 0);
            for gap in gaps {
                at += gap;
                taken += u64::from(limit.takes(ip("192.0.2.1"), limit.began + Duration::from_millis(at)));
                // Rounding down a token's time gives one in a second at most.
                prop_assert!(taken <= u64::from(most) + at * u64::from(per) / 1_000 + 1);
            }
        }
    }
}
