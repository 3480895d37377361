//! One rule that Envoy does not take refuses all routes of its gateway. The earlier ones go on being served, and nothing that
//! they lead to is taken away.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::inventory::Instance;
use pontoon_e2e::pontoon::ControlPlane;
use pontoon_e2e::wait::{get, until};
use serde_json::Value;
use tokio::time::Instant;

use super::gateways::{Envoy, Ports, VARIANTS, proxy};
use super::{PATIENCE, dumps};

/// Longer than anything waits for the sake of the order (5 s).
const LONG: Duration = Duration::from_secs(7);

/// `objects`: those beside.
pub(super) async fn kept(
    plane: &ControlPlane,
    folder: &Path,
    objects: &str,
    ports: &Ports,
    envoys: &[Envoy],
) -> anyhow::Result<String> {
    let (before, after) = (Instance::start("before").await?, Instance::start("after").await?);
    let file = folder.join("objects/objects.yaml");
    let write = |more: &str| std::fs::write(&file, format!("{objects}{more}"));
    write(&moved(&before, false))?;
    for (gateway, port) in ports.gateways() {
        until(&format!("{gateway} to have the route"), PATIENCE, async || at(port, "before").await).await?;
    }

    write(&moved(&after, true))?;
    for variant in VARIANTS {
        until("the refusal", PATIENCE, async || {
            let routes = proxy(plane, variant).await?["types"]["RDS"].take();
            ensure!(!routes["last_nack"].is_null(), "{routes}");
            Ok(())
        })
        .await?;
    }
    let (refused, mut requests) = (Instant::now(), 0);
    while refused.elapsed() < LONG {
        for (gateway, port) in ports.gateways().into_iter().filter(|(name, _)| VARIANTS.contains(name)) {
            at(port, "before").await.with_context(|| format!("{gateway}, after {requests} requests"))?;
            requests += 1;
        }
    }

    write(&moved(&after, false))?;
    for (gateway, port) in ports.gateways() {
        until(&format!("{gateway} to have the other route"), PATIENCE, async || at(port, "after").await)
            .await?;
    }
    for envoy in envoys {
        until("the old cluster's end", PATIENCE, async || without(envoy.admin, "before").await).await?;
    }
    write("")?;
    for envoy in envoys {
        until("the end of the other", PATIENCE, async || without(envoy.admin, "after").await).await?;
    }
    Ok(format!("0 of {requests} failed while routes were refused"))
}

async fn at(port: u16, side: &str) -> anyhow::Result<()> {
    let answer: Value = serde_json::from_str(&get(&format!("http://127.0.0.1:{port}/moved")).await?)?;
    ensure!(answer["side"] == side, "{answer}");
    Ok(())
}

async fn without(admin: SocketAddr, pool: &str) -> anyhow::Result<()> {
    let clusters = dumps::of(admin, "ClustersConfigDump", "dynamic_active_clusters").await?;
    let name = format!("pool/default/{pool}");
    let clusters = clusters.as_array().context("no clusters")?;
    ensure!(clusters.iter().all(|one| one["cluster"]["name"] != *name), "{name} is there");
    Ok(())
}

/// A pool of one instance, named after it, and a route to it. `refused`: beside one that is longer than Envoys here take.
fn moved(to: &Instance, refused: bool) -> String {
    let (pool, port) = (to.side, to.address.port());
    let backend = format!("backendRefs: [{{group: pontoon.dev, kind: Pool, name: {pool}}}]");
    let mut text = format!(
        "\
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: {{name: {pool}}}
spec: {{endpoints: [{{address: 127.0.0.1, port: {port}}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: moved}}
spec:
  parentRefs: [{{name: delta}}, {{name: sotw}}, {{name: own}}]
  rules:
  - matches: [{{path: {{type: PathPrefix, value: /moved}}}}]
    {backend}
"
    );
    if refused {
        text.push_str(&format!(
            "  - matches: [{{path: {{type: RegularExpression, value: '/long/[a-z]{{1,20}}'}}}}]\n    {backend}\n"
        ));
    }
    text
}
