//! `cargo xtask bench gateway-api`: Pontoon's programs built for release, a cluster, and `pontoon-load-tests
//! gateway-api` inside of its node's namespaces, which measures and writes `docs/benchmarks-gateway-api.md`.

use std::path::Path;

use anyhow::bail;
use clap::Args;

use super::{Compared, build_release, name_commit};
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
    #[command(flatten)]
    compared: Compared,
}

pub(super) fn run(
    arguments: &Arguments,
    workspace: &Path,
    steps: &Steps,
    tools: &Tools,
) -> anyhow::Result<()> {
    let release = build_release(workspace, steps, &["pontoon", "pontoon-proxy", "pontoon-load-tests"])?;
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
    arguments.compared.pass(&mut command);
    name_commit(workspace, &mut command);
    let status = command.status();
    cluster.down()?;
    let status = status?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(())
}
