//! That the cluster is one: what the other cases build upon.

use anyhow::{Context, ensure};
use pontoon_e2e::kubernetes::{Cluster, HELLO, PATIENCE};
use pontoon_e2e::wait::{get, until};

pub(super) async fn gateway_api(cluster: &Cluster) -> anyhow::Result<String> {
    let kinds = cluster.install_gateway_api("standard").await?;
    cluster.get(&["gateways", "-A"]).await?;
    Ok(format!("{kinds} kinds"))
}

pub(super) async fn pods(cluster: &Cluster) -> anyhow::Result<String> {
    let namespace = cluster.namespace("smoke", &[]).await?;
    namespace.apply(&hello(2)).await?;
    namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
    let service = namespace.get(&["service", "hello"]).await?;
    let address = service["spec"]["clusterIP"].as_str().context("the Service has no address")?.to_owned();
    let url = format!("http://{address}/");
    let seen = until("the Service to answer", PATIENCE, async || get(&url).await).await?;
    ensure!(seen.contains("hello from hello-"), "the Service answers {seen:?}");
    // From a pod by its name; and by its address until the pod has come to itself, too.
    let pods = namespace.get(&["pods", "-l", "app=hello"]).await?;
    let pod = pods["items"][0]["metadata"]["name"].as_str().context("no pod")?.to_owned();
    let from_pod = ["exec", &pod, "--", "/hello", "get"];
    let said =
        namespace.kubectl(&[&from_pod[..], &["http://hello.smoke.svc.cluster.local/"]].concat()).await?;
    ensure!(said.contains("hello from hello-"), "by its name the Service answers {said:?}");
    until("a pod to reach itself by its Service", PATIENCE, async || {
        let said = namespace.kubectl(&[&from_pod[..], &[url.as_str()]].concat()).await?;
        ensure!(said.contains(&pod), "{said}");
        Ok(())
    })
    .await?;
    namespace.delete(&["pod", &pod]).await?;
    namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
    Ok(String::new())
}

pub(super) async fn api_server(cluster: &Cluster) -> anyhow::Result<String> {
    let ready = ["get", "--raw", "/readyz"];
    cluster.kubectl(&ready).await?;
    cluster.suspend("apiserver")?;
    let answered = cluster.kubectl(&["get", "--raw", "/readyz", "--request-timeout=1s"]).await;
    cluster.resume("apiserver")?;
    ensure!(answered.is_err(), "an API server that is suspended answers");
    until("the API server to answer again", PATIENCE, async || cluster.kubectl(&ready).await).await?;
    Ok(String::new())
}

/// A Deployment of `hello` with its Service.
pub(super) fn hello(replicas: u32) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: hello}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: hello}}}}
  template:
    metadata: {{labels: {{app: hello}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: hello
        image: {HELLO}
        args: [serve]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: hello}}
spec:
  selector: {{app: hello}}
  ports: [{{name: http, port: 80, targetPort: http}}]
"
    )
}
