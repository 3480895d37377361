//! Which upstream is asked first: they are asked in the order in which they are written, and one that has just failed
//! after those that have not. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

/// One that has failed is asked after the others for so long.
const HOLD: Duration = Duration::from_secs(10);

/// The upstreams and how they do.
#[derive(Debug)]
pub(super) struct Upstreams {
    all: Vec<Upstream>,
}

#[derive(Debug)]
struct Upstream {
    address: SocketAddr,
    failed: Option<Instant>,
}

impl Upstreams {
    pub(super) fn new(addresses: &[SocketAddr]) -> Self {
        Self { all: addresses.iter().map(|address| Upstream { address: *address, failed: None }).collect() }
    }

    /// Others from now on. Of those who stay it is still known how they do.
    pub(super) fn replace(&mut self, addresses: &[SocketAddr]) {
        let mut fresh = Self::new(addresses);
        for upstream in &mut fresh.all {
            let kept = self.all.iter().find(|kept| kept.address == upstream.address);
            upstream.failed = kept.and_then(|kept| kept.failed);
        }
        *self = fresh;
    }

    /// In the order in which they are to be asked. One alone is asked twice: datagrams get lost.
    pub(super) fn order(&self, now: Instant) -> Vec<SocketAddr> {
        let is_down = |upstream: &Upstream| upstream.failed.is_some_and(|at| now.duration_since(at) < HOLD);
        let up = self.all.iter().filter(|upstream| !is_down(upstream));
        let down = self.all.iter().filter(|upstream| is_down(upstream));
        let mut order: Vec<SocketAddr> = up.chain(down).map(|upstream| upstream.address).collect();
        if let [alone] = order[..] {
            order.push(alone);
        }
        order
    }

    /// One has answered, or has not.
    pub(super) fn note(&mut self, address: SocketAddr, answered: bool, now: Instant) {
        for upstream in self.all.iter_mut().filter(|upstream| upstream.address == address) {
            upstream.failed = (!answered).then_some(now);
        }
    }

    /// Each, and how long ago it failed, where it did the last time.
    pub(super) fn states(&self, now: Instant) -> Vec<(SocketAddr, Option<Duration>)> {
        let state = |upstream: &Upstream| {
            (upstream.address, upstream.failed.map(|at| now.saturating_duration_since(at)))
        };
        self.all.iter().map(state).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_failed_goes_last_for_a_while_and_one_alone_is_asked_twice() {
        let [a, b] = ["10.0.0.1:53", "10.0.0.2:53"].map(|text| text.parse::<SocketAddr>().unwrap());
        let now = Instant::now();
        let mut both = Upstreams::new(&[a, b]);
        assert_eq!(both.order(now), [a, b]);
        both.note(a, false, now);
        assert_eq!(both.order(now), [b, a]);
        assert_eq!(both.order(now + HOLD), [a, b]);
        both.note(b, false, now);
        assert_eq!(both.order(now), [a, b], "of two that failed the first is first");
        both.note(a, true, now);
        assert_eq!(both.states(now), [(a, None), (b, Some(Duration::ZERO))]);
        both.replace(&["10.0.0.3:53".parse().unwrap(), b]);
        assert_eq!(both.order(now), ["10.0.0.3:53".parse().unwrap(), b]);
        assert_eq!(both.states(now)[1], (b, Some(Duration::ZERO)), "it is the same one");
        assert_eq!(Upstreams::new(&[a]).order(now), [a, a]);
        assert_eq!(Upstreams::new(&[]).order(now), []);
    }
}
