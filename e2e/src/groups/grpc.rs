//! Proxyless gRPC (grpc-go and grpc-java), configured by our control plane alone: `xds:///inventory` is resolved,
//! balanced, split as the migration says, and follows the registry.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use pontoon_e2e::inventory::{cancel, register};
use pontoon_e2e::pontoon::ControlPlane;
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use pontoon_e2e::report::Report;
use pontoon_e2e::wait::{get, until};

use super::place;

/// For a change to come through.
const PATIENCE: Duration = Duration::from_secs(30);
/// Calls that a share is judged by.
const CALLS: usize = 1000;
/// gRPC draws lots for each call, it knows no sticky split: this is five standard deviations at a third.
const TOLERANCE: usize = 75;
/// The clients, under the `Node.id` of each.
const CLIENTS: [&str; 2] = ["grpc-go", "grpc-java"];
/// A JVM that makes calls needs no more.
const JAVA: [&str; 4] = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar"];
/// Two legacy instances and two of the target.
const GREETERS: [(&str, &str); 4] =
    [("legacy-1", "legacy"), ("legacy-2", "legacy"), ("modern-1", "modern"), ("modern-2", "modern")];
/// Each step, and the share in hundredths of a percent that the target has after it.
const STEPS: [(&[&str], usize); 5] = [
    (&["migration", "show", "inventory"], 0),
    (&["migration", "set", "inventory", "--stage", "split", "--weight", "33.33%"], 3333),
    (&["migration", "set", "inventory", "--stage", "cutover"], 10_000),
    (&["migration", "rollback", "inventory", "--to", "split"], 3333),
    (&["migration", "rollback", "inventory", "--to", "observe"], 0),
];

/// A running greeter.
#[derive(Debug)]
struct Greeter {
    name: &'static str,
    address: SocketAddr,
    process: Process,
}

/// A proxyless client, and where it is asked for calls.
#[derive(Debug)]
struct Client {
    name: &'static str,
    calls: String,
    made: AtomicUsize,
    failed: Mutex<Vec<String>>,
    _process: Process,
}

/// Runs the group. True: all cases passed.
pub(crate) async fn run(_arguments: Vec<String>) -> anyhow::Result<bool> {
    let mut report = Report::new("grpc")?;
    let folder = report.folder().to_owned();
    let program = place("PONTOON_E2E_GRPC_GO")?;
    let plane = ControlPlane::prepare(&place("PONTOON_E2E_PONTOON")?, &folder, OBJECTS)?;
    let _serving = plane.start().await?;
    let mut greeters = Vec::new();
    for (name, side) in GREETERS {
        let greeter = greeter(&program, &folder, name).await?;
        register(plane.eureka, "inventory", greeter.address, side).await?;
        greeters.push(greeter);
    }
    let mut clients = Vec::new();
    for name in CLIENTS {
        clients.push(Client::start(name, &folder, plane.xds).await?);
    }

    for (command, share) in STEPS {
        meanwhile(&clients, async { plane.run(command).await.map(drop) }).await?;
        for client in &clients {
            let name = format!("{}: {}", client.name, command[1..].join(" "));
            report.case(&name, moved(&plane, client, share)).await;
        }
    }
    if let Some(gone) = greeters.first_mut() {
        meanwhile(&clients, cancel(plane.eureka, "inventory", gone.address)).await?;
        for client in &clients {
            let name = format!("{}: an instance that leaves the registry", client.name);
            report.case(&name, left(client, gone.name)).await;
        }
        gone.process.kill()?;
        for client in &clients {
            report.case(&format!("{}: without the instance", client.name), client.call(200)).await;
        }
    }
    let new = greeter(&program, &folder, "legacy-3").await?;
    meanwhile(&clients, register(plane.eureka, "inventory", new.address, "legacy")).await?;
    for client in &clients {
        let name = format!("{}: an instance that registers", client.name);
        report.case(&name, joined(client, new.name)).await;
    }
    for client in &clients {
        let name = format!("{}: a name that nobody calls is dropped, and asked for again", client.name);
        report.case(&name, idle(&plane, client)).await;
    }
    for client in &clients {
        let name = format!("{}: over the whole run no call failed", client.name);
        report.case(&name, async { client.none_failed() }).await;
    }
    report
        .case("pontoon-proxy: what it says of itself, read by grpc-go", status(&plane, &program, &folder))
        .await;
    report.finish()
}

/// What grpc-go says of calls that it sends by new routes before its balancer has their cluster: it takes up the one just
/// before the other (1.81.1, `ClientConn.updateResolverStateAndUnlock`). Whoever serves it, there is that moment.
const EARLY: &str = "unknown cluster selected for RPC";
/// Batches of calls that may meet one, of the four times at which there is a new cluster.
const MOST_EARLY: usize = 4;

/// Makes a change while every client calls.
async fn meanwhile(
    clients: &[Client],
    change: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let done = AtomicBool::new(false);
    let change = async {
        let outcome = change.await;
        done.store(true, Ordering::Relaxed);
        outcome
    };
    let calls = async {
        while !done.load(Ordering::Relaxed) {
            for client in clients {
                // One that failed has been counted.
                let _ = client.answers(20).await;
            }
        }
    };
    tokio::join!(change, calls).0
}

/// On demand: what is not called any more is subscribed to no more, and costs neither side anything.
async fn idle(plane: &ControlPlane, client: &Client) -> anyhow::Result<String> {
    client.call(1).await?;
    ensure!(!subscribed(plane, client).await?.is_empty(), "it is subscribed to nothing while it calls");
    until("no subscriptions", PATIENCE, async || {
        let names = subscribed(plane, client).await?;
        ensure!(names.is_empty(), "{names:?}");
        Ok(())
    })
    .await?;
    client.call(50).await
}

/// The names, of all types, that the control plane knows the client to follow.
async fn subscribed(plane: &ControlPlane, client: &Client) -> anyhow::Result<Vec<String>> {
    let proxies = plane.json(&["proxies"]).await?;
    let of_client = proxies.as_array().into_iter().flatten().filter(|proxy| proxy["node"] == client.name);
    let types = of_client.filter_map(|proxy| proxy["types"].as_object()).flatten();
    let names = types.filter_map(|(_, of_type)| of_type["names"].as_array()).flatten();
    Ok(names.map(ToString::to_string).collect())
}

/// CSDS: Go's types read every resource of a sidecar that has been asked for a name.
async fn status(plane: &ControlPlane, program: &Path, folder: &Path) -> anyhow::Result<String> {
    let local = || Ok::<_, anyhow::Error>(format!("127.0.0.1:{}", ports::free()?));
    let (admin, outbound) = (local()?, local()?);
    let mut command = Command::new(place("PONTOON_E2E_PROXY")?);
    command.args(["--cluster=default", "--node-id=e2e-sidecar", "--workers=1"]);
    command.arg(format!("--xds-server=http://{}", plane.xds));
    command.arg(format!("--admin={admin}")).arg(format!("--outbound={outbound}"));
    let _sidecar = Process::start("sidecar", command, folder)?;
    until("the sidecar to be ready", PATIENCE, async || get(&format!("http://{admin}/ready")).await).await?;
    // A greeter speaks gRPC alone; that the name was asked for is what counts.
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    client.get(format!("http://{outbound}/")).header("host", "inventory").send().await?;

    let output = Command::new(program).args(["status", &admin]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_str(&said)?;
    let config = &answer["config"][0];
    ensure!(config["node"]["id"] == "e2e-sidecar", "{answer:#}");
    let configs = config["genericXdsConfigs"].as_array().context("it has no resources")?;
    for ty in ["Listener", "RouteConfiguration", "Cluster", "ClusterLoadAssignment"] {
        let accepted = configs.iter().any(|config| {
            let is_type =
                |url: &serde_json::Value| url.as_str().is_some_and(|url| url.ends_with(&format!(".{ty}")));
            is_type(&config["typeUrl"])
                && is_type(&config["xdsConfig"]["@type"])
                && config["clientStatus"] == "ACKED"
                && config["versionInfo"].is_string()
        });
        ensure!(accepted, "no accepted {ty}: {answer:#}");
    }
    Ok(format!("{} resources", configs.len()))
}

async fn greeter(program: &Path, folder: &Path, name: &'static str) -> anyhow::Result<Greeter> {
    let mut command = Command::new(program);
    command.args(["serve", name]);
    let mut process = Process::start(name, command, folder)?;
    process.prints("listening ", PATIENCE).await?;
    let log = process.log()?;
    let address = log.lines().find_map(|line| line.strip_prefix("listening "));
    let address = address.context("it does not say where")?.trim().parse()?;
    Ok(Greeter { name, address, process })
}

impl Client {
    async fn start(name: &'static str, folder: &Path, xds: SocketAddr) -> anyhow::Result<Client> {
        let port = ports::free()?;
        let bootstrap = serde_json::json!({
            "xds_servers": [{
                "server_uri": xds.to_string(),
                "channel_creds": [{ "type": "insecure" }],
                "server_features": ["xds_v3"],
            }],
            "node": { "id": name, "cluster": "default" },
        });
        let mut command = if name == "grpc-java" {
            let mut java = Command::new("java");
            java.args(JAVA).arg(place("PONTOON_E2E_GRPC_JAVA")?);
            java
        } else {
            Command::new(place("PONTOON_E2E_GRPC_GO")?)
        };
        command.args(["call", "xds:///inventory"]).arg(format!("127.0.0.1:{port}"));
        command.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string());
        let mut process = Process::start(name, command, folder)?;
        let calls = format!("http://127.0.0.1:{port}/?calls=");
        until("a first call that succeeds", PATIENCE, async || {
            if let Err(ended) = process.check_alive() {
                return Ok(Err(ended));
            }
            answers(&calls, 1).await.map(|_| Ok(()))
        })
        .await??;
        Ok(Client { name, calls, made: AtomicUsize::new(0), failed: Mutex::default(), _process: process })
    }

    /// Who answered how many of so many calls, if none failed.
    async fn answers(&self, count: usize) -> anyhow::Result<BTreeMap<String, usize>> {
        self.made.fetch_add(count, Ordering::Relaxed);
        // Kept, as those who wait for something ask again.
        answers(&self.calls, count).await.inspect_err(|error| {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
        })
    }

    /// Whether none did, whoever made them and whenever.
    fn none_failed(&self) -> anyhow::Result<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let (early, failed): (Vec<&String>, Vec<&String>) =
            failed.iter().partition(|error| error.contains(EARLY));
        ensure!(failed.is_empty() && early.len() <= MOST_EARLY, "{failed:#?} {early:#?}");
        let made = self.made.load(Ordering::Relaxed);
        Ok(format!("0 of {made} failed, but for {} batches that went ahead of their cluster", early.len()))
    }

    /// The same, in words.
    async fn call(&self, count: usize) -> anyhow::Result<String> {
        Ok(format!("{:?}", self.answers(count).await?))
    }
}

async fn answers(calls: &str, count: usize) -> anyhow::Result<BTreeMap<String, usize>> {
    let answers: BTreeMap<String, usize> = serde_json::from_str(&get(&format!("{calls}{count}")).await?)?;
    if let Some((error, times)) = answers.iter().find(|(name, _)| name.starts_with("failed")) {
        bail!("{times} of {count} calls: {error}");
    }
    Ok(answers)
}

/// Looks at who answers, from the moment at which a move is in force.
async fn moved(plane: &ControlPlane, client: &Client, share: usize) -> anyhow::Result<String> {
    // gRPC acknowledges what it has read; its channel takes it up a moment later.
    let expected = CALLS * share / 10_000;
    let answers = until("the share", PATIENCE, async || {
        let answers = client.answers(CALLS).await?;
        let of =
            |side: &str| answers.iter().filter(|(n, _)| n.starts_with(side)).map(|(_, n)| n).sum::<usize>();
        let target = of("modern");
        let tolerance = if share == 0 || share == 10_000 { 0 } else { TOLERANCE };
        ensure!(target.abs_diff(expected) <= tolerance, "{target} of {CALLS} were answered by the target");
        Ok(answers)
    })
    .await?;
    for (name, side) in GREETERS {
        // Both instances of a side take half of its calls: round robin.
        let of_side = if side == "modern" { expected } else { CALLS - expected };
        let seen = answers.get(name).copied().unwrap_or(0);
        ensure!(seen.abs_diff(of_side / 2) <= TOLERANCE, "{name} answered {seen} of {CALLS}: {answers:?}");
    }
    let proxies = plane.run(&["proxies", client.name]).await?;
    ensure!(!proxies.contains("refused at"), "{proxies}");
    Ok(format!("{answers:?}"))
}

/// An instance has said goodbye: nobody calls it any more, and the other takes all.
async fn left(client: &Client, gone: &str) -> anyhow::Result<String> {
    until("calls without it", PATIENCE, async || {
        let answers = client.answers(50).await?;
        ensure!(!answers.contains_key(gone), "{answers:?}");
        Ok(format!("{answers:?}"))
    })
    .await
}

async fn joined(client: &Client, new: &str) -> anyhow::Result<String> {
    until("calls to it", PATIENCE, async || {
        let answers = client.answers(50).await?;
        ensure!(answers.contains_key(new), "{answers:?}");
        Ok(format!("{answers:?}"))
    })
    .await
}

const OBJECTS: &str = "\
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {name: inventory}
spec:
  service: inventory
  legacy: {eureka: {application: inventory, selector: {lab: legacy}}}
  target: {eureka: {application: inventory, selector: {lab: modern}}}
  key: {header: x-user-id}
";
