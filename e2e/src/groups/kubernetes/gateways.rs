//! What a Gateway becomes: pods and a Service of its own, judged by a client of theirs and by what is left of them.

use std::path::Path;

use anyhow::{Context, ensure};
use pontoon_e2e::kubernetes::{Cluster, NODE, Namespace, PATIENCE};
use pontoon_e2e::pontoon::ControlPlane;
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use pontoon_e2e::wait::{get, until};
use serde_json::Value;

use super::plane::{CLASS, Steady, condition, gateway, install};
use super::smoke::hello;
use crate::groups::place;

/// The name of what is made.
const MADE: &str = "edge-pontoon";

/// A Gateway is made, served, changed under load, scaled by another, mended, and leaves nothing.
pub(super) async fn lifecycle(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    install(cluster, "standard").await?;
    cluster.apply(CLASS).await?;
    let namespace = cluster.namespace("gateways", &[]).await?;
    namespace.apply(&hello(2)).await?;
    let folder = folder.join("gateways");
    let mut plane = ControlPlane::prepare(&place("PONTOON_E2E_PONTOON")?, &folder, "")?
        .on_kubernetes(&cluster.kubeconfig(), &namespace.name)
        .with_gateways(PROXY);
    plane.xds = (NODE, ports::free()?).into();
    let _serving = plane.start().await?;
    namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
    // What is made is let in where little is, with ports below 1024.
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    cluster.kubectl(&["label", "namespace", &namespace.name, restricted]).await?;
    namespace.apply(&parameters("10m")).await?;
    namespace.apply(&gateway(80)).await?;
    namespace.kubectl(&["patch", "gateway", "edge", "--type=merge", "-p", PARAMETERS_REF]).await?;
    let address = programmed(&namespace).await?;
    let url = format!("http://{address}/");
    let said = until("a pod to answer", PATIENCE, async || get(&url).await).await?;
    ensure!(said.contains("hello from"), "{said}");
    ensure!(replicas(&namespace).await? == 2, "not two pods at first");

    let pods = namespace.get(&["pods", "-l", "gateway.networking.k8s.io/gateway-name=edge"]).await?;
    let pod = pods["items"][0]["status"]["podIP"].as_str().context("a pod without an address")?;
    let metrics = get(&format!("http://{pod}:15021/metrics")).await?;
    ensure!(metrics.contains("pontoon_xds_connected 1"), "no metrics from outside of the pod: {metrics}");

    // Whoever is not one of its pods is told nothing of it.
    let mut command = std::process::Command::new(place("PONTOON_E2E_PROXY")?);
    command.arg(format!("--cluster={}/edge", namespace.name)).arg("--admin=127.0.0.1:0");
    command.arg(format!("--xds-server=http://{}", plane.xds));
    let stranger = Process::start("stranger", command, &folder)?;
    until("a stranger to be refused", PATIENCE, async || {
        let log = std::fs::read_to_string(stranger.log_path())?;
        ensure!(log.contains("is not Gateway gateways/edge's"), "{log}");
        Ok(())
    })
    .await?;
    drop(stranger);

    // Another's number of pods stays, while we write all else.
    namespace.kubectl(&["scale", "deployment", MADE, "--replicas=3"]).await?;
    let load = Steady::start(&url)?;
    namespace.apply(&parameters("20m")).await?;
    until("the new parameters to be applied", PATIENCE, async || {
        let deployment = namespace.get(&["deployment", MADE]).await?;
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        ensure!(container["resources"]["requests"]["cpu"] == "20m", "{container}");
        Ok(())
    })
    .await?;
    namespace.kubectl(&["rollout", "status", "deployment", MADE, "--timeout=120s"]).await?;
    let requests = load.finish().await?;
    ensure!(replicas(&namespace).await? == 3, "the number of pods was taken back");

    // What somebody takes away comes back.
    namespace.kubectl(&["delete", "deployment", MADE, "--cascade=foreground"]).await?;
    programmed(&namespace).await?;
    until("a pod to answer again", PATIENCE, async || get(&url).await).await?;

    // Of another class it is not ours any more, and with it nothing of ours is left.
    let other = r#"{"spec":{"gatewayClassName":"others"}}"#;
    namespace.kubectl(&["patch", "gateway", "edge", "--type=merge", "-p", other]).await?;
    gone(&namespace).await?;
    let ours = r#"{"spec":{"gatewayClassName":"pontoon"}}"#;
    namespace.kubectl(&["patch", "gateway", "edge", "--type=merge", "-p", ours]).await?;
    programmed(&namespace).await?;
    namespace.delete(&["gateway", "edge", "--cascade=foreground"]).await?;
    gone(&namespace).await?;
    Ok(format!("{requests} requests during a rolling update, none failed"))
}

/// Waits until the Gateway is, and gives its address.
pub(super) async fn programmed(namespace: &Namespace) -> anyhow::Result<String> {
    until("the Gateway to be programmed", PATIENCE, async || {
        let gateway = namespace.get(&["gateway", "edge"]).await?;
        let status = &gateway["status"];
        let programmed = condition(&status["conditions"], "Programmed").context("no condition")?;
        let is_of_now = programmed["observedGeneration"] == gateway["metadata"]["generation"];
        let deployment = namespace.get(&["deployment", MADE]).await?;
        ensure!(deployment["status"]["availableReplicas"].as_u64().is_some_and(|pods| pods > 0), "no pod");
        ensure!(is_of_now && programmed["status"] == "True", "{status}");
        Ok(status["addresses"][0]["value"].as_str().context("no address")?.to_owned())
    })
    .await
}

async fn replicas(namespace: &Namespace) -> anyhow::Result<u64> {
    let deployment = namespace.get(&["deployment", MADE]).await?;
    deployment["spec"]["replicas"].as_u64().context("no number of pods")
}

/// Waits until nothing is left of what was made.
async fn gone(namespace: &Namespace) -> anyhow::Result<()> {
    const KINDS: &str = "deployment,service,serviceaccount,poddisruptionbudget";
    until("nothing to be left", PATIENCE, async || {
        let left = namespace.get(&[KINDS, "-l", "app.kubernetes.io/managed-by=pontoon"]).await?;
        let names: Vec<&Value> =
            left["items"].as_array().into_iter().flatten().map(|item| &item["kind"]).collect();
        ensure!(names.is_empty(), "{names:?}");
        Ok(())
    })
    .await
}

pub(super) const PROXY: &str = "pontoon.dev/pontoon-proxy:0.1.0";
const PARAMETERS_REF: &str =
    r#"{"spec":{"infrastructure":{"parametersRef":{"group":"","kind":"ConfigMap","name":"edge"}}}}"#;

fn parameters(cpu: &str) -> String {
    format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: edge}}
data:
  service: 'spec: {{type: ClusterIP}}'
  deployment: |
    spec: {{template: {{spec: {{containers: [{{name: pontoon-proxy, resources: {{requests: {{cpu: {cpu}}}}}}}]}}}}}}
"
    )
}
