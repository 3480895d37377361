//! One step of a task: a command whose output goes to a file under `target/xtask/`, with what failed, or its end,
//! printed when it fails. What a person watches stays one line a step. A step that says nothing for long is ended
//! with all that it started: a test that hangs must not take the run, and the word of which it was, with it.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::tally::failures_of_cargo_test;

/// Lines of a failed step's output that are printed.
const TAIL_LINES: usize = 60;

/// How long a step may print nothing. The longest test and the longest link stay far below it.
const LONGEST_SILENCE: Duration = Duration::from_secs(10 * 60);

/// How often a running step is looked at.
const LOOK: Duration = Duration::from_secs(1);

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
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()
            .with_context(|| format!("{name}: cannot start {}", command.get_program().display()))?;
        let status = wait(child, &log, LONGEST_SILENCE)?;
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let took = started.elapsed().unwrap_or_default();
        conclude(name, status.success(), took);
        if !status.success() {
            let mut lines = failures_of_cargo_test(&text);
            if lines.is_empty() || text.ends_with(ENDED) {
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

/// What the log of a step that hung ends with.
const ENDED: &str = "\nxtask: silent for too long, ended\n";

/// Waits for a step's end; ends it when its log has not grown for `silence`.
fn wait(mut child: Child, mut log: &File, silence: Duration) -> anyhow::Result<ExitStatus> {
    let process = child.id();
    let (ended, end) = mpsc::channel();
    let waiter = thread::spawn(move || ended.send(child.wait()));
    let (mut length, mut grown) = (0, SystemTime::now());
    loop {
        match end.recv_timeout(silence.min(LOOK)) {
            Err(RecvTimeoutError::Timeout) => {}
            status => {
                let _sent = waiter.join();
                return Ok(status??);
            }
        }
        let now = log.metadata()?.len();
        if now != length {
            (length, grown) = (now, SystemTime::now());
        } else if grown.elapsed().unwrap_or_default() > silence {
            end_with_children(process)?;
            log.write_all(ENDED.as_bytes())?;
            grown = SystemTime::now();
        }
    }
}

/// Kills a process and whatever descends from it. Not by process group: a step stays in the group of its terminal,
/// so that an interrupt ends both.
fn end_with_children(process: u32) -> anyhow::Result<()> {
    let mut doomed = vec![process];
    let parents = parents()?;
    let mut next = 0;
    while let Some(parent) = doomed.get(next).copied() {
        doomed.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    for process in doomed.into_iter().filter_map(|process| Pid::from_raw(process.cast_signed())) {
        // It may have ended by itself.
        let _ = kill_process(process, Signal::KILL);
    }
    Ok(())
}

/// Every process with its parent, by proc_pid_stat(5): the second field behind the name's last parenthesis.
fn parents() -> anyhow::Result<Vec<(u32, u32)>> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let process = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parents.extend(process.zip(parent));
    }
    Ok(parents)
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_silent_step_is_ended_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = File::create(&path).unwrap();
        let mut step = Command::new("sh");
        step.args(["-c", "echo started; sleep 600 & wait"]).stdout(log.try_clone().unwrap());
        let mut step = step.stderr(Stdio::piped()).spawn().unwrap();
        let mut held = step.stderr.take().unwrap();
        let status = wait(step, &log, Duration::from_millis(500)).unwrap();
        assert!(!status.success());
        assert_eq!(std::fs::read_to_string(path).unwrap(), format!("started\n{ENDED}"));
        // Ends when nobody has the pipe any more: the child that waits has gone too.
        held.read_to_string(&mut String::new()).unwrap();
    }
}
