//! What is counted, in Prometheus' text.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What became of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Answered as a name of the mesh.
    Mesh,
    /// Answered by an upstream.
    Forwarded,
    /// Answered from what an upstream had said before.
    Cached,
    /// The same, although it had run out.
    Stale,
    /// No upstream answered, or the control plane did not for a name of our zone.
    Failed,
    /// A kind of query that is not served.
    Refused,
    /// No query at all.
    Malformed,
    /// More at once than are served; not answered.
    Overload,
}

const OUTCOMES: [Outcome; 8] = [
    Outcome::Mesh,
    Outcome::Forwarded,
    Outcome::Cached,
    Outcome::Stale,
    Outcome::Failed,
    Outcome::Refused,
    Outcome::Malformed,
    Outcome::Overload,
];

impl Outcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Outcome::Mesh => "mesh",
            Outcome::Forwarded => "forwarded",
            Outcome::Cached => "cached",
            Outcome::Stale => "stale",
            Outcome::Failed => "failed",
            Outcome::Refused => "refused",
            Outcome::Malformed => "malformed",
            Outcome::Overload => "overload",
        }
    }
}

/// Counters of the resolver.
#[derive(Debug, Default)]
pub(super) struct Counters {
    outcomes: [AtomicU64; OUTCOMES.len()],
    upstream_failures: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, outcome: Outcome) {
        if let Some(counter) = self.outcomes.get(outcome as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// An upstream did not answer, or said that it cannot.
    pub(super) fn upstream_failed(&self) {
        self.upstream_failures.fetch_add(1, Relaxed);
    }

    pub(super) fn render(&self, out: &mut String) {
        let name = "pontoon_dns_queries_total";
        let _ = writeln!(out, "# HELP {name} DNS queries by what became of them.\n# TYPE {name} counter");
        for (outcome, count) in OUTCOMES.iter().zip(&self.outcomes) {
            let _ = writeln!(out, "{name}{{result=\"{}\"}} {}", outcome.as_str(), count.load(Relaxed));
        }
        let name = "pontoon_dns_upstream_failures_total";
        let count = self.upstream_failures.load(Relaxed);
        let help = "Queries that an upstream did not answer, or answered with a failure.";
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_own_counter() {
        for (position, outcome) in OUTCOMES.into_iter().enumerate() {
            assert_eq!(outcome as usize, position);
        }
    }
}
