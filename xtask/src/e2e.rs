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

    pub(crate) fn is_on_cluster(self) -> bool {
        matches!(self, Group::Conformance | Group::Kubernetes)
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

/// A group whose programs are built and whose peers are there.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) group: Group,
    on: On,
    /// What runs by `cargo test`, before the group's own program.
    beside: Vec<Beside>,
    /// Where the group finds what it runs.
    places: Vec<(&'static str, PathBuf)>,
    /// Images that its cluster has beside our own.
    images: Vec<PathBuf>,
}

/// Builds the programs of ours that the groups run, with the features that they have among all of the workspace: as
/// `cargo test` has built them.
pub(crate) fn build(workspace: &Path, steps: &Steps) -> anyhow::Result<()> {
    let mut build = Command::new("cargo");
    build.current_dir(workspace).args(["build", "--locked", "--workspace"]);
    build.args(["--bin", "pontoon", "--bin", "pontoon-proxy", "--bin", "pontoon-e2e"]);
    steps.run("build the programs", &mut build).map(drop)
}

/// Builds and fetches what a group runs beside them.
pub(crate) fn prepare(
    group: Group,
    on: On,
    workspace: &Path,
    steps: &Steps,
    tools: &Tools,
) -> anyhow::Result<Ready> {
    if on == On::Existing && group != Group::Kubernetes {
        bail!("--cluster existing: the group {} needs a cluster of its own, or none", group.name());
    }
    let mut ready = Ready { group, on, beside: Vec::new(), places: Vec::new(), images: Vec::new() };
    if group == Group::Xds {
        let place = ("PONTOON_E2E_GO_CONTROL_PLANE", tools.go_control_plane(steps, workspace)?);
        ready.beside.push(Beside { tests: &["conformance", "conformance_go"], place });
        return Ok(ready);
    }
    let places = &mut ready.places;
    let built = workspace.join("target/debug");
    places.push(("PONTOON_E2E_PONTOON", built.join("pontoon")));
    places.push(("PONTOON_E2E_PROXY", built.join("pontoon-proxy")));
    places.push(("PONTOON_E2E_ARTIFACTS", workspace.join("target/e2e")));
    match group {
        Group::Equal => places.push(("PONTOON_E2E_ENVOY", tools.envoy(steps)?)),
        Group::H2spec => places.push(("PONTOON_E2E_H2SPEC", tools.h2spec(steps)?)),
        Group::Envoy => {
            let place = ("PONTOON_E2E_ENVOY", tools.envoy(steps)?);
            places.push(place.clone());
            ready.beside.push(Beside { tests: &["envoy"], place });
        }
        Group::GoControlPlane => {
            places.push(("PONTOON_E2E_GO_CONTROL_PLANE", tools.go_control_plane(steps, workspace)?));
        }
        Group::Grpc => {
            places.push(("PONTOON_E2E_GRPC_GO", tools.grpc_go(steps, workspace)?));
            places.push(("PONTOON_E2E_GRPC_JAVA", tools.grpc_java(steps, workspace)?));
        }
        Group::Kubernetes => {
            places.push(("PONTOON_E2E_HELM", tools.helm(steps)?));
            places.push(("PONTOON_E2E_CHART", chart::folder(workspace)));
            if on == On::Own {
                let spring = tools.spring(steps, workspace)?;
                ready.images.push(java::image(&spring, steps, tools)?);
                places.push(("PONTOON_E2E_SPRING", spring));
            }
        }
        Group::Network => tools.network(steps)?,
        Group::Spring => places.push(("PONTOON_E2E_SPRING", tools.spring(steps, workspace)?)),
        Group::Conformance | Group::Xds => {}
    }
    if group.is_on_cluster() {
        cluster::prepare(on == On::Own, workspace, steps, tools)?;
    }
    for beside in &ready.beside {
        steps.run(&format!("build {}", beside.name()), beside.command(workspace).arg("--no-run"))?;
    }
    Ok(ready)
}

impl Ready {
    /// Runs the group, or those of its cases that `passed_on` names, and counts.
    pub(crate) fn run(
        &self,
        workspace: &Path,
        steps: &Steps,
        tools: &Tools,
        passed_on: &[String],
    ) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        for beside in &self.beside {
            let output = steps.try_run(&beside.name(), &mut beside.command(workspace))?;
            tally.add(Tally::of_step(&output));
        }
        if self.group == Group::Xds {
            return Ok(tally);
        }
        let program = workspace.join("target/debug/pontoon-e2e");
        let (mut command, cluster) = if self.on == On::Existing {
            (cluster::existing(&program, workspace, tools)?, None)
        } else if self.group.is_on_cluster() {
            let cluster = ForGroup::up(workspace, steps, tools)?;
            cluster.load(&self.images)?;
            (cluster.command(&program)?, Some(cluster))
        } else {
            (Command::new(&program), None)
        };
        command.current_dir(workspace).arg(self.group.name()).args(passed_on);
        command.envs(self.places.iter().map(|(name, place)| (name, place)));
        // A person follows the cases as they end; the results come by a file.
        let status = command.status().context("pontoon-e2e does not start")?;
        if let Some(cluster) = cluster {
            cluster.down()?;
        }
        let results = workspace.join("target/e2e").join(self.group.name()).join("results.json");
        let text = std::fs::read_to_string(&results)
            .with_context(|| format!("the group ended ({status}) without {}", results.display()))?;
        let of_group: Tally = serde_json::from_str(&text)?;
        if !status.success() && of_group.failed == 0 {
            bail!("the group ended with {status}, and all of its cases passed");
        }
        tally.add(of_group);
        Ok(tally)
    }
}

/// Tests of our crates that have a real peer beside them: the wire (`pontoon-xds`), and what the compiler makes of
/// golden objects (`pontoon`).
#[derive(Debug)]
struct Beside {
    tests: &'static [&'static str],
    place: (&'static str, PathBuf),
}

impl Beside {
    fn name(&self) -> String {
        format!("tests {}", self.tests.join(" "))
    }

    /// Of the whole workspace: what `cargo test` has built is not built again for other features.
    fn command(&self, workspace: &Path) -> Command {
        let mut command = Command::new("cargo");
        command.current_dir(workspace).args(["test", "--workspace", "--locked", "--no-fail-fast"]);
        command.args(self.tests.iter().flat_map(|test| ["--test", test]));
        command.env(self.place.0, &self.place.1);
        command
    }
}
