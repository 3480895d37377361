//! The control plane is stopped, its objects change, and it is started again: what changed comes into force in proxies
//! that come back with what they had.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::load::{Load, none_failed};
use pontoon_e2e::pontoon::ControlPlane;
use pontoon_e2e::process::Process;
use pontoon_e2e::wait::until;
use tokio::time::Instant;

use super::{PATIENCE, dumps};

const BEFORE: &str = "connectTimeout: 5s";
const AFTER: &str = "connectTimeout: 7s";
/// Both pools.
const CLUSTERS: usize = 2;
/// From a proxy's return on. An Envoy that is sent no endpoints with a changed cluster takes it after 15 s all the same
/// (`initial_fetch_timeout`).
const SOON: Duration = Duration::from_secs(10);
/// Requests after it, at each gateway.
const REQUESTS: usize = 150;

/// `objects`: those before.
pub(super) async fn changed(
    plane: &ControlPlane,
    serving: &mut Process,
    folder: &Path,
    objects: &str,
    admins: &[SocketAddr],
    loads: &[Load],
) -> anyhow::Result<String> {
    for admin in admins {
        until("the setting before", PATIENCE, async || in_force(*admin, "5s").await).await?;
    }
    let from = Instant::now();
    serving.terminate()?;
    serving.ended(PATIENCE).await?;
    ensure!(objects.matches(BEFORE).count() == CLUSTERS, "the objects are others than this case knows");
    std::fs::write(folder.join("objects/objects.yaml"), objects.replace(BEFORE, AFTER))?;
    *serving = plane.start().await?;
    until("all proxies to be back", PATIENCE, async || {
        let proxies = plane.json(&["proxies"]).await?;
        let back = proxies.as_array().context("no list of proxies")?.len();
        ensure!(back == admins.len(), "{back} are");
        Ok(())
    })
    .await?;
    let back = Instant::now();
    let mut slowest = Duration::ZERO;
    for admin in admins {
        let left = SOON.saturating_sub(back.elapsed());
        until("the changed setting", left, async || in_force(*admin, "7s").await).await?;
        slowest = slowest.max(back.elapsed());
    }
    let in_force = Instant::now();
    for load in loads {
        load.next_since(in_force, REQUESTS).await?;
        none_failed(&load.since(from))?;
    }
    Ok(format!("in force within {} ms of the last proxy's return; 0 failed", slowest.as_millis()))
}

/// Whether both clusters have the time to connect, and none waits for its endpoints.
async fn in_force(admin: SocketAddr, timeout: &str) -> anyhow::Result<()> {
    let clusters = dumps::of(admin, "ClustersConfigDump", "dynamic_active_clusters").await?;
    let clusters = clusters.as_array().context("no clusters")?;
    let having = clusters.iter().filter(|one| one["cluster"]["connect_timeout"] == timeout).count();
    ensure!(having == CLUSTERS, "{having} of {} clusters have {timeout}", clusters.len());
    let warming = dumps::of(admin, "ClustersConfigDump", "dynamic_warming_clusters").await?;
    ensure!(warming.as_array().is_none_or(Vec::is_empty), "waiting for endpoints: {warming}");
    Ok(())
}
