//! The official conformance suite of the Gateway API, against the control plane as it is installed in a cluster: each
//! Gateway of the suite's becomes pods and a Service; and for a mesh, the suite's pods get a sidecar each. What is claimed
//! is what the GatewayClass and the XMesh say of themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use pontoon_e2e::kubernetes::{Cluster, PATIENCE};
use pontoon_e2e::report::Report;
use pontoon_e2e::wait::until;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use super::kubernetes::plane;

/// As it is installed.
const MANIFEST: &str = include_str!("../../../deploy/kubernetes/pontoon.yaml");
/// It runs twice, as all of its namespaces get the same labels: the pods of the one run are not to have sidecars.
const RUNS: [Run; 2] = [
    Run {
        name: "gateway",
        // Addresses of Services: one is free, and one is none of theirs (RFC 5737).
        flags: &[
            "-gateway-class=pontoon",
            "-conformance-profiles=GATEWAY-HTTP,GATEWAY-TLS,GATEWAY-GRPC,GATEWAY-TCP",
            "-usable-address=10.96.250.7",
            "-unusable-address=192.0.2.7",
        ],
    },
    Run {
        name: "mesh",
        flags: &[
            "-gateway-class=",
            "-mesh-name=pontoon",
            "-conformance-profiles=MESH-HTTP,MESH-GRPC",
            "-namespace-labels=pontoon.dev/inject=enabled",
        ],
    },
];
/// The tests of the second one, and only they, have names that begin with this.
const MESH: &str = "Mesh";
/// Tests that cannot pass here, each with the reason. They are in the docs, too (`docs/guide/gateways.md`).
const NOT_HERE: [(&str, &str); 0] = [];
/// For all of them.
const LIMIT: &str = "-test.timeout=60m";

/// One run of the suite.
struct Run {
    name: &'static str,
    flags: &'static [&'static str],
}

/// What the suite writes, as far as it is counted here.
#[derive(Debug, Deserialize)]
struct Written {
    profiles: Vec<Profile>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    name: String,
    core: Part,
    extended: Option<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    statistics: BTreeMap<String, usize>,
}

/// Runs the suite, or those of its tests that are named. True: all passed.
pub(crate) async fn run(arguments: Vec<String>) -> anyhow::Result<bool> {
    let mut report = Report::new("conformance")?;
    let folder = report.folder().to_owned();
    let cluster = Cluster::from_environment()?;
    if report.case("install: the control plane accepts its class", install(&cluster)).await {
        for run in &RUNS {
            let is_of = |test: &&String| test.starts_with(MESH) == (run.name == "mesh");
            let only: Vec<String> = arguments.iter().filter(is_of).cloned().collect();
            if only.is_empty() && !arguments.is_empty() {
                continue;
            }
            let results = suite(&cluster, &folder, run, &only).await;
            save_log(&cluster, &folder).await?;
            for Ended { name, seconds, passed } in results? {
                let outcome =
                    if passed { Ok(String::new()) } else { Err(anyhow::anyhow!("see {}.log", run.name)) };
                report.note(&name, seconds, outcome);
            }
            report.case(&format!("the report of {} is written", run.name), written(&folder, run)).await;
        }
    } else {
        save_log(&cluster, &folder).await?;
    }
    // A cluster that stays is another group's next.
    cluster.kubectl(&["delete", "gatewayclass/pontoon", "xmesh/pontoon", "--ignore-not-found"]).await?;
    cluster.kubectl_with(&["delete", "--ignore-not-found", "-f", "-"], MANIFEST).await?;
    report.finish()
}

async fn install(cluster: &Cluster) -> anyhow::Result<String> {
    // Retries, cookies and the like are in this channel only.
    plane::install(cluster, "experimental").await?;
    // One of an earlier run has that run's image, and so have its Gateways' pods.
    remove(cluster).await?;
    // One of each: a second one on the same machine adds nothing but work.
    cluster.apply(&MANIFEST.replace("replicas: 2", "replicas: 1")).await?;
    cluster.apply(CLASS).await?;
    let deployments = ["-n", "pontoon-system", "deployment/pontoon", "deployment/pontoon-webhook"];
    cluster.wait_for("condition=Available", &deployments).await?;
    let mut said = Vec::new();
    for object in ["gatewayclass", "xmesh"] {
        let features = until("the status to say what it can do", PATIENCE, async || {
            let status = cluster.get(&[object, "pontoon"]).await?["status"].take();
            let features = status["supportedFeatures"].as_array().context("no features")?;
            let accepted = plane::condition(&status["conditions"], "Accepted");
            ensure!(accepted.is_some_and(|accepted| accepted["status"] == "True"), "{status}");
            Ok(features.len())
        });
        said.push(format!("{object}: {} features", features.await?));
    }
    // The API server takes a moment to take note of it, and lets pods pass until then.
    until("the webhook to be asked", PATIENCE, async || {
        let pod = cluster.kubectl_with(&["create", "--dry-run=server", "-o", "json", "-f", "-"], POD).await?;
        let pod: serde_json::Value = serde_json::from_str(&pod)?;
        ensure!(pod["metadata"]["annotations"]["pontoon.dev/injected"].is_string(), "{}", pod["metadata"]);
        Ok(())
    })
    .await?;
    Ok(said.join(", "))
}

async fn remove(cluster: &Cluster) -> anyhow::Result<()> {
    let deployments = ["-n", "pontoon-system", "delete", "deployment", "pontoon", "pontoon-webhook"];
    cluster.kubectl(&[&deployments[..], &["--ignore-not-found"]].concat()).await.map(drop)
}

/// One of the suite's tests.
#[derive(Debug, PartialEq)]
struct Ended {
    name: String,
    seconds: f64,
    passed: bool,
}

/// Runs it, and says what each test came to. What it prints is in `NAME.log`, as it goes.
async fn suite(cluster: &Cluster, folder: &Path, run: &Run, only: &[String]) -> anyhow::Result<Vec<Ended>> {
    let mut command = Command::new(cluster.built("conformance.test"));
    let skipped = NOT_HERE.map(|(name, _)| name).join(",");
    command.current_dir(folder).args(["-test.v", LIMIT]).args(run.flags);
    if !skipped.is_empty() {
        command.arg(format!("-skip-tests={skipped}"));
    }
    let version = env!("CARGO_PKG_VERSION");
    command.args(["-organization=pontoon", "-project=pontoon", "-url=https://pontoon.dev"]);
    command.args(["-contact=https://pontoon.dev", &format!("-version=v{version}")]);
    command.arg(format!("-report-output={}", report_of(folder, run).display()));
    if !only.is_empty() {
        command.arg(format!("-test.run=^TestConformance$/^({})$", only.join("|")));
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let path = folder.join(format!("{}.log", run.name));
    let mut log = tokio::fs::File::create(&path).await?;
    let mut all = Vec::new();
    while let Some(line) = lines.next_line().await? {
        log.write_all(format!("{line}\n").as_bytes()).await?;
        all.extend(ended(&line));
    }
    log.flush().await?;
    let status = child.wait().await?;
    let is_well = all.iter().all(|test| test.passed);
    ensure!(status.success() || !is_well, "the suite ended with {status}; see {}", path.display());
    Ok(all)
}

/// Reads `    --- PASS: TestConformance/NAME (1.23s)`. What the suite skips is what is not claimed, or in [`NOT_HERE`].
fn ended(line: &str) -> Option<Ended> {
    let (outcome, rest) = line.strip_prefix("    --- ")?.split_once(": TestConformance/")?;
    let (name, seconds) = rest.split_once(" (")?;
    let seconds = seconds.strip_suffix("s)")?.parse().ok()?;
    matches!(outcome, "PASS" | "FAIL").then(|| Ended {
        name: name.to_owned(),
        seconds,
        passed: outcome == "PASS",
    })
}

fn report_of(folder: &Path, run: &Run) -> PathBuf {
    folder.join(format!("report-{}.yaml", run.name))
}

/// The counts of the report, by profile.
async fn written(folder: &Path, run: &Run) -> anyhow::Result<String> {
    let path = report_of(folder, run);
    let text = std::fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    let written: Written = serde_saphyr::from_str(&text)?;
    let mut said = path.display().to_string();
    for profile in &written.profiles {
        let counts = |part: &Part| {
            let count = |what: &str| part.statistics.get(what).copied().unwrap_or_default();
            format!("{} passed, {} failed, {} skipped", count("Passed"), count("Failed"), count("Skipped"))
        };
        said.push_str(&format!("\n       {}: core {}", profile.name, counts(&profile.core)));
        if let Some(extended) = &profile.extended {
            said.push_str(&format!("; extended {}", counts(extended)));
        }
    }
    for (name, reason) in NOT_HERE {
        said.push_str(&format!("\n       not here: {name}: {reason}"));
    }
    Ok(said)
}

async fn save_log(cluster: &Cluster, folder: &Path) -> anyhow::Result<()> {
    let arguments = ["-n", "pontoon-system", "logs", "deployment/pontoon", "--tail=-1"];
    let log = cluster.kubectl(&arguments).await.unwrap_or_else(|error| format!("{error:#}\n"));
    Ok(std::fs::write(folder.join("pontoon.log"), log)?)
}

/// One pod a Gateway, for there are many on one machine; and addresses that there are without a cloud.
const CLASS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: conformance, namespace: pontoon-system}
data:
  deployment: |
    spec:
      replicas: 1
      template: {spec: {terminationGracePeriodSeconds: 5, containers: [{name: pontoon-proxy, resources: {requests: {cpu: 10m}}}]}}
  service: |
    spec: {type: ClusterIP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: pontoon}
spec:
  controllerName: pontoon.dev/gateway-controller
  parametersRef: {group: '', kind: ConfigMap, name: conformance, namespace: pontoon-system}
---
apiVersion: gateway.networking.x-k8s.io/v1alpha1
kind: XMesh
metadata: {name: pontoon}
spec: {controllerName: pontoon.dev/gateway-controller}
";

/// One that is only asked about.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: asked-about, namespace: default, labels: {pontoon.dev/inject: enabled}}
spec: {containers: [{name: pause, image: 'registry.k8s.io/pause:3.10'}]}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_ended_is_read_and_its_parts_are_not() {
        let of = |name: &str, seconds, passed| Some(Ended { name: name.to_owned(), seconds, passed });
        for (line, expected) in [
            ("    --- PASS: TestConformance/HTTPRouteWeight (1.25s)", of("HTTPRouteWeight", 1.25, true)),
            ("    --- FAIL: TestConformance/HTTPRouteWeight (61.00s)", of("HTTPRouteWeight", 61.0, false)),
            ("        --- PASS: TestConformance/HTTPRouteWeight/one (1.25s)", None),
            ("    --- SKIP: TestConformance/UDPRouteWeight (0.00s)", None),
            ("--- PASS: TestConformance (1.25s)", None),
        ] {
            assert_eq!(ended(line), expected, "{line}");
        }
    }
}
