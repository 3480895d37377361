//! One step of a task: a command whose output goes to a file under `target/xtask/`, with what failed, or its end,
//! printed when it fails. What a person watches stays one line a step.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use crate::tally::failures_of_cargo_test;

/// Lines of a failed step's output that are printed.
const TAIL_LINES: usize = 60;

/// Where the steps of one workspace write.
#[derive(Debug)]
pub(crate) struct Steps {
    logs: PathBuf,
}

/// What a step left behind.
#[derive(Debug)]
pub(crate) struct Output {
    /// Standard output and error, together.
    pub text: String,
    /// Whether the command ended with 0.
    pub success: bool,
}

impl Steps {
    pub(crate) fn new(workspace: &Path) -> anyhow::Result<Steps> {
        let logs = workspace.join("target/xtask");
        std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        Ok(Steps { logs })
    }

    /// Runs a command that must end with 0.
    pub(crate) fn run(&self, name: &str, command: &mut Command) -> anyhow::Result<String> {
        let output = self.try_run(name, command)?;
        if !output.success {
            bail!("{name} failed; all of its output: {}", self.log(name).display());
        }
        Ok(output.text)
    }

    /// Runs a command and says how it ended.
    pub(crate) fn try_run(&self, name: &str, command: &mut Command) -> anyhow::Result<Output> {
        let path = self.log(name);
        let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let started = SystemTime::now();
        announce(name);
        let status = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .with_context(|| format!("{name}: cannot start {}", command.get_program().display()))?;
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let took = started.elapsed().unwrap_or_default();
        conclude(name, status.success(), took);
        if !status.success() {
            let mut lines = failures_of_cargo_test(&text);
            if lines.is_empty() {
                lines = text.lines().collect();
                lines.drain(..lines.len().saturating_sub(TAIL_LINES));
            }
            for line in lines {
                println!("    {line}");
            }
        }
        Ok(Output { text, success: status.success() })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{}.log", name.replace([' ', '/'], "-")))
    }
}

/// On a terminal the line is there from the start, and finished at the end.
fn announce(name: &str) {
    if std::io::stdout().is_terminal() {
        print!("... {name}\r");
        let _ = std::io::stdout().flush();
    }
}

fn conclude(name: &str, success: bool, took: Duration) {
    let word = if success { "ok    " } else { "FAILED" };
    println!("{word} {name} ({} s)", took.as_secs());
}
