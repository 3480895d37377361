//! Helm, as `cargo xtask` has built it, and the chart.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tokio::process::Command;

/// Runs Helm against the cluster of this process's environment.
#[derive(Debug, Clone)]
pub struct Helm {
    program: PathBuf,
    /// For what Helm keeps of its own.
    home: PathBuf,
}

impl Helm {
    /// Helm, with a folder for what it keeps.
    pub fn new(program: PathBuf, home: &Path) -> Helm {
        Helm { program, home: home.to_owned() }
    }

    /// Runs it and gives what it prints.
    ///
    /// # Errors
    /// When it does not end with 0.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, &self.home);
        }
        let output =
            command.args(arguments).kill_on_drop(true).output().await.context("helm does not start")?;
        let said = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy);
        ensure!(
            output.status.success(),
            "helm {}: {}: {}",
            arguments.join(" "),
            output.status,
            said.concat().trim()
        );
        Ok(said[0].clone().into_owned())
    }
}
