//! Counts events of the last minute, by the second.

use tokio::time::Instant;

const SECONDS: usize = 60;

#[derive(Debug)]
pub(super) struct Rate {
    start: Instant,
    /// The second, since `start`, that was last written.
    second: u64,
    buckets: [u64; SECONDS],
}

impl Rate {
    pub(super) fn new(now: Instant) -> Rate {
        Rate { start: now, second: 0, buckets: [0; SECONDS] }
    }

    pub(super) fn count(&mut self, now: Instant) {
        self.advance(now);
        self.buckets[self.second as usize % SECONDS] += 1;
    }

    pub(super) fn last_minute(&mut self, now: Instant) -> u64 {
        self.advance(now);
        self.buckets.iter().sum()
    }

    fn advance(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.start).as_secs();
        let passed = second.saturating_sub(self.second).min(SECONDS as u64);
        for step in 1..=passed {
            self.buckets[(self.second + step) as usize % SECONDS] = 0;
        }
        if passed == SECONDS as u64 {
            self.buckets = [0; SECONDS];
        }
        self.second = self.second.max(second);
    }
}
