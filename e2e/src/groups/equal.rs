//! One Envoy bootstrap, two proxies: each request of a table goes through Envoy and through ours, and status,
//! headers, body and what the upstreams received must be the same. What may differ is listed, with the reason, here
//! and in docs/reference/same-as-envoy.md.

mod cases;
mod dump;
mod known;
mod sessions;
mod streams;
mod wire;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use pontoon_e2e::report::Report;
use pontoon_e2e::wait::{get, until};
use serde_json::{Value, json};

use super::place;
use cases::{SETUPS, Setup};
use known::KNOWN;
use wire::{Exchange, Upstream, exchange};

const START: Duration = Duration::from_secs(20);
const HTTP_MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const CORS: &str = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const RATE_LIMIT: &str =
    "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const EXT_AUTHZ: &str = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
const BUFFER: &str = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer";
const SESSION: &str = "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession";
const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// What the ports of a proxy are for: its listeners, its admin, and one where nobody listens.
const PURPOSES: [&str; 16] = [
    "http", "bare", "filtered", "plain", "admin", "dead", "https", "mutual", "told", "told-too", "names",
    "tcp", "tcp-dead", "tcp-none", "tcp-half", "tcp-full",
];

/// The virtual host of the listener whose manager says nothing that it need not say.
const BARE: &str = "bare.test";

/// The virtual host of the listener with filters that are off, or there twice.
const FILTERS: &str = "filters.test";

/// The virtual host of the listener whose router says nothing of `x-envoy-` headers.
const PLAIN: &str = "plain.test";

/// The requests of the table's mirrors of which a copy arrives somewhere.
const MIRRORED: [&str; 2] = [" /all", " /as-it-is"];

/// The requests of the table about which somebody is asked first.
const ASKED: [&str; 2] = [" /asked", " /only"];

/// For `--mode validate`, and whether it can be used.
const VALIDATED: &[(&str, &str, bool)] = &[
    ("valid", "static_resources: {clusters: []}", true),
    ("invalid", "static_resources: {clusterz: []}", false),
    ("a route to a cluster", include_str!("equal/route.yaml"), true),
    ("a route to no cluster", include_str!("equal/route-to-no-cluster.yaml"), false),
    ("a route to no cluster, unchecked", include_str!("equal/route-unchecked.yaml"), true),
    ("no cluster name", "static_resources: {clusters: [{type: STATIC}]}", false),
    ("no connect_timeout", "static_resources: {clusters: [{name: c, type: STATIC, connect_timeout: 0s}]}", false),
    (
        "no name of a load assignment",
        "static_resources: {clusters: [{name: c, type: STATIC, load_assignment: {endpoints: []}}]}",
        false,
    ),
    (
        "an endpoint without weight",
        "static_resources: {clusters: [{name: c, type: STATIC, load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [
        {load_balancing_weight: 0, endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}}]}",
        false,
    ),
    (
        "endpoints from nowhere",
        "static_resources: {clusters: [{name: c, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}]}",
        false,
    ),
];

/// The same for changes of the listener that routes to a cluster: what is in whose place.
const CHANGED: &[(&str, &str, &str, bool)] = &[
    ("no stat_prefix", "          stat_prefix: http\n", "", false),
    ("an empty stat_prefix", "stat_prefix: http", "stat_prefix: ''", false),
    ("a virtual host without a name", "{name: all, domains", "{domains", false),
    ("a router that is off", "{name: router, ", "{name: router, disabled: true, ", false),
    ("a host that is added", "{name: all, ", "{name: all, request_headers_to_add: [{header: {key: host, value: b}}], ", false),
    ("the same upgrade twice", "stat_prefix: http", "stat_prefix: http
          upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: WebSocket}]", false),
    ("a rewrite of two lines", "{cluster: there", "{cluster: there, prefix_rewrite: \"/a\\nb\"", false),
    ("a redirect to two lines", "route: {cluster: there}", "redirect: {host_redirect: \"a\\nb\"}", false),
    ("no expression", "{prefix: /}", "{safe_regex: {regex: ''}}", false),
    ("a query parameter without a name", "{prefix: /}", "{prefix: /, query_parameters: [{name: '', present_match: true}]}", false),
    ("a share of nothing", "{prefix: /}", "{prefix: /, runtime_fraction: {}}", false),
    ("a filter without a name", "{name: router, ", "{", false),
    ("a small window", "stat_prefix: http", "stat_prefix: http
          http2_protocol_options: {initial_stream_window_size: 65534}", false),
    ("no streams", "stat_prefix: http", "stat_prefix: http
          http2_protocol_options: {max_concurrent_streams: 0}", false),
    ("no headers", "stat_prefix: http", "stat_prefix: http
          common_http_protocol_options: {max_headers_count: 0}", false),
    ("no port to match", "    - filters:", "    - filter_chain_match: {destination_port: 0}
      filters:", false),
    ("no time between two looks", "type: STATIC}", "type: STATIC, dns_refresh_rate: 0s}", false),
    ("no time until idle clusters go", "type: STATIC}", "type: STATIC, cleanup_interval: 0s}", false),
    (
        "a locality without weight",
        "type: STATIC}",
        "type: STATIC, load_assignment: {cluster_name: there, endpoints: [{load_balancing_weight: 0}]}}",
        false,
    ),
    (
        "no overprovisioning",
        "type: STATIC}",
        "type: STATIC, load_assignment: {cluster_name: there, policy: {overprovisioning_factor: 0}}}",
        false,
    ),
    ("a check that never ends", "type: STATIC}", "type: STATIC, health_checks: [{timeout: 1s}]}", false),
    ("a removed host", "{name: all, ", "{name: all, request_headers_to_remove: [Host], ", false),
    (
        "append, twice",
        "{name: all, ",
        "{name: all, request_headers_to_add: [{header: {key: a, value: b}, append: true, append_action: ADD_IF_ABSENT}], ",
        false,
    ),
    (
        "a predicate that always holds",
        "{match: {prefix: /}",
        "{match: {prefix: /, headers: [{name: a, string_match: {prefix: ''}}]}",
        false,
    ),
    (
        "access logs to the process's streams",
        "stat_prefix: http",
        "stat_prefix: http
          access_log:
          - {name: out, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}}
          - {name: err, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog}}",
        true,
    ),
];

/// Runs the group. True: all cases passed.
pub(crate) async fn run(only: Vec<String>) -> anyhow::Result<bool> {
    let mut report = Report::new("equal")?;
    let folder = report.folder().to_owned();
    let keys = streams::Keys::new()?;
    let upstreams = Upstreams {
        a: Upstream::start("a").await?,
        b: Upstream::start("b").await?,
        secure: Upstream::behind("secure", Some(keys.acceptor()?)).await?,
        keys,
    };
    let envoy_program = place("PONTOON_E2E_ENVOY")?;
    let envoy = Proxy::start("envoy", &envoy_program, &upstreams, &folder).await?;
    let ours = Proxy::start("pontoon-proxy", &place("PONTOON_E2E_PROXY")?, &upstreams, &folder).await?;
    for (name, config, wanted) in VALIDATED {
        report.case(&format!("--mode validate: {name}"), validates(name, config, *wanted, &folder)).await;
    }
    for (name, written, instead, wanted) in CHANGED {
        let config = include_str!("equal/route.yaml").replace(written, instead);
        report.case(&format!("--mode validate: {name}"), validates(name, &config, *wanted, &folder)).await;
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
    for case in streams::CASES {
        let name = case.title();
        if only.is_empty() || only.iter().any(|part| name.contains(part)) {
            report.case(&name, Box::pin(case.same(&envoy, &ours, &upstreams))).await;
        }
    }
    report.case("/config_dump", dump::same(&envoy, &ours)).await;
    report.finish()
}

struct Upstreams {
    a: Upstream,
    b: Upstream,
    /// With TLS.
    secure: Upstream,
    keys: streams::Keys,
}

impl Upstreams {
    fn take(&self) -> Vec<String> {
        let mut all = self.a.take();
        all.extend(self.b.take());
        all.extend(self.secure.take());
        all
    }
}

/// A running proxy with the bootstrap.
struct Proxy {
    _process: Process,
    admin: SocketAddr,
    /// In the order of [`PURPOSES`].
    ports: [u16; PURPOSES.len()],
}

impl Proxy {
    async fn start(
        name: &str,
        program: &Path,
        upstreams: &Upstreams,
        folder: &Path,
    ) -> anyhow::Result<Proxy> {
        let mut own = [0; PURPOSES.len()];
        for port in &mut own {
            *port = ports::free()?;
        }
        let config = folder.join(format!("{name}.yaml"));
        let bootstrap = bootstrap(&own, upstreams)?;
        std::fs::write(&config, serde_json::to_vec_pretty(&bootstrap)?)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&config).args(["--concurrency", "1"]);
        if name == "envoy" {
            command.args(["--use-dynamic-base-id", "--log-level", "warning"]);
        }
        let mut process = Process::start(name, command, folder)?;
        let admin = SocketAddr::from(([127, 0, 0, 1], port_for(&own, "admin")));
        let ready = format!("http://{admin}/ready");
        until(&format!("{name} to be ready"), START, async || match get(&ready).await {
            Ok(_) => Ok(Ok(())),
            Err(error) => match process.check_alive() {
                Ok(()) => Err(error),
                Err(ended) => Ok(Err(ended)),
            },
        })
        .await??;
        Ok(Proxy { _process: process, admin, ports: own })
    }

    fn at(&self, purpose: &str) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port_for(&self.ports, purpose)))
    }

    /// The ports that the other proxy has not.
    fn ports(&self) -> &[u16] {
        &self.ports
    }
}

fn port_for(ports: &[u16], purpose: &str) -> u16 {
    let position = PURPOSES.iter().position(|name| *name == purpose);
    position.and_then(|position| ports.get(position)).copied().unwrap_or_default()
}

fn bootstrap(ports: &[u16], upstreams: &Upstreams) -> anyhow::Result<Value> {
    let port = |purpose: &str| port_for(ports, purpose);
    let mut hosts = Vec::new();
    for setup in SETUPS {
        hosts.push(host(setup)?);
    }
    let bare = json!({
        "@type": HTTP_MANAGER, "stat_prefix": "http",
        "route_config": {"name": "routes", "virtual_hosts": hosts,
            "request_headers_to_add": [{"header": {"key": "x-table", "value": "t"}}]},
        "http_filters": [{"name": "envoy.filters.http.cors", "typed_config": {"@type": CORS}}, {"name": "envoy.filters.http.router",
            "typed_config": {"@type": ROUTER, "suppress_envoy_headers": true}}],
    });
    let mut normal = bare.clone();
    for field in ["normalize_path", "merge_slashes"] {
        normal[field] = true.into();
    }
    normal["http_protocol_options"] = json!({"accept_http_10": true});
    normal["http_filters"] = json!([
        {"name": "envoy.filters.http.stateful_session", "disabled": true, "typed_config": {"@type": SESSION}},
        bare["http_filters"][0], bare["http_filters"][1]]);
    let mut filtered = normal.clone();
    let buffer = |name: &str, most: u32, disabled: bool| json!({"name": name, "disabled": disabled, "typed_config": {"@type": BUFFER, "max_request_bytes": most}});
    let asking = json!({"@type": EXT_AUTHZ,
        "allowed_headers": {"patterns": [{"exact": "x-do"}, {"exact": "x-in"}, {"prefix": "x-s"}]},
        "disallowed_headers": {"patterns": [{"exact": "x-secret"}]},
        "http_service": {"server_uri": {"uri": "http://auth", "cluster": "b", "timeout": "1s"}, "path_prefix": "/check",
            "authorization_response": {"allowed_upstream_headers": {"patterns": [{"exact": "x-twice"}]},
                "allowed_upstream_headers_to_append": {"patterns": [{"exact": "x-drop"}]},
                "allowed_client_headers_on_success": {"patterns": [{"exact": "x-upstream"}]}}}});
    filtered["http_filters"] = json!([
        {"name": "envoy.filters.http.cors", "disabled": true, "typed_config": {"@type": CORS}},
        {"name": "envoy.filters.http.rbac", "disabled": true, "typed_config": {"@type": RBAC}},
        {"name": "against", "typed_config": {"@type": RBAC, "rules": {"action": "DENY", "policies": {"bad": {
            "permissions": [{"and_rules": {"rules": [{"header": {"name": "x-bad", "present_match": true}},
                {"not_rule": {"url_path": {"path": {"exact": "/good"}}}}]}}],
            "principals": [{"direct_remote_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}}]}}}}},
        {"name": "limit", "typed_config": {"@type": RATE_LIMIT, "stat_prefix": "limit"}},
        {"name": "envoy.filters.http.ext_authz", "disabled": true, "typed_config": asking},
        buffer("first", 20, false), buffer("second", 10, false), buffer("envoy.filters.http.buffer", 3, true),
        bare["http_filters"][1]]);
    let mut telling = normal.clone();
    telling["http_filters"] =
        json!([{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}]);
    let filter = |manager: Value| json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
    let manager = filter(normal);
    let plain = |name: &str, manager: &Value| json!({"name": name, "address": socket(port(name)), "filter_chains": [{"filters": [manager]}]});
    let mut listeners = vec![
        plain("http", &manager),
        plain("bare", &filter(bare)),
        plain("filtered", &filter(filtered)),
        plain("plain", &filter(telling)),
    ];
    listeners.extend(upstreams.keys.listeners(&manager, port));
    let (a, b, secure) = (upstreams.a.address, upstreams.b.address, upstreams.secure.address);
    let mut clusters = vec![
        cluster("a", &[a.port()]),
        cluster("b", &[b.port()]),
        cluster("dead", &[port("dead")]),
        cluster("none", &[]),
        cluster("half", &[port("dead"), a.port()]),
        cluster("passed", &[secure.port()]),
    ];
    clusters.extend(sessions::clusters(a.port(), b.port()));
    let mut full = cluster("full", &[a.port()]);
    full["circuit_breakers"] = json!({"thresholds": [{"max_requests": 0, "max_connections": 0}]});
    clusters.push(full);
    clusters.extend(upstreams.keys.clusters(secure.port()));
    Ok(json!({
        "admin": {"address": socket(port("admin"))},
        "static_resources": {"listeners": listeners, "clusters": clusters},
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
    let known = KNOWN.iter().find(|known| name == known.case);
    let differences = theirs.differences(&our);
    match known {
        // Also the order of headers, which the list of differences does not tell.
        None if theirs == our => Ok(format!("{}", theirs.status)),
        Some(known) if differences == known.how => Ok(format!("(known: {})", known.why)),
        Some(_) if differences.is_empty() => bail!("is the same, but on the list of what differs"),
        Some(known) => bail!("differs otherwise than is known ({:?}): {differences:#?}", known.how),
        None => bail!("{differences:#?}\nEnvoy: {theirs:#?}\npontoon-proxy: {our:#?}"),
    }
}

async fn through(
    proxy: &Proxy,
    host: &str,
    request: &str,
    upstreams: &Upstreams,
) -> anyhow::Result<Exchange> {
    upstreams.take();
    let listener = match host {
        BARE => "bare",
        FILTERS => "filtered",
        PLAIN => "plain",
        _ => "http",
    };
    let request = sessions::filled(request, upstreams.a.address, upstreams.b.address);
    let mut exchange = exchange(proxy.at(listener), host, &request).await?;
    exchange.received = upstreams.take();
    if MIRRORED.iter().any(|target| host == "mirrors.test" && request.contains(target)) {
        // The copy is on its own way.
        until("the copy to arrive", START, async || {
            exchange.received.extend(upstreams.take());
            ensure!(exchange.received.len() == 2, "{:?}", exchange.received);
            Ok(())
        })
        .await?;
        exchange.received.sort();
        without_addresses(&mut exchange);
    }
    if host == FILTERS && ASKED.iter().any(|asked| request.contains(asked)) {
        without_addresses(&mut exchange);
    }
    Ok(exchange)
}

/// In requests of its own Envoy names its machine.
fn without_addresses(exchange: &mut Exchange) {
    for received in &mut exchange.received {
        let lines = received.lines().map(|line| match line.split_once("x-forwarded-for: ") {
            Some(_) => "x-forwarded-for: ...",
            None => line,
        });
        *received = lines.collect::<Vec<_>>().join("\n");
    }
}

/// Both programs' words and exit codes are alike.
async fn validates(name: &str, content: &str, wanted: bool, folder: &Path) -> anyhow::Result<String> {
    let config = folder.join(format!("{}.yaml", name.replace([' ', '\''], "-")));
    std::fs::write(&config, content.replace("HTTP_MANAGER", HTTP_MANAGER).replace("ROUTER", ROUTER))?;
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
