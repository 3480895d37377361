//! `cargo xtask bench gateway-api`: Pontoon's programs built for release, a cluster, and `pontoon-load-tests
//! gateway-api` inside of its node's namespaces, which measures and writes `docs/benchmarks-gateway-api.md`.

use std::path::Path;
use std::process::Command;

use anyhow::bail;
use clap::Args;

use crate::cluster::ForGroup;
use crate::step::Steps;
use crate::tools::Tools;

/// Beside a group of tests another cluster may be up.
const CLUSTER: &str = "bench";

/// What to measure, and how long.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A tenth of the routes; about a minute.
    #[arg(long)]
    quick: bool,
    /// Only tests whose name has this in it, as in `route-probe`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The JSON of an earlier run: what has become worse since by more than the spread is printed.
    #[arg(long, value_name = "FILE")]
    against: Option<String>,
    /// Where the results go as JSON; without it, beside the logs in target/bench/gateway-api.
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

pub(super) fn run(
    arguments: &Arguments,
    workspace: &Path,
    steps: &Steps,
    tools: &Tools,
) -> anyhow::Result<()> {
    let mut build = Command::new("cargo");
    build.current_dir(workspace).args(["build", "--release", "--locked", "--bins"]);
    build.args(["-p", "pontoon", "-p", "pontoon-proxy", "-p", "pontoon-load-tests"]);
    steps.run("build for release", &mut build)?;

    let release = workspace.join("target/release");
    let artifacts = workspace.join("target/bench/gateway-api");
    std::fs::create_dir_all(&artifacts)?;
    let cluster = ForGroup::start(CLUSTER, workspace, steps, tools)?;
    let mut command = cluster.command(&release.join("pontoon-load-tests"))?;
    command.current_dir(workspace).arg("gateway-api");
    command.env("PONTOON_BENCH_PONTOON", release.join("pontoon"));
    command.env("PONTOON_BENCH_PROXY", release.join("pontoon-proxy"));
    command.env("PONTOON_BENCH_ARTIFACTS", artifacts);
    command.args(arguments.quick.then_some("--quick"));
    command.args(arguments.only.iter().flat_map(|text| ["--only", text]));
    command.args(arguments.against.iter().flat_map(|file| ["--against", file]));
    command.args(arguments.json.iter().flat_map(|file| ["--json", file]));
    let status = command.status();
    cluster.down()?;
    let status = status?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(())
}
