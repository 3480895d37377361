//! How many tests passed and failed, over everything that `cargo xtask test` runs.

use serde::Deserialize;

use crate::step::Output;

/// A count of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// Could not run. Counted as failed where `CI=true`.
    #[serde(default)]
    pub skipped: u64,
}

impl Tally {
    /// The results of one check.
    pub(crate) fn check(passed: bool) -> Tally {
        Tally { passed: u64::from(passed), failed: u64::from(!passed), skipped: 0 }
    }

    /// Sums what cargo's test harness prints for each test program:
    /// `test result: ok. 12 passed; 0 failed; 1 ignored; ...`.
    pub(crate) fn of_cargo_test(output: &str) -> Tally {
        let mut tally = Tally::default();
        for line in output.lines().filter_map(|line| line.trim_start().strip_prefix("test result: ")) {
            let count = |what: &str| {
                line.split([';', '.'])
                    .filter_map(|part| part.trim().strip_suffix(what))
                    .find_map(|number| number.trim().parse::<u64>().ok())
                    .unwrap_or(0)
            };
            tally.passed += count("passed");
            tally.failed += count("failed");
            tally.skipped += count("ignored");
        }
        tally
    }

    /// The same of a step that may not have come so far.
    pub(crate) fn of_step(output: &Output) -> Tally {
        let mut tally = Tally::of_cargo_test(&output.text);
        if !output.success && tally.failed == 0 {
            // It did not compile, or a test program died.
            tally.failed = 1;
        }
        tally
    }

    pub(crate) fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What cargo's test harness prints of the tests that failed, without backtraces.
pub(crate) fn failures_of_cargo_test(output: &str) -> Vec<&str> {
    let mut inside = false;
    let mut failures = Vec::new();
    for line in output.lines() {
        let text = line.trim_start();
        if text.starts_with("---- ") && text.ends_with(" ----") {
            inside = true;
        } else if text.starts_with("failures:")
            || text.starts_with("test result:")
            || text == "stack backtrace:"
        {
            inside = false;
        }
        if (inside && !text.is_empty()) || text.ends_with("... FAILED") {
            failures.push(line);
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_programs_are_summed() {
        let output = "
running 3 tests
test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
   Doc-tests pontoon
test result: FAILED. 4 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.5s
";
        assert_eq!(Tally::of_cargo_test(output), Tally { passed: 7, failed: 2, skipped: 1 });
    }

    #[test]
    fn what_failed_is_told_without_its_backtrace() {
        let output = "
test a_b ... ok
test c_d ... FAILED

failures:

---- c_d stdout ----
thread 'c_d' panicked at src/lib.rs:3:5:
left is not right
stack backtrace:
   0: __rustc::rust_begin_unwind

failures:
    c_d

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
";
        let expected = [
            "test c_d ... FAILED",
            "---- c_d stdout ----",
            "thread 'c_d' panicked at src/lib.rs:3:5:",
            "left is not right",
        ];
        assert_eq!(failures_of_cargo_test(output), expected);
    }
}
