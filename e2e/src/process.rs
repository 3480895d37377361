//! A program under test: a process group of its own, its output in a file, killed when its owner goes. One
//! program is never found by its name.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait::until;

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts it, with standard output and error in `NAME.log` in the folder. A second start under one name
    /// adds to the file.
    ///
    /// The child belongs to the calling thread: some programs (Envoy) end with the thread that started them.
    ///
    /// # Errors
    /// When the program or its log cannot be had.
    pub fn start(name: &str, mut command: Command, folder: &Path) -> anyhow::Result<Process> {
        std::fs::create_dir_all(folder)?;
        let log = folder.join(format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{name}: cannot start {}", command.get_program().display()))?;
        Ok(Process { name: name.to_owned(), log, child })
    }

    /// What it is called here.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, which is its group's too.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output is.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All that it has printed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }

    /// An error, with the end of the log, when it runs no more.
    ///
    /// # Errors
    /// As said.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = self.log()?;
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            bail!("{} ended with {status}:\n{tail}", self.name);
        }
        Ok(())
    }

    /// Waits until a line of its output holds the text.
    ///
    /// # Errors
    /// When the deadline passes or it ends before.
    pub async fn prints(&mut self, text: &str, within: Duration) -> anyhow::Result<()> {
        let what = format!("{} to print {text:?}", self.name);
        until(&what, within, async || match self.log()?.contains(text) {
            true => Ok(Ok(())),
            // An end is final: no need to wait for the deadline.
            false => match self.check_alive() {
                Ok(()) => bail!("it has not; see {}", self.log.display()),
                Err(ended) => Ok(Err(ended)),
            },
        })
        .await?
    }

    /// Asks it to end (SIGTERM to the process itself) and does not wait.
    ///
    /// # Errors
    /// When it has ended before.
    pub fn terminate(&self) -> anyhow::Result<()> {
        kill_process(self.id()?, Signal::TERM).with_context(|| format!("cannot stop {}", self.name))
    }

    /// Ends its group at once (SIGKILL).
    ///
    /// # Errors
    /// When it has ended before.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        kill_process_group(self.id()?, Signal::KILL).with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn ended(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        let child = &mut self.child;
        until(&what, within, async || child.try_wait()?.context("it still runs")).await
    }

    fn id(&self) -> anyhow::Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The id is ours until the child is waited for, so this cannot hit another's group.
        if let (Ok(None), Ok(id)) = (self.child.try_wait(), self.id()) {
            let _ = kill_process_group(id, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_ends_with_its_owner_and_so_do_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo child $!; wait"]);
        let mut process = Process::start("parent", command, folder.path()).unwrap();
        process.prints("child ", Duration::from_secs(10)).await.unwrap();
        let log = process.log().unwrap();
        let child = log.trim().strip_prefix("child ").unwrap().to_owned();
        drop(process);
        // A zombie has no command line; another parent may be slow to reap it.
        until("the child's end", Duration::from_secs(10), async || {
            let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            anyhow::ensure!(line.is_empty(), "it still runs");
            Ok(())
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn an_early_end_is_said_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out of order; exit 3"]);
        let mut process = Process::start("broken", command, folder.path()).unwrap();
        let error = process.prints("ready", Duration::from_secs(60)).await.unwrap_err().to_string();
        assert!(error.contains("out of order") && error.contains('3'), "{error}");
    }
}
