//! What needs an API server and nothing else of a cluster: control planes, a gateway and two instances run beside it.
//! The cluster may be somebody else's, so what is made there has names of its own, and goes.

use std::path::Path;

use anyhow::{Context, ensure};
use pontoon_e2e::inventory::Instance;
use pontoon_e2e::kubernetes::{Cluster, Namespace, PATIENCE};
use pontoon_e2e::pontoon::Gateway;
use pontoon_e2e::ports;
use pontoon_e2e::wait::{get, until};
use serde_json::Value;
use tokio::time::Instant;

use super::plane::{FAILOVER, condition, gateway_of, install, plane};
use crate::groups::place;

/// Of the namespace and the class.
const NAME: &str = "pontoon-e2e";
/// A Pontoon that is installed there has nothing to do with it.
const CONTROLLER: &str = "e2e.pontoon.dev/gateway-controller";

/// From an instance of Eureka's to one of a pool, by a command and by the object, over the leader's death.
pub(super) async fn moved(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    install(cluster, "standard").await?;
    forget_class(cluster).await?;
    cluster.create(&class()).await?;
    let moved = moves(cluster, folder).await;
    forget_class(cluster).await?;
    moved
}

/// Somebody else's cluster is left as a whole, and one of ours is used again.
async fn forget_class(cluster: &Cluster) -> anyhow::Result<()> {
    if cluster.is_ours() {
        cluster.kubectl(&["delete", "gatewayclass", NAME, "--ignore-not-found"]).await?;
    }
    Ok(())
}

async fn moves(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    let folder = folder.join(NAME);
    let namespace = cluster.namespace(NAME, &[]).await?;
    let (legacy, modern) = (Instance::start("legacy").await?, Instance::start("modern").await?);
    let port = ports::free()?;
    namespace.apply(&objects(port, modern.address.port())).await?;

    let first = plane(cluster, &folder.join("first"), NAME)?.called(CONTROLLER);
    let mut leading = first.start().await?;
    legacy.register(first.eureka).await?;
    let nobody = until("one to lead", PATIENCE, async || left_to_the_next(&namespace).await).await?;
    let (proxy, view) = (place("PONTOON_E2E_PROXY")?, format!("{NAME}/edge"));
    let gateway = Gateway::start(&proxy, &folder, &view, first.xds, 1).await?;
    let url = format!("http://127.0.0.1:{port}/");
    answers(&url, "legacy").await?;
    let migration = format!("{NAME}/hello");
    let set = ["migration", "set", &migration, "--stage", "cutover", "--reason", "e2e"];
    first.run(&set).await?;
    answers(&url, "modern").await?;

    // What is in force another leader does not know before the gateway has come to it.
    let second = plane(cluster, &folder.join("second"), NAME)?.called(CONTROLLER);
    let _second = second.start().await?;
    legacy.register(second.eureka).await?;
    in_force(&namespace, "True", "").await?;
    until("the gateway to be on the Lease", PATIENCE, async || {
        ensure!(left_to_the_next(&namespace).await? != nobody, "nobody is");
        Ok(())
    })
    .await?;
    leading.kill()?;
    let killed = Instant::now();
    let patch = r#"{"spec":{"stage":"split","weight":0}}"#;
    namespace.kubectl(&["patch", "migration.pontoon.dev", "hello", "--type=merge", "-p", patch]).await?;
    until("the other to do what is asked for", FAILOVER, async || {
        let status = namespace.get(&["migration.pontoon.dev", "hello"]).await?["status"].take();
        ensure!(status["state"]["position"]["stage"] == "split", "{status}");
        Ok(())
    })
    .await?;
    let after = killed.elapsed();
    in_force(&namespace, "False", "e2e-gateway").await?;
    ensure!(get(&url).await?.contains("modern"), "the gateway goes on with what it had");
    drop(gateway);
    let _gateway = Gateway::start(&proxy, &folder.join("second"), &view, second.xds, 1).await?;
    answers(&url, "legacy").await?;
    in_force(&namespace, "True", "").await?;
    Ok(format!("another leads after {:.1} s", after.as_secs_f64()))
}

/// Which proxies the leader has written on its Lease, packed.
async fn left_to_the_next(namespace: &Namespace) -> anyhow::Result<String> {
    let leases = namespace.get(&["leases"]).await?;
    let written = &leases["items"][0]["metadata"]["annotations"]["pontoon.dev/proxies"];
    written.as_str().map(str::to_owned).context("no Lease says so")
}

async fn answers(url: &str, side: &str) -> anyhow::Result<()> {
    until(&format!("the {side} side to answer"), PATIENCE, async || {
        let said = get(url).await?;
        ensure!(said.contains(side), "{said}");
        Ok(())
    })
    .await
}

/// Waits until the migration's condition says so, and names `who`.
async fn in_force(namespace: &Namespace, status: &str, who: &str) -> anyhow::Result<()> {
    until(&format!("InForce to be {status}"), PATIENCE, async || {
        let migration = namespace.get(&["migration.pontoon.dev", "hello"]).await?;
        let said = condition(&migration["status"]["conditions"], "InForce").cloned().unwrap_or(Value::Null);
        let is_named = said["message"].as_str().is_some_and(|message| message.contains(who));
        ensure!(said["status"] == status && is_named, "it is {said}");
        Ok(())
    })
    .await
}

fn class() -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {{name: {NAME}}}
spec: {{controllerName: {CONTROLLER}}}
"
    )
}

fn objects(port: u16, modern: u16) -> String {
    let gateway = gateway_of(NAME, port);
    format!(
        "{gateway}\
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: {{name: modern}}
spec: {{endpoints: [{{address: 127.0.0.1, port: {modern}}}]}}
---
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {{name: hello}}
spec:
  service: hello
  legacy: {{eureka: {{application: inventory}}}}
  target: {{pool: modern}}
  key: {{header: x-user-id}}
"
    )
}
