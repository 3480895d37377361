//! `cargo xtask e2e NAME`: one group of tests against real programs. The binaries are built, the group's peers
//! fetched, and `pontoon-e2e` run with the places of both.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::cluster::ForGroup;
use crate::step::Steps;
use crate::tally::Tally;
use crate::tools::Tools;

/// The groups, each with its own peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Envoy as a client of the xDS server, and as a gateway beside our own.
    Envoy,
    /// Envoy and our proxy with one bootstrap: what they do must be the same.
    Equal,
    /// Proxyless gRPC (grpc-go, grpc-java) as a client of the xDS server.
    Grpc,
    /// h2spec against the HTTP/2 side of a gateway.
    H2spec,
    /// A real cluster, with pods. Needs root.
    Kubernetes,
    /// Interception between hosts that are network namespaces. Needs root.
    Network,
    /// Spring Cloud applications of two generations.
    Spring,
}

impl Group {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Group::Envoy => "envoy",
            Group::Equal => "equal",
            Group::Grpc => "grpc",
            Group::H2spec => "h2spec",
            Group::Kubernetes => "kubernetes",
            Group::Network => "network",
            Group::Spring => "spring",
        }
    }
}

/// Runs one group and counts its cases.
pub(crate) fn run(
    group: Group,
    workspace: &Path,
    steps: &Steps,
    tools: &Tools,
    passed_on: &[String],
) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    if group == Group::Envoy {
        for package in ["pontoon-xds", "pontoon"] {
            tally.add(envoy_in_process(package, workspace, steps, tools)?);
        }
    }
    let target = workspace.join("target/debug");
    let mut build = Command::new("cargo");
    build.current_dir(workspace).args(["build", "--locked", "--bins"]);
    build.args(["-p", "pontoon", "-p", "pontoon-proxy", "-p", "pontoon-e2e"]);
    steps.run("build the programs", &mut build)?;

    if group == Group::Network {
        tools.network(steps)?;
    }
    let program = target.join("pontoon-e2e");
    let cluster = match group {
        Group::Kubernetes => Some(ForGroup::up(workspace, steps, tools)?),
        _ => None,
    };
    let mut command = match &cluster {
        Some(cluster) => cluster.command(&program)?,
        None => Command::new(&program),
    };
    command.current_dir(workspace).arg(group.name()).args(passed_on);
    command.env("PONTOON_E2E_PONTOON", target.join("pontoon"));
    command.env("PONTOON_E2E_PROXY", target.join("pontoon-proxy"));
    command.env("PONTOON_E2E_ARTIFACTS", workspace.join("target/e2e"));
    match group {
        Group::Equal => command.env("PONTOON_E2E_ENVOY", tools.envoy(steps)?),
        Group::Spring => command.env("PONTOON_E2E_SPRING", tools.spring(steps, workspace)?),
        Group::H2spec => command.env("PONTOON_E2E_H2SPEC", tools.h2spec(steps)?),
        Group::Envoy => command.env("PONTOON_E2E_ENVOY", tools.envoy(steps)?),
        Group::Grpc => command
            .env("PONTOON_E2E_GRPC_GO", tools.grpc_go(steps, workspace)?)
            .env("PONTOON_E2E_GRPC_JAVA", tools.grpc_java(steps, workspace)?),
        Group::Kubernetes | Group::Network => &mut command,
    };
    // A person follows the cases as they end; the results come by a file.
    let status = command.status().context("pontoon-e2e does not start")?;
    if let Some(cluster) = cluster {
        cluster.down()?;
    }
    let results = workspace.join("target/e2e").join(group.name()).join("results.json");
    let text = std::fs::read_to_string(&results)
        .with_context(|| format!("the group ended ({status}) without {}", results.display()))?;
    let of_group: Tally = serde_json::from_str(&text)?;
    if !status.success() && of_group.failed == 0 {
        bail!("the group ended with {status}, and all of its cases passed");
    }
    tally.add(of_group);
    Ok(tally)
}

/// Tests of a crate that have an Envoy beside them: the wire (`pontoon-xds`), and what the compiler makes of golden
/// objects (`pontoon`).
fn envoy_in_process(package: &str, workspace: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<Tally> {
    let mut command = Command::new("cargo");
    command.current_dir(workspace).args(["test", "--locked", "-p", package, "--test", "envoy"]);
    command.env("PONTOON_E2E_ENVOY", tools.envoy(steps)?);
    let output = steps.try_run(&format!("e2e envoy: {package}"), &mut command)?;
    let mut tally = Tally::of_cargo_test(&output.text);
    if !output.success && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok(tally)
}
