//! Envoy takes every resource of every golden gateway, in both variants of the protocol, and does with each golden
//! request what the decision beside it says. Needs an Envoy: `cargo xtask e2e envoy` fetches one and runs this; by hand,
//! name its program in PONTOON_E2E_ENVOY.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "golden.rs"]
#[allow(dead_code, reason = "its tests are run elsewhere too")]
mod golden;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pontoon::compile;
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use pontoon_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use pontoon_xds::pb::envoy::config::core::v3::{Address, SocketAddress};
use pontoon_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use pontoon_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use pontoon_xds::pb::envoy::config::listener::v3::Listener;
use pontoon_xds::server::{Options, Server, grpc_server, incoming};
use pontoon_xds::{ResourceType, Snapshot};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, SignatureScheme};

const PATIENCE: Duration = Duration::from_secs(60);
const NODE: &str = "golden";

#[tokio::test]
async fn envoy_takes_every_golden_resource_in_delta_and_decides_as_written() {
    walk("delta").await;
}

#[tokio::test]
async fn envoy_takes_every_golden_resource_in_state_of_the_world_and_decides_as_written() {
    walk("sotw").await;
}

async fn walk(variant: &str) {
    let Ok(program) = std::env::var("PONTOON_E2E_ENVOY") else {
        panic!("PONTOON_E2E_ENVOY names no Envoy: run `cargo xtask e2e envoy`");
    };
    let upstream = upstream().await;
    let (mut taken, mut decided, mut wrong) = (0, 0, Vec::new());
    for folder in golden::folders() {
        let compiled = compile::compile(&golden::model(&folder));
        let gateways = compiled.views.iter().filter(|(view, _)| compile::is_gateway(view));
        for (number, (view, snapshot)) in gateways.enumerate() {
            let name = format!("{}: {view}", folder.file_name().unwrap().display());
            let mut ports = BTreeMap::new();
            let snapshot = localized(snapshot, upstream, &mut ports).await;
            let mut envoy = Envoy::start(Path::new(&program), view, variant, &snapshot).await;
            taken += envoy.takes_all(&name, &snapshot).await;
            // The decisions are those of the first.
            for (request, decision) in decisions(&folder).iter().filter(|_| number == 0) {
                decided += 1;
                let done = envoy.does(request, &ports).await;
                if let Err(why) = agrees(decision, &done) {
                    wrong.push(format!("{name}: {request}: {why}, where {decision} is right: {done}"));
                }
            }
        }
    }
    println!("{taken} resources, {decided} requests");
    assert!(taken > 0 && decided > 0);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each request with what is to become of it.
fn decisions(folder: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(folder.join("decisions.txt")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].trim().to_owned())).collect()
}

/// Envoy's access log against the decision.
fn agrees(decision: &str, done: &Value) -> Result<(), String> {
    let (route, outcome) = decision.split_once(": ").unwrap();
    let logged = done["route"].as_str().unwrap_or("-");
    // One of several at random: the share of what cannot be used.
    let logged = logged.strip_suffix("/invalid").unwrap_or(logged);
    if logged != route {
        return Err(format!("the route is {logged}"));
    }
    let number = |text: &str| text.split(' ').next().unwrap().parse::<u64>().ok();
    let (status, cluster) = if let Some(rest) = outcome.strip_prefix("sent to ") {
        (Some(200), rest.split(' ').next())
    } else if let Some(rest) = outcome.strip_prefix("redirected with ") {
        (number(rest), None)
    } else if let Some(rest) = outcome.strip_prefix("answered here with ") {
        (number(rest), None)
    } else {
        // An error begins with its status; where the lot decides, any will do.
        (number(outcome), None)
    };
    match (status, cluster) {
        (Some(status), _) if done["status"] != status => Err(format!("the status is {}", done["status"])),
        (_, Some(cluster)) if done["cluster"] != cluster => {
            Err(format!("the cluster is {}", done["cluster"]))
        }
        _ => Ok(()),
    }
}

/// The same on this machine: listeners on ports of their own, and wherever there is an endpoint, the upstream.
async fn localized(snapshot: &Snapshot, upstream: SocketAddr, ports: &mut BTreeMap<u16, u16>) -> Snapshot {
    let mut local = Snapshot::default();
    for ty in ResourceType::ALL {
        for resource in snapshot.resources(ty).values() {
            match ty {
                ResourceType::Listener => {
                    let mut listener: Listener = resource.decode().unwrap();
                    let port = port_of(listener.address.as_ref());
                    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().await));
                    ports.insert(port, own.port());
                    listener.address = Some(address(&own.ip().to_string(), own.port()));
                    local.insert(&listener);
                }
                ResourceType::Endpoint => {
                    let mut assignment: ClusterLoadAssignment = resource.decode().unwrap();
                    lead(&mut assignment, "127.0.0.1", upstream.port());
                    local.insert(&assignment);
                }
                ResourceType::Cluster => {
                    let mut cluster: Cluster = resource.decode().unwrap();
                    if let Some(assignment) = &mut cluster.load_assignment {
                        // Looked up all the same.
                        lead(assignment, "localhost", upstream.port());
                    }
                    local.insert(&cluster);
                }
                ResourceType::Secret | ResourceType::Route => local.insert_encoded(ty, resource.clone()),
            }
        }
    }
    local
}

fn lead(assignment: &mut ClusterLoadAssignment, host: &str, port: u16) {
    let endpoints = assignment.endpoints.iter_mut().flat_map(|locality| &mut locality.lb_endpoints);
    for endpoint in endpoints {
        if let Some(HostIdentifier::Endpoint(endpoint)) = &mut endpoint.host_identifier {
            endpoint.address = Some(address(host, port));
        }
    }
}

fn address(host: &str, port: u16) -> Address {
    let socket = SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    Address { address: Some(AddressKind::SocketAddress(socket)) }
}

fn port_of(address: Option<&Address>) -> u16 {
    let Some(AddressKind::SocketAddress(socket)) = address.and_then(|address| address.address.as_ref())
    else {
        panic!("a listener without a socket");
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("no port") };
    u16::try_from(port).unwrap()
}

/// Envoy is told its ports, so they are chosen, outside of those that the kernel gives to connections.
async fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(20_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.is_ok() {
            return port;
        }
    }
}

/// Answers everything, in HTTP/1.1 and HTTP/2.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let router = axum::Router::new().fallback(|| async { "here" });
    tokio::spawn(async move { axum::serve(listener, router).await });
    at
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) {
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The end may come without TLS's goodbye.
    let _ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 "), "{:?}", String::from_utf8_lossy(&answer));
}

async fn encrypted(stream: TcpStream, host: &str) -> TlsStream<TcpStream> {
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// Whose certificate it is, is not what is tested.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// An Envoy as a gateway, with the bootstrap that the command line prints, and our server with its view alone.
struct Envoy {
    server: Server,
    view: String,
    process: Child,
    _folder: tempfile::TempDir,
    log: PathBuf,
    errors: PathBuf,
    requests: usize,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Envoy {
    async fn start(program: &Path, view: &str, variant: &str, snapshot: &Snapshot) -> Envoy {
        let server = Server::new(Options::new(|node| Ok(node.cluster.clone())));
        server.publish(view, snapshot.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let xds = listener.local_addr().unwrap().to_string();
        let serving = grpc_server().add_routes(server.routes());
        tokio::spawn(serving.serve_with_incoming(incoming(listener)));

        let admin = format!("127.0.0.1:{}", free_port().await);
        let bootstrap = Command::new(env!("CARGO_BIN_EXE_pontoon"))
            .args(["envoy-bootstrap", view, "--variant", variant, "--node-id", NODE])
            .args(["--xds-server", &xds, "--admin", &admin])
            .output()
            .unwrap();
        assert!(bootstrap.status.success(), "{bootstrap:?}");
        let folder = tempfile::tempdir().unwrap();
        let [config, log, errors] = ["envoy.json", "access.log", "envoy.log"].map(|f| folder.path().join(f));
        std::fs::write(&config, bootstrap.stdout).unwrap();
        // It ends with the thread that started it: this one, which the test runs on.
        let mut command = Command::new(program);
        command.args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]);
        command.args(["--file-flush-interval-msec", "20", "-c"]).arg(&config).stdin(Stdio::null());
        command.stdout(std::fs::File::create(&log).unwrap());
        let process = command.stderr(std::fs::File::create(&errors).unwrap()).spawn().unwrap();
        Envoy { server, view: view.to_owned(), process, _folder: folder, log, errors, requests: 0 }
    }

    /// Waits until it has acknowledged every resource; it may refuse none. Gives how many there are.
    async fn takes_all(&mut self, name: &str, snapshot: &Snapshot) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let nodes = self.server.nodes();
            let refusals = nodes.iter().flat_map(|node| &node.types).filter_map(|ty| ty.nack.as_ref());
            let refusals: Vec<_> = refusals.map(|nack| &nack.message).collect();
            assert!(refusals.is_empty(), "{name}: Envoy refuses {refusals:?}");
            let mut missing = Vec::new();
            for ty in ResourceType::ALL {
                for resource in snapshot.resources(ty).values() {
                    let has = self.server.acknowledged(&self.view, ty, &resource.name, &resource.version);
                    if has.yes.is_empty() {
                        missing.push(format!("{} {}", ty.short_name(), resource.name));
                    }
                }
            }
            if missing.is_empty() && !nodes.is_empty() {
                return snapshot.len();
            }
            let ended = self.process.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(&self.errors).unwrap();
                panic!("{name}: Envoy ({ended:?}) lacks {missing:?}\n{said}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a request as `requests.txt` writes it, and gives what the access log says of it.
    async fn does(&mut self, request: &str, ports: &BTreeMap<u16, u16>) -> Value {
        let mut parts = request.split(" | ");
        let (method, url) = parts.next().unwrap().split_once(' ').unwrap();
        let uri: http::Uri = url.trim().parse().unwrap();
        let authority = uri.authority().unwrap();
        let port = ports[&authority.port_u16().unwrap()];
        let path = uri.path_and_query().unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n");
        for part in parts {
            head.push_str(&format!("{part}\r\n"));
        }
        head.push_str("\r\n");
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = self.until("a connection", async |_| TcpStream::connect(at).await.ok()).await;
        match uri.scheme_str() {
            Some("https") => exchange(encrypted(stream, authority.host()).await, &head).await,
            _ => exchange(stream, &head).await,
        }
        self.requests += 1;
        self.until("a line in the access log", async |envoy: &Envoy| {
            let text = std::fs::read_to_string(&envoy.log).unwrap();
            let lines: Vec<&str> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
            assert!(lines.len() <= envoy.requests, "more lines than requests: {text}");
            (lines.len() == envoy.requests).then(|| serde_json::from_str(lines.last().unwrap()).unwrap())
        })
        .await
    }

    async fn until<T>(&self, what: &str, holds: impl AsyncFn(&Envoy) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(result) = holds(self).await {
                return result;
            }
            let said = || std::fs::read_to_string(&self.errors).unwrap();
            assert!(Instant::now() < deadline, "never: {what}: {}", said());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
