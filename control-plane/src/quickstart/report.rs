//! What one stage showed, held against what the split says. The expectation is computed here from the
//! user's key alone, by the published rule (xxHash64 of the key, modulo 10,000, below the weight), and not
//! by the proxy's code: the quickstart would otherwise agree with itself.

use std::time::Duration;

use twox_hash::XxHash64;

use super::load::{Sample, user_id};
use super::sample::Side;

/// The weights' unit: hundredths of a percent.
const WHOLE: u64 = 10_000;

/// What a stage promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expectation {
    /// Users below this weight's share are answered by the target.
    pub(super) weight: u32,
    /// So does the canary group, the first so many users.
    pub(super) canary_users: u32,
}

impl Expectation {
    /// Of a stage, by name; `weight` counts for `split` only.
    pub(super) fn of(stage: &str, weight: Option<u32>, canary_users: u32) -> Expectation {
        match stage {
            "observe" => Expectation { weight: 0, canary_users: 0 },
            "canary" => Expectation { weight: 0, canary_users },
            "cutover" => Expectation { weight: WHOLE as u32, canary_users },
            _ => Expectation { weight: weight.unwrap_or(0), canary_users },
        }
    }

    /// The side that user `number` is on.
    pub(super) fn side(&self, number: u32) -> Side {
        let bucket = XxHash64::oneshot(0, user_id(number).as_bytes()) % WHOLE;
        if number < self.canary_users || bucket < u64::from(self.weight) {
            Side::Target
        } else {
            Side::Legacy
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StageReport {
    /// Requests measured.
    pub(super) requests: usize,
    /// Without a good answer.
    pub(super) failed: usize,
    /// Answered by a side that the split does not say.
    pub(super) moved: usize,
    /// Share of the answers that came from the target, 0 to 1.
    pub(super) target_share: f64,
    /// What that share should be for these very users.
    pub(super) expected_share: f64,
    /// Median latency.
    pub(super) p50: Duration,
    /// 99th percentile.
    pub(super) p99: Duration,
}

impl StageReport {
    /// Holds the samples against what the stage promises.
    pub(super) fn new(samples: &[Sample], expectation: &Expectation) -> StageReport {
        let mut latencies: Vec<Duration> = samples.iter().map(|s| s.latency).collect();
        latencies.sort_unstable();
        let count = |wanted: &dyn Fn(&Sample) -> bool| samples.iter().filter(|s| wanted(s)).count();
        let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let failed = count(&|s| s.outcome.is_err());
        StageReport {
            requests: samples.len(),
            failed,
            moved: count(&|s| s.outcome.as_ref().is_ok_and(|side| *side != expectation.side(s.user))),
            target_share: share(count(&|s| s.outcome == Ok(Side::Target)), samples.len() - failed),
            expected_share: share(count(&|s| expectation.side(s.user) == Side::Target), samples.len()),
            p50: quantile(&latencies, 0.50),
            p99: quantile(&latencies, 0.99),
        }
    }

    /// The table's first two lines.
    pub(super) fn header() -> String {
        let head = format!(
            "{:<10} {:>8} {:>10} {:>9} {:>18} {:>6} {:>7} {:>9} {:>9}",
            "stage", "weight", "in force", "requests", "target (expected)", "moved", "failed", "p50", "p99"
        );
        let rule = "-".repeat(head.len());
        format!("{head}\n{rule}")
    }

    /// The table's line for this stage.
    pub(super) fn line(&self, stage: &str, weight: Option<u32>, in_force: Duration) -> String {
        let weight = weight.map_or(String::from("-"), |w| format!("{} %", f64::from(w) / 100.0));
        let shares = format!("{:.1} % ({:.1} %)", self.target_share * 100.0, self.expected_share * 100.0);
        format!(
            "{stage:<10} {weight:>8} {:>10} {:>9} {shares:>18} {:>6} {:>7} {:>9} {:>9}",
            milliseconds(in_force),
            self.requests,
            self.moved,
            self.failed,
            milliseconds(self.p50),
            milliseconds(self.p99),
        )
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// `sorted` must be in ascending order.
fn quantile(sorted: &[Duration], q: f64) -> Duration {
    let index = ((sorted.len() as f64 * q).ceil() as usize).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn sample(user: u32, outcome: Result<Side, String>, latency_ms: u64) -> Sample {
        Sample { due: Instant::now(), user, latency: Duration::from_millis(latency_ms), outcome }
    }

    #[test]
    fn a_user_on_the_wrong_side_is_counted() {
        let cutover = Expectation::of("cutover", None, 0);
        let samples = [sample(1, Ok(Side::Target), 1), sample(2, Ok(Side::Legacy), 2)];
        let report = StageReport::new(&samples, &cutover);
        assert_eq!((report.moved, report.failed), (1, 0));
        assert_eq!((report.target_share, report.expected_share), (0.5, 1.0));
    }

    #[test]
    fn a_failure_is_no_answer_of_either_side() {
        let observe = Expectation::of("observe", None, 5);
        let samples = [sample(1, Err(String::from("refused")), 1), sample(2, Ok(Side::Legacy), 9)];
        let report = StageReport::new(&samples, &observe);
        assert_eq!((report.moved, report.failed, report.target_share), (0, 1, 0.0));
        assert_eq!((report.p50, report.p99), (Duration::from_millis(1), Duration::from_millis(9)));
    }

    #[test]
    fn raising_the_weight_moves_users_to_the_target_only() {
        let (low, high) = (Expectation::of("split", Some(500), 0), Expectation::of("split", Some(5_000), 0));
        for user in 0..10_000 {
            assert!(low.side(user) == Side::Legacy || high.side(user) == Side::Target);
        }
    }
}
