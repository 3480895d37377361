//! Pods with sidecars, by the webhook and by `pontoon inject`, in a cluster that the chart is installed in.

mod probes;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::kubernetes::{Cluster, HELLO, NODE, Namespace, PATIENCE};
use pontoon_e2e::load::{Load, Plan, Sample};
use pontoon_e2e::wait::until;
use serde_json::Value;

use super::gateways::PROXY;
use super::install::{SYSTEM, without_webhook};
use super::smoke::hello;
use crate::groups::place;

const ENABLED: &str = "pontoon.dev/inject=enabled";

/// What the cases share. The chart is installed.
pub(super) struct Lab {
    cluster: Cluster,
}

impl Lab {
    pub(super) fn new(cluster: &Cluster) -> Lab {
        Lab { cluster: cluster.clone() }
    }

    /// Names an endpoint `orders` in a namespace.
    async fn orders(&self, namespace: &Namespace, address: &str, port: u16) -> anyhow::Result<()> {
        let pool = format!(
            "apiVersion: pontoon.dev/v1alpha1\nkind: Pool\nmetadata: {{name: orders}}\n\
             spec: {{endpoints: [{{address: {address}, port: {port}}}]}}\n"
        );
        namespace.apply(&pool).await
    }

    /// Of a pod that was asked for, by the webhook.
    pub(super) async fn webhook(&self) -> anyhow::Result<String> {
        let namespace = self.cluster.namespace("injected", &[ENABLED]).await?;
        namespace.apply(&hello(1)).await?;
        namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
        let pods = namespace.get(&["pods", "-l", "app=hello"]).await?;
        let pod = &pods["items"][0];
        let names: Vec<&str> = pod["spec"]["initContainers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|container| container["name"].as_str())
            .collect();
        ensure!(names == ["pontoon-intercept", "pontoon-proxy"], "init containers {names:?}");
        let service = namespace.get(&["service", "hello"]).await?;
        let address = service["spec"]["clusterIP"].as_str().context("no address")?;
        // What comes in passes the sidecar, which says so; what goes out does, by a name that only the mesh has.
        let seen = until("the Service to answer", PATIENCE, async || {
            pontoon_e2e::wait::get(&format!("http://{address}/in")).await
        })
        .await?;
        ensure!(seen.contains("x-request-id: "), "not by the sidecar: {seen}");
        let ip = pod["status"]["podIP"].as_str().context("the pod has no address")?;
        self.orders(&namespace, ip, 8080).await?;
        let name = pod["metadata"]["name"].as_str().context("no name")?;
        let asked = ["exec", name, "-c", "hello", "--", "/hello", "get", "http://orders/out", "60"];
        let seen = namespace.kubectl(&asked).await?;
        ensure!(seen.contains("hello from ") && seen.contains(" /out"), "{seen}");
        // And what the mesh does not have goes where it was going to.
        let url = format!("http://{address}/elsewhere");
        let asked = ["exec", name, "-c", "hello", "--", "/hello", "get", &url];
        let seen = namespace.kubectl(&asked).await?;
        ensure!(seen.contains(" /elsewhere"), "{seen}");
        Ok(String::new())
    }

    /// The same on paper, and no webhook in the way.
    pub(super) async fn offline(&self, folder: &Path) -> anyhow::Result<String> {
        let file = folder.join("hello.yaml");
        std::fs::write(&file, hello(1))?;
        let mut inject = tokio::process::Command::new(place("PONTOON_E2E_PONTOON")?);
        let output = inject.arg("inject").arg("-f").arg(&file).output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let namespace = self.cluster.namespace("injected-offline", &[]).await?;
        namespace.apply(&String::from_utf8(output.stdout)?).await?;
        namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
        let by_webhook = self.cluster.namespace("injected-twin", &[ENABLED]).await?;
        by_webhook.apply(&hello(1)).await?;
        by_webhook.wait_for("condition=Available", &["deployment/hello"]).await?;
        let containers = async |namespace: &Namespace| -> anyhow::Result<(Vec<Value>, Value)> {
            let mut pods = namespace.get(&["pods", "-l", "app=hello"]).await?;
            let mut spec = pods["items"][0]["spec"].take();
            let containers = spec["initContainers"].as_array().context("no init containers")?.clone();
            // Neither has the application's token.
            for container in &containers {
                let mounts = container["volumeMounts"].as_array().context("no mounts")?;
                let names: Vec<&str> = mounts.iter().filter_map(|mount| mount["name"].as_str()).collect();
                ensure!(names == ["pontoon-no-token"], "{} has {names:?}", container["name"]);
            }
            Ok((containers, spec["containers"][0]["lifecycle"].take()))
        };
        let (offline, online) = (containers(&namespace).await?, containers(&by_webhook).await?);
        ensure!(offline == online, "offline {offline:?}, by the webhook {online:?}");
        Ok(String::new())
    }

    /// A pod that says that it is of another namespace is told nothing, and goes on asking.
    pub(super) async fn namespaces(&self) -> anyhow::Result<String> {
        let namespace = self.cluster.namespace("injected-stranger", &[]).await?;
        for (name, says) in [("own", namespace.name.as_str()), ("stranger", "injected")] {
            let pod = format!(
                "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: pontoon-proxy
    image: {PROXY}
    env:
    - {{name: PONTOON_PROXY_CLUSTER, value: {says}}}
    - {{name: PONTOON_PROXY_XDS_SERVER, value: 'http://pontoon.{SYSTEM}.svc:18000'}}
    - {{name: PONTOON_PROXY_OUTBOUND, value: '127.0.0.1:15001'}}
    - {{name: PONTOON_PROXY_HEALTH, value: '[::]:15021'}}
    readinessProbe: {{httpGet: {{path: /ready, port: 15021}}, periodSeconds: 1}}
"
            );
            namespace.apply(&pod).await?;
        }
        namespace.wait_for("condition=Ready", &["pod/own"]).await?;
        until("the stranger to be refused", PATIENCE, async || {
            let log = namespace.kubectl(&["logs", "stranger"]).await?;
            ensure!(log.contains("is told of its own namespace"), "{log}");
            Ok(())
        })
        .await?;
        let stranger = namespace.get(&["pod", "stranger"]).await?;
        ensure!(stranger["status"]["containerStatuses"][0]["ready"] == false, "the stranger was told");
        Ok(String::new())
    }

    pub(super) async fn job(&self) -> anyhow::Result<String> {
        let namespace = self.cluster.namespace("injected-job", &[ENABLED]).await?;
        self.orders(&namespace, &NODE.to_string(), 18_080).await?;
        let _orders = serve_on_node(18_080).await?;
        let job = format!(
            "
apiVersion: batch/v1
kind: Job
metadata: {{name: asks}}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      initContainers:
      - {{name: first, image: {HELLO}, args: [get, 'http://orders/first', '0']}}
      containers:
      - {{name: asks, image: {HELLO}, args: [get, 'http://orders/then', '0']}}
"
        );
        namespace.apply(&job).await?;
        namespace.wait_for("condition=Complete", &["job/asks"]).await?;
        let mut said = String::new();
        for container in ["first", "asks"] {
            said += &namespace.kubectl(&["logs", "job/asks", "-c", container]).await?;
        }
        ensure!(said.contains("orders: /first") && said.contains("orders: /then"), "{said}");
        // With the last of its own containers the pod ends, and the sidecar by itself.
        Ok(format!("{} init containers, all 0", ended_well(&namespace, "asks").await?))
    }

    pub(super) async fn cron_job(&self) -> anyhow::Result<String> {
        let namespace = self.cluster.namespace("injected-cronjob", &[ENABLED]).await?;
        self.orders(&namespace, &NODE.to_string(), 18_082).await?;
        let _orders = serve_on_node(18_082).await?;
        let cron_job = format!(
            "
apiVersion: batch/v1
kind: CronJob
metadata: {{name: minutely}}
spec:
  schedule: '* * * * *'
  concurrencyPolicy: Forbid
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        spec:
          restartPolicy: Never
          containers:
          - {{name: asks, image: {HELLO}, args: [get, 'http://orders/minutely', '0']}}
"
        );
        namespace.apply(&cron_job).await?;
        until("a run by the schedule to be known as well ended", PATIENCE, async || {
            let status = namespace.get(&["cronjob", "minutely"]).await?["status"].take();
            ensure!(status["lastSuccessfulTime"].is_string() && status.get("active").is_none(), "{status}");
            Ok(())
        })
        .await?;
        // The next minute is nobody's.
        let suspend = r#"{"spec":{"suspend":true}}"#;
        namespace.kubectl(&["patch", "cronjob", "minutely", "-p", suspend]).await?;
        let jobs = namespace.get(&["jobs"]).await?;
        let job = jobs["items"][0]["metadata"]["name"].as_str().context("no Job")?.to_owned();
        namespace.wait_for("condition=Complete", &[&format!("job/{job}")]).await?;
        let said = namespace.kubectl(&["logs", &format!("job/{job}"), "-c", "asks"]).await?;
        ensure!(said.contains("orders: /minutely"), "{said}");
        let count = ended_well(&namespace, &job).await?;
        Ok(format!("{job}: {count} init containers, all 0"))
    }

    /// In a namespace whose pods may have no privilege.
    pub(super) async fn restricted(&self) -> anyhow::Result<String> {
        let level = "pod-security.kubernetes.io/enforce=restricted";
        let namespace = self.cluster.namespace("injected-restricted", &[ENABLED, level]).await?;
        self.orders(&namespace, &NODE.to_string(), 18_081).await?;
        let _orders = serve_on_node(18_081).await?;
        let job = format!(
            "
apiVersion: batch/v1
kind: Job
metadata: {{name: asks}}
spec:
  backoffLimit: 0
  template:
    metadata: {{annotations: {{pontoon.dev/interception: none}}}}
    spec:
      restartPolicy: Never
      securityContext: {{runAsNonRoot: true, runAsUser: 1000, seccompProfile: {{type: RuntimeDefault}}}}
      containers:
      - name: asks
        image: {HELLO}
        args: [get, 'http://orders/restricted', '0']
        securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}
"
        );
        namespace.apply(&job).await?;
        namespace.wait_for("condition=Complete", &["job/asks"]).await?;
        let said = namespace.kubectl(&["logs", "job/asks", "-c", "asks"]).await?;
        ensure!(said.contains("orders: /restricted"), "{said}");
        Ok(String::new())
    }

    /// Pods come and go, and nobody who calls them sees it.
    pub(super) async fn rolls(&self) -> anyhow::Result<String> {
        let namespace = self.cluster.namespace("injected-rolls", &[ENABLED]).await?;
        namespace.apply(&hello(2)).await?;
        namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
        let service = namespace.get(&["service", "hello"]).await?;
        let address = service["spec"]["clusterIP"].as_str().context("no address")?.to_owned();
        let url = format!("http://{address}/");
        until("the Service to answer", PATIENCE, async || pontoon_e2e::wait::get(&url).await).await?;
        let load = Load::start(Plan {
            url,
            rate: 100,
            users: 10,
            user_header: "x-user-id",
            timeout: Duration::from_secs(5),
        })?;
        load.next(100).await?;
        namespace.kubectl(&["rollout", "restart", "deployment/hello"]).await?;
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        namespace.kubectl(&["rollout", "status", "deployment/hello", &limit]).await?;
        // Those of before are gone only when the last of their callers is.
        until("the pods of before to go", PATIENCE, async || {
            let pods = namespace.get(&["pods", "-l", "app=hello"]).await?;
            let count = pods["items"].as_array().map_or(0, Vec::len);
            ensure!(count == 2, "{count} pods");
            Ok(())
        })
        .await?;
        load.next(100).await?;
        let samples = load.finish().await?;
        good(&samples)?;
        Ok(format!("{} requests, 0 failed", samples.len()))
    }

    /// Kubernetes calls the hook of the end for a container that its liveness probe restarts, too, and the sidecar goes on.
    pub(super) async fn restarts(&self) -> anyhow::Result<String> {
        let namespace = self.cluster.namespace("injected-restarts", &[ENABLED]).await?;
        let probe =
            "livenessProbe: {httpGet: {path: /alive, port: http}, periodSeconds: 1, failureThreshold: 1}";
        let readiness = "        readinessProbe:";
        let with_probe = hello(1).replace(readiness, &format!("        {probe}\n{readiness}"));
        namespace.apply(&with_probe).await?;
        namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
        let service = namespace.get(&["service", "hello"]).await?;
        let address = service["spec"]["clusterIP"].as_str().context("no address")?.to_owned();
        let answers = async |path: &str| pontoon_e2e::wait::get(&format!("http://{address}{path}")).await;
        until("the Service to answer", PATIENCE, async || answers("/").await).await?;
        answers("/sick").await?;
        let restarted = async || {
            let pods = namespace.get(&["pods", "-l", "app=hello"]).await?;
            let statuses =
                pods["items"][0]["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
            let hello = statuses.iter().find(|one| one["name"] == "hello").context("no container hello")?;
            let restarts = hello["restartCount"].as_u64();
            ensure!(
                restarts == Some(1) && hello["ready"] == true,
                "restarted {restarts:?} times, or not ready"
            );
            Ok(())
        };
        until("the container to be restarted and ready", PATIENCE, restarted).await?;
        // Probes and callers reach it by the same sidecar, at once and not after a minute. The node may still be about to
        // take the Service's only endpoint out, and back in.
        until("the Service to answer 50 times in a row", PATIENCE, async || {
            for _ in 0..50 {
                answers("/").await?;
            }
            Ok(())
        })
        .await?;
        restarted().await?;
        Ok(String::new())
    }

    /// The webhook is down, and pods come back: elsewhere as ever, and where it is asked without a sidecar.
    pub(super) async fn down(&self) -> anyhow::Result<String> {
        let namespace = self.cluster.namespace("injected-down", &[ENABLED]).await?;
        namespace.apply(&hello(1)).await?;
        namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
        without_webhook(&self.cluster, async || {
            namespace.delete(&["pods", "-l", "app=hello"]).await?;
            namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
            self.cluster.kubectl(&["-n", "kube-system", "delete", "pods", "-l", "k8s-app=kube-dns"]).await?;
            self.cluster.wait_for("condition=Available", &["-n", "kube-system", "deployment/coredns"]).await
        })
        .await?;
        self.is_injected(&namespace).await?;
        Ok(String::new())
    }

    /// The certificate is gone, and a new one is made, believed and served with.
    pub(super) async fn certificate(&self) -> anyhow::Result<String> {
        let namespace = self.cluster.namespace("injected-again", &[ENABLED]).await?;
        let read = ["-n", "pontoon-system", "secret", "pontoon-webhook"];
        let before = self.cluster.get(&read).await?["data"]["tls.crt"].take();
        self.cluster.kubectl(&["-n", "pontoon-system", "delete", "secret", "pontoon-webhook"]).await?;
        until("another certificate", PATIENCE, async || {
            let now = self.cluster.get(&read).await?["data"]["tls.crt"].take();
            ensure!(now.is_string() && now != before, "it is the one before");
            Ok(())
        })
        .await?;
        namespace.apply(&hello(1)).await?;
        self.is_injected(&namespace).await?;
        Ok(String::new())
    }

    /// New pods have sidecars, all of them. The API server keeps a connection or two for a while.
    async fn is_injected(&self, namespace: &Namespace) -> anyhow::Result<()> {
        until("new pods to have a sidecar", PATIENCE, async || {
            namespace.kubectl(&["delete", "pods", "-l", "app=hello", "--grace-period=1"]).await?;
            namespace.wait_for("condition=Available", &["deployment/hello"]).await?;
            let pods = namespace.get(&["pods", "-l", "app=hello"]).await?;
            let items = pods["items"].as_array().context("no pods")?;
            let has = items.iter().all(|pod| pod["spec"]["initContainers"].is_array());
            ensure!(has && !items.is_empty(), "a pod has none");
            Ok(())
        })
        .await
    }
}

/// How many init containers, the sidecar among them, of a Job's pod have ended with 0: all of them.
async fn ended_well(namespace: &Namespace, job: &str) -> anyhow::Result<usize> {
    let pods = namespace.get(&["pods", "-l", &format!("job-name={job}")]).await?;
    let states = pods["items"][0]["status"]["initContainerStatuses"].as_array().context("no states")?;
    for state in states {
        let code = &state["state"]["terminated"]["exitCode"];
        ensure!(*code == 0, "{}: {}", state["name"], state["state"]);
    }
    Ok(states.len())
}

/// `inventory`'s answer is none of these pods'; that one came is what counts.
fn good(samples: &[Sample]) -> anyhow::Result<()> {
    let bad = samples.iter().filter_map(|sample| sample.outcome.as_ref().err());
    let bad: Vec<&String> = bad.filter(|error| !error.contains("not inventory's answer")).collect();
    ensure!(bad.is_empty(), "{} of {} failed: {:?}", bad.len(), samples.len(), &bad[..bad.len().min(5)]);
    Ok(())
}

/// `orders` beside the cluster: answers with the path that was asked for.
async fn serve_on_node(port: u16) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind((NODE, port)).await?;
    Ok(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await?;
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                let path = head.split_whitespace().nth(1).unwrap_or_default();
                let body = format!("orders: {path}\n");
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await
            });
        }
    }))
}
