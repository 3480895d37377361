//! The programs of a cluster that is up: each is a file under `processes/` with its process id and the time at
//! which it started, which tells it from a later process of that number. Nothing is ever found by its name.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::wait_until;

/// One program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Running {
    pub pid: i32,
    /// Its id inside the cluster's own process namespace: what a test sees.
    pub inside: i32,
    /// In clock ticks since the machine started, by proc_pid_stat(5).
    started: u64,
    /// What was started, to be started again by a test that has stopped it.
    command: Vec<String>,
    /// Whoever brought it into the namespaces and waits for it. It stops when the program is stopped for a while, and
    /// does not go on by itself.
    waits: Option<Waits>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Waits {
    pid: i32,
    started: u64,
}

impl Running {
    fn look(pid: i32, waiting: i32, command: Vec<String>) -> anyhow::Result<Running> {
        let since = started(pid).with_context(|| format!("process {pid} has ended"))?;
        let waits =
            (waiting != pid).then(|| Some(Waits { pid: waiting, started: started(waiting)? })).flatten();
        Ok(Running { pid, inside: inside(pid).unwrap_or(pid), started: since, command, waits })
    }

    pub(super) fn read(state: &Path, name: &str) -> anyhow::Result<Option<Running>> {
        match std::fs::read(state.join("processes").join(format!("{name}.json"))) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn write(&self, state: &Path, name: &str) -> anyhow::Result<()> {
        let folder = state.join("processes");
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(folder.join(format!("{name}.json")), serde_json::to_vec_pretty(self)?)?)
    }

    fn runs(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    fn is_gone(&self) -> bool {
        let waits = self.waits.is_some_and(|waits| started(waits.pid) == Some(waits.started));
        !waits && !self.runs()
    }

    fn signal(&self, signal: Signal) {
        let both = [Some(Waits { pid: self.pid, started: self.started }), self.waits];
        for Waits { pid, started: since } in both.into_iter().flatten() {
            if let Some(process) = Pid::from_raw(pid).filter(|_| started(pid) == Some(since)) {
                // It may end by itself meanwhile.
                let _ = kill_process(process, signal);
                let _ = kill_process(process, Signal::CONT);
            }
        }
    }
}

/// Starts a program that outlives this one, and notes which process it is.
pub(super) fn start(
    state: &Path,
    name: &str,
    mut command: Command,
    program: &str,
    arguments: &[String],
) -> anyhow::Result<()> {
    let folder = state.join("log");
    std::fs::create_dir_all(&folder)?;
    let log = File::create(folder.join(format!("{name}.log")))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("{name}: cannot start {}", command.get_program().display()))?;
    // `nsenter` starts the program as a child of its own, as that is how a process namespace is entered.
    let waiting = i32::try_from(child.id())?;
    let mut pid = waiting;
    wait_until(name, || {
        let Some(shown) = name_of(pid) else { bail!("{name} has ended; see {}", folder.display()) };
        // The kernel keeps 15 characters.
        if program.rsplit('/').next().unwrap_or(program).starts_with(shown.as_str()) {
            return Ok(None);
        }
        if shown == "nsenter" || shown == "unshare" {
            pid = only_child(pid).unwrap_or(pid);
        }
        Ok(Some(format!("process {pid} is still {shown}")))
    })?;
    let command = [program.to_owned()].into_iter().chain(arguments.iter().cloned()).collect();
    Running::look(pid, waiting, command)?.write(state, name)
}

/// Fails with the end of its log when one of them has ended.
pub(super) fn check_all(state: &Path) -> anyhow::Result<()> {
    for (name, running) in all(state)? {
        if !running.runs() {
            let log = std::fs::read(state.join("log").join(format!("{name}.log"))).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).into_owned();
            bail!("{name} has ended: {}", log.lines().next_back().unwrap_or_default());
        }
    }
    Ok(())
}

/// Whether each of them runs.
pub(super) fn all_run(state: &Path) -> anyhow::Result<bool> {
    Ok(all(state)?.iter().all(|(_, running)| running.runs()))
}

/// Asks each to end; those that do not are ended.
pub(super) fn stop_all(state: &Path) -> anyhow::Result<()> {
    let all = all(state)?;
    all.iter().for_each(|(_, running)| running.signal(Signal::TERM));
    let started = std::time::SystemTime::now();
    wait_until("the cluster to end", || {
        if started.elapsed().unwrap_or_default().as_secs() >= 5 {
            all.iter().for_each(|(_, running)| running.signal(Signal::KILL));
        }
        Ok(all.iter().find(|(_, running)| !running.is_gone()).map(|(name, _)| format!("{name} still runs")))
    })
}

fn all(state: &Path) -> anyhow::Result<Vec<(String, Running)>> {
    let Ok(entries) = std::fs::read_dir(state.join("processes")) else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        all.extend(Running::read(state, name)?.map(|running| (name.to_owned(), running)));
    }
    Ok(all)
}

/// None: it has ended, be it that its parent has not noticed.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // Behind the name: the third field is the state, the 22nd the time.
    (fields.next()? != "Z").then(|| fields.nth(18)?.parse().ok()).flatten()
}

fn name_of(pid: i32) -> Option<String> {
    Some(std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

pub(super) fn only_child(pid: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn inside(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().next_back()?.parse().ok()
}
