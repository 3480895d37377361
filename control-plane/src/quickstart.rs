//! `pontoon quickstart`: the main job on one machine, with nothing installed. It starts a control plane, a
//! gateway and four instances of a sample service as processes of their own, keeps a steady load on the
//! gateway, takes the service across by the same API that the command line uses, and fails unless every
//! request was answered by the side that the split says.

mod children;
mod load;
mod objects;
mod report;
pub mod sample;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tokio::time::Instant;

use self::children::{Ports, Process};
use self::load::{Load, Plan};
use self::objects::Addresses;
use self::report::{Expectation, StageReport};
use self::sample::Side;
use crate::cli::client::Client;
use crate::migration::stage::{Stage, Weight};
use crate::serve::api::auth::{DEFAULT_FILE, first_token};
use crate::serve::api::types::{Changed, MigrationView, Progress, RollbackRequest, SetRequest};

/// Starting a process may take so long on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// A change may take so long to be acknowledged by all proxies.
const IN_FORCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that were due this long after the acknowledgement are measured; those before may have been on
/// their way while it changed.
const SETTLE: Duration = Duration::from_millis(100);
const USERS: u32 = 1_000;
const CANARY_USERS: u32 = 20;
const USER_HEADER: &str = "x-user-id";
const CANARY_HEADER: (&str, &str) = ("x-group", "staff");
const MIGRATION: &str = "default/inventory";

/// How the quickstart runs.
#[derive(Debug, Clone, clap::Args)]
pub struct QuickstartArgs {
    /// Leave everything running at the end, for applications of your own.
    #[arg(long)]
    pub stay: bool,
    /// Requests a second.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub rate: u32,
    /// How long each stage is watched, in seconds.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
}

/// One step of the way.
#[derive(Debug, Clone, Copy)]
struct Step {
    stage: Stage,
    /// Hundredths of a percent, for `split`.
    weight: Option<u16>,
    why: &'static str,
}

const fn step(stage: Stage, weight: Option<u16>, why: &'static str) -> Step {
    Step { stage, weight, why }
}

const WAY: &[Step] = &[
    step(Stage::Observe, None, "legacy answers all"),
    step(Stage::Canary, None, "the staff goes first"),
    step(Stage::Split, Some(500), "then 5 % of the users"),
    step(Stage::Split, Some(5_000), "then half of them"),
    step(Stage::Observe, None, "a rollback: everybody back in one step"),
    step(Stage::Split, Some(5_000), "and on again"),
    step(Stage::Cutover, None, "the target answers all, legacy stands by"),
];

/// Runs the whole of it.
///
/// # Errors
/// When something does not start, a request failed, or a user was answered by the wrong side.
pub async fn run(args: QuickstartArgs) -> anyhow::Result<()> {
    let dir = TempDir::with_prefix("pontoon-quickstart-").context("cannot make a folder for the logs")?;
    let mut system = System::start(dir.path()).await?;
    println!("Logs and objects are in {} while this runs.\n", dir.path().display());
    let result = system.cross(&args).await;
    if result.is_ok() && args.stay {
        system.stay().await?;
    }
    system.stop().await;
    if result.is_err() {
        let kept = dir.keep();
        println!("\nThe logs stay in {}.", kept.display());
    }
    result
}

/// All processes, and the API of the control plane among them.
struct System {
    addresses: Addresses,
    api: Client,
    /// In the order in which they are stopped.
    processes: Vec<Process>,
}

impl System {
    async fn start(dir: &Path) -> anyhow::Result<System> {
        let mut ports = Ports::new();
        let addresses = Addresses {
            gateway: ports.take(Some(8080)).await?,
            gateway_admin: ports.take(Some(15000)).await?,
            eureka: ports.take(Some(8761)).await?,
            xds: ports.take(Some(18000)).await?,
            api: ports.take(Some(8767)).await?,
            targets: [ports.take(None).await?, ports.take(None).await?],
        };
        let (folder, data) = (dir.join("objects"), dir.join("data"));
        objects::write(&folder, &addresses)?;

        let mut pontoon = Process::start("pontoon", dir, &serve_args(&addresses, &folder, &data))?;
        let ready = format!("http://127.0.0.1:{}/readyz", addresses.api);
        pontoon.wait_until(START_TIMEOUT, || answers(&ready)).await?;
        let token = first_token(&data.join(DEFAULT_FILE))?;
        let api = Client::new(&format!("http://127.0.0.1:{}", addresses.api), &token, Some("quickstart"))?;

        let eureka = format!("http://127.0.0.1:{}/eureka/", addresses.eureka);
        let mut processes = Vec::new();
        for name in ["inventory-legacy-1", "inventory-legacy-2"] {
            let args = sample_args(Side::Legacy, ports.take(None).await?, Some(&eureka));
            processes.push(Process::start(name, dir, &args)?);
        }
        for (name, port) in ["inventory-target-1", "inventory-target-2"].into_iter().zip(addresses.targets) {
            processes.push(Process::start(name, dir, &sample_args(Side::Target, port, None))?);
        }
        let mut gateway = Process::start("pontoon-proxy", dir, &proxy_args(&addresses))?;
        // The first answer is there once the legacy instances are registered and the gateway has heard of it.
        let probe = format!("http://127.0.0.1:{}/stock/1", addresses.gateway);
        gateway.wait_until(START_TIMEOUT, || answers(&probe)).await?;
        let known = format!("{eureka}apps/INVENTORY");
        pontoon.wait_until(START_TIMEOUT, || holds(&known, "<instanceId>", 2)).await?;
        for port in addresses.targets {
            let target = format!("http://127.0.0.1:{port}/stock/1");
            gateway.wait_until(START_TIMEOUT, || answers(&target)).await?;
        }
        processes.insert(0, gateway);
        processes.push(pontoon);
        Ok(System { addresses, api, processes })
    }

    /// Takes the service across under load.
    async fn cross(&mut self, args: &QuickstartArgs) -> anyhow::Result<()> {
        let plan = Plan {
            base: format!("http://127.0.0.1:{}", self.addresses.gateway),
            rate: args.rate,
            users: USERS,
            canary_users: CANARY_USERS,
            user_header: USER_HEADER,
            canary_header: CANARY_HEADER,
        };
        println!(
            "{} requests a second from {USERS} users go through the gateway at {}.\n",
            plan.rate, plan.base
        );
        println!("{}", StageReport::header());
        let load = Load::start(plan)?;
        let mut moved = 0;
        for step in WAY {
            let in_force = self.go(step).await?;
            let since = Instant::now() + SETTLE;
            tokio::time::sleep(SETTLE + Duration::from_secs(args.seconds)).await;
            let weight = step.weight.map(u32::from);
            let expectation = Expectation::of(step.stage.as_str(), weight, CANARY_USERS);
            let report = StageReport::new(&load.samples_since(since), &expectation);
            moved += report.moved;
            println!("{}   {}", report.line(step.stage.as_str(), weight, in_force), step.why);
        }
        let (sent, failed) = load.finish().await;
        println!("\n{sent} requests, {failed} failed, {moved} answered by the wrong side");
        if failed > 0 || moved > 0 {
            bail!("{failed} requests failed and {moved} were answered by the wrong side");
        }
        Ok(())
    }

    /// Changes the stage and waits until every proxy has acknowledged it; gives how long that took.
    async fn go(&self, step: &Step) -> anyhow::Result<Duration> {
        let before = self.api.migration(MIGRATION).await?;
        let started = Instant::now();
        let reason = Some(step.why.to_owned());
        let changed: Changed = if step.stage < before.stage {
            let body = RollbackRequest { to: Some(step.stage), reason, expected_revision: None };
            self.api.rollback(MIGRATION, &body).await?
        } else {
            let weight = step.weight.map(Weight::saturating);
            let body = SetRequest { stage: Some(step.stage), weight, reason, ..SetRequest::default() };
            self.api.set(MIGRATION, &body).await?
        };
        let after: MigrationView = self.api.wait_in_force(changed.migration, IN_FORCE_TIMEOUT).await?;
        if after.in_force.progress == Progress::Waiting {
            bail!(
                "{} is not in force after {IN_FORCE_TIMEOUT:?}: {:?}",
                step.stage.as_str(),
                after.in_force.routes
            );
        }
        // As the control plane measured it; it knows when the last acknowledgement came.
        let took = after.in_force.took_ms.filter(|_| changed.changed);
        Ok(took.map_or_else(|| started.elapsed(), |ms| Duration::from_secs_f64(ms / 1000.0)))
    }

    async fn stay(&self) -> anyhow::Result<()> {
        let Addresses { gateway, gateway_admin, eureka, api, .. } = self.addresses;
        println!(
            "\nEverything runs on. Ctrl-C ends it.\n\n  \
             gateway          http://127.0.0.1:{gateway}/stock/1\n  \
             registry         http://127.0.0.1:{eureka}/\n  \
             API              http://127.0.0.1:{api}/openapi.json\n  \
             gateway's admin  http://127.0.0.1:{gateway_admin}/\n\n\
             An application of yours registers here with\n\n  \
             eureka.client.serviceUrl.defaultZone=http://127.0.0.1:{eureka}/eureka/\n"
        );
        tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")
    }

    async fn stop(&mut self) {
        for process in &mut self.processes {
            if let Err(error) = process.stop().await {
                tracing::warn!(%error, "a process did not end well");
            }
        }
    }
}

fn serve_args(addresses: &Addresses, objects: &Path, data: &Path) -> Vec<String> {
    let listen = |flag: &str, port: u16| [format!("--{flag}"), format!("127.0.0.1:{port}")];
    let folder = |flag: &str, path: &Path| [format!("--{flag}"), path.display().to_string()];
    [
        vec![String::from("serve")],
        folder("objects", objects).into(),
        folder("data", data).into(),
        listen("eureka-listen", addresses.eureka).into(),
        listen("xds-listen", addresses.xds).into(),
        listen("api-listen", addresses.api).into(),
    ]
    .concat()
}

fn proxy_args(addresses: &Addresses) -> Vec<String> {
    [
        "proxy",
        "--cluster",
        "default/edge",
        "--node-id",
        "gateway-1",
        "--xds-server",
        &format!("http://127.0.0.1:{}", addresses.xds),
        "--admin",
        &format!("127.0.0.1:{}", addresses.gateway_admin),
    ]
    .map(String::from)
    .into()
}

fn sample_args(side: Side, port: u16, eureka: Option<&str>) -> Vec<String> {
    let mut args: Vec<String> =
        ["sample", "--side", side.as_str(), "--port", &port.to_string()].map(String::from).into();
    if let Some(eureka) = eureka {
        args.extend([String::from("--eureka"), eureka.to_owned()]);
    }
    args
}

async fn answers(url: &str) -> bool {
    reqwest::get(url).await.is_ok_and(|response| response.status().is_success())
}

/// Whether the answer holds `text` at least so many times.
async fn holds(url: &str, text: &str, times: usize) -> bool {
    let Ok(response) = reqwest::get(url).await else { return false };
    response.text().await.is_ok_and(|body| body.matches(text).count() >= times)
}
