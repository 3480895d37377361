//! One Envoy bootstrap, two proxies: each request of a table goes through Envoy and through ours, and status,
//! headers, body and what the upstreams received must be the same. What may differ is listed, with the reason, here
//! and in docs/reference/same-as-envoy.md.

mod cases;
mod dump;
mod wire;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use pontoon_e2e::report::{Report, fresh_folder};
use pontoon_e2e::wait::{get, until};
use serde_json::{Value, json};

use super::place;
use cases::{KNOWN, SETUPS, Setup};
use wire::{Exchange, Upstream, exchange};

const START: Duration = Duration::from_secs(20);
const HTTP_MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// Runs the group. True: all cases passed.
pub(crate) async fn run(only: Vec<String>) -> anyhow::Result<bool> {
    let folder = fresh_folder("equal")?;
    let mut report = Report::default();
    let upstreams = Upstreams { a: Upstream::start("a").await?, b: Upstream::start("b").await? };
    let envoy_program = place("PONTOON_E2E_ENVOY")?;
    let envoy = Proxy::start("envoy", &envoy_program, &upstreams, &folder).await?;
    let ours = Proxy::start("pontoon-proxy", &place("PONTOON_E2E_PROXY")?, &upstreams, &folder).await?;
    for (name, wanted) in [("valid.yaml", true), ("invalid.yaml", false)] {
        report.case(&format!("--mode validate: {name}"), validates(name, wanted, &folder)).await;
    }
    for setup in SETUPS {
        for request in setup.requests {
            let name = format!("{}: {request}", setup.name);
            if !only.is_empty() && !only.iter().any(|part| name.contains(part)) {
                continue;
            }
            report.case(&name, same(&name, setup, request, &envoy, &ours, &upstreams)).await;
        }
    }
    report.case("/config_dump", dump::same(&envoy, &ours)).await;
    report.case("tcp: bytes both ways", same_tcp(&envoy, &ours, &upstreams)).await;
    report.finish(&folder)
}

struct Upstreams {
    a: Upstream,
    b: Upstream,
}

impl Upstreams {
    fn take(&self) -> Vec<String> {
        let mut all = self.a.take();
        all.extend(self.b.take());
        all
    }
}

/// A running proxy with the bootstrap.
struct Proxy {
    _process: Process,
    http: SocketAddr,
    tcp: SocketAddr,
    admin: SocketAddr,
    dead: u16,
}

impl Proxy {
    async fn start(
        name: &str,
        program: &Path,
        upstreams: &Upstreams,
        folder: &Path,
    ) -> anyhow::Result<Proxy> {
        let [http, tcp, admin, dead] = [ports::free()?, ports::free()?, ports::free()?, ports::free()?];
        let config = folder.join(format!("{name}.yaml"));
        let bootstrap = bootstrap([http, tcp, admin, dead], upstreams)?;
        std::fs::write(&config, serde_json::to_vec_pretty(&bootstrap)?)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&config).args(["--concurrency", "1"]);
        if name == "envoy" {
            command.args(["--use-dynamic-base-id", "--log-level", "warning"]);
        }
        let mut process = Process::start(name, command, folder)?;
        let ready = format!("http://127.0.0.1:{admin}/ready");
        until(&format!("{name} to be ready"), START, async || match get(&ready).await {
            Ok(_) => Ok(Ok(())),
            Err(error) => match process.check_alive() {
                Ok(()) => Err(error),
                Err(ended) => Ok(Err(ended)),
            },
        })
        .await??;
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Proxy { _process: process, http: at(http), tcp: at(tcp), admin: at(admin), dead })
    }

    /// The ports that the other proxy has not.
    fn ports(&self) -> [u16; 4] {
        [self.http.port(), self.tcp.port(), self.admin.port(), self.dead]
    }
}

fn bootstrap([http, tcp, admin, dead]: [u16; 4], upstreams: &Upstreams) -> anyhow::Result<Value> {
    let mut hosts = Vec::new();
    for setup in SETUPS {
        hosts.push(host(setup)?);
    }
    let manager = json!({
        "@type": HTTP_MANAGER, "stat_prefix": "http", "normalize_path": true, "merge_slashes": true,
        "route_config": {"name": "routes", "virtual_hosts": hosts,
            "request_headers_to_add": [{"header": {"key": "x-table", "value": "t"}}]},
        "http_filters": [{"name": "envoy.filters.http.router",
            "typed_config": {"@type": ROUTER, "suppress_envoy_headers": true}}],
    });
    let proxy = json!({"@type": TCP_PROXY, "stat_prefix": "tcp", "cluster": "a"});
    let listener = |name: &str, port: u16, filter: &str, config: &Value| {
        json!({"name": name, "address": socket(port), "filter_chains": [
            {"filters": [{"name": filter, "typed_config": config}]}]})
    };
    Ok(json!({
        "admin": {"address": socket(admin)},
        "static_resources": {
            "listeners": [
                listener("http", http, "envoy.filters.network.http_connection_manager", &manager),
                listener("tcp", tcp, "envoy.filters.network.tcp_proxy", &proxy),
            ],
            "clusters": [
                cluster("a", &[upstreams.a.address.port()]), cluster("b", &[upstreams.b.address.port()]),
                cluster("dead", &[dead]), cluster("none", &[]),
            ],
        },
    }))
}

fn host(setup: &Setup) -> anyhow::Result<Value> {
    let parsed = |text: &str| {
        serde_json::from_str::<Value>(text).with_context(|| format!("{}: not JSON: {text}", setup.name))
    };
    let mut host = parsed(setup.host)?;
    host["name"] = setup.name.into();
    host["routes"] = parsed(setup.routes)?;
    if host.get("domains").is_none() {
        host["domains"] = json!([format!("{}.test", setup.name)]);
    }
    Ok(host)
}

fn socket(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn cluster(name: &str, ports: &[u16]) -> Value {
    let endpoints: Vec<Value> =
        ports.iter().map(|port| json!({"endpoint": {"address": socket(*port)}})).collect();
    json!({"name": name, "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}})
}

async fn same(
    name: &str,
    setup: &Setup,
    request: &str,
    envoy: &Proxy,
    ours: &Proxy,
    upstreams: &Upstreams,
) -> anyhow::Result<String> {
    let host = format!("{}.test", setup.name);
    let theirs = through(envoy, &host, request, upstreams).await.context("through Envoy")?;
    let our = through(ours, &host, request, upstreams).await.context("through pontoon-proxy")?;
    let (theirs, our) = match our.is_error() {
        true => (theirs.without_words(), our.without_words()),
        false => (theirs, our),
    };
    let known = KNOWN.iter().find(|(case, _)| name == *case);
    match (theirs == our, known) {
        (true, None) => Ok(format!("{}", theirs.status)),
        (true, Some(_)) => bail!("is the same, but on the list of what differs"),
        (false, Some((_, why))) => Ok(format!("(known: {why})")),
        (false, None) => bail!("Envoy: {theirs:#?}\npontoon-proxy: {our:#?}"),
    }
}

async fn through(
    proxy: &Proxy,
    host: &str,
    request: &str,
    upstreams: &Upstreams,
) -> anyhow::Result<Exchange> {
    upstreams.take();
    let mut exchange = exchange(proxy.http, host, request).await?;
    exchange.received = upstreams.take();
    Ok(exchange)
}

async fn same_tcp(envoy: &Proxy, ours: &Proxy, upstreams: &Upstreams) -> anyhow::Result<String> {
    let mut seen = Vec::new();
    for proxy in [envoy, ours] {
        upstreams.take();
        let mut exchange = exchange(proxy.tcp, "tcp.test", "GET /raw | X-Case: KEPT | = body").await?;
        exchange.received = upstreams.take();
        seen.push(exchange);
    }
    ensure!(seen[0] == seen[1], "{seen:#?}");
    Ok(format!("{}", seen[0].status))
}

/// Both programs' words and exit codes are alike.
async fn validates(name: &str, wanted: bool, folder: &Path) -> anyhow::Result<String> {
    let config = folder.join(name);
    let field = if wanted { "clusters" } else { "clusterz" };
    std::fs::write(&config, format!("static_resources: {{{field}: []}}\n"))?;
    for variable in ["PONTOON_E2E_ENVOY", "PONTOON_E2E_PROXY"] {
        let mut command = tokio::process::Command::new(place(variable)?);
        command.args(["--mode", "validate", "-c"]).arg(&config).kill_on_drop(true);
        let output = tokio::time::timeout(START, command.output()).await??;
        ensure!(output.status.success() == wanted, "{variable}: {output:?}");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let ok = format!("configuration '{}' OK", config.display());
        ensure!(said.contains(&ok) == wanted, "{variable} says {said:?}");
    }
    Ok(String::new())
}
