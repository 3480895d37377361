//! Puts the control plane together and takes it down again. Listeners are bound first, so that a taken port is
//! said before anything is touched; proxies are answered last, once objects and registry are loaded: a restart
//! never shows them less than there is.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pontoon_xds::server::{self, Options as XdsOptions, Server, grpc_server};
use redb::Database;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::api::auth::{DEFAULT_FILE, TokenError, Tokens};
use super::bridge::{Assigner, Bridge, QUEUE, Sources};
use super::http::{Limits, serve};
use super::roster::Roster;
use super::tenants::{Newcomers, Tenants, TenantsError, Visibility};
use super::world::{Proxies, World};
use crate::addresses::plan::Slots;
use crate::addresses::store::{Store as AddressStore, StoreError as AddressError};
use crate::compile::{NO_NAMESPACE, is_gateway, is_view};
use crate::infrastructure::provision::Settings;
use crate::kubernetes::gateways::Provisioner;
use crate::kubernetes::handover::Handover;
use crate::kubernetes::pods::Pods;
use crate::kubernetes::report::Reporter;
use crate::kubernetes::roster::Roster as ClusterRoster;
use crate::kubernetes::{lease, role};
use crate::migration::book::Book;
use crate::migration::keeper::Keeper;
use crate::migration::ledger::{Ledger, LedgerError};
use crate::model::addresses::Ranges;
use crate::objects::kubernetes::ClusterSource;
use crate::objects::{Controller, DirectorySource, ObjectName};
use crate::registry::eureka::peers::PeerUrl;
use crate::registry::eureka::store::StoreError;
use crate::registry::eureka::{Eureka, Options as EurekaOptions};
use crate::registry::kubernetes::Endpoints;

/// The database in the data folder.
const DATABASE: &str = "pontoon.redb";
/// Connections that wait to be accepted: after a restart all proxies come back while the objects are being read. The
/// kernel takes at most `net.core.somaxconn`; beyond, it resets some of those that wait.
const BACKLOG: u32 = 4096;
/// For proxies' streams to end by themselves after a stop. They come back elsewhere or later; what they have
/// stays in force.
const XDS_DRAIN: Duration = Duration::from_secs(1);

/// For pods to be listed, before proxies are answered all the same: where that is not allowed, the rest works.
const PODS_LISTED: Duration = Duration::from_secs(10);

/// What a control plane is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the user's objects are.
    pub objects: Objects,
    /// The folder of everything that is kept. Made where it is missing.
    pub data: PathBuf,
    /// Where applications register.
    pub eureka_listen: SocketAddr,
    /// How the registry behaves.
    pub eureka: EurekaOptions,
    /// Other registries that know what this one does.
    pub eureka_peers: Vec<PeerUrl>,
    /// Where xDS is served.
    pub xds_listen: SocketAddr,
    /// Which clients of xDS may be told of which namespaces. None: each is told of the one it names.
    pub xds_tenants: Option<PathBuf>,
    /// Where the API is served.
    pub api_listen: SocketAddr,
    /// Where health, readiness and metrics are served alone.
    pub metrics_listen: Option<SocketAddr>,
    /// What services' names resolve to on sidecars.
    pub virtual_ranges: Ranges,
    /// The API's tokens. None: a file in the data folder, made where it is missing.
    pub token_file: Option<PathBuf>,
}

/// Where the user's objects are.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Objects {
    /// In a folder of YAML.
    Directory(PathBuf),
    /// In an API server, which then keeps where migrations stand, too.
    Kubernetes(Cluster),
}

/// A Kubernetes cluster, and who we are there.
#[derive(Clone)]
pub struct Cluster {
    /// A client of its API server.
    pub client: kube::Client,
    /// The namespace that this runs in: the lease is there.
    pub namespace: String,
    /// The name of this replica, which no other has.
    pub replica: String,
    /// Whose classes are ours.
    pub controller: Controller,
    /// What Gateways are given to run in; `None`: their proxies are somebody else's to start.
    pub gateways: Option<Settings>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Cluster { namespace, replica, controller, gateways, .. } = self;
        f.debug_struct("Cluster")
            .field("namespace", namespace)
            .field("replica", replica)
            .field("controller", controller)
            .field("gateways", gateways)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Display for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Objects::Directory(folder) => folder.display().fmt(f),
            Objects::Kubernetes(_) => f.write_str("kubernetes"),
        }
    }
}

/// What the objects are read by, before it is awaited.
enum Source {
    Directory(PathBuf),
    Kubernetes {
        client: kube::Client,
        objects: Box<ClusterSource>,
        endpoints: Box<Endpoints>,
        gateways: Option<Box<Provisioner>>,
        leads: watch::Receiver<bool>,
    },
}

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken, or the address is not ours.
    #[error("cannot listen on {address} for {what}: {source}; say another address with {flag}")]
    Listen {
        /// For what.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Which flag says so.
        flag: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The data folder cannot be used.
    #[error("cannot use the data folder {folder}: {source}; say another with --data")]
    Data {
        /// Which.
        folder: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The database cannot be opened.
    #[error("cannot open {file}: {source}; does another pontoon run on this data folder?")]
    Database {
        /// Which file.
        file: PathBuf,
        /// Why not.
        source: redb::DatabaseError,
    },
    /// What it holds cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// What it holds of the registry cannot be read.
    #[error(transparent)]
    Registry(#[from] StoreError),
    /// What it holds of virtual addresses cannot be read.
    #[error(transparent)]
    Addresses(#[from] AddressError),
    /// The token file.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The tenants' file.
    #[error(transparent)]
    Tenants(#[from] TenantsError),
    /// Peers cannot be called.
    #[error("the client for the Eureka peers cannot be made: {0}")]
    Peers(String),
}

/// A running control plane.
#[derive(Debug)]
pub struct Running {
    /// Where applications register.
    pub eureka: SocketAddr,
    /// Where xDS is served.
    pub xds: SocketAddr,
    /// Where the API is served.
    pub api: SocketAddr,
    /// The file with the API's tokens.
    pub token_file: PathBuf,
    stop_requests: CancellationToken,
    stop_rest: CancellationToken,
    request_tasks: Vec<JoinHandle<()>>,
    rest_tasks: Vec<JoinHandle<()>>,
    /// Nobody writes any more: the lease may go.
    rest_ended: CancellationToken,
    lease_task: Option<JoinHandle<()>>,
}

/// Starts everything. On return objects and registry are loaded, and proxies are answered.
pub async fn start(options: Options) -> Result<Running, StartError> {
    let eureka_listener = bind("Eureka", options.eureka_listen, "--eureka-listen")?;
    let xds_listener = bind("xDS", options.xds_listen, "--xds-listen")?;
    let api_listener = bind("the API", options.api_listen, "--api-listen")?;
    let metrics_listener =
        options.metrics_listen.map(|address| bind("metrics", address, "--metrics-listen")).transpose()?;
    let eureka = local(&eureka_listener, options.eureka_listen);
    let (xds, api) = (local(&xds_listener, options.xds_listen), local(&api_listener, options.api_listen));

    create_private(&options.data)
        .map_err(|source| StartError::Data { folder: options.data.clone(), source })?;
    let database = open(&options.data.join(DATABASE)).await?;
    let token_file = options.token_file.clone().unwrap_or_else(|| options.data.join(DEFAULT_FILE));
    let tokens = match &options.token_file {
        Some(file) => Tokens::read(file)?,
        None => Tokens::read_or_create(&token_file)?,
    };
    let tenants = options.xds_tenants.as_deref().map(Tenants::read).transpose()?;
    let ledger = Ledger::new(database.clone());
    let reader = ledger.clone();
    let roster = Roster::new(database.clone());
    let roster_reader = roster.clone();
    let eureka_options = options.eureka;
    let (address_store, ranges) = (AddressStore::new(database.clone()), options.virtual_ranges);
    let (loaded, known, assigner, registry) = tokio::task::spawn_blocking(move || {
        let known = roster_reader.load().map_err(LedgerError::Database)?;
        let assigner = Assigner::new(Slots::new(ranges, address_store.load()?), address_store);
        Ok::<_, StartError>((reader.load()?, known, assigner, Eureka::new(eureka_options, Some(database))?))
    })
    .await
    .map_err(|error| LedgerError::Lost(error.to_string()))??;
    if let Some(broken) = &loaded.broken {
        tracing::error!(%broken, "the audit log was changed from outside");
    }
    let states = loaded.states.into_iter().filter_map(|(name, state)| {
        let (namespace, name) = name.split_once('/')?;
        Some((ObjectName::new(namespace, name), state))
    });

    let (stop_requests, stop_rest) = (CancellationToken::new(), CancellationToken::new());
    let (ready, ready_out) = watch::channel(false);
    let (rest_ended, mut lease_task, mut to_lead) = (CancellationToken::new(), None, None);
    let mut rest_tasks = Vec::new();
    let (source, keeper, book) = match &options.objects {
        Objects::Directory(folder) => {
            let book = Book::new(states.collect());
            (Source::Directory(folder.clone()), Keeper::Database(ledger), book)
        }
        Objects::Kubernetes(Cluster { client, controller, gateways, .. }) => {
            let objects = ClusterSource::watch(client, controller.clone());
            let endpoints = Endpoints::watch(client.clone());
            let keeper = Keeper::in_kubernetes(client.clone(), objects.observations());
            let (leads, leads_out) = watch::channel(false);
            to_lead = Some(leads);
            let (objects, endpoints) = (Box::new(objects), Box::new(endpoints));
            let gateways = gateways.clone().map(|settings| Box::new(Provisioner::watch(client, settings)));
            let client = client.clone();
            let source = Source::Kubernetes { client, objects, endpoints, gateways, leads: leads_out };
            (source, keeper, Book::default())
        }
    };

    let gateways = match &source {
        Source::Kubernetes { gateways, .. } => gateways.as_ref(),
        Source::Directory(_) => None,
    };
    let namespaces = match &options.objects {
        Objects::Kubernetes(cluster) => {
            let (known, following) = Pods::watch(cluster.client.clone());
            rest_tasks.push(until(stop_rest.clone(), following));
            Some(known)
        }
        Objects::Directory(_) => None,
    };
    let pods = gateways.map(|gateways| gateways.clients());
    let visibility = Visibility {
        tenants,
        pods: gateways.map(|gateways| gateways.proxies()),
        namespaces: namespaces.clone(),
        newcomers: Newcomers::default(),
    };
    let view_of = XdsOptions::by_caller(move |caller| {
        let view = &caller.node.cluster;
        // It would wait for ever, and nobody would know for what.
        if !is_view(view) {
            return Err(format!(
                "node.cluster is {view:?}, expected NAMESPACE/NAME of a Gateway, or the NAMESPACE of a sidecar"
            ));
        }
        visibility.check(view, caller.address).map(|()| view.clone())
    });
    let stand_in = |view: &str| (!is_gateway(view)).then_some(NO_NAMESPACE);
    let server = Server::new(XdsOptions { stand_in, ..view_of });
    server.expect(known.iter().cloned());
    let (heard, heard_out) = watch::channel(Arc::default());
    if let (Objects::Kubernetes(cluster), Some(leads)) = (&options.objects, to_lead) {
        let Cluster { client, namespace, replica, controller, .. } = cluster.clone();
        let roster = ClusterRoster { server: server.clone(), pods };
        rest_tasks.push(tokio::spawn(roster.clone().forget_pods(stop_rest.clone())));
        let handover = Handover { roster, aside: assigner.aside(), heard };
        let labelling = role::keep(
            client.clone(),
            namespace.clone(),
            replica.clone(),
            leads.subscribe(),
            server.clone(),
            stop_rest.clone(),
        );
        rest_tasks.push(tokio::spawn(labelling));
        let lease = ObjectName::new(namespace.as_str(), controller.own(lease::NAME));
        let electing =
            lease::run(client, lease, replica, handover, leads, stop_rest.clone(), rest_ended.clone());
        let (mut loaded, stop) = (ready_out.clone(), stop_rest.clone());
        lease_task = Some(tokio::spawn(async move {
            // Proxies come to the one that leads: not before it has all that they should be told.
            let loaded = stop.run_until_cancelled(loaded.wait_for(|ready| *ready)).await;
            if loaded.is_some_and(|loaded| loaded.is_ok()) {
                electing.await;
            }
        }));
    }
    let proxies = Proxies::new(server.clone());
    let (commands, commands_in) = mpsc::channel(QUEUE);
    let (world, world_out) = watch::channel(Arc::new(World::default()));

    let audit_broken = loaded.broken.map(|broken| broken.to_string());
    let handlers =
        Api::new(world_out, ready_out, commands, proxies.clone(), keeper.clone(), tokens, audit_broken);
    let serve_api =
        |listener, router| tokio::spawn(serve(listener, router, Limits::API, stop_requests.clone()));
    let mut request_tasks = vec![serve_api(api_listener, handlers.clone().router())];
    request_tasks.extend(metrics_listener.map(|listener| serve_api(listener, handlers.health_router())));

    let mut in_pods = false;
    let (objects, services, leads) = match source {
        Source::Directory(folder) => {
            let folder = DirectorySource::open(&folder).await;
            let objects = folder.loaded();
            rest_tasks.push(until(stop_rest.clone(), folder.run()));
            (objects, None, None)
        }
        Source::Kubernetes { client, mut objects, mut endpoints, gateways, leads } => {
            tracing::info!("waiting for the API server's objects and endpoints");
            tokio::join!(objects.complete(), endpoints.complete());
            if let Some(pods) = &namespaces
                && tokio::time::timeout(PODS_LISTED, pods.complete()).await.is_err()
            {
                tracing::warn!(
                    "pods cannot be listed; until they are, a sidecar that names another's namespace is told of it"
                );
            }
            let (loaded, services) = (objects.loaded(), endpoints.views());
            let mut infrastructure = None;
            if let Some(mut gateways) = gateways {
                gateways.complete().await;
                in_pods = true;
                infrastructure = Some(gateways.standings());
                let running = gateways.run(world.subscribe(), leads.clone(), stop_rest.clone());
                rest_tasks.push(tokio::spawn(running));
            }
            let reporter = Reporter {
                client,
                leads: leads.clone(),
                world: world.subscribe(),
                observations: objects.observations(),
                proxies: proxies.clone(),
                infrastructure,
            };
            rest_tasks.push(tokio::spawn(reporter.run(stop_rest.clone())));
            rest_tasks.push(until(stop_rest.clone(), objects.run()));
            rest_tasks.push(until(stop_rest.clone(), endpoints.run()));
            (loaded, Some(services), Some(leads))
        }
    };
    let registry_router = registry.router();
    let replicating = registry
        .with_peers(options.eureka_peers, stop_rest.clone())
        .map_err(|error| StartError::Peers(error.to_string()))?;
    let serving = serve(eureka_listener, registry_router, Limits::EUREKA, stop_requests.clone());
    request_tasks.push(tokio::spawn(serving));
    rest_tasks.extend([tokio::spawn(replicating), tokio::spawn(registry.clone().run(stop_rest.clone()))]);
    registry.joined().await;
    let registered = registry.views();
    let sources = Sources {
        registry: registered,
        services,
        aside: leads.as_ref().map(|_| heard_out),
        leads,
        folder: objects,
        in_pods,
        commands: commands_in,
    };
    let mut bridge = Bridge::new(sources, keeper, book, assigner, proxies, world);
    bridge.refresh().await;

    let bridge_task = tokio::spawn(bridge.run(stop_rest.clone()));
    let roster_task = tokio::spawn(roster.follow(server.clone(), known, stop_rest.clone()));
    let xds_task = tokio::spawn(serve_xds(xds_listener, server, stop_rest.clone()));
    ready.send_replace(true);
    rest_tasks.extend([bridge_task, roster_task, xds_task, hold(ready, stop_rest.clone())]);
    tracing::info!(%eureka, %api, %xds, objects = %options.objects, data = %options.data.display(), "ready");
    Ok(Running {
        eureka,
        xds,
        api,
        token_file,
        stop_requests,
        stop_rest,
        request_tasks,
        rest_tasks,
        rest_ended,
        lease_task,
    })
}

impl Running {
    /// Stops: first whoever asks for something is answered and no more accepted, then the chain behind ends.
    /// Proxies lose their stream last and keep what they have.
    pub async fn stop(self) {
        self.stop_requests.cancel();
        for task in self.request_tasks {
            let _ = task.await;
        }
        self.stop_rest.cancel();
        for task in self.rest_tasks {
            let _ = task.await;
        }
        self.rest_ended.cancel();
        if let Some(task) = self.lease_task {
            let _ = task.await;
        }
        tracing::info!("stopped");
    }
}

/// Of `socket(2)`.
const EAFNOSUPPORT: i32 = 97;

fn bind(what: &'static str, address: SocketAddr, flag: &'static str) -> Result<TcpListener, StartError> {
    let listen = |address: SocketAddr| {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let listened = match listen(address) {
        // A kernel without IPv6. All addresses are all of IPv4 there.
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.raw_os_error() == Some(EAFNOSUPPORT) => {
            listen((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        listened => listened,
    };
    listened.map_err(|source| StartError::Listen { what, address, flag, source })
}

fn local(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// Readable by its owner only: it holds the API's token.
fn create_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

async fn open(file: &Path) -> Result<Arc<Database>, StartError> {
    let path = file.to_owned();
    let opened = tokio::task::spawn_blocking(move || Database::create(path)).await;
    let opened = opened.map_err(|error| LedgerError::Lost(error.to_string()))?;
    opened.map(Arc::new).map_err(|source| StartError::Database { file: file.to_owned(), source })
}

async fn serve_xds(listener: TcpListener, server: Server, stop: CancellationToken) {
    let router = grpc_server().add_routes(server.routes());
    let incoming = server::incoming(listener);
    let serving = router.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(XDS_DRAIN).await;
    };
    tokio::select! {
        ended = serving => {
            if let Err(error) = ended {
                tracing::error!(%error, "xDS is not served any more; proxies keep what they have");
            }
        }
        () = drained => {}
    }
}

/// Runs a source until it is to end.
fn until(stop: CancellationToken, source: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(async move {
        tokio::select! { () = source => {}, () = stop.cancelled() => {} }
    })
}

/// Keeps readiness said until the end.
fn hold(ready: watch::Sender<bool>, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        stop.cancelled().await;
        ready.send_replace(false);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_addresses_are_those_of_ipv4_too() {
        let listener = bind("this", "[::]:0".parse().unwrap(), "--listen").unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    }
}
