//! Where it is measured: a cluster with what control planes read, and in it, for each test anew, a control plane and a
//! gateway.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use pontoon_e2e::kubernetes::{Cluster, Namespace};
use pontoon_e2e::pontoon::{ControlPlane, Gateway};
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use reqwest::StatusCode;
use tokio::time::Instant;

use super::client::Caller;
use super::objects::{self, GATEWAY};
use super::seen::Seen;
use super::store::{Kind, Store};
use super::{MIB, PATIENCE, milliseconds};
use crate::measure;
use crate::report::Row;

const NAMESPACE: &str = "pontoon-bench";
/// So that what a start leaves behind is done.
pub(super) const SETTLE: Duration = Duration::from_secs(1);
/// Between two looks.
const POLL: Duration = Duration::from_millis(1);

/// The cluster, and the programs.
#[derive(Debug)]
pub(super) struct Site {
    pontoon: PathBuf,
    proxy: PathBuf,
    folder: PathBuf,
    cluster: Cluster,
    _namespace: Namespace,
    pub(super) store: Store,
}

/// A control plane and its gateway.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) seen: Seen,
    pub(super) caller: Caller,
    serving: Process,
    gateway: Gateway,
}

/// What both have used, in all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    plane: Duration,
    proxy: Duration,
    at: Instant,
}

impl Site {
    pub(super) async fn prepare(pontoon: &Path, proxy: &Path, artifacts: &Path) -> anyhow::Result<Site> {
        let cluster = Cluster::from_environment()?;
        cluster.install_gateway_api("experimental").await?;
        let crds = tokio::process::Command::new(pontoon).arg("crds").output().await?;
        cluster.apply(&String::from_utf8(crds.stdout)?).await?;
        let ours =
            ["customresourcedefinition/migrations.pontoon.dev", "customresourcedefinition/pools.pontoon.dev"];
        cluster.wait_for("condition=Established", &ours).await?;
        // Nobody looks names up here, and it would follow all endpoints.
        let without = ["-n", "kube-system", "scale", "deployment/coredns", "--replicas=0"];
        cluster.kubectl(&without).await?;
        let namespace = cluster.namespace(NAMESPACE, &[]).await?;
        let store = Store::connect(NAMESPACE).await?;
        Ok(Site {
            pontoon: pontoon.to_owned(),
            proxy: proxy.to_owned(),
            folder: artifacts.to_owned(),
            cluster,
            _namespace: namespace,
            store,
        })
    }

    pub(super) async fn version(&self) -> anyhow::Result<String> {
        self.store.version().await
    }

    /// With nothing but a Gateway in the API server.
    pub(super) async fn start(&self, name: &str) -> anyhow::Result<Rig> {
        self.store.clear().await?;
        let port = ports::free()?;
        self.store.create(Kind::Gateway, objects::gateway(port)).await?;
        let folder = self.folder.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let plane = ControlPlane::prepare(&self.pontoon, &folder, "")?;
        let plane = plane.on_kubernetes(&self.cluster.kubeconfig(), NAMESPACE);
        let serving = plane.start().await?;
        let gateway =
            Gateway::start(&self.proxy, &folder, &format!("{NAMESPACE}/{GATEWAY}"), plane.xds, 1).await?;
        let mut rig = Rig { seen: Seen::follow(&self.store), caller: Caller::new(port)?, serving, gateway };
        rig.seen.until("the Gateway's status", |state| state.attached == Some(0)).await?;
        rig.until_status("nobody.example.com", "/", StatusCode::NOT_FOUND).await?;
        tokio::time::sleep(SETTLE).await;
        Ok(rig)
    }
}

impl Rig {
    pub(super) fn used(&self) -> anyhow::Result<Used> {
        Ok(Used {
            plane: measure::cpu_time(self.serving.pid())?,
            proxy: measure::cpu_time(self.gateway.process.pid())?,
            at: Instant::now(),
        })
    }

    /// What both have used since, by each of so many changes.
    pub(super) fn push_cpu(
        &self,
        row: &mut Row,
        since: Used,
        changes: usize,
        of: &str,
    ) -> anyhow::Result<()> {
        let now = self.used()?;
        let each = |now: Duration, then: Duration| milliseconds(now.saturating_sub(then)) / changes as f64;
        row.push(&format!("control plane, CPU ms per {of}"), each(now.plane, since.plane));
        row.push(&format!("proxy, CPU ms per {of}"), each(now.proxy, since.proxy));
        Ok(())
    }

    /// What both have used since, as a share of one processor.
    pub(super) fn push_share(&self, row: &mut Row, since: Used, what: &str) -> anyhow::Result<()> {
        let now = self.used()?;
        let wall = now.at.duration_since(since.at).as_secs_f64();
        let share = |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() / wall * 100.0;
        row.push(&format!("control plane, CPU % {what}"), share(now.plane, since.plane));
        row.push(&format!("proxy, CPU % {what}"), share(now.proxy, since.proxy));
        Ok(())
    }

    pub(super) fn push_memory(&self, row: &mut Row, what: &str) -> anyhow::Result<()> {
        for (program, pid) in [("control plane", self.serving.pid()), ("proxy", self.gateway.process.pid())] {
            row.push(&format!("{program}, MiB {what}"), measure::resident(pid)? as f64 / MIB);
        }
        Ok(())
    }

    pub(super) fn push_peaks(&self, row: &mut Row) -> anyhow::Result<()> {
        for (program, pid) in [("control plane", self.serving.pid()), ("proxy", self.gateway.process.pid())] {
            row.push(&format!("{program}, MiB at most"), measure::peak_resident(pid)? as f64 / MIB);
        }
        Ok(())
    }

    /// Fails if one of both has ended.
    pub(super) fn is_alive(&mut self) -> anyhow::Result<()> {
        self.serving.check_alive()?;
        self.gateway.process.check_alive()
    }

    /// Asks until the gateway answers with this status; says how often it answered otherwise than that or 404.
    pub(super) async fn until_status(
        &self,
        host: &str,
        path: &str,
        status: StatusCode,
    ) -> anyhow::Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        let mut faults = 0;
        loop {
            let answer = self.caller.get(host, path).await;
            let answer = answer.with_context(|| format!("{host}{path}"));
            match &answer {
                Ok(answer) if answer.status == status => return Ok(faults),
                Ok(answer) if answer.status == StatusCode::NOT_FOUND => {}
                Ok(_) | Err(_) => faults += 1,
            }
            ensure!(Instant::now() < deadline, "waited for {status} of {host}{path}: {answer:?}");
            tokio::time::sleep(POLL).await;
        }
    }
}
