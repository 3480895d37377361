//! `inventory` moves under load: the steps of every such test, and what has to hold after each.

use tokio::time::Instant;

use crate::load::{Load, by_side, none_failed, on_their_side};

/// A command of `pontoon migration`, and the share that the target has after it.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    verb: &'static str,
    flags: &'static [&'static str],
    /// In hundredths of a percent.
    pub share: u64,
}

/// The stages in order, and back.
pub const STEPS: [Step; 7] = [
    Step::new("show", &[], 0),
    Step::new("set", &["--stage", "split", "--weight", "20%"], 2000),
    Step::new("set", &["--weight", "50%"], 5000),
    CUTOVER,
    Step::new("rollback", &["--to", "split"], 5000),
    Step::new("set", &["--weight", "20%"], 2000),
    Step::new("rollback", &["--to", "observe"], 0),
];
/// To the share at which both sides have the most to lose.
pub const HALF: Step = Step::new("set", &["--stage", "split", "--weight", "50%"], 5000);
/// Everybody.
pub const CUTOVER: Step = Step::new("set", &["--stage", "cutover"], 10_000);

impl Step {
    /// By the words of the command but for the migration's name.
    pub const fn new(verb: &'static str, flags: &'static [&'static str], share: u64) -> Step {
        Step { verb, flags, share }
    }

    /// The arguments of `pontoon` for a migration.
    pub fn command<'n>(&self, migration: &'n str) -> Vec<&'n str> {
        [&["migration", self.verb, migration], self.flags].concat()
    }

    /// What a case of this step is called.
    pub fn name(&self) -> String {
        let words = [&[self.verb], self.flags].concat().join(" ");
        format!("{words}: {} % of the users are answered by the target", self.share / 100)
    }
}

/// From the moment at which the command says that it is in force, each user is on the side of their bucket: so many
/// requests are judged.
///
/// # Errors
/// When the command fails, a request since it began does, or somebody is on the wrong side.
pub async fn moved(
    load: &Load,
    requests: usize,
    share: u64,
    command: impl Future<Output = anyhow::Result<String>>,
) -> anyhow::Result<String> {
    let from = Instant::now();
    command.await?;
    let took = from.elapsed();
    let seen = load.next(requests).await?;
    none_failed(&load.since(from))?;
    on_their_side(&seen, share)?;
    let sides = by_side(&seen);
    Ok(format!("in force after {} ms; {sides:?}, 0 failed, 0 on the wrong side", took.as_millis()))
}
