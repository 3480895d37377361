//! The processes of the quickstart: this same binary, started again with other words. Each writes to a log
//! file of its own, is ended by SIGTERM, and goes when its handle goes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How long a child may take to end after SIGTERM before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);
/// Ports are sought from here upwards, below the range from which the kernel takes outgoing ones.
const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 32_767;

/// A running child.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts this binary with `args`; what it prints goes to `NAME.log` in `dir`.
    pub(super) fn start(name: &'static str, dir: &Path, args: &[String]) -> anyhow::Result<Process> {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let child = Command::new(std::env::current_exe().context("this program's own path is not known")?)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Process { name, log, child })
    }

    /// Waits until `ready` holds; fails when the child ends before, or after `timeout`.
    pub(super) async fn wait_until<F>(
        &mut self,
        timeout: Duration,
        mut ready: impl FnMut() -> F,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = bool>,
    {
        let deadline = Instant::now() + timeout;
        loop {
            if ready().await {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended early ({status}); its last lines:\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{} is not ready after {timeout:?}; its last lines:\n{}", self.name, self.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks the child to end, and waits for it.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, Signal::TERM)?;
        }
        match tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(status) => {
                tracing::debug!(name = self.name, status = %status?, "ended");
            }
            Err(_) => {
                tracing::warn!(name = self.name, "did not end in {STOP_TIMEOUT:?}, killing it");
                self.child.kill().await?;
            }
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// `preferred` if nothing listens there, else a free port near by. Never twice the same from one `Ports`.
#[derive(Debug)]
pub(super) struct Ports {
    next: u16,
}

impl Ports {
    /// Starts at a place that differs between runs, so that two quickstarts seldom meet.
    pub(super) fn new() -> Ports {
        Ports { next: fastrand::u16(FIRST_PORT..LAST_PORT - 200) }
    }

    /// `preferred`, or a free one.
    pub(super) async fn take(&mut self, preferred: Option<u16>) -> anyhow::Result<u16> {
        if let Some(port) = preferred
            && is_free(port).await
        {
            return Ok(port);
        }
        while self.next < LAST_PORT {
            self.next += 1;
            if is_free(self.next).await {
                return Ok(self.next);
            }
        }
        bail!("no free port between {FIRST_PORT} and {LAST_PORT}")
    }
}

async fn is_free(port: u16) -> bool {
    TcpListener::bind(("0.0.0.0", port)).await.is_ok()
}
