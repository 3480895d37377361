//! The control plane on a cluster: objects and endpoints from its API server, statuses and the state of migrations in
//! it. What counts is what a client of the gateway sees.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::inventory::Instance;
use pontoon_e2e::kubernetes::{Cluster, Namespace, PATIENCE};
use pontoon_e2e::pontoon::{ControlPlane, Gateway};
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use pontoon_e2e::wait::{get, until};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::place;
use super::smoke::hello;

/// A leader that is killed is followed within this.
pub(super) const FAILOVER: Duration = Duration::from_secs(15);
/// For how long the API server stays away, where it is to be longer than until that is noticed; say 600.
const OUTAGE_SECONDS: &str = "PONTOON_E2E_OUTAGE_SECONDS";
/// Between requests of the steady load.
const EVERY: Duration = Duration::from_millis(10);

/// A control plane, a gateway and the objects that they serve.
struct Rig {
    cluster: Cluster,
    namespace: Namespace,
    folder: PathBuf,
    plane: ControlPlane,
    serving: Process,
    gateway: Gateway,
    url: String,
}

impl Rig {
    async fn start(cluster: &Cluster, folder: &Path, name: &str) -> anyhow::Result<Rig> {
        install(cluster, "standard").await?;
        cluster.apply(CLASS).await?;

        let namespace = cluster.namespace(name, &[]).await?;
        namespace.apply(&hello(2)).await?;
        let port = ports::free()?;
        namespace.apply(&gateway(port)).await?;
        namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
        let folder = folder.join(name);
        let plane = plane(cluster, &folder, name)?;
        let serving = plane.start().await?;
        let proxy = place("PONTOON_E2E_PROXY")?;
        let gateway = Gateway::start(&proxy, &folder, &format!("{name}/edge"), plane.xds, 1).await?;
        let url = format!("http://127.0.0.1:{port}/");
        let cluster = cluster.clone();
        Ok(Rig { cluster, namespace, folder, plane, serving, gateway, url })
    }

    /// Waits until exactly these many pods answer.
    async fn answered_by(&self, pods: usize) -> anyhow::Result<BTreeSet<String>> {
        until(&format!("{pods} pods to answer"), PATIENCE, async || {
            let mut seen = BTreeSet::new();
            for _ in 0..pods * 12 {
                let said = get(&self.url).await?;
                // `hello from POD to ...`
                let pod = said.split(' ').nth(2).with_context(|| format!("the answer is {said:?}"))?;
                seen.insert(pod.to_owned());
            }
            ensure!(seen.len() == pods, "{seen:?} answer");
            Ok(seen)
        })
        .await
    }

    /// Which versions of what the proxy has, and since when.
    async fn configured(&self) -> anyhow::Result<Value> {
        let dump = get(&format!("http://{}/config_dump?include_eds", self.gateway.admin)).await?;
        let mut dump: Value = serde_json::from_str(&dump)?;
        let sections = dump["configs"].as_array_mut().context("no sections")?;
        sections.retain(|section| !section["@type"].as_str().is_some_and(|ty| ty.contains("Bootstrap")));
        ensure!(!sections.is_empty(), "nothing is configured");
        Ok(dump)
    }

    /// Waits until the migration's status says so.
    async fn stands(&self, stage: &str) -> anyhow::Result<Value> {
        until(&format!("the status to say {stage}"), PATIENCE, async || {
            let migration = self.namespace.get(&["migration.pontoon.dev", "hello"]).await?;
            let at = &migration["status"]["state"]["position"]["stage"];
            ensure!(at == stage, "it says {}", migration["status"]);
            Ok(migration)
        })
        .await
    }
}

/// All kinds that a control plane reads.
pub(crate) async fn install(cluster: &Cluster, channel: &str) -> anyhow::Result<()> {
    cluster.install_gateway_api(channel).await?;
    let pontoon = place("PONTOON_E2E_PONTOON")?;
    let crds = tokio::process::Command::new(&pontoon).arg("crds").output().await?;
    cluster.define(&["-f", "-"], &String::from_utf8(crds.stdout)?).await.map(drop)
}

pub(super) fn plane(cluster: &Cluster, folder: &Path, namespace: &str) -> anyhow::Result<ControlPlane> {
    let plane = ControlPlane::prepare(&place("PONTOON_E2E_PONTOON")?, folder, "")?;
    Ok(plane.on_kubernetes(&cluster.kubeconfig(), namespace))
}

pub(crate) fn condition<'v>(conditions: &'v Value, kind: &str) -> Option<&'v Value> {
    conditions.as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// A Gateway, an HTTPRoute and a Service: to a pod and back; pods come and go, and the statuses say what is.
pub(super) async fn route(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    let rig = Rig::start(cluster, folder, "plane-route").await?;
    let first = rig.answered_by(2).await?;
    rig.namespace.kubectl(&["scale", "deployment/hello", "--replicas=4"]).await?;
    rig.answered_by(4).await?;
    rig.namespace.kubectl(&["scale", "deployment/hello", "--replicas=1"]).await?;
    rig.answered_by(1).await?;

    let route = until("the statuses", PATIENCE, async || {
        let gateway = rig.namespace.get(&["gateway", "edge"]).await?;
        let programmed = condition(&gateway["status"]["conditions"], "Programmed");
        ensure!(programmed.is_some_and(|c| c["status"] == "True"), "{}", gateway["status"]);
        ensure!(gateway["status"]["listeners"][0]["attachedRoutes"] == 1, "{}", gateway["status"]);
        let route = rig.namespace.get(&["httproute", "hello"]).await?;
        let accepted = condition(&route["status"]["parents"][0]["conditions"], "Accepted");
        ensure!(accepted.is_some_and(|c| c["status"] == "True"), "{}", route["status"]);
        Ok(route)
    })
    .await?;
    // A second look at the same: nothing is written that says nothing new.
    rig.namespace.kubectl(&["scale", "deployment/hello", "--replicas=2"]).await?;
    rig.answered_by(2).await?;
    let again = rig.namespace.get(&["httproute", "hello"]).await?;
    ensure!(
        again["metadata"]["resourceVersion"] == route["metadata"]["resourceVersion"],
        "{}",
        again["status"]
    );

    // A backend that is not there is a condition; when it is there again the route serves.
    let patch = |service: &str| {
        format!(r#"[{{"op":"replace","path":"/spec/rules/0/backendRefs/0/name","value":"{service}"}}]"#)
    };
    let broken = ["patch", "httproute", "hello", "--type=json", "-p", &patch("hello2")];
    rig.namespace.kubectl(&broken).await?;
    until("the route to be refused", PATIENCE, async || {
        let route = rig.namespace.get(&["httproute", "hello"]).await?;
        let resolved = condition(&route["status"]["parents"][0]["conditions"], "ResolvedRefs").cloned();
        let resolved = resolved.context("no condition")?;
        ensure!(resolved["observedGeneration"] == route["metadata"]["generation"], "{resolved}");
        Ok(())
    })
    .await?;
    rig.namespace.kubectl(&["patch", "httproute", "hello", "--type=json", "-p", &patch("hello")]).await?;
    rig.answered_by(2).await?;
    Ok(format!("{} pods first", first.len()))
}

/// A Service that is a DNS name, which the proxy looks up: there and back under load.
pub(super) async fn external(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    let rig = Rig::start(cluster, folder, "plane-external").await?;
    let outside = Instance::start("outside").await?;
    let port = outside.address.port();
    rig.namespace.apply(&external_service("localhost", port)).await?;
    let to = |name: &str, port: u16| {
        format!(
            r#"[{{"op":"replace","path":"/spec/rules/0/backendRefs/0","value":{{"name":"{name}","port":{port}}}}}]"#
        )
    };
    rig.answered_by(2).await?;
    let load = Steady::start(&rig.url)?;
    let outwards = to("outside", port);
    rig.namespace.kubectl(&["patch", "httproute", "hello", "--type=json", "-p", &outwards]).await?;
    until("what is outside of the cluster to answer", PATIENCE, async || {
        let said = get(&rig.url).await?;
        ensure!(said.contains("outside"), "{said}");
        Ok(())
    })
    .await?;
    // A name that cannot be looked up leaves what is known.
    rig.namespace.apply(&external_service("nobody.invalid", port)).await?;
    rig.namespace.kubectl(&["patch", "httproute", "hello", "--type=json", "-p", &to("hello", 80)]).await?;
    rig.answered_by(2).await?;
    let requests = load.finish().await?;
    Ok(format!("{requests} requests, none failed"))
}

fn external_service(name: &str, port: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: outside}}
spec: {{type: ExternalName, externalName: {name}, ports: [{{port: {port}}}]}}
"
    )
}

/// From an instance of Eureka to pods; what the API server keeps outlives the control plane and its folder.
pub(super) async fn migration(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    let rig = Rig::start(cluster, folder, "plane-migration").await?;
    let legacy = Instance::start("legacy").await?;
    rig.namespace.apply(MIGRATION).await?;
    legacy.register(rig.plane.eureka).await?;
    let is_legacy = |said: &str| said.contains("legacy");
    until("the legacy side to answer", PATIENCE, async || {
        let said = get(&rig.url).await?;
        ensure!(is_legacy(&said), "{said}");
        Ok(())
    })
    .await?;
    rig.stands("observe").await?;
    let load = Steady::start(&rig.url)?;
    let name = format!("{}/hello", rig.namespace.name);
    rig.plane.run(&["migration", "set", &name, "--stage", "cutover", "--reason", "e2e"]).await?;
    until("pods to answer", PATIENCE, async || {
        let said = get(&rig.url).await?;
        ensure!(!is_legacy(&said), "{said}");
        Ok(())
    })
    .await?;
    rig.namespace.kubectl(&["rollout", "restart", "deployment/hello"]).await?;
    rig.namespace.kubectl(&["rollout", "status", "deployment/hello", "--timeout=120s"]).await?;
    let requests = load.finish().await?;
    let migration = rig.stands("cutover").await?;
    ensure!(
        migration["status"]["history"].as_array().is_some_and(|all| all.len() == 2),
        "{}",
        migration["status"]
    );

    // Another one, in another folder, goes on where this one ended.
    let Rig { serving, cluster, namespace, folder, .. } = rig;
    let mut serving = serving;
    serving.kill()?;
    let second = plane(&cluster, &folder.join("second"), &namespace.name)?;
    let _serving = second.start().await?;
    let shown = second.json(&["migration", "show", &name]).await?;
    ensure!(shown["stage"] == "cutover" && shown["revision"] == 2, "{shown}");
    Ok(format!("{requests} requests, none failed"))
}

/// Of two control planes one leads; when it is killed, the other does what the objects ask for.
pub(super) async fn failover(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    let rig = Rig::start(cluster, folder, "plane-failover").await?;
    rig.answered_by(2).await?;
    let second = plane(cluster, &rig.folder.join("second"), &rig.namespace.name)?;
    let _second = second.start().await?;
    let holder = async || {
        let lease = rig.namespace.get(&["lease", "pontoon"]).await?;
        lease["spec"]["holderIdentity"].as_str().map(str::to_owned).context("nobody leads")
    };
    let first = until("a leader", PATIENCE, async || holder().await).await?;
    let Rig { mut serving, .. } = rig;
    serving.kill()?;
    let killed = Instant::now();
    rig.namespace.apply(MIGRATION).await?;
    until("the other to do what is asked for", FAILOVER, async || {
        let migration = rig.namespace.get(&["migration.pontoon.dev", "hello"]).await?;
        ensure!(migration["status"]["state"]["revision"] == 1, "{}", migration["status"]);
        Ok(())
    })
    .await?;
    let after = killed.elapsed();
    ensure!(holder().await? != first, "{first} leads still");
    Ok(format!("after {:.1} s", after.as_secs_f64()))
}

/// An API server that does not answer, and one that was killed and comes back: clients see nothing of it.
pub(super) async fn outage(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    let rig = Rig::start(cluster, folder, "plane-outage").await?;
    rig.answered_by(2).await?;
    let load = Steady::start(&rig.url)?;
    cluster.kill("apiserver")?;
    let down = Instant::now();
    let log = rig.serving.log_path().to_owned();
    let says = async |text: &str| {
        until(&format!("the control plane to say {text:?}"), PATIENCE, async || {
            ensure!(std::fs::read_to_string(&log)?.contains(text), "see {}", log.display());
            Ok(())
        })
        .await
    };
    says("what is known goes on").await?;
    rig.answered_by(2).await?;
    let before = rig.configured().await?;
    if let Some(seconds) = std::env::var_os(OUTAGE_SECONDS) {
        let seconds = seconds.to_str().and_then(|text| text.parse().ok());
        let seconds = seconds.with_context(|| format!("{OUTAGE_SECONDS} is no number of seconds"))?;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    let _apiserver = cluster.restart("apiserver", &rig.folder)?;
    says("the API server answers again").await?;
    let after = rig.configured().await?;
    ensure!(after == before, "nothing was changed, but what the proxy has: {before:#}, then {after:#}");
    rig.namespace.kubectl(&["scale", "deployment/hello", "--replicas=3"]).await?;
    rig.answered_by(3).await?;
    let down = down.elapsed().as_secs();
    Ok(format!("{} requests, none failed; down for {down} s", load.finish().await?))
}

/// Requests one after another; each must be answered 200.
pub(super) struct Steady {
    stop: CancellationToken,
    sending: tokio::task::JoinHandle<anyhow::Result<usize>>,
}

impl Steady {
    pub(super) fn start(url: &str) -> anyhow::Result<Steady> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
        let (stop, url) = (CancellationToken::new(), url.to_owned());
        let until = stop.clone();
        let sending = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            let mut requests = 0;
            while !until.is_cancelled() {
                ticks.tick().await;
                let answer = client.get(&url).send().await.with_context(|| format!("request {requests}"))?;
                let status = answer.status();
                let body = answer.text().await?;
                ensure!(status == 200, "request {requests}: {status}: {body}");
                requests += 1;
            }
            Ok(requests)
        });
        Ok(Steady { stop, sending })
    }

    pub(super) async fn finish(self) -> anyhow::Result<usize> {
        self.stop.cancel();
        self.sending.await?
    }
}

pub(super) const CLASS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: pontoon}
spec: {controllerName: pontoon.dev/gateway-controller}
";

const MIGRATION: &str = "
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {name: hello}
spec:
  service: hello
  legacy: {eureka: {application: inventory}}
  target: {service: {name: hello, port: 80}}
";

pub(super) fn gateway(port: u16) -> String {
    gateway_of("pontoon", port)
}

/// A Gateway of a class, and the route to `hello`.
pub(super) fn gateway_of(class: &str, port: u16) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: {class}
  listeners:
  - {{name: http, protocol: HTTP, port: {port}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: hello}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - backendRefs: [{{name: hello, port: 80}}]
"
    )
}
