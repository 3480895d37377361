//! How long a request may take to arrive, from its head to the end of its body. It counts no more once the answer has
//! begun: the two ends are then in talk, and the stream's own bounds hold.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::exchange::Exchange;
use crate::error::Error;
use crate::overload::BodyRate;
use crate::worker::local::Timer;

/// The rate is looked at so often in the time that a client has before it counts.
const LOOKS: u32 = 4;

/// The bounds on one request that has not arrived whole.
pub(crate) struct Receiving {
    by: Option<Instant>,
    rate: Option<Rate>,
    timer: Timer,
}

/// How fast the client is. Each look at a client that is waited for counts as the time since the look before: a clock
/// that is read for each piece would cost what it saves, and an upstream that does not read costs the client nothing.
struct Rate {
    least: BodyRate,
    /// What the client has kept us waiting.
    waited: Duration,
}

impl Rate {
    fn every(&self) -> Duration {
        self.least.grace / LOOKS
    }

    /// Looks; says whether the client is too slow.
    fn look(&mut self, starved: bool, received: u64) -> bool {
        if starved {
            self.waited += self.every();
        }
        let earned = received as f64 / f64::from(self.least.bytes_per_second);
        self.waited.as_secs_f64() > self.least.grace.as_secs_f64() + earned
    }
}

impl Receiving {
    /// `None`: it is here, or nothing bounds it. What `changes` its protocol may say little for long.
    pub(crate) fn new(exchange: &Exchange, changes: bool) -> Option<Self> {
        if exchange.request_done.get() {
            return None;
        }
        let settings = &exchange.settings.http;
        let by = settings.timeouts.request.map(|limit| exchange.start + limit);
        // Such a listener takes connections of strangers; others have the applications of the mesh before them.
        let least = exchange.worker().admission.limits().body_rate;
        let counts = settings.forwarded.use_remote_address && !changes && least.bytes_per_second > 0;
        let rate = counts.then_some(Rate { least, waited: Duration::ZERO });
        let first = next(by, rate.as_ref(), exchange.start)?;
        Some(Self { by, rate, timer: exchange.worker().timer(first) })
    }

    /// Ready when the client has not kept to it.
    pub(crate) fn poll(&mut self, exchange: &Exchange, cx: &mut Context<'_>) -> Poll<Error> {
        loop {
            let Some(mut sleep) = self.timer.sleep() else { return Poll::Pending };
            ready!(sleep.as_mut().poll(cx));
            if exchange.request_done.get() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if self.by.is_some_and(|by| now >= by) {
                return Poll::Ready(Error::RequestTimeout);
            }
            let look = |rate: &mut Rate| rate.look(exchange.starved.get(), exchange.received.get());
            if self.rate.as_mut().is_some_and(look) {
                return Poll::Ready(Error::SlowBody);
            }
            let Some(next) = next(self.by, self.rate.as_ref(), now) else { return Poll::Pending };
            sleep.as_mut().reset(next);
        }
    }
}

/// When to look again.
fn next(by: Option<Instant>, rate: Option<&Rate>, now: Instant) -> Option<Instant> {
    by.into_iter().chain(rate.map(|rate| now + rate.every())).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate() -> Rate {
        let grace = Duration::from_secs(20);
        Rate { least: BodyRate { bytes_per_second: 500, grace }, waited: Duration::ZERO }
    }

    /// Looks at which a client is found too slow, of which each brings so many bytes.
    fn ends_at(bytes: u64, starved: bool) -> Option<u64> {
        let mut rate = rate();
        (1..1_000).find(|look| rate.look(starved, look * bytes))
    }

    #[test]
    fn who_comes_drop_by_drop_has_the_grace_and_what_it_earns() {
        assert_eq!(ends_at(0, true), Some(5), "nothing at all: after 25 s, the first look beyond 20");
        assert_eq!(ends_at(5, true), Some(5), "a byte a second");
        assert_eq!(ends_at(1_250, true), Some(9), "half the rate has twice the time");
        assert_eq!(ends_at(2_500, true), None, "the rate itself");
    }

    #[test]
    fn who_waits_for_the_upstream_is_not_slow() {
        assert_eq!(ends_at(0, false), None);
        let mut rate = rate();
        assert!(!(0..500).any(|look| rate.look(look % 2 == 0, 1_000_000)), "a fast start is remembered");
    }
}
