//! `inventory` moves from real applications beside the cluster, which register with the control plane in it, onto pods of
//! its next generation; and pods come and go meanwhile. Judged by what two clients see: one of the Gateway, one in a pod
//! with a sidecar.

mod caller;
mod objects;

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::kubernetes::{Cluster, NODE, Namespace, PATIENCE};
use pontoon_e2e::load::{Load, Plan, by_side, none_failed, on_their_side};
use pontoon_e2e::moving::{CUTOVER, HALF, STEPS, Step, moved};
use pontoon_e2e::report::Report;
use pontoon_e2e::spring::{App, Generation, Intervals};
use pontoon_e2e::wait::{get, until};
use serde_json::Value;
use tokio::time::Instant;

use self::caller::Caller;
use super::gateways::programmed;
use super::install::{Chart, WITH_EUREKA, kill, ready};
use crate::groups::place;

/// What these cases are called, for who asks for some of a group's.
pub(super) const NAME: &str = "moves: from real applications onto pods";
/// Of the load.
const USERS: u32 = 300;
/// Requests that are judged at each share: each user's, and some more.
const REQUESTS: usize = 330;
/// The same by the sidecar.
const BY_SIDECAR: usize = 25;
/// For JVMs in pods to start, several at once on a busy machine.
const START: Duration = Duration::from_secs(300);
/// As `pontoon migration` calls it.
const MIGRATION: &str = "moves/inventory";
const CANARY: Step = Step::new("set", &["--stage", "canary"], 0);
const BACK: Step = Step::new("rollback", &["--to", "split"], 5000);

/// They are long.
type BoxFuture<'f> = Pin<Box<dyn Future<Output = anyhow::Result<String>> + 'f>>;

/// What runs while the cases do.
struct World<'c> {
    chart: &'c Chart,
    namespace: Namespace,
    legacy: Vec<App>,
    load: Load,
    caller: Caller,
    url: String,
}

pub(super) async fn cases(report: &mut Report, cluster: &Cluster, chart: &Chart, folder: &Path) {
    let mut world = None;
    report
        .case("moves: applications beside the cluster register in it, and are reached", async {
            let started = world.insert(World::start(cluster, chart, &folder.join("moves")).await?);
            started.all_is_legacy().await
        })
        .await;
    let Some(mut world) = world else { return };
    report.case("moves: only canaries are answered by pods", world.canaries()).await;
    for step in STEPS {
        report.case(&format!("moves: {}", step.name()), world.step(step)).await;
    }
    report.case("moves: both sides take half", world.step(HALF)).await;
    report.case("moves: more pods take their part", world.during(HALF, world.scaled(4))).await;
    report
        .case("moves: a pod that is deleted costs no request", world.during(HALF, world.deleted(&[])))
        .await;
    let by_force = ["--force", "--grace-period=0"];
    report
        .case(
            "moves: a pod that is deleted by force costs no request",
            world.during(HALF, world.deleted(&by_force)),
        )
        .await;
    report.case("moves: a pod's killed process costs no request", world.during(HALF, world.killed())).await;
    report.case("moves: fewer pods do, too", world.during(HALF, world.scaled(2))).await;
    report.case("moves: a rolling update costs no request", world.during(HALF, world.rolled())).await;
    let victim = world.legacy.pop();
    report
        .case(
            "moves: an application that is stopped costs no request",
            world.during(HALF, world.stopped(victim)),
        )
        .await;
    report.case("moves: a restart of the control planes costs no request", world.restarted()).await;
    report.case("moves: a control plane that is killed costs no request", world.leader_killed()).await;
    report.case("moves: after that it goes on to the end", world.step(CUTOVER)).await;
    report.case("moves: and back, from the end", world.step(BACK)).await;
    report.case("moves: and to the end again", world.step(CUTOVER)).await;
    let last = world.legacy.pop();
    report
        .case("moves: the migration's end costs no request", world.during(CUTOVER, world.finished(last)))
        .await;
    let World { load, .. } = world;
    report
        .case("moves: over the whole way no request failed", async {
            let samples = load.finish().await?;
            none_failed(&samples)?;
            Ok(format!("0 of {} failed; {:?}", samples.len(), by_side(&samples)))
        })
        .await;
}

impl<'c> World<'c> {
    async fn start(cluster: &Cluster, chart: &'c Chart, folder: &Path) -> anyhow::Result<World<'c>> {
        chart.ensure(WITH_EUREKA).await?;
        let namespace = cluster.namespace("moves", &[]).await?;
        // Pods and applications start together.
        namespace.apply(&objects::all(2)).await?;
        let jars = place("PONTOON_E2E_SPRING")?;
        let eureka = chart.eureka().await?;
        let registry = format!("http://{eureka}/eureka/");
        let mut legacy = Vec::new();
        for number in 1..=2 {
            let name = format!("legacy-inventory-{number}");
            let (generation, intervals) = (Generation::Legacy, Intervals::SHORT);
            legacy.push(App::start(&jars, generation, "inventory", &name, &registry, intervals, folder)?);
        }
        for one in &mut legacy {
            one.started().await?;
        }
        namespace.wait_for("condition=Available", &["deployment/inventory"]).await?;
        let url = format!("http://{}/stock/1", programmed(&namespace).await?);
        namespace.wait_for("condition=Available", &["deployment/edge-pontoon"]).await?;
        until("both to be registered and reached", PATIENCE, async || {
            let listed = get(&format!("{registry}apps/INVENTORY")).await?;
            let is_listed = |one: &App| listed.contains(&one.port.to_string());
            ensure!(listed.contains(&NODE.to_string()) && legacy.iter().all(is_listed), "{listed}");
            get(&url).await
        })
        .await?;
        let caller = Caller::start(cluster, &namespace).await?;
        let load = Load::start(Plan {
            url: url.clone(),
            rate: 100,
            users: USERS,
            user_header: objects::USER,
            timeout: Duration::from_secs(10),
        })?;
        Ok(World { chart, namespace, legacy, load, caller, url })
    }

    /// Both instances answer, and nobody else.
    async fn all_is_legacy(&self) -> anyhow::Result<String> {
        let seen = self.load.next(100).await?;
        none_failed(&seen)?;
        on_their_side(&seen, 0)?;
        let ports = seen.iter().filter_map(|sample| Some(&sample.outcome.as_ref().ok()?.port));
        let ports: BTreeSet<&String> = ports.collect();
        ensure!(ports.len() == self.legacy.len(), "only {ports:?} answer");
        Ok(format!("{} of them", ports.len()))
    }

    /// As an operator does it.
    async fn step(&self, step: Step) -> anyhow::Result<String> {
        let command = step.command(MIGRATION);
        let said = moved(&self.load, REQUESTS, step.share, self.chart.pontoon(&command)).await?;
        let by_sidecar = self.caller.asks(BY_SIDECAR).await?;
        none_failed(&by_sidecar)?;
        on_their_side(&by_sidecar, step.share)?;
        Ok(format!("{said}; by the sidecar {:?}", by_side(&by_sidecar)))
    }

    async fn canaries(&self) -> anyhow::Result<String> {
        let said = Box::pin(self.step(CANARY)).await?;
        let (name, value) = objects::CANARY;
        let request = reqwest::Client::builder().no_proxy().build()?.get(&self.url).header(name, value);
        let answer = request.send().await?.error_for_status()?.text().await?;
        ensure!(answer.contains("modern"), "the canary is answered {answer}");
        Ok(said)
    }

    /// Whatever happens at a share costs no request, and nobody their side.
    fn during<'f>(
        &'f self,
        at: Step,
        what: impl Future<Output = anyhow::Result<String>> + 'f,
    ) -> BoxFuture<'f> {
        Box::pin(self.judged(at, Box::pin(what)))
    }

    async fn judged(&self, at: Step, what: BoxFuture<'_>) -> anyhow::Result<String> {
        let from = Instant::now();
        let (said, by_sidecar) = self.caller.asks_while(what).await?;
        self.load.next(100).await?;
        let by_gateway = self.load.since(from);
        for seen in [&by_gateway, &by_sidecar] {
            none_failed(seen)?;
            on_their_side(seen, at.share)?;
        }
        let (by_gateway, by_sidecar) = (by_gateway.len(), by_sidecar.len());
        Ok(format!(
            "{said}; {by_gateway} requests, {by_sidecar} by the sidecar, 0 failed, 0 on the wrong side"
        ))
    }

    async fn scaled(&self, pods: usize) -> anyhow::Result<String> {
        let replicas = format!("--replicas={pods}");
        self.namespace.kubectl(&["scale", "deployment/inventory", &replicas]).await?;
        self.answered_by(pods).await?;
        Ok(format!("{pods} pods answer"))
    }

    async fn deleted(&self, flags: &[&str]) -> anyhow::Result<String> {
        let pod = self.pod().await?;
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        self.namespace.delete(&[&["pod", name], flags].concat()).await?;
        self.ends_in_other_hands(name).await
    }

    async fn killed(&self) -> anyhow::Result<String> {
        let pod = self.pod().await?;
        let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
        let from = Instant::now();
        kill(&pod).await?;
        until("its container to be started again", PATIENCE, async || {
            let pod = self.namespace.get(&["pod", name]).await?;
            let status = &pod["status"]["containerStatuses"][0];
            ensure!(status["restartCount"] == 1, "{status}");
            Ok(())
        })
        .await?;
        let cut = self.load.forget_cut(from)?;
        Ok(format!("{name} starts again, killed in {cut} answers"))
    }

    /// SIGTERM: it says goodbye to the registry.
    async fn stopped(&self, application: Option<App>) -> anyhow::Result<String> {
        let mut application = application.context("no application is left")?;
        let from = Instant::now();
        application.process.terminate()?;
        application.process.ended(Duration::from_secs(60)).await?;
        let unread = self.load.forget_unread(from)?;
        Ok(format!(
            "{} has ended, {unread} answers without a look at the request",
            application.process.name()
        ))
    }

    /// With another template, as a release does it.
    async fn rolled(&self) -> anyhow::Result<String> {
        let before = self.answered_by(2).await?;
        self.namespace.kubectl(&["set", "env", "deployment/inventory", "RELEASE=2"]).await?;
        self.namespace.kubectl(&["rollout", "status", "deployment/inventory", "--timeout=300s"]).await?;
        let after = self.answered_by(2).await?;
        ensure!(before.is_disjoint(&after), "{before:?} before, {after:?} after");
        Ok(String::from("2 pods for 2"))
    }

    async fn restarted(&self) -> anyhow::Result<String> {
        let restarted = async {
            self.chart.restart().await?;
            Ok(String::from("2 pods for 2"))
        };
        self.during(HALF, restarted).await
    }

    async fn leader_killed(&self) -> anyhow::Result<String> {
        let killed = async {
            let after = self.chart.kill_leader().await?;
            Ok(format!("another leads after {:.1} s", after.as_secs_f64()))
        };
        self.during(HALF, killed).await
    }

    /// The object is deleted and the last application says goodbye: the name that routes and callers know means the pods.
    async fn finished(&self, last: Option<App>) -> anyhow::Result<String> {
        self.namespace.delete(&["migration.pontoon.dev", "inventory"]).await?;
        until("the migration to be forgotten", PATIENCE, async || {
            let listed = self.chart.pontoon(&["migration", "list"]).await?;
            ensure!(!listed.contains(MIGRATION), "{listed}");
            Ok(())
        })
        .await?;
        let said = self.stopped(last).await?;
        // What is new is found by the Service alone now.
        self.scaled(3).await?;
        Ok(said)
    }

    /// Waits until exactly these many pods answer, by the Gateway; those that end may have their last requests.
    async fn answered_by(&self, pods: usize) -> anyhow::Result<BTreeSet<String>> {
        until(&format!("{pods} pods to answer"), START, async || {
            let seen = self.load.next(100).await?;
            let answers = seen.iter().filter_map(|sample| sample.outcome.as_ref().ok());
            let hosts = answers.filter(|answer| answer.side == "modern").map(|answer| answer.host.clone());
            let hosts: BTreeSet<String> = hosts.collect();
            ensure!(hosts.len() == pods, "{hosts:?} answer");
            Ok(hosts)
        })
        .await
    }

    /// One that can be taken away: two others are ready, too.
    async fn pod(&self) -> anyhow::Result<Value> {
        until("three pods to be ready", START, async || {
            let pods = self.namespace.get(&["pods", "-l", "app=inventory"]).await?;
            let ready: Vec<&Value> = ready(&pods).collect();
            ensure!(ready.len() >= 3, "{} are", ready.len());
            Ok(ready[0].clone())
        })
        .await
    }

    /// Of a pod that was taken away nothing is seen any more.
    async fn ends_in_other_hands(&self, name: &str) -> anyhow::Result<String> {
        until("others to answer in its place", PATIENCE, async || {
            let seen = self.load.next(50).await?;
            let mut hosts = seen.iter().filter_map(|sample| Some(&sample.outcome.as_ref().ok()?.host));
            ensure!(!hosts.any(|host| host == name), "{name} answers");
            Ok(())
        })
        .await?;
        Ok(format!("{name} is gone"))
    }
}
