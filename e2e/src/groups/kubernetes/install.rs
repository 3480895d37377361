//! Installed by the chart, checked, upgraded under load, and gone without a trace.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::helm::Helm;
use pontoon_e2e::inventory::{Instance, cancel};
use pontoon_e2e::kubernetes::{Cluster, Namespace, PATIENCE};
use pontoon_e2e::wait::{get, until};
use serde_json::Value;
use tokio::time::Instant;

use super::gateways::programmed;
use super::plane::{Steady, condition, gateway};
use super::smoke::hello;
use crate::groups::place;

/// Release and namespace, as the guide has them.
const RELEASE: &str = "pontoon";
pub(super) const SYSTEM: &str = "pontoon-system";
/// The version before, which is this one with other names and older definitions.
const BEFORE: &str = "0.0.9";
const IMAGES: [&str; 2] = ["pontoon.dev/pontoon", "pontoon.dev/pontoon-proxy"];
const CRDS: [&str; 2] = ["migrations.pontoon.dev", "pools.pontoon.dev"];
/// Where applications register.
const EUREKA: u16 = 8761;
/// A leader that is killed is followed within this.
const FAILOVER: Duration = Duration::from_secs(15);

/// As it is, and so that applications register.
pub(super) const PLAIN: &[&str] = &[];
pub(super) const WITH_EUREKA: &[&str] = &["--set", "eureka.enabled=true"];

/// The chart, and how this run has installed it.
pub(super) struct Chart {
    helm: Helm,
    cluster: Cluster,
    folder: PathBuf,
    current: PathBuf,
    is_installed: Cell<Option<&'static [&'static str]>>,
}

impl Chart {
    pub(super) fn new(cluster: &Cluster, folder: &Path) -> anyhow::Result<Chart> {
        let folder = folder.join("install");
        std::fs::create_dir_all(&folder)?;
        Ok(Chart {
            helm: Helm::new(place("PONTOON_E2E_HELM")?, &folder.join("helm")),
            cluster: cluster.clone(),
            current: place("PONTOON_E2E_CHART")?,
            folder,
            is_installed: Cell::new(None),
        })
    }

    /// As a user does it.
    async fn install(&self, chart: &Path, values: &'static [&'static str]) -> anyhow::Result<()> {
        self.cluster.install_gateway_api("standard").await?;
        let chart = chart.display().to_string();
        let flags = ["-n", SYSTEM, "--create-namespace", "--wait", "--timeout=180s"];
        // There is no balancer here.
        let here = ["--set", "gateways.serviceType=ClusterIP"];
        self.helm.run(&[&["install", RELEASE, &chart], &flags[..], &here, values].concat()).await?;
        self.is_installed.set(Some(values));
        Ok(())
    }

    /// What earlier cases and runs have left.
    async fn clean(&self) -> anyhow::Result<()> {
        self.is_installed.set(None);
        let gone = ["uninstall", RELEASE, "-n", SYSTEM, "--ignore-not-found", "--wait", "--timeout=120s"];
        self.helm.run(&gone).await?;
        let delete = ["delete", "--ignore-not-found", "--timeout=120s"];
        for of in ["namespace/pontoon-system", "gatewayclass/pontoon"] {
            self.cluster.kubectl(&[&delete[..], &[of]].concat()).await?;
        }
        let cluster_wide =
            "clusterrole,clusterrolebinding,mutatingwebhookconfiguration,validatingwebhookconfiguration";
        let left = self.cluster.kubectl(&["get", cluster_wide, "-o", "name"]).await?;
        for object in left.lines().filter(|name| name.rsplit('/').next().is_some_and(is_ours)) {
            self.cluster.kubectl(&[&delete[..], &[object]].concat()).await?;
        }
        self.cluster.kubectl(&[&delete[..], &["crd"], &CRDS].concat()).await?;
        Ok(())
    }

    /// For cases that are about something else.
    pub(super) async fn ensure(&self, values: &'static [&'static str]) -> anyhow::Result<()> {
        if self.is_installed.get() != Some(values) {
            self.clean().await?;
            self.install(&self.current, values).await?;
        }
        Ok(())
    }

    /// Where applications register: in a pod or beside the cluster.
    pub(super) async fn eureka(&self) -> anyhow::Result<SocketAddr> {
        let service = self.cluster.get(&["-n", SYSTEM, "service", "pontoon"]).await?;
        let address: IpAddr = service["spec"]["clusterIP"].as_str().context("no address")?.parse()?;
        Ok((address, EUREKA).into())
    }

    /// Runs a command as the guide says: in the pod that leads.
    pub(super) async fn pontoon(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let leader = until("one to lead", PATIENCE, async || self.leader().await).await?;
        let exec = ["-n", SYSTEM, "exec", &leader, "--", "/usr/bin/pontoon"];
        self.cluster.kubectl(&[&exec[..], arguments, &["--data", "/data"]].concat()).await
    }

    /// `pontoon check`: whether it ended with 0, and its report.
    async fn check(&self, arguments: &[&str]) -> anyhow::Result<(bool, Value)> {
        let mut command = tokio::process::Command::new(place("PONTOON_E2E_PONTOON")?);
        command
            .arg("check")
            .args(arguments)
            .args(["-o", "json"])
            .env("KUBECONFIG", self.cluster.kubeconfig());
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&said)
            .with_context(|| format!("not JSON: {said}{}", String::from_utf8_lossy(&output.stderr)))?;
        Ok((output.status.success(), report))
    }

    /// Checked before, installed, checked after, tested from inside; and with the webhook down that is what is said.
    pub(super) async fn installed(&self) -> anyhow::Result<String> {
        self.clean().await?;
        self.cluster.install_gateway_api("standard").await?;
        let (is_well, before) = self.check(&["--pre"]).await?;
        ensure!(is_well && failed(&before).is_empty(), "before: {before}");
        let (is_well, report) = self.check(&[]).await?;
        ensure!(!is_well && failed(&report).iter().any(|(of, _)| of == "control-plane"), "{report}");
        self.install(&self.current, PLAIN).await?;
        let after = until("all checks to pass", PATIENCE, async || {
            let (is_well, report) = self.check(&["--from-vm"]).await?;
            ensure!(is_well && failed(&report).is_empty(), "{:?}", failed(&report));
            // The Gateways of cases before may still be going, with their namespaces.
            ensure!(count(&report, "warning") == 0, "{report}");
            Ok(report)
        })
        .await?;
        let (ok, skipped) = (count(&after, "ok"), count(&after, "skipped"));
        self.helm.run(&["test", RELEASE, "-n", SYSTEM, "--timeout=120s"]).await?;

        let (is_well, broken) = without_webhook(&self.cluster, async || self.check(&[]).await).await?;
        let wrong = failed(&broken);
        ensure!(!is_well && !wrong.is_empty(), "a webhook that is down is well: {broken}");
        ensure!(wrong.iter().all(|(of, hint)| of == "webhook" && !hint.is_empty()), "{wrong:?}");
        Ok(format!("{ok} checks hold, {skipped} not told; with the webhook down {} fail", wrong.len()))
    }

    /// What one application has told one replica, all of them know.
    pub(super) async fn registered(&self) -> anyhow::Result<String> {
        self.ensure(WITH_EUREKA).await?;
        let eureka = self.eureka().await?;
        let application = Instance::start("legacy").await?;
        until("an application to be registered", PATIENCE, async || application.register(eureka).await)
            .await?;
        let label = "app.kubernetes.io/name=pontoon";
        let pods = self.cluster.get(&["-n", SYSTEM, "pods", "-l", label]).await?;
        let pods = pods["items"].as_array().context("no pods")?;
        ensure!(pods.len() == 2, "{} pods", pods.len());
        for pod in pods {
            let ip = pod["status"]["podIP"].as_str().context("a pod without an address")?;
            let metrics = get(&format!("http://{ip}:9090/metrics")).await?;
            ensure!(metrics.contains("pontoon_ready 1"), "no metrics from outside of the pod: {metrics}");
            let url = format!("http://{ip}:{EUREKA}/eureka/apps/");
            until("each replica to know it", PATIENCE, async || {
                let said = get(&url).await?;
                ensure!(said.to_lowercase().contains("inventory"), "{said}");
                Ok(())
            })
            .await?;
        }
        cancel(eureka, "inventory", application.address).await?;
        Ok(String::from("both replicas know it"))
    }

    /// From the version before: images, definitions and pods of Gateways are those of this one afterwards, and no client
    /// of a Gateway has seen it.
    pub(super) async fn upgraded(&self) -> anyhow::Result<String> {
        self.clean().await?;
        self.install(&self.version_before().await?, PLAIN).await?;
        let namespace = self.cluster.namespace("upgrade", &[]).await?;
        let url = serve(&namespace).await?;
        let load = Steady::start(&url)?;
        let chart = self.current.display().to_string();
        let flags = ["-n", SYSTEM, "--reset-then-reuse-values", "--wait", "--timeout=180s"];
        self.helm.run(&[&["upgrade", RELEASE, &chart], &flags[..]].concat()).await?;
        let image = |name: &str| format!("{name}:{}", env!("CARGO_PKG_VERSION"));
        until("the Gateway's pods to be of the new version", PATIENCE, async || {
            let deployment = namespace.get(&["deployment", "edge-pontoon"]).await?;
            let is = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
            ensure!(*is == image(IMAGES[1]), "{is}");
            Ok(())
        })
        .await?;
        namespace.kubectl(&["rollout", "status", "deployment/edge-pontoon", "--timeout=120s"]).await?;
        let plane = self.cluster.get(&["-n", SYSTEM, "deployment", "pontoon"]).await?;
        let is = &plane["spec"]["template"]["spec"]["containers"][0]["image"];
        ensure!(*is == image(IMAGES[0]), "the control plane is of {is}");
        let (is_well, report) = self.check(&[]).await?;
        ensure!(is_well, "after the upgrade: {:?}", failed(&report));
        self.follows(&namespace, &url).await?;
        Ok(format!("{} requests, none failed", load.finish().await?))
    }

    /// The replica that proxies are connected to is killed: another leads, proxies come to it, and what is changed then is
    /// in force.
    pub(super) async fn leader_killed(&self) -> anyhow::Result<String> {
        self.ensure(PLAIN).await?;
        let namespace = self.cluster.namespace("leader", &[]).await?;
        let url = serve(&namespace).await?;
        let load = Steady::start(&url)?;
        let after = self.kill_leader().await?;
        self.follows(&namespace, &url).await?;
        let requests = load.finish().await?;
        self.cluster.wait_for("condition=Available", &["-n", SYSTEM, "deployment/pontoon"]).await?;
        Ok(format!("after {:.1} s; {requests} requests, none failed", after.as_secs_f64()))
    }

    /// Kills the replica that leads, and waits for another to do so: after how long.
    pub(super) async fn kill_leader(&self) -> anyhow::Result<Duration> {
        let first = until("one to lead", PATIENCE, async || self.leader().await).await?;
        let killed = Instant::now();
        // So that it has no time to give its Lease back, and does not come again under its name.
        kill(&self.cluster.get(&["-n", SYSTEM, "pod", &first]).await?).await?;
        let delete = ["-n", SYSTEM, "delete", "pod", &first, "--grace-period=0", "--force"];
        self.cluster.kubectl(&delete).await?;
        until("another to lead", FAILOVER, async || {
            let now = self.leader().await?;
            ensure!(now != first, "it is {now} still");
            Ok(())
        })
        .await?;
        Ok(killed.elapsed())
    }

    /// A new pod for each replica, one after another.
    pub(super) async fn restart(&self) -> anyhow::Result<()> {
        let rollout = ["-n", SYSTEM, "rollout"];
        self.cluster.kubectl(&[&rollout[..], &["restart", "deployment/pontoon"]].concat()).await?;
        let status = ["status", "deployment/pontoon", "--timeout=120s"];
        self.cluster.kubectl(&[&rollout[..], &status].concat()).await.map(drop)
    }

    /// What `kubectl drain` asks for of a node that has all of it: each pod is evicted as soon as its budget allows, and no
    /// client of a Gateway sees it.
    pub(super) async fn drained(&self) -> anyhow::Result<String> {
        self.ensure(PLAIN).await?;
        let namespace = self.cluster.namespace("drain", &[]).await?;
        let url = serve(&namespace).await?;
        let load = Steady::start(&url)?;
        let (mut evicted, mut refused) = (0, 0);
        for (of, label) in [
            (&*namespace.name, "gateway.networking.k8s.io/gateway-name=edge"),
            (SYSTEM, "app.kubernetes.io/name=pontoon"),
            (SYSTEM, "app.kubernetes.io/name=pontoon-webhook"),
        ] {
            let pods = self.cluster.get(&["-n", of, "pods", "-l", label]).await?;
            let names: Vec<&str> = ready(&pods).filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
            ensure!(names.len() == 2, "{label}: {names:?} are ready");
            for pod in names {
                until("a pod to be let go", PATIENCE, async || {
                    let answer = self.evict(of, pod).await;
                    let is_refused = |error: &anyhow::Error| error.to_string().contains("disruption budget");
                    refused += usize::from(answer.as_ref().is_err_and(is_refused));
                    answer
                })
                .await?;
                evicted += 1;
            }
        }
        // Without budgets all would have gone at once.
        ensure!(refused >= 3, "{refused} evictions were refused");
        for (of, deployment) in [
            (&*namespace.name, "deployment/edge-pontoon"),
            (SYSTEM, "deployment/pontoon"),
            (SYSTEM, "deployment/pontoon-webhook"),
        ] {
            let status = ["-n", of, "rollout", "status", deployment, "--timeout=120s"];
            self.cluster.kubectl(&status).await?;
        }
        self.follows(&namespace, &url).await?;
        let requests = load.finish().await?;
        Ok(format!("{evicted} pods, {refused} refusals; {requests} requests, none failed"))
    }

    /// Fails when its budget does not allow it (yet).
    async fn evict(&self, namespace: &str, pod: &str) -> anyhow::Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction");
        let eviction = serde_json::json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace},
        });
        let create = ["create", "--raw", &path, "-f", "-"];
        self.cluster.kubectl_with(&create, &eviction.to_string()).await.map(drop)
    }

    /// The one pod that says that it leads.
    /// A pod that has ended keeps its label until it is gone.
    async fn leader(&self) -> anyhow::Result<String> {
        let pods = self.cluster.get(&["-n", SYSTEM, "pods", "-l", "pontoon.dev/role=leader"]).await?;
        let names = ready(&pods).filter_map(|pod| pod["metadata"]["name"].as_str());
        match names.collect::<Vec<_>>().as_slice() {
            [leader] => Ok((*leader).to_owned()),
            others => anyhow::bail!("these say that they lead: {others:?}"),
        }
    }

    /// A change is in force, and the Gateway's status is written.
    async fn follows(&self, namespace: &Namespace, url: &str) -> anyhow::Result<()> {
        let path = r#"[{"op":"add","path":"/spec/rules/-","value":{"matches":[{"path":{"value":"/gone"}}],"filters":[{"type":"RequestRedirect","requestRedirect":{"statusCode":302}}]}}]"#;
        namespace.kubectl(&["patch", "httproute", "hello", "--type=json", "-p", path]).await?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(5))
            .build()?;
        until("the change to be in force", PATIENCE, async || {
            let status = client.get(format!("{url}gone")).send().await?.status();
            ensure!(status == 302, "{status}");
            Ok(())
        })
        .await?;
        // Who leads now knows what all proxies have acknowledged.
        let listeners = r#"[{"op":"add","path":"/spec/listeners/-","value":{"name":"more","protocol":"HTTP","port":81}}]"#;
        namespace.kubectl(&["patch", "gateway", "edge", "--type=json", "-p", listeners]).await?;
        programmed(namespace).await.map(drop)
    }

    /// This chart, as the version before had it.
    async fn version_before(&self) -> anyhow::Result<PathBuf> {
        let before = self.folder.join("before");
        copy(&self.current, &before)?;
        let version = env!("CARGO_PKG_VERSION");
        let edit = |file: &str, from: &str, to: &str| -> anyhow::Result<()> {
            let path = before.join(file);
            let text = std::fs::read_to_string(&path)?;
            ensure!(text.contains(from), "{file} has no {from:?}");
            Ok(std::fs::write(path, text.replace(from, to))?)
        };
        edit("Chart.yaml", version, BEFORE)?;
        for crd in CRDS {
            // An older definition lacks something, and has another sum.
            let file = format!("files/crds/{crd}.yaml");
            edit(&file, "    categories:\n    - pontoon\n", "")?;
            edit(&file, "pontoon.dev/definition: x", "pontoon.dev/definition: y")?;
        }
        for image in IMAGES {
            let (from, to) = (format!("{image}:{version}"), format!("{image}:{BEFORE}"));
            ctr(&["images", "tag", "--force", &from, &to]).await?;
        }
        Ok(before)
    }

    /// Nothing is left but what the guide says.
    pub(super) async fn uninstalled(&self) -> anyhow::Result<String> {
        self.ensure(PLAIN).await?;
        self.helm.run(&["uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout=120s"]).await?;
        self.is_installed.set(None);
        until("its pods to have gone", PATIENCE, async || {
            let pods = self.cluster.kubectl(&["-n", SYSTEM, "get", "pods", "-o", "name"]).await?;
            ensure!(pods.trim().is_empty(), "{pods}");
            Ok(())
        })
        .await?;
        let kinds = async |namespaced: &str| -> anyhow::Result<String> {
            let listed = ["api-resources", "--verbs=list", "-o", "name", namespaced];
            let listed = self.cluster.kubectl(&listed).await?;
            // The API server writes these about others.
            let kinds = listed.lines().filter(|kind| !kind.starts_with("events"));
            Ok(kinds.collect::<Vec<_>>().join(","))
        };
        let of_cluster = kinds("--namespaced=false").await?;
        let left = self.cluster.kubectl(&["get", &of_cluster, "-o", "name", "--ignore-not-found"]).await?;
        let mut left: Vec<&str> =
            left.lines().filter(|name| name.rsplit('/').next().is_some_and(is_ours)).collect();
        left.sort_unstable();
        let kept = [
            // Of the definitions.
            "apiservice.apiregistration.k8s.io/v1alpha1.pontoon.dev",
            "customresourcedefinition.apiextensions.k8s.io/migrations.pontoon.dev",
            "customresourcedefinition.apiextensions.k8s.io/pools.pontoon.dev",
            "namespace/pontoon-system",
        ];
        ensure!(left == kept, "of the cluster's own are left: {left:?}");
        let of_namespaces = kinds("--namespaced=true").await?;
        let in_ours = ["-n", SYSTEM, "get", &of_namespaces, "-o", "name", "--ignore-not-found"];
        let left = self.cluster.kubectl(&in_ours).await?;
        let left: Vec<&str> = left.lines().collect();
        ensure!(left == ["configmap/kube-root-ca.crt", "serviceaccount/default"], "{left:?}");
        let label = "app.kubernetes.io/part-of=pontoon";
        let elsewhere = ["get", &of_namespaces, "-A", "-l", label, "-o", "name", "--ignore-not-found"];
        let left = self.cluster.kubectl(&elsewhere).await?;
        ensure!(left.trim().is_empty(), "elsewhere are left: {left}");
        Ok(String::from("the two definitions stay, and the namespace"))
    }
}

/// What comes of something while no replica of the webhook is there.
pub(super) async fn without_webhook<T>(
    cluster: &Cluster,
    run: impl AsyncFnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let scale = ["-n", SYSTEM, "scale", "deployment/pontoon-webhook"];
    cluster.kubectl(&[&scale[..], &["--replicas=0"]].concat()).await?;
    let pods = ["-n", SYSTEM, "pod", "-l", "app.kubernetes.io/name=pontoon-webhook"];
    cluster.wait_for("delete", &pods).await?;
    let ran = run().await;
    cluster.kubectl(&[&scale[..], &["--replicas=2"]].concat()).await?;
    cluster.wait_for("condition=Available", &["-n", SYSTEM, "deployment/pontoon-webhook"]).await?;
    ran
}

/// Asks the node's containerd.
async fn ctr(arguments: &[&str]) -> anyhow::Result<()> {
    let output = tokio::process::Command::new("ctr").args(arguments).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ctr {}: {}", arguments.join(" "), said.trim());
    Ok(())
}

/// Ends the process of a pod's container at once, and tells nobody.
pub(super) async fn kill(pod: &Value) -> anyhow::Result<()> {
    let container = pod["status"]["containerStatuses"][0]["containerID"].as_str();
    let container = container.and_then(|id| id.strip_prefix("containerd://")).context("no container")?;
    ctr(&["tasks", "kill", "--signal", "SIGKILL", container]).await
}

/// Of a list of pods those that are ready and stay.
pub(super) fn ready(pods: &Value) -> impl Iterator<Item = &Value> {
    let pods = pods["items"].as_array().into_iter().flatten();
    pods.filter(|pod| {
        let is_ready =
            condition(&pod["status"]["conditions"], "Ready").is_some_and(|c| c["status"] == "True");
        is_ready && pod["metadata"]["deletionTimestamp"].is_null()
    })
}

/// A Gateway with a route to pods; where it is reached.
async fn serve(namespace: &Namespace) -> anyhow::Result<String> {
    namespace.apply(&hello(2)).await?;
    namespace.apply(&gateway(80)).await?;
    namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
    let address = programmed(namespace).await?;
    namespace.wait_for("condition=Available", &["deployment/edge-pontoon"]).await?;
    let url = format!("http://{address}/");
    until("the Gateway to answer", PATIENCE, async || get(&url).await).await?;
    Ok(url)
}

fn is_ours(name: &str) -> bool {
    name.contains("pontoon")
}

/// The category and the hint of each check that has failed.
fn failed(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let categories = report["categories"].as_array().into_iter().flatten();
    let checks = categories.flat_map(|category| {
        let checks = category["checks"].as_array().into_iter().flatten();
        checks.map(move |check| (&category["name"], check))
    });
    checks
        .filter(|(_, check)| check["outcome"] == "failed")
        .map(|(category, check)| (text(category), text(&check["hint"])))
        .collect()
}

fn count(report: &Value, outcome: &str) -> usize {
    let categories = report["categories"].as_array().into_iter().flatten();
    let checks = categories.flat_map(|category| category["checks"].as_array().into_iter().flatten());
    checks.filter(|check| check["outcome"] == outcome).count()
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let there = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &there)?;
        } else {
            std::fs::copy(entry.path(), there)?;
        }
    }
    Ok(())
}
