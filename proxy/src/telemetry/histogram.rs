//! A latency histogram with fixed bounds, written by one worker and read by scrapes.

use std::fmt::Write;
use std::time::Duration;

use super::metrics::Counter;

/// Upper bounds in microseconds and as Prometheus prints them, in seconds.
const BOUNDS: [(u32, &str); 15] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
    (30_000_000, "30"),
];

/// One worker's histogram.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BOUNDS.len() + 1],
    sum_us: Counter,
}

impl Histogram {
    /// Counts one observation.
    pub fn observe(&self, elapsed: Duration) {
        let us = elapsed.as_micros() as u64;
        let bucket = BOUNDS.iter().position(|(bound, _)| us <= u64::from(*bound)).unwrap_or(BOUNDS.len());
        self.buckets[bucket].add(1);
        self.sum_us.add(us);
    }

    /// Adds another worker's counts.
    pub(super) fn merge(&self, other: &Self) {
        for (mine, theirs) in self.buckets.iter().zip(&other.buckets) {
            mine.add(theirs.get());
        }
        self.sum_us.add(other.sum_us.get());
    }

    /// Writes the series of one label set; `labels` is without braces.
    pub(super) fn render(&self, out: &mut String, name: &str, labels: &str) {
        let mut running = 0;
        for (bucket, (_, bound)) in self.buckets.iter().zip(&BOUNDS) {
            running += bucket.get();
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {running}");
        }
        running += self.buckets[BOUNDS.len()].get();
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {running}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum_us.get() as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{{{labels}}} {running}");
    }
}
