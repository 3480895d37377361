//! `cargo xtask bench`: release builds and peers, then `pontoon-load-tests`, which measures and writes
//! `docs/benchmarks.md`.

mod control_plane;
mod gateway_api;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;
use clap::{Args, Subcommand};

use crate::step::Steps;
use crate::tools::Tools;

/// What to measure, and how long.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// Under five minutes: shorter runs, without the phases that wait for leases and caches, and without the peers on a
    /// JVM unless they are named.
    #[arg(long)]
    quick: bool,
    /// Only these phases.
    #[arg(long = "phase", value_name = "NAME")]
    phases: Vec<String>,
    /// Only these peers beside ourselves.
    #[arg(long = "peer", value_name = "PEER")]
    peers: Vec<String>,
    #[command(flatten)]
    compared: Compared,
}

/// Benchmarks of something else than proxies.
#[derive(Debug, Subcommand)]
enum Other {
    /// From a change until the last of up to a thousand proxies has acknowledged it.
    ControlPlane(control_plane::Arguments),
    /// What thousands of routes cost on a real cluster, and how soon a change of one is in force. Needs root.
    GatewayApi(gateway_api::Arguments),
    /// Write docs/benchmarks.md anew, of docs/benchmarks/results.json, without measuring.
    Page,
}

impl Arguments {
    /// Whether a peer on Spring is measured, or a phase that has one by itself.
    fn has_spring(&self) -> bool {
        let names = |asked: &[String], some: &[&str]| asked.iter().any(|one| some.contains(&one.as_str()));
        let is_all = |asked: &[String]| asked.is_empty() && !self.quick;
        is_all(&self.peers)
            || is_all(&self.phases)
            || names(&self.peers, &["spring-cloud-gateway", "zuul"])
            || names(&self.phases, &["convergence"])
    }
}

/// What a run is compared with, and where it goes.
#[derive(Debug, Args)]
struct Compared {
    /// The JSON of an earlier run: what has become worse since by more than the spread is printed.
    #[arg(long, value_name = "FILE")]
    against: Option<String>,
    /// Where the results go as JSON beside docs/benchmarks/results.json, which a full run with all peers writes, or the
    /// file under target/bench that any other one does.
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

impl Compared {
    fn pass(&self, command: &mut Command) {
        command.args(self.against.iter().flat_map(|file| ["--against", file]));
        command.args(self.json.iter().flat_map(|file| ["--json", file]));
    }
}

/// Says which commit is measured, as far as git is there to ask. Pages and results are no part of what is built.
fn name_commit(workspace: &Path, command: &mut Command) {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(workspace).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return };
    let changes = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)docs"]);
    let changed = if changes.is_some_and(|changes| changes.is_empty()) { "" } else { " with changes" };
    command.env("PONTOON_BENCH_COMMIT", commit + changed);
}

/// Builds programs of ours as benchmarks take them; gives their folder.
fn build_release(workspace: &Path, steps: &Steps, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let mut build = Command::new("cargo");
    build.current_dir(workspace).args(["build", "--release", "--locked", "--bins"]);
    build.args(packages.iter().flat_map(|package| ["-p", package]));
    steps.run("build for release", &mut build)?;
    Ok(workspace.join("target/release"))
}

pub(crate) fn run(
    arguments: &Arguments,
    workspace: &Path,
    steps: &Steps,
    tools: &Tools,
) -> anyhow::Result<()> {
    match &arguments.other {
        Some(Other::ControlPlane(arguments)) => {
            return control_plane::run(arguments, workspace, steps, tools);
        }
        Some(Other::GatewayApi(arguments)) => return gateway_api::run(arguments, workspace, steps, tools),
        Some(Other::Page) => {
            let mut write = Command::new("cargo");
            write.current_dir(workspace).args(["run", "--locked", "-p", "pontoon-load-tests", "--", "page"]);
            return steps.run("write docs/benchmarks.md", &mut write).map(drop);
        }
        None => {}
    }
    tools.debian(steps)?;
    let envoy = tools.envoy(steps)?;
    let pingora = tools.pingora(steps, workspace)?;
    let caddy = tools.caddy(steps)?;
    let release = build_release(workspace, steps, &["pontoon", "pontoon-proxy", "pontoon-load-tests"])?;
    let mut command = Command::new(release.join("pontoon-load-tests"));
    command.current_dir(workspace);
    command.env("PONTOON_BENCH_PONTOON", release.join("pontoon"));
    command.env("PONTOON_BENCH_PROXY", release.join("pontoon-proxy"));
    command.env("PONTOON_BENCH_ENVOY", envoy);
    command.env("PONTOON_BENCH_PINGORA", pingora);
    command.env("PONTOON_BENCH_CADDY", caddy);
    if arguments.has_spring() {
        command.env("PONTOON_E2E_SPRING", tools.spring(steps, workspace)?);
    }
    command.env("PONTOON_BENCH_ARTIFACTS", workspace.join("target/bench"));
    command.args(arguments.quick.then_some("--quick"));
    for (flag, values) in [("--phase", &arguments.phases), ("--peer", &arguments.peers)] {
        command.args(values.iter().flat_map(|value| [flag, value]));
    }
    arguments.compared.pass(&mut command);
    name_commit(workspace, &mut command);
    let status = command.status()?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(())
}
