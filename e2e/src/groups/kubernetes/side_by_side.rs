//! Two installations in one cluster, each with a name of its own: each serves its Gateways, and leaves the other's alone.

use std::path::Path;

use anyhow::{Context, ensure};
use pontoon_e2e::kubernetes::{Cluster, NODE, Namespace, PATIENCE};
use pontoon_e2e::pontoon::ControlPlane;
use pontoon_e2e::ports;
use pontoon_e2e::wait::{get, until};
use serde_json::Value;

use super::gateways::PROXY;
use super::plane::{CLASS, Steady, condition, install};
use super::smoke::hello;
use crate::groups::place;

const NAME: &str = "example.com/gateways";
const OTHER_CLASS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: other}
spec: {controllerName: example.com/gateways}
";
const OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: inside}
data:
  service: 'spec: {type: ClusterIP}'
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: ours}
spec:
  gatewayClassName: pontoon
  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: inside}}
  listeners: [{name: http, protocol: HTTP, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: theirs}
spec:
  gatewayClassName: other
  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: inside}}
  listeners: [{name: http, protocol: HTTP, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: hello}
spec:
  parentRefs: [{name: ours}, {name: theirs}]
  rules: [{backendRefs: [{name: hello, port: 80}]}]
";

/// Both serve one route, by pods of their own; one that starts anew takes nothing of the other's away.
pub(super) async fn named(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    install(cluster, "standard").await?;
    cluster.apply(CLASS).await?;
    cluster.apply(OTHER_CLASS).await?;
    let namespace = cluster.namespace("side-by-side", &[]).await?;
    namespace.apply(&hello(2)).await?;
    let plane = |called: &str| -> anyhow::Result<ControlPlane> {
        let plane = ControlPlane::prepare(
            &place("PONTOON_E2E_PONTOON")?,
            &folder.join("side-by-side").join(called),
            "",
        )?;
        let mut plane = plane.on_kubernetes(&cluster.kubeconfig(), &namespace.name).with_gateways(PROXY);
        plane.xds = (NODE, ports::free()?).into();
        Ok(plane)
    };
    let (ours, theirs) = (plane("ours")?, plane("theirs")?.called(NAME));
    let serving = ours.start().await?;
    let mut other = theirs.start().await?;
    namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
    namespace.apply(OBJECTS).await?;
    for (gateway, made) in [("ours", "ours-pontoon"), ("theirs", "theirs-other")] {
        let address = programmed(&namespace, gateway, made).await?;
        let said =
            until("a pod to answer", PATIENCE, async || get(&format!("http://{address}/")).await).await?;
        ensure!(said.contains("hello from"), "{said}");
    }
    for lease in ["pontoon", "pontoon-example.com-gateways"] {
        let held = namespace.get(&["lease", lease]).await?;
        ensure!(held["spec"]["holderIdentity"].is_string(), "{held}");
    }
    accepted_by_both(&namespace).await?;

    // One that begins to lead looks at all that was made.
    let seen = async || -> anyhow::Result<[Value; 3]> {
        let deployment = namespace.get(&["deployment", "theirs-other"]).await?;
        let gateway = namespace.get(&["gateway", "theirs"]).await?;
        let mark = &deployment["metadata"]["annotations"]["pontoon.dev/controller-name"];
        ensure!(mark == NAME, "{mark}");
        Ok([&deployment["metadata"]["uid"], &deployment["metadata"]["generation"], &gateway["status"]]
            .map(Value::clone))
    };
    let before = seen().await?;
    let mut serving = serving;
    serving.kill()?;
    let again = plane("again")?;
    let _again = again.start().await?;
    let labels = r#"{"spec":{"infrastructure":{"labels":{"example.com/again":"1"}}}}"#;
    namespace.kubectl(&["patch", "gateway", "ours", "--type=merge", "-p", labels]).await?;
    until("the new one to lead", PATIENCE, async || {
        let deployment = namespace.get(&["deployment", "ours-pontoon"]).await?;
        let label = &deployment["metadata"]["labels"]["example.com/again"];
        ensure!(label == "1", "{}", deployment["metadata"]["labels"]);
        Ok(())
    })
    .await?;
    programmed(&namespace, "ours", "ours-pontoon").await?;
    accepted_by_both(&namespace).await?;
    let after = seen().await?;
    ensure!(before == after, "{before:?} became {after:?}");
    other.kill()?;
    without_class(cluster, &namespace, &theirs).await?;
    Ok("two Gateways, one route, two entries in its status".to_owned())
}

/// A class that is deleted takes nothing of its Gateways away, even from who starts after that.
async fn without_class(cluster: &Cluster, namespace: &Namespace, plane: &ControlPlane) -> anyhow::Result<()> {
    let address = programmed(namespace, "theirs", "theirs-other").await?;
    let load = Steady::start(&format!("http://{address}/moved"))?;
    cluster.kubectl(&["delete", "gatewayclass", "other"]).await?;
    let _serving = plane.start().await?;
    until("the Gateway to say that its class has gone", PATIENCE, async || {
        let gateway = namespace.get(&["gateway", "theirs"]).await?;
        let accepted = condition(&gateway["status"]["conditions"], "Accepted").context("no condition")?;
        let says =
            accepted["message"].as_str().is_some_and(|message| message.contains("no GatewayClass other"));
        ensure!(accepted["status"] == "True" && says, "{accepted}");
        Ok(())
    })
    .await?;
    let moved = r#"[{"op":"add","path":"/spec/rules/0/matches","value":[{"path":{"value":"/moved"}}]}]"#;
    namespace.kubectl(&["patch", "httproute", "hello", "--type=json", "-p", moved]).await?;
    until("an edit to be in force without a class", PATIENCE, async || {
        let answer = get(&format!("http://{address}/")).await;
        ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    })
    .await?;
    load.finish().await?;
    cluster.apply(OTHER_CLASS).await?;
    until("the Gateway to have its class again", PATIENCE, async || {
        let gateway = namespace.get(&["gateway", "theirs"]).await?;
        let accepted = condition(&gateway["status"]["conditions"], "Accepted").context("no condition")?;
        ensure!(accepted["message"] == "", "{accepted}");
        Ok(())
    })
    .await?;
    cluster.kubectl(&["delete", "gatewayclass", "other"]).await?;
    Ok(())
}

/// Waits until a Gateway is, and gives its address.
async fn programmed(namespace: &Namespace, gateway: &str, made: &str) -> anyhow::Result<String> {
    until(&format!("Gateway {gateway} to be programmed"), PATIENCE, async || {
        let object = namespace.get(&["gateway", gateway]).await?;
        let status = &object["status"];
        let programmed = condition(&status["conditions"], "Programmed").context("no condition")?;
        let is_of_now = programmed["observedGeneration"] == object["metadata"]["generation"];
        let deployment = namespace.get(&["deployment", made]).await?;
        ensure!(deployment["status"]["availableReplicas"].as_u64().is_some_and(|pods| pods > 0), "no pod");
        ensure!(is_of_now && programmed["status"] == "True", "{status}");
        Ok(status["addresses"][0]["value"].as_str().context("no address")?.to_owned())
    })
    .await
}

async fn accepted_by_both(namespace: &Namespace) -> anyhow::Result<()> {
    until("both to accept the route", PATIENCE, async || {
        let route = namespace.get(&["httproute", "hello"]).await?;
        let parents = route["status"]["parents"].as_array().context("no status")?;
        let mut by: Vec<(&str, &str)> = Vec::new();
        for parent in parents {
            let accepted = condition(&parent["conditions"], "Accepted").context("no condition")?;
            ensure!(accepted["status"] == "True", "{parent}");
            by.push((
                parent["parentRef"]["name"].as_str().unwrap_or_default(),
                parent["controllerName"].as_str().unwrap_or_default(),
            ));
        }
        by.sort_unstable();
        ensure!(by == [("ours", "pontoon.dev/gateway-controller"), ("theirs", NAME)], "{by:?}");
        Ok(())
    })
    .await
}
