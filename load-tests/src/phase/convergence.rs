//! How soon traffic follows an instance: from its registration to the first answer by it, and what fails after its
//! SIGTERM and its SIGKILL. Pontoon with its gateway against a Netflix server with Spring Cloud Gateway; the
//! same application as the instance, everything at its defaults. The peer's phases wait for leases and caches of
//! its own, so this takes about ten minutes.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::load::{Load, Plan, Sample};
use pontoon_e2e::pontoon::{ControlPlane, Gateway};
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use pontoon_e2e::spring::{App, Generation, Intervals};
use pontoon_e2e::tap::Tap;
use pontoon_e2e::wait::{get, until};
use serde_json::json;
use tokio::time::Instant;

use crate::peer::Bench;
use crate::report::{Row, Table};

pub(super) const TITLE: &str = "Until traffic follows an instance";
pub(super) const NOTE: &str = concat!(
    "The same Spring Boot 3 application registers in both with the defaults of its client (renewal and fetch each ",
    "30 s), 20 requests a second go through the gateway, and a dozen other instances renew. A failed request is a GET ",
    "without a good answer.\n\n",
);
const REGISTERED: &str = "s from registered to first answer";

/// The peer's slowest way: server cache, client fetch and balancer cache, one after the other.
const SEEN_WITHIN: Duration = Duration::from_secs(180);
/// How long failures are looked for after a stop.
const AFTER_TERM: Duration = Duration::from_secs(100);
/// And after a kill: the lease of a Netflix server runs 180 s, and then its caches.
const AFTER_KILL: Duration = Duration::from_secs(330);
/// Without so many others that renew, a Netflix server's self-preservation keeps the dead one for ever.
const FILLERS: usize = 12;
const RATE: u32 = 20;

/// One of the two systems.
struct System {
    name: &'static str,
    registry: SocketAddr,
    /// Where `inventory` is asked for.
    url: String,
    /// How long failures can still come.
    after_term: Duration,
    after_kill: Duration,
    _processes: Vec<Process>,
}

pub(super) fn run(bench: &Bench) -> anyhow::Result<Table> {
    bench.runtime.block_on(both(bench))
}

async fn both(bench: &Bench) -> anyhow::Result<Table> {
    let jars = bench.spring()?;
    let mut rows = Vec::new();
    for name in ["pontoon", "netflix"] {
        let folder = bench.folder.join("convergence").join(name);
        let system = match name {
            "pontoon" => pontoon(bench, &folder).await?,
            _ => netflix(jars, &folder).await?,
        };
        rows.push(follow(&system, jars, &folder).await?);
    }
    Ok(Table::new("convergence", TITLE, REGISTERED, rows))
}

async fn pontoon(bench: &Bench, folder: &Path) -> anyhow::Result<System> {
    let port = ports::free()?;
    let plane = ControlPlane::prepare(&bench.pontoon, folder, &objects(port))?;
    let serving = plane.start().await?;
    let gateway = Gateway::start(&bench.proxy, folder, "default/edge", plane.xds, 1).await?;
    Ok(System {
        name: "Pontoon",
        registry: plane.eureka,
        url: format!("http://127.0.0.1:{port}/stock/1"),
        after_term: Duration::from_secs(20),
        // A lease is 90 s.
        after_kill: Duration::from_secs(120),
        _processes: vec![serving, gateway.process],
    })
}

async fn netflix(jars: &Path, folder: &Path) -> anyhow::Result<System> {
    let (modern, defaults) = (Generation::Modern, Intervals::DEFAULT);
    let mut server = App::start(jars, modern, "eureka-server", "eureka-server", "", defaults, folder)?;
    server.started().await?;
    let url = server.url("/eureka/");
    let mut gateway = App::start(jars, modern, "gateway", "gateway", &url, defaults, folder)?;
    gateway.started().await?;
    Ok(System {
        name: "Eureka server and Spring Cloud Gateway",
        registry: SocketAddr::from(([127, 0, 0, 1], server.port)),
        url: gateway.url("/stock/1"),
        after_term: AFTER_TERM,
        after_kill: AFTER_KILL,
        _processes: vec![server.process, gateway.process],
    })
}

/// One instance stays; another comes and is stopped, and a third comes and is killed.
async fn follow(system: &System, jars: &Path, folder: &Path) -> anyhow::Result<Row> {
    let fillers = tokio::spawn(renew_fillers(system.registry));
    let (mut stays, _tap) = instance(system, jars, folder, "stays").await?;
    stays.started().await?;
    until("the first instance to be reached", SEEN_WITHIN, async || get(&system.url).await).await?;
    let load = Load::start(Plan {
        url: system.url.clone(),
        rate: RATE,
        users: 1000,
        user_header: "x-user-id",
        timeout: Duration::from_secs(10),
    })?;
    let mut row = Row::new(system.name);

    let (mut stopped, registered, _tap) = joins(system, jars, folder, "stopped", &load).await?;
    row.push(REGISTERED, registered);
    let from = Instant::now();
    stopped.process.terminate()?;
    tokio::time::sleep(system.after_term).await;
    failures(&mut row, "SIGTERM", &load.since(from), from);
    stopped.process.ended(Duration::from_secs(10)).await?;

    let (mut killed, registered, _tap) = joins(system, jars, folder, "killed", &load).await?;
    row.push(REGISTERED, registered);
    let from = Instant::now();
    killed.process.kill()?;
    tokio::time::sleep(system.after_kill).await;
    failures(&mut row, "SIGKILL", &load.since(from), from);
    fillers.abort();
    Ok(row)
}

/// Starts an instance; the seconds from the answer to its registration until the first answer by it.
async fn joins(
    system: &System,
    jars: &Path,
    folder: &Path,
    name: &str,
    load: &Load,
) -> anyhow::Result<(App, f64, Tap)> {
    let (mut app, tap) = instance(system, jars, folder, name).await?;
    app.started().await?;
    let port = app.port.to_string();
    let from = Instant::now();
    let first = until("the new instance to be reached", SEEN_WITHIN, async || {
        let by_it = |sample: &Sample| sample.outcome.as_ref().is_ok_and(|answer| answer.port == port);
        load.since(from - Duration::from_secs(30)).into_iter().find(by_it).context("not yet")
    })
    .await?;
    let registered =
        tap.exchanges().iter().find(|e| e.is_register()).map(|e| e.at).context("never registered")?;
    Ok((app, first.ended.saturating_duration_since(registered).as_secs_f64(), tap))
}

async fn instance(system: &System, jars: &Path, folder: &Path, name: &str) -> anyhow::Result<(App, Tap)> {
    let tap = Tap::start(system.registry).await?;
    let url = format!("http://{}/eureka/", tap.address);
    let app = App::start(jars, Generation::Modern, "inventory", name, &url, Intervals::DEFAULT, folder)?;
    Ok((app, tap))
}

fn failures(row: &mut Row, what: &str, samples: &[Sample], from: Instant) {
    let failed = samples.iter().filter(|sample| sample.outcome.is_err());
    let last =
        failed.clone().map(|sample| sample.sent.duration_since(from).as_secs_f64()).fold(0.0, f64::max);
    row.push(&format!("failed after {what}"), failed.count() as f64);
    row.push(&format!("s until the last after {what}"), last);
}

/// Registers a dozen instances of another service and renews them until it is dropped.
async fn renew_fillers(registry: SocketAddr) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let base = format!("http://{registry}/eureka/apps/FILLER");
    for number in 0..FILLERS {
        let id = format!("filler-{number}");
        let instance = json!({"instance": {
            "instanceId": id, "hostName": "localhost", "app": "FILLER", "ipAddr": "127.0.0.1", "status": "UP",
            "port": {"$": 1000 + number, "@enabled": "true"}, "securePort": {"$": 443, "@enabled": "false"},
            "vipAddress": "filler", "secureVipAddress": "filler",
            "dataCenterInfo": {
                "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn",
            },
        }});
        let answer = client.post(&base).json(&instance).send().await?;
        ensure!(answer.status().is_success(), "a filler is refused: {}", answer.status());
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(20));
    loop {
        ticks.tick().await;
        for number in 0..FILLERS {
            let _ = client.put(format!("{base}/filler-{number}")).send().await;
        }
    }
}

fn objects(port: u16) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: pontoon
  listeners: [{{name: http, port: {port}, protocol: HTTP}}]
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: {{name: inventory}}
spec: {{eureka: {{application: inventory}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - backendRefs: [{{group: pontoon.dev, kind: Pool, name: inventory}}]
"
    )
}
