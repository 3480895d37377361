//! `pontoon serve`: flags and variables to options, logging, and signals.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipnet::{Ipv4Net, Ipv6Net};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::CliError;
use crate::infrastructure::provision::{PullPolicy, ServiceType, Settings};
use crate::kubernetes;
use crate::model::addresses::Ranges;
use crate::objects::Controller;
use crate::registry::eureka::Options as EurekaOptions;
use crate::registry::eureka::peers::PeerUrl;
use crate::serve::start::{Cluster, Objects, Options, start};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The folder of YAML objects; watched.
    #[arg(long, env = "PONTOON_OBJECTS", value_name = "DIR", default_value = "objects")]
    objects: PathBuf,
    /// Read objects and endpoints from the Kubernetes cluster that KUBECONFIG says, or that this runs in, instead of a
    /// folder.
    #[arg(long, env = "PONTOON_KUBERNETES", conflicts_with = "objects")]
    kubernetes: bool,
    /// The namespace in Kubernetes that this runs in. Default: the pod's, or the kubeconfig's.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// The name of this replica among those in Kubernetes. Default: made up.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    replica: Option<String>,
    /// The controllerName of the GatewayClasses that are ours: each installation in a cluster has its own.
    #[arg(
        long,
        env = "PONTOON_CONTROLLER_NAME",
        value_name = "DOMAIN/PATH",
        default_value_t = Controller::default(),
        requires = "kubernetes"
    )]
    controller_name: Controller,
    /// Give each Gateway pods of its own, of this image of pontoon-proxy. Default: who starts the proxies is somebody
    /// else's matter.
    #[arg(long, env = "PONTOON_GATEWAY_IMAGE", value_name = "IMAGE", requires = "kubernetes")]
    gateway_image: Option<String>,
    /// When nodes fetch it. Default: as Kubernetes has it by the image's tag.
    #[arg(long, env = "PONTOON_GATEWAY_IMAGE_PULL_POLICY", value_enum, value_name = "POLICY")]
    gateway_image_pull_policy: Option<PullPolicy>,
    /// The xDS server as those pods reach it.
    #[arg(
        long,
        env = "PONTOON_GATEWAY_XDS_SERVER",
        value_name = "URI",
        default_value = "http://pontoon.pontoon-system.svc:18000"
    )]
    gateway_xds_server: String,
    /// The type of their Services, where a Gateway's parameters say none.
    #[arg(
        long,
        env = "PONTOON_GATEWAY_SERVICE_TYPE",
        value_enum,
        value_name = "TYPE",
        default_value_t = ServiceType::LoadBalancer
    )]
    gateway_service_type: ServiceType,
    /// The folder of everything that is kept; made where it is missing.
    #[arg(long, env = "PONTOON_DATA", value_name = "DIR", default_value = "data")]
    data: PathBuf,
    /// Where applications register: the address in their `eureka.client.serviceUrl.defaultZone`.
    #[arg(long, env = "PONTOON_EUREKA_LISTEN", value_name = "ADDR:PORT", default_value = "0.0.0.0:8761")]
    eureka_listen: SocketAddr,
    /// Stop evicting when so many leases run out at once that the network is the likelier cause.
    #[arg(
        long,
        env = "PONTOON_EUREKA_SELF_PRESERVATION",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    eureka_self_preservation: bool,
    /// A registry that is to know what this one does, as `http://HOST:8761/eureka/`: another replica, or a Eureka
    /// server. All addresses of a name are peers; this replica may be among them. Repeat it for more.
    #[arg(long = "eureka-peer", env = "PONTOON_EUREKA_PEERS", value_name = "URL", value_delimiter = ',')]
    eureka_peers: Vec<PeerUrl>,
    /// Where proxies come for xDS. It is plain text: more than loopback is for networks you trust.
    #[arg(long, env = "PONTOON_XDS_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:18000")]
    xds_listen: SocketAddr,
    /// A file of tenants: clients of xDS are told of a namespace only from its tenants' networks.
    #[arg(long, env = "PONTOON_XDS_TENANTS", value_name = "FILE")]
    xds_tenants: Option<PathBuf>,
    /// Where the API is. It is plain text: more than loopback is for networks you trust.
    #[arg(long, env = "PONTOON_API_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:8767")]
    api_listen: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` are served to others than this machine, without a token and without the
    /// API.
    #[arg(long, env = "PONTOON_METRICS_LISTEN", value_name = "ADDR:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// The IPv4 addresses that services' names resolve to on sidecars, as ADDRESS/BITS; `none` for no IPv4. Sidecars
    /// have to know the same (`dns.virtualRanges`).
    #[arg(
        long,
        env = "PONTOON_VIRTUAL_RANGE",
        value_name = "CIDR",
        default_value = "240.0.0.0/8",
        value_parser = range::<Ipv4Net>
    )]
    virtual_range: Range<Ipv4Net>,
    /// The same for IPv6.
    #[arg(
        long,
        env = "PONTOON_VIRTUAL_RANGE6",
        value_name = "CIDR",
        default_value = "fd70:6f6e:746f:6f6e::/104",
        value_parser = range::<Ipv6Net>
    )]
    virtual_range6: Range<Ipv6Net>,
    /// The API's tokens, one a line, `name:token` or the token alone. Without it: `api-token` in the data
    /// folder, made on the first start.
    #[arg(long, env = "PONTOON_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
}

/// What a program that runs on says about itself.
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// What to log: a level, or `target=level,...`. What fails at the API server is told by who asked.
    #[arg(long, env = "PONTOON_LOG", value_name = "FILTER", default_value = "info,kube_client=error")]
    log: String,
    /// How to log.
    #[arg(long, env = "PONTOON_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

impl LogArgs {
    /// Starts logging to standard error.
    pub(super) fn start(&self) -> Result<(), CliError> {
        let filter = EnvFilter::try_new(&self.log)
            .map_err(|error| CliError::Other(format!("--log {:?} is no filter: {error}", self.log)))?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
            LogFormat::Json => log.json().init(),
        }
        Ok(())
    }
}

/// A range of addresses, or none.
#[derive(Debug, Clone, Copy)]
struct Range<N>(Option<N>);

fn range<N: std::str::FromStr>(text: &str) -> Result<Range<N>, String> {
    if text == "none" {
        return Ok(Range(None));
    }
    let expected = "expected ADDRESS/BITS of this family, such as 240.0.0.0/8, or none";
    text.parse().map(|net| Range(Some(net))).map_err(|_| expected.to_owned())
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

pub(super) async fn run(args: ServeArgs) -> Result<(), CliError> {
    args.log.start()?;
    let no_signals = |error: std::io::Error| CliError::Other(format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let objects = match args.kubernetes {
        false => Objects::Directory(args.objects),
        true => {
            let (client, namespace) =
                kubernetes::connect().await.map_err(|e| CliError::Other(e.to_string()))?;
            let replica = args.replica.unwrap_or_else(|| format!("pontoon-{:08x}", fastrand::u32(..)));
            let gateways = args.gateway_image.map(|image| Settings {
                image,
                pull_policy: args.gateway_image_pull_policy,
                xds_server: args.gateway_xds_server,
                service_type: args.gateway_service_type,
                controller: args.controller_name.clone(),
            });
            let namespace = args.namespace.unwrap_or(namespace);
            let controller = args.controller_name;
            Objects::Kubernetes(Cluster { client, namespace, replica, controller, gateways })
        }
    };
    let options = Options {
        objects,
        data: args.data,
        eureka_listen: args.eureka_listen,
        eureka: EurekaOptions {
            self_preservation: args.eureka_self_preservation,
            ..EurekaOptions::default()
        },
        eureka_peers: args.eureka_peers,
        xds_listen: args.xds_listen,
        xds_tenants: args.xds_tenants,
        api_listen: args.api_listen,
        metrics_listen: args.metrics_listen,
        virtual_ranges: Ranges { v4: args.virtual_range.0, v6: args.virtual_range6.0 },
        token_file: args.token_file,
    };
    // It may be the API server that is waited for.
    let started = tokio::select! {
        started = start(options) => started,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let running = started.map_err(|error| CliError::Other(error.to_string()))?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running.stop().await;
    Ok(())
}
