//! Probes of injected pods: what the kubelet sees by the sidecar, also while a pod drains.

use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::kubernetes::{HELLO, Namespace, PATIENCE};
use pontoon_e2e::wait::{get, until};
use serde_json::Value;

use super::{ENABLED, Lab};

/// So many probes are made of a pod while it drains, one a second: more than its connections are left open.
const PROBES: u64 = 6;

impl Lab {
    pub(in crate::groups::kubernetes) async fn tcp_probes(&self) -> anyhow::Result<String> {
        self.probed("tcpSocket").await.map(|_| String::new())
    }

    pub(in crate::groups::kubernetes) async fn grpc_probes(&self) -> anyhow::Result<String> {
        let namespace = self.probed("grpc").await?;
        let pod = namespace.get(&["pod", "listens"]).await?;
        let address = pod["status"]["podIP"].as_str().context("the pod has no address")?;
        get(&format!("http://{address}:8080/sick")).await?;
        namespace.wait_for("condition=Ready=false", &["pod/listens"]).await?;
        Ok(String::from("NOT_SERVING is not ready"))
    }

    /// One pod whose probe is of its application's port, and one whose probe is of a port that nobody has.
    async fn probed(&self, probe: &str) -> anyhow::Result<Namespace> {
        let name = format!("injected-{}", probe.to_lowercase());
        let namespace = self.cluster.namespace(&name, &[ENABLED]).await?;
        let pod = |name: &str, port: u16| {
            format!(
                "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 3
  containers:
  - name: hello
    image: {HELLO}
    args: [serve]
    readinessProbe: {{{probe}: {{port: {port}}}, periodSeconds: 1}}
---"
            )
        };
        namespace.apply(&[pod("listens", 8080), pod("does-not", 8081)].concat()).await?;
        namespace.wait_for("condition=Ready", &["pod/listens"]).await?;
        // Its application runs and has been asked about: several times before that of the other.
        until("the probe of a port that nobody has to fail", PATIENCE, async || {
            let of = "involvedObject.name=does-not,reason=Unhealthy";
            let events = namespace.kubectl(&["get", "events", "--field-selector", of]).await?;
            ensure!(events.contains("Readiness probe failed"), "{events}");
            Ok(())
        })
        .await?;
        let pod = namespace.get(&["pod", "does-not"]).await?;
        let conditions = pod["status"]["conditions"].as_array().context("no conditions")?;
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
        ensure!(ready.is_some_and(|ready| ready["status"] == "False"), "ready: {ready:?}");
        Ok(namespace)
    }

    /// Pods that end, each with a request that takes its time: until that is answered the kubelet asks about them, and
    /// who comes late is served.
    pub(in crate::groups::kubernetes) async fn drains(&self) -> anyhow::Result<String> {
        let namespace = self.cluster.namespace("injected-drains", &[ENABLED]).await?;
        let probes = [
            ("http", "httpGet: {path: /, port: 8080}"),
            ("tcp", "tcpSocket: {port: 8080}"),
            ("grpc", "grpc: {port: 8080}"),
        ];
        let pods = probes.map(|(name, probe)| pod_that_drains(name, probe));
        namespace.apply(&[&pods.concat(), SERVICE].concat()).await?;
        namespace.wait_for("condition=Ready", &["pods", "-l", "app=drains"]).await?;
        let pods = namespace.get(&["pods", "-l", "app=drains"]).await?;
        let pods = pods["items"].as_array().context("no pods")?;
        let text = |pod: &Value, path: &str| {
            pod.pointer(path).and_then(Value::as_str).map(str::to_owned).with_context(|| format!("no {path}"))
        };
        let node = text(pods.first().context("no pods")?, "/spec/nodeName")?;
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let mut held = Vec::new();
        for pod in pods {
            let url = format!("http://{}:8080", text(pod, "/status/podIP")?);
            let asked = client.get(format!("{url}/hold")).send();
            held.push((text(pod, "/metadata/name")?, url, tokio::spawn(asked)));
        }
        namespace.kubectl(&["delete", "pods", "-l", "app=drains", "--wait=false"]).await?;
        let before = self.kubelet(&node).await?;
        for (pod, ..) in &held {
            until("the kubelet to ask about a pod that drains", PATIENCE, async || {
                let now = self.kubelet(&node).await?;
                let since = |result: &str| {
                    let count = |text: &str| count(text, &namespace.name, pod, result);
                    count(&now).saturating_sub(count(&before))
                };
                let (good, bad) = (since("successful"), since("failed"));
                ensure!(good >= PROBES, "of {pod}'s probes {good} are good, {bad} bad");
                Ok(bad)
            })
            .await
            .and_then(|bad| {
                ensure!(bad == 0, "{bad} probes of {pod} failed while it drained");
                Ok(())
            })?;
        }
        until("the pods to be serving and terminating", PATIENCE, async || {
            let of = ["endpointslices", "-l", "kubernetes.io/service-name=drains"];
            let slices = namespace.get(&of).await?;
            let endpoints = slices["items"][0]["endpoints"].as_array().context("no endpoints")?;
            ensure!(endpoints.len() == held.len(), "{endpoints:?}");
            for endpoint in endpoints {
                let conditions = &endpoint["conditions"];
                ensure!(conditions["terminating"] == true && conditions["serving"] == true, "{conditions}");
            }
            Ok(())
        })
        .await?;
        for (pod, url, held) in held {
            let late = get(&format!("{url}/release")).await?;
            ensure!(late.contains("x-request-id: "), "{pod}: not by the sidecar: {late}");
            let answer = held.await?.with_context(|| format!("what {pod} was asked before it ended"))?;
            ensure!(answer.status() == 200, "{pod} answered {}", answer.status());
            let answer = answer.text().await?;
            ensure!(answer.contains(" /hold"), "{answer}");
        }
        namespace.wait_for("delete", &["pods", "-l", "app=drains"]).await?;
        Ok(format!("{PROBES} probes of each, none failed; the request of before and a late one answered"))
    }

    /// What the kubelet has counted of its probes.
    async fn kubelet(&self, node: &str) -> anyhow::Result<String> {
        self.cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics/probes")]).await
    }
}

fn pod_that_drains(name: &str, probe: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels: {{app: drains}}
  annotations: {{pontoon.dev/drain-seconds: '{}'}}
spec:
  terminationGracePeriodSeconds: {}
  containers:
  - name: hello
    image: {HELLO}
    args: [serve]
    readinessProbe: {{{probe}, periodSeconds: 1, failureThreshold: 1}}
---",
        PATIENCE.as_secs(),
        (PATIENCE + Duration::from_secs(10)).as_secs(),
    )
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: drains}
spec:
  selector: {app: drains}
  ports: [{port: 80, targetPort: 8080}]
";

/// How many readiness probes of a pod ended so.
fn count(metrics: &str, namespace: &str, pod: &str, result: &str) -> u64 {
    let labels = [("namespace", namespace), ("pod", pod), ("probe_type", "Readiness"), ("result", result)];
    let lines = metrics.lines().filter(|line| {
        let has = |(name, value): &(&str, &str)| {
            line.contains(&format!("{{{name}=\"{value}\"")) || line.contains(&format!(",{name}=\"{value}\""))
        };
        line.starts_with("prober_probe_total{") && labels.iter().all(has)
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
