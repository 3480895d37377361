//! `cargo xtask e2e NAME`: one group of tests against real programs. The binaries are built, the group's peers
//! fetched, and `pontoon-e2e` run with the places of both.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::chart;
use crate::cluster::{self, ForGroup};
use crate::java;
use crate::step::Steps;
use crate::tally::Tally;
use crate::tools::Tools;

/// The groups, each with its own peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// The official conformance suite of the Gateway API, on a real cluster. Needs root.
    Conformance,
    /// Envoy as a client of the xDS server, and as a gateway beside our own.
    Envoy,
    /// Envoy and our proxy with one bootstrap: what they do must be the same.
    Equal,
    /// Our proxy as a client of go-control-plane.
    GoControlPlane,
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
    /// The conformance suite of the transport protocol, against our xDS server and against go-control-plane's.
    Xds,
}

impl Group {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Group::Conformance => "conformance",
            Group::Envoy => "envoy",
            Group::Equal => "equal",
            Group::GoControlPlane => "go-control-plane",
            Group::Grpc => "grpc",
            Group::H2spec => "h2spec",
            Group::Kubernetes => "kubernetes",
            Group::Network => "network",
            Group::Spring => "spring",
            Group::Xds => "xds",
        }
    }
}

/// On which cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    /// One that is started for it, unless it is up.
    Own,
    /// The one that KUBECONFIG says. Cases that need one of ours are skipped, and nothing stays there.
    Existing,
}

/// Runs one group and counts its cases.
pub(crate) fn run(
    group: Group,
    on: On,
    workspace: &Path,
    steps: &Steps,
    tools: &Tools,
    passed_on: &[String],
) -> anyhow::Result<Tally> {
    if on == On::Existing && group != Group::Kubernetes {
        bail!("--cluster existing: the group {} needs a cluster of its own, or none", group.name());
    }
    let mut tally = Tally::default();
    match group {
        Group::Envoy => {
            for package in ["pontoon-xds", "pontoon"] {
                let program = tools.envoy(steps)?;
                let beside = Beside { package, tests: &["envoy"], variable: "PONTOON_E2E_ENVOY", program };
                tally.add(beside.run(workspace, steps)?);
            }
        }
        Group::Xds => {
            let (package, tests) = ("pontoon-xds", &["conformance", "conformance_go"]);
            let program = tools.go_control_plane(steps, workspace)?;
            let variable = "PONTOON_E2E_GO_CONTROL_PLANE";
            return Beside { package, tests, variable, program }.run(workspace, steps);
        }
        _ => {}
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
    let spring = match group {
        Group::Kubernetes if on == On::Existing => None,
        Group::Kubernetes | Group::Spring => Some(tools.spring(steps, workspace)?),
        _ => None,
    };
    let cluster = match (group, &spring) {
        (Group::Kubernetes, Some(spring)) => {
            let application = java::image(spring, steps, tools)?;
            let cluster = ForGroup::up(workspace, steps, tools)?;
            cluster.load(&[application])?;
            Some(cluster)
        }
        (Group::Conformance, _) => Some(ForGroup::up(workspace, steps, tools)?),
        _ => None,
    };
    let mut command = match &cluster {
        Some(cluster) => cluster.command(&program)?,
        None if on == On::Existing => cluster::existing(&program, workspace, steps, tools)?,
        None => Command::new(&program),
    };
    command.current_dir(workspace).arg(group.name()).args(passed_on);
    command.env("PONTOON_E2E_PONTOON", target.join("pontoon"));
    command.env("PONTOON_E2E_PROXY", target.join("pontoon-proxy"));
    command.env("PONTOON_E2E_ARTIFACTS", workspace.join("target/e2e"));
    match group {
        Group::Equal => command.env("PONTOON_E2E_ENVOY", tools.envoy(steps)?),
        Group::H2spec => command.env("PONTOON_E2E_H2SPEC", tools.h2spec(steps)?),
        Group::Envoy => command.env("PONTOON_E2E_ENVOY", tools.envoy(steps)?),
        Group::GoControlPlane => {
            command.env("PONTOON_E2E_GO_CONTROL_PLANE", tools.go_control_plane(steps, workspace)?)
        }
        Group::Grpc => command
            .env("PONTOON_E2E_GRPC_GO", tools.grpc_go(steps, workspace)?)
            .env("PONTOON_E2E_GRPC_JAVA", tools.grpc_java(steps, workspace)?),
        Group::Kubernetes => command
            .env("PONTOON_E2E_HELM", tools.helm(steps)?)
            .env("PONTOON_E2E_CHART", chart::folder(workspace)),
        Group::Conformance | Group::Network | Group::Spring | Group::Xds => &mut command,
    };
    if let Some(spring) = &spring {
        command.env("PONTOON_E2E_SPRING", spring);
    }
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

/// Tests of a crate that have a real peer beside them: the wire (`pontoon-xds`), and what the compiler makes of golden
/// objects (`pontoon`).
struct Beside {
    package: &'static str,
    tests: &'static [&'static str],
    variable: &'static str,
    program: PathBuf,
}

impl Beside {
    fn run(&self, workspace: &Path, steps: &Steps) -> anyhow::Result<Tally> {
        let mut command = Command::new("cargo");
        command.current_dir(workspace).args(["test", "--locked", "--no-fail-fast", "-p", self.package]);
        for test in self.tests {
            command.args(["--test", test]);
        }
        command.env(self.variable, &self.program);
        let output = steps.try_run(&format!("e2e beside {}", self.package), &mut command)?;
        let mut tally = Tally::of_cargo_test(&output.text);
        if !output.success && tally.failed == 0 {
            tally.failed = 1;
        }
        Ok(tally)
    }
}
