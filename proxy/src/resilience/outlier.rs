//! Ejection of an endpoint that refuses connections, for a short time that doubles. It is what makes an
//! instance that was killed cost retries for a moment rather than until the registry has noticed. All state is
//! atomic: every worker reads and reports.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The first ejection. Shorter than a container's restart, longer than a burst of connects.
const FIRST: Duration = Duration::from_millis(500);
/// No ejection is longer: a returning instance is tried again within it.
const LONGEST: Duration = Duration::from_secs(30);
/// After an ejection one worker tries the endpoint; the others wait this long for its verdict.
const PROBE: Duration = Duration::from_secs(1);

/// The state of one endpoint. Times are milliseconds since the process began, never 0.
#[derive(Debug, Default)]
pub struct Outlier {
    /// Not picked before this; 0: not ejected.
    until_ms: AtomicU64,
    /// Ejections in a row.
    strikes: AtomicU32,
    /// The ejection was served and one request is finding out.
    probing: AtomicBool,
}

impl Outlier {
    /// Whether it is ejected at `now_ms`. One that has served its time is not, but see [`Outlier::admit`].
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms.load(Relaxed)
    }

    /// Whether a request may go there now. After an ejection the first caller is let through as the probe and
    /// the rest are kept away until it has reported or [`PROBE`] has passed.
    pub fn admit(&self, now_ms: u64) -> bool {
        let until = self.until_ms.load(Relaxed);
        if until == 0 {
            return true;
        }
        let won = now_ms >= until
            && self.until_ms.compare_exchange(until, now_ms + as_ms(PROBE), Relaxed, Relaxed).is_ok();
        if won {
            self.probing.store(true, Relaxed);
        }
        won
    }

    /// A connect failed. Reports of the same outage that come in while it is ejected count once.
    pub fn connect_failed(&self, now_ms: u64) {
        let strikes = self.strikes.load(Relaxed);
        let until = self.until_ms.load(Relaxed);
        if now_ms < until && !self.probing.swap(false, Relaxed) {
            return;
        }
        let length = as_ms(FIRST).saturating_mul(1 << strikes.min(16)).min(as_ms(LONGEST));
        if self.until_ms.compare_exchange(until, now_ms + length, Relaxed, Relaxed).is_ok() {
            self.strikes.store(strikes.saturating_add(1), Relaxed);
        }
    }

    /// A connect succeeded.
    pub fn connected(&self) {
        if self.until_ms.load(Relaxed) != 0 {
            self.probing.store(false, Relaxed);
            self.until_ms.store(0, Relaxed);
            self.strikes.store(0, Relaxed);
        }
    }
}

fn as_ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_ejected_for_a_doubling_time_and_probed_by_one() {
        let outlier = Outlier::default();
        assert!(outlier.admit(1));
        outlier.connect_failed(1_000);
        outlier.connect_failed(1_001);
        assert!(outlier.is_ejected(1_001));
        assert!(!outlier.admit(1_499));
        assert!(outlier.admit(1_500), "its time is served: one probe");
        assert!(!outlier.admit(1_501), "the rest wait for the probe");
        outlier.connect_failed(1_510);
        assert!(!outlier.admit(2_509), "the second ejection is twice as long");
        assert!(outlier.admit(2_510));
        outlier.connected();
        assert!(outlier.admit(2_511) && outlier.admit(2_512));
    }

    #[test]
    fn the_ejection_is_bounded() {
        let outlier = Outlier::default();
        let mut now = 1;
        for _ in 0..40 {
            outlier.connect_failed(now);
            now += as_ms(LONGEST);
            assert!(outlier.admit(now));
        }
    }
}
