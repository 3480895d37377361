//! What the proxy must know before it can ask the control plane for the rest: flags, then the environment, then
//! a YAML file, then defaults; the first that says something counts.

mod again;
mod sidecar;
mod text;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::Uri;
use ipnet::IpNet;
use pontoon_xds::{Resource, ResourceType, Variant, json};
use serde::Deserialize;
use serde_json::{Map, Value};

use self::text::Text;
use crate::allocator::apart;
use crate::config::bootstrap as envoys;
use crate::config::differing::{note_again, noting};
use crate::config::problem::Problem;
use crate::discovery::{Sidecar, Unknown};
use crate::intercept::Mode;
use crate::overload::Shares;

/// The flags of `pontoon-proxy`.
#[derive(Debug, Clone, Default, PartialEq, Parser)]
#[command(name = "pontoon-proxy", version, about = "The data plane of Pontoon, configured by xDS alone")]
pub struct Args {
    /// A YAML file with any of the settings below, in camelCase; or a bootstrap of Envoy's.
    #[arg(long, short = 'c', alias = "config-path", env = "PONTOON_PROXY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A bootstrap of Envoy's, as it would be in the file; of the top-level fields in both, these count.
    #[arg(long, value_name = "YAML")]
    pub config_yaml: Option<String>,
    /// `validate` only says whether the configuration can be used.
    #[arg(long, value_enum, default_value_t = Purpose::Serve)]
    pub mode: Purpose,
    /// The xDS server, `http://HOST:PORT`. Default: http://127.0.0.1:18000
    #[arg(long, env = "PONTOON_PROXY_XDS_SERVER", value_name = "URI")]
    pub xds_server: Option<String>,
    /// Which variant of xDS is spoken with it. Default: delta.
    #[arg(long, value_enum, env = "PONTOON_PROXY_XDS_VARIANT")]
    pub xds_variant: Option<XdsVariant>,
    /// This process's id among all proxies. Default: the host's name and the process id.
    #[arg(long, alias = "service-node", env = "PONTOON_PROXY_NODE_ID", value_name = "ID")]
    pub node_id: Option<String>,
    /// What it is configured as: the `NAMESPACE/NAME` of a Gateway, or a sidecar's `NAMESPACE`.
    #[arg(long, alias = "service-cluster", env = "PONTOON_PROXY_CLUSTER", value_name = "NAMESPACE[/NAME]")]
    pub cluster: Option<String>,
    /// The zone that it runs in (topology.kubernetes.io/zone): endpoints that are meant for clients there go first.
    /// Default, and where it is empty: none is known.
    #[arg(long, alias = "service-zone", env = "PONTOON_PROXY_ZONE", value_name = "ZONE")]
    pub zone: Option<String>,
    /// Where the admin port listens. Default: 127.0.0.1:15000; port 0 takes a free one.
    #[arg(long, env = "PONTOON_PROXY_ADMIN", value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// Where a kubelet asks: readiness, life, whether the application accepts; and says that a pod ends. It shows
    /// nothing else. Default: nowhere.
    #[arg(long, env = "PONTOON_PROXY_HEALTH", value_name = "ADDRESS")]
    pub health: Option<SocketAddr>,
    /// Let the admin port listen on other addresses than loopback. It has no access control.
    #[arg(long, env = "PONTOON_PROXY_ADMIN_ANYWHERE")]
    pub admin_anywhere: bool,
    /// Connect to no endpoint that is this machine itself or has a link-local address: for a gateway whose routes others
    /// write, who could reach the admin port by one.
    #[arg(long, env = "PONTOON_PROXY_REFUSE_LOCAL_ENDPOINTS")]
    pub refuse_local_endpoints: bool,
    /// Worker threads. Default: one a processor.
    #[arg(long, alias = "concurrency", env = "PONTOON_PROXY_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
    /// For requests in flight when the process is told to end, in seconds. Default: 30.
    #[arg(long, env = "PONTOON_PROXY_DRAIN_SECONDS", value_name = "N")]
    pub drain_seconds: Option<u64>,
    /// Connections of clients in all; 0 is no limit. Default: half of the open files that the system allows.
    #[arg(long, env = "PONTOON_PROXY_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,
    /// Connections of one client address (an IPv6 /64); 0 is no limit. Default: 0.
    #[arg(long, env = "PONTOON_PROXY_MAX_CONNECTIONS_PER_SOURCE", value_name = "N")]
    pub max_connections_per_source: Option<usize>,
    /// Resident memory: from 90 % of it connections are not kept alive, from 95 % nothing new is taken; 0 is no
    /// limit. Default: what the control group allows.
    #[arg(long, env = "PONTOON_PROXY_MAX_MEMORY_MIB", value_name = "N")]
    pub max_memory_mib: Option<u64>,
    /// How long work may wait for its worker before nothing new is taken, in milliseconds; 0 is no limit. Default: 1000.
    #[arg(long, env = "PONTOON_PROXY_MAX_LAG_MS", value_name = "N")]
    pub max_lag_ms: Option<u64>,
    /// TLS handshakes with clients in a second; more of them wait their turn. 0 is no limit. Default: 0.
    #[arg(long, env = "PONTOON_PROXY_MAX_HANDSHAKES_PER_SECOND", value_name = "N")]
    pub max_handshakes_per_second: Option<u32>,
    /// Bytes in a second that the body of a request brings at least, where a listener is for strangers
    /// (use_remote_address), after 20 s; 0 is no limit. Default: 500.
    #[arg(long, env = "PONTOON_PROXY_MIN_BODY_RATE", value_name = "N")]
    pub min_body_rate: Option<u32>,
    /// Be a sidecar: where the application sends its requests. Names are resolved when they are first asked for.
    #[arg(long, env = "PONTOON_PROXY_OUTBOUND", value_name = "ADDRESS")]
    pub outbound: Option<SocketAddr>,
    /// The outbound listener's connections come by interception (`pontoon-proxy intercept up`).
    #[arg(long, env = "PONTOON_PROXY_OUTBOUND_INTERCEPTED")]
    pub outbound_intercepted: bool,
    /// Be a sidecar: where callers send requests for the application, and where that listens; or `redirect` or
    /// `tproxy` in its place, where connections come by interception of that mode.
    #[arg(long, env = "PONTOON_PROXY_INBOUND", value_name = "ADDRESS=APPLICATION", value_delimiter = ',')]
    pub inbound: Vec<Inbound>,
    /// What connections to endpoints are marked with, for rules to leave them alone; 0 is no mark. Default: 1501
    /// where connections come by interception, else none.
    #[arg(long, env = "PONTOON_PROXY_MARK", value_name = "N")]
    pub mark: Option<u32>,
    /// Be a sidecar: where the application's DNS queries are answered, by UDP and TCP. Names of the mesh get virtual
    /// addresses, all others go to the upstreams.
    #[arg(long, env = "PONTOON_PROXY_DNS", value_name = "ADDRESS", value_delimiter = ',')]
    pub dns: Vec<SocketAddr>,
    /// Who is asked for names that are not the mesh's. Default: the resolvers of /etc/resolv.conf.
    #[arg(long, env = "PONTOON_PROXY_DNS_UPSTREAM", value_name = "ADDRESS", value_delimiter = ',')]
    pub dns_upstream: Vec<SocketAddr>,
    /// Where a new process asks this one for its sockets, to take over from it. A process that starts with the
    /// same path takes over from the one that is there. Default: `upgrade.sock` in systemd's RuntimeDirectory.
    #[arg(long, env = "PONTOON_PROXY_UPGRADE_SOCKET", value_name = "PATH")]
    pub upgrade_socket: Option<PathBuf>,
}

/// What the process is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Purpose {
    /// To serve.
    #[default]
    Serve,
    /// To say whether the configuration can be used.
    Validate,
}

/// A variant of xDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum XdsVariant {
    /// Incremental.
    Delta,
    /// State of the world.
    Sotw,
}

impl From<XdsVariant> for Variant {
    fn from(said: XdsVariant) -> Variant {
        match said {
            XdsVariant::Delta => Variant::Delta,
            XdsVariant::Sotw => Variant::Sotw,
        }
    }
}

/// A listener for what the application receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Inbound {
    /// Where callers send it, or interception brings it.
    pub address: SocketAddr,
    /// Where the application takes it, where that is said.
    pub application: Option<SocketAddr>,
    /// Where it is not: how connections come here.
    pub intercepted: Option<Mode>,
}

impl std::str::FromStr for Inbound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "{text:?} is not ADDRESS=APPLICATION, as 0.0.0.0:8081=127.0.0.1:8080 or [::]:15006=redirect"
            )
        };
        let (address, application) = text.split_once('=').ok_or_else(expected)?;
        let parsed = |part: &str| part.parse().map_err(|_| expected());
        let (application, intercepted) = match application {
            "redirect" => (None, Some(Mode::Redirect)),
            "tproxy" => (None, Some(Mode::Tproxy)),
            application => (Some(parsed(application)?), None),
        };
        Ok(Inbound { address: parsed(address)?, application, intercepted })
    }
}

/// The listener for what the application sends, and what names on demand may cost.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Outbound {
    address: Option<SocketAddr>,
    #[serde(default)]
    intercepted: bool,
    unknown: Option<Unknown>,
    max_names: Option<usize>,
    max_waiting: Option<usize>,
    resolve_timeout_ms: Option<u64>,
    idle_seconds: Option<u64>,
    absent_seconds: Option<u64>,
}

/// The resolver.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DnsFile {
    #[serde(default)]
    addresses: Vec<SocketAddr>,
    upstreams: Option<Vec<SocketAddr>>,
    search: Option<Vec<String>>,
    zone: Option<String>,
    virtual_ranges: Option<Vec<IpNet>>,
    ttl_seconds: Option<u64>,
    timeout_ms: Option<u64>,
    max_stale_seconds: Option<u64>,
    cache_bytes: Option<usize>,
}

/// The settings of the YAML file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    xds_server: Option<String>,
    xds_variant: Option<XdsVariant>,
    node_id: Option<String>,
    cluster: Option<String>,
    zone: Option<String>,
    admin: Option<SocketAddr>,
    health: Option<SocketAddr>,
    #[serde(default)]
    admin_anywhere: bool,
    #[serde(default)]
    refuse_local_endpoints: bool,
    workers: Option<usize>,
    drain_seconds: Option<u64>,
    max_connections: Option<usize>,
    max_connections_per_source: Option<usize>,
    max_memory_mib: Option<u64>,
    max_handshakes_per_second: Option<u32>,
    max_lag_ms: Option<u64>,
    min_body_rate: Option<u32>,
    outbound: Option<Outbound>,
    #[serde(default)]
    inbound: Vec<Inbound>,
    mark: Option<u32>,
    #[serde(default)]
    dns: DnsFile,
    upgrade_socket: Option<PathBuf>,
    log: Option<String>,
    /// Of a bootstrap of Envoy's alone.
    #[serde(skip)]
    memory_shares: Option<Shares>,
}

/// The settings in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Bootstrap {
    /// The xDS server; `None`: all that is served is in `resources`.
    pub xds_server: Option<Uri>,
    /// Which variant of the protocol is spoken with it.
    pub xds_variant: Variant,
    /// Static resources, of a bootstrap of Envoy's.
    pub resources: Vec<(ResourceType, Resource)>,
    /// A bootstrap of Envoy's, as it was read.
    pub envoy: Option<Bytes>,
    /// `Node.id`.
    pub node_id: String,
    /// `Node.cluster`.
    pub cluster: String,
    /// `Node.locality.zone`.
    pub zone: Option<String>,
    /// The admin port.
    pub admin: SocketAddr,
    /// The health port.
    pub health: Option<SocketAddr>,
    /// Whether endpoints may not be this machine itself.
    pub refuse_local_endpoints: bool,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// For requests in flight at the end.
    pub drain: Duration,
    /// Connections in all; `None`: half of the open files.
    pub max_connections: Option<usize>,
    /// Connections of one source; 0 is no limit.
    pub max_connections_per_source: usize,
    /// Resident memory in MiB; `None`: what the control group allows.
    pub max_memory_mib: Option<u64>,
    /// What becomes of requests as it fills up.
    pub memory_shares: Shares,
    /// How long work may wait for its worker; zero is no limit.
    pub max_lag: Duration,
    /// TLS handshakes in a second; 0 is no limit.
    pub max_handshakes: u32,
    /// Bytes in a second of a request's body; 0 is no limit.
    pub min_body_rate: u32,
    /// What it is beside an application; `None`: a gateway.
    pub sidecar: Option<Sidecar>,
    /// What connections to endpoints are marked with.
    pub mark: Option<u32>,
    /// Where a new process asks for the sockets.
    pub upgrade_socket: Option<PathBuf>,
    /// What is logged, where the environment says nothing.
    pub log: Option<String>,
    /// The file, to be read again on a reload.
    pub file: Option<PathBuf>,
    /// The flags, which go before what the file says then.
    args: Box<Args>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file is not there or cannot be read.
    #[error("cannot read {path}: {why}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why. Not as a source, which would be told twice.
        why: std::io::Error,
    },
    /// The file is not what it should be: its name, line and column, the field, what it is and should be.
    #[error("{0}")]
    Parse(String),
    /// The same, of a value that is only found to be wrong beside others.
    #[error("{at}: {error}")]
    Placed {
        /// File, line and column.
        at: String,
        /// What is wrong.
        error: Box<BootstrapError>,
    },
    /// A value that cannot be used.
    #[error("{setting} is {value:?}: {expected}")]
    Value {
        /// The setting, as its flag is called.
        setting: &'static str,
        /// What it is.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

/// Above this a worker a processor is never meant.
const MOST_WORKERS: usize = 1024;
/// Apache's (mod_reqtimeout), as is the time before it counts.
const MIN_BODY_RATE: u32 = 500;
/// Longer than anybody waits: a week, in seconds.
const MOST_DRAIN: u64 = 604_800;

impl Bootstrap {
    /// From the flags (which clap has filled up from the environment) and the file that they name.
    ///
    /// # Errors
    /// When the file cannot be read or a value cannot be used.
    pub fn from_args(args: Args) -> Result<Bootstrap, BootstrapError> {
        let path = args.config.clone();
        Self::of(args).map_err(|error| in_file(path.as_deref(), error))
    }

    fn of(args: Args) -> Result<Bootstrap, BootstrapError> {
        let reads = || noting(|| read(args.config.as_deref(), args.config_yaml.as_deref()));
        let (reads, met) = apart(reads);
        note_again(&met);
        let (file, envoy) = reads?;
        Self::with(args, file, envoy)
    }

    fn with(args: Args, file: File, envoy: Option<Static>) -> Result<Bootstrap, BootstrapError> {
        let flags = Box::new(args.clone());
        let sidecar = sidecar::sidecar(&args, file.outbound, file.inbound, file.dns)?;
        if envoy.is_some() && sidecar.is_some() {
            let expected =
                "a sidecar's own listeners do not go with a bootstrap of Envoy's; write them there";
            let value = String::from("set");
            return Err(BootstrapError::Value { setting: "--outbound, --inbound or --dns", value, expected });
        }
        let default_server = || envoy.is_none().then(|| String::from("http://127.0.0.1:18000"));
        let xds_server = args.xds_server.or(file.xds_server).or_else(default_server);
        let admin =
            args.admin.or(file.admin).unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000));
        if !(admin.ip().is_loopback() || args.admin_anywhere || file.admin_anywhere) {
            return Err(BootstrapError::Value {
                setting: "--admin",
                value: admin.to_string(),
                expected: "the admin port has no access control; give a loopback address, or --admin-anywhere too",
            });
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = args.workers.or(file.workers).unwrap_or(processors);
        if !(1..=MOST_WORKERS).contains(&workers) {
            let expected = "expected 1 to 1024";
            return Err(BootstrapError::Value { setting: "--workers", value: workers.to_string(), expected });
        }
        let drain = args.drain_seconds.or(file.drain_seconds).unwrap_or(30);
        if drain > MOST_DRAIN {
            let expected = "expected at most 604800, a week";
            return Err(BootstrapError::Value {
                setting: "--drain-seconds",
                value: drain.to_string(),
                expected,
            });
        }
        let (resources, envoy) = envoy.unzip();
        let default_cluster = if sidecar.is_some() { "default" } else { "default/edge" };
        Ok(Bootstrap {
            xds_server: xds_server.map(server).transpose()?,
            xds_variant: args.xds_variant.or(file.xds_variant).map_or(Variant::Delta, Variant::from),
            resources: resources.unwrap_or_default(),
            envoy,
            node_id: name("--node-id", args.node_id.or(file.node_id))?.unwrap_or_else(default_node_id),
            cluster: name("--cluster", args.cluster.or(file.cluster))?
                .unwrap_or_else(|| default_cluster.into()),
            // A pod's label that is not there is an empty variable.
            zone: args.zone.or(file.zone).filter(|zone| !zone.is_empty()),
            admin,
            health: args.health.or(file.health),
            refuse_local_endpoints: args.refuse_local_endpoints || file.refuse_local_endpoints,
            workers,
            drain: Duration::from_secs(drain),
            max_connections: args.max_connections.or(file.max_connections),
            max_connections_per_source: args
                .max_connections_per_source
                .or(file.max_connections_per_source)
                .unwrap_or(0),
            max_memory_mib: args.max_memory_mib.or(file.max_memory_mib),
            memory_shares: file.memory_shares.unwrap_or_default(),
            max_handshakes: args
                .max_handshakes_per_second
                .or(file.max_handshakes_per_second)
                .unwrap_or_default(),
            max_lag: Duration::from_millis(args.max_lag_ms.or(file.max_lag_ms).unwrap_or(1_000)),
            min_body_rate: args.min_body_rate.or(file.min_body_rate).unwrap_or(MIN_BODY_RATE),
            mark: sidecar::mark(args.mark.or(file.mark), sidecar.as_ref()),
            sidecar,
            upgrade_socket: args.upgrade_socket.or(file.upgrade_socket).or_else(default_upgrade_socket),
            log: file.log,
            file: args.config,
            args: flags,
        })
    }
}

/// A name that says something, where one is given.
fn name(setting: &'static str, value: Option<String>) -> Result<Option<String>, BootstrapError> {
    match value {
        Some(value) if value.trim().is_empty() => Err(BootstrapError::Value {
            setting,
            value,
            expected: "expected a name; without one, there is a default",
        }),
        value => Ok(value),
    }
}

/// systemd says where the unit's RuntimeDirectory is; the first, where there are several.
fn default_upgrade_socket() -> Option<PathBuf> {
    let folders = std::env::var("RUNTIME_DIRECTORY").ok()?;
    let first = folders.split(':').next().filter(|folder| !folder.is_empty())?;
    Some(Path::new(first).join("upgrade.sock"))
}

/// Static resources, what is referred to before what refers to it, and what they were read from.
type Static = (Vec<(ResourceType, Resource)>, Bytes);

/// What a file and a text in its place say; with the static resources, where they are a bootstrap of Envoy's.
fn read(path: Option<&Path>, text: Option<&str>) -> Result<(File, Option<Static>), BootstrapError> {
    let written = path
        .map(std::fs::read_to_string)
        .transpose()
        .map_err(|why| BootstrapError::Read { path: path.unwrap_or(Path::new("")).to_owned(), why })?;
    let understood = understand(path.zip(written.as_deref()), text);
    json::forget();
    understood
}

fn understand(
    file: Option<(&Path, &str)>,
    text: Option<&str>,
) -> Result<(File, Option<Static>), BootstrapError> {
    let mut envoy: Option<Map<String, Value>> = None;
    let mut texts = Vec::new();
    if let Some((path, read)) = file {
        let located = Text::new(path, read);
        let failed = |error: &serde_saphyr::Error| BootstrapError::Parse(located.explain(error));
        match serde_saphyr::from_str::<Map<String, Value>>(read) {
            Ok(fields) if is_envoys(&fields) => envoy = Some(fields),
            // Ours is read by its own type, which says the line of what is wrong.
            ours => {
                let file = match (serde_saphyr::from_str(read), ours) {
                    (Ok(file), _) => file,
                    (Err(error), Ok(_)) | (Err(_), Err(error)) => return Err(failed(&error)),
                };
                if text.is_none() {
                    return Ok((file, None));
                }
                let why = "is no bootstrap of Envoy's, as --config-yaml is";
                return Err(BootstrapError::Parse(format!("{}: {why}", path.display())));
            }
        }
        texts.push(located);
    }
    if let Some(text) = text {
        let located = Text::new(Path::new("--config-yaml"), text);
        let fields: Map<String, Value> =
            serde_saphyr::from_str(text).map_err(|error| BootstrapError::Parse(located.explain(&error)))?;
        envoy.get_or_insert_default().extend(fields);
        texts.push(located);
    }
    let Some(fields) = envoy else { return Ok((File::default(), None)) };
    let written = envoys::read(Value::Object(fields)).map_err(|problem| {
        // Of a field in both the later counts.
        let text = texts.iter().rev().find(|text| text.has(&problem.path)).or(texts.last());
        BootstrapError::Parse(text.map_or_else(|| problem.to_string(), |text| text.place(&problem)))
    })?;
    let file = File {
        xds_variant: written.ads.as_ref().map(|ads| ads.variant),
        xds_server: written.ads.map(|ads| ads.server),
        node_id: written.node_id,
        cluster: written.cluster,
        admin: written.admin,
        max_connections: written.overload.and_then(|overload| overload.connections),
        max_memory_mib: written.overload.and_then(|overload| overload.memory_mib),
        memory_shares: written.overload.map(|overload| overload.shares),
        ..File::default()
    };
    Ok((file, Some((written.resources, written.encoded))))
}

/// Where in the file the value is that is found wrong, if it is from there.
fn in_file(path: Option<&Path>, error: BootstrapError) -> BootstrapError {
    let BootstrapError::Value { setting, value, .. } = &error else { return error };
    let at = path.and_then(|path| {
        let text = std::fs::read_to_string(path).ok()?;
        Text::new(path, &text).place_of(setting, value)
    });
    match at {
        Some(at) => BootstrapError::Placed { at, error: Box::new(error) },
        None => error,
    }
}

/// What is wrong with a resource of a bootstrap, with its file and line.
pub(crate) fn placed(file: Option<&Path>, problem: &Problem) -> String {
    let text = file.and_then(|file| Some((file, std::fs::read_to_string(file).ok()?)));
    match text {
        Some((file, text)) => Text::new(file, &text).place(problem),
        None => problem.to_string(),
    }
}

/// By what only Envoy's has: all of ours are other names, but for `admin`, which is no object there.
fn is_envoys(fields: &Map<String, Value>) -> bool {
    const FIELDS: [&str; 6] = [
        "node",
        "static_resources",
        "staticResources",
        "dynamic_resources",
        "dynamicResources",
        "layered_runtime",
    ];
    FIELDS.iter().any(|field| fields.contains_key(*field))
        || fields.get("admin").is_some_and(Value::is_object)
}

fn server(text: String) -> Result<Uri, BootstrapError> {
    let uri = text.parse::<Uri>().ok().filter(|uri| {
        uri.scheme_str() == Some("http") && uri.port_u16().is_some() && matches!(uri.path(), "" | "/")
    });
    let expected = "expected http://HOST:PORT";
    uri.ok_or(BootstrapError::Value { setting: "--xds-server", value: text, expected })
}

fn default_node_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "proxy" } else { host.trim() };
    format!("{host}-{}", std::process::id())
}

/// What is fuzzed of this room.
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    use super::*;

    /// Reads a text as the bootstrap's file and puts its static resources in force: how many there are, or what is wrong
    /// and where.
    pub fn bootstrap(text: &str) -> Result<usize, String> {
        let name = Path::new("fuzz.yaml");
        let (_, envoy) = understand(Some((name, text)), None).map_err(|error| error.to_string())?;
        let resources = envoy.map(|(resources, _)| resources).unwrap_or_default();
        let count = resources.len();
        crate::config::Store::fixed(resources, true, tokio::time::Instant::now())
            .map_err(|problem| Text::new(name, text).place(&problem))?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
