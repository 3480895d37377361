//! `cargo xtask bench control-plane`: Pontoon's control plane and a server on go-control-plane, built for release,
//! then `pontoon-load-tests control-plane`, which measures both and writes their part of `docs/benchmarks.md`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;
use clap::Args;

use super::{Compared, build_release, name_commit};
use crate::step::Steps;
use crate::tools::{Tools, on_path};

/// What to measure, and how long.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A thousand services, 10 and 200 proxies; under three minutes.
    #[arg(long)]
    quick: bool,
    /// Only points whose name has this in it, as in `10000-services-1000-sidecars`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only Pontoon.
    #[arg(long)]
    alone: bool,
    #[command(flatten)]
    compared: Compared,
}

pub(super) fn run(
    arguments: &Arguments,
    workspace: &Path,
    steps: &Steps,
    tools: &Tools,
) -> anyhow::Result<()> {
    let go_control_plane = go_control_plane(workspace, steps, tools)?;
    let release = build_release(workspace, steps, &["pontoon", "pontoon-load-tests"])?;
    let mut command = Command::new(release.join("pontoon-load-tests"));
    command.current_dir(workspace).arg("control-plane");
    command.env("PONTOON_BENCH_PONTOON", release.join("pontoon"));
    command.env("PONTOON_BENCH_GO_CONTROL_PLANE", go_control_plane);
    command.env("PONTOON_BENCH_ARTIFACTS", workspace.join("target/bench"));
    command.args(arguments.quick.then_some("--quick"));
    command.args(arguments.alone.then_some("--alone"));
    command.args(arguments.only.iter().flat_map(|text| ["--only", text]));
    arguments.compared.pass(&mut command);
    name_commit(workspace, &mut command);
    let status = command.status()?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(())
}

/// The peer, with the versions of its go.sum. Go knows by itself whether there is anything to build.
fn go_control_plane(workspace: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<PathBuf> {
    if !on_path("go") {
        bail!("go is not on PATH: the peer needs Go 1.26 or newer");
    }
    let program = tools.folder("go-control-plane").join("server");
    let mut build = Command::new("go");
    build.current_dir(workspace.join("load-tests/go-control-plane"));
    build.env("GOFLAGS", "-mod=readonly -buildvcs=false").args(["build", "-o"]).arg(&program).arg(".");
    steps.run("build the server on go-control-plane", &mut build)?;
    Ok(program)
}
