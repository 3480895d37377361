//! The Gateway API from the objects' directory to a client's answer, through control plane and proxy as processes:
//! what rules say besides where requests go, and routes of connections.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::routing::any;
use rig::{PATIENCE, PONTOON, Served};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

#[path = "rig/served.rs"]
mod rig;

async fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return port;
        }
    }
}

/// An application that answers with its name, the path and the header `x-to`; it keeps what it was asked.
async fn application(name: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&asked);
    let answer = move |request: Request| {
        let to = request.headers().get("x-to").map_or("-", |value| value.to_str().unwrap()).to_owned();
        kept.lock().unwrap().push(request.uri().to_string());
        async move { format!("{name} {} {to}", request.uri()) }
    };
    let router = Router::new().fallback(any(answer));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, asked)
}

/// A server that says its name at once, and keeps what it reads.
async fn server(name: &'static str) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let read: Arc<Mutex<Vec<u8>>> = Arc::default();
    let kept = Arc::clone(&read);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let _ = stream.write_all(name.as_bytes()).await;
                let mut bytes = [0; 1024];
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    kept.lock().unwrap().extend_from_slice(&bytes[..length]);
                }
            });
        }
    });
    (address, read)
}

/// A gateway's proxy as a process, once it is ready.
async fn proxy(xds: &str, dir: &std::path::Path, http: &reqwest::Client) -> Child {
    let admin = free_port().await;
    let file = dir.join("proxy.yaml");
    let text = format!(
        "xdsServer: http://{xds}\nnodeId: edge-1\ncluster: default/edge\nworkers: 1\nadmin: 127.0.0.1:{admin}\ndrainSeconds: 1\n"
    );
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(PONTOON);
    command
        .args(["proxy", "--config"])
        .arg(file)
        .env_clear()
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let child = command.spawn().unwrap();
    let ready = async {
        let url = format!("http://127.0.0.1:{admin}/ready");
        while !http.get(&url).send().await.is_ok_and(|answer| answer.status() == 200) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("the proxy is never ready");
    child
}

fn pool(name: &str, at: SocketAddr) -> String {
    format!(
        "---\napiVersion: pontoon.dev/v1alpha1\nkind: Pool\nmetadata: {{name: {name}}}\nspec:\n  endpoints: [{{address: {}, port: {}}}]\n",
        at.ip(),
        at.port()
    )
}

fn objects([http, tls, tcp]: [u16; 3]) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: pontoon
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners:
  - {{name: http, port: {http}, protocol: HTTP}}
  - {{name: tls, port: {tls}, protocol: TLS, tls: {{mode: Passthrough}}}}
  - {{name: tcp, port: {tcp}, protocol: TCP}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - matches: [{{path: {{value: /mirrored}}}}]
    filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: audit, kind: Pool, group: pontoon.dev}}}}}}]
    backendRefs: [{{name: shop, kind: Pool, group: pontoon.dev}}]
  - matches: [{{path: {{value: /whole}}}}]
    filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: /one}}}}}}]
    backendRefs:
    - name: shop
      kind: Pool
      group: pontoon.dev
      filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-to, value: shop}}]}}}}]
  - matches: [{{path: {{value: /cors}}}}]
    filters: [{{type: CORS, cors: {{allowOrigins: [\"https://*.shop.test\"], allowMethods: [\"*\"]}}}}]
    backendRefs: [{{name: shop, kind: Pool, group: pontoon.dev}}]
  - matches: [{{path: {{value: /moved}}}}]
    filters: [{{type: RequestRedirect, requestRedirect: {{hostname: new.test}}}}]
  - matches: [{{path: {{value: /half}}}}]
    backendRefs:
    - {{name: shop, kind: Pool, group: pontoon.dev}}
    - {{name: gone, kind: Pool, group: pontoon.dev}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {{name: through}}
spec:
  parentRefs: [{{name: edge, sectionName: tls}}]
  hostnames: [\"*.shop.test\"]
  rules: [{{backendRefs: [{{name: vault, kind: Pool, group: pontoon.dev}}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: database}}
spec:
  parentRefs: [{{name: edge, sectionName: tcp}}]
  rules: [{{backendRefs: [{{name: database, kind: Pool, group: pontoon.dev}}]}}]
"
    )
}

/// How a TLS client begins that asks for a name.
fn greeting(name: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let holding = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, holding).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_what_clients_see() {
    let (shop, _) = application("shop").await;
    let (audit, audited) = application("audit").await;
    let (database, _) = server("database").await;
    let (vault, hello) = server("").await;
    let ports = [free_port().await, free_port().await, free_port().await];
    let [http_port, tls_port, tcp_port] = ports;
    let pools = [pool("shop", shop), pool("audit", audit), pool("database", database), pool("vault", vault)];
    let served = Served::start(&(objects(ports) + &pools.concat())).await;
    let http = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
        .unwrap();
    let _proxy = proxy(&served.xds, served.dir.path(), &http).await;
    let url = |path: &str| format!("http://127.0.0.1:{http_port}{path}");
    let get = async |path: &str| http.get(url(path)).send().await.unwrap();

    assert_eq!(get("/mirrored?a=b").await.text().await.unwrap(), "shop /mirrored?a=b -");
    until("the copy", || audited.lock().unwrap().contains(&"/mirrored?a=b".to_owned())).await;
    assert_eq!(get("/whole/path?a=b").await.text().await.unwrap(), "shop /one?a=b shop");
    let moved = get("/moved/x").await;
    let location = moved.headers().get("location").unwrap().to_str().unwrap().to_owned();
    assert_eq!(location, format!("http://new.test:{http_port}/moved/x"));

    let mut statuses = std::collections::BTreeMap::new();
    for _ in 0..200 {
        *statuses.entry(get("/half").await.status().as_u16()).or_insert(0) += 1;
    }
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [200, 500]);
    assert!((60..=140).contains(&statuses[&500]), "{statuses:?}");

    let preflight =
        http.request(reqwest::Method::OPTIONS, url("/cors")).header("origin", "https://a.shop.test");
    let preflight = preflight.header("access-control-request-method", "PUT").send().await.unwrap();
    let header = |name: &str| preflight.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(header("access-control-allow-origin").as_deref(), Some("https://a.shop.test"));
    assert_eq!(header("access-control-allow-methods").as_deref(), Some("PUT"));

    let mut stream = TcpStream::connect(("127.0.0.1", tcp_port)).await.unwrap();
    let mut said = [0; 8];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut said)).await.expect("in time").unwrap();
    assert_eq!(&said, b"database");

    // What comes through is the client's own greeting.
    let mut stream = TcpStream::connect(("127.0.0.1", tls_port)).await.unwrap();
    stream.write_all(&greeting("a.shop.test")).await.unwrap();
    until("the greeting", || hello.lock().unwrap().windows(11).any(|bytes| bytes == b"a.shop.test")).await;

    let objects = served.json(&["objects"]).await;
    let problems = objects["problems"].as_array().unwrap();
    let is_of_half = |problem: &serde_json::Value| problem.as_str().unwrap().contains("no Pool default/gone");
    assert!(problems.len() == 1 && problems.iter().all(is_of_half), "{objects}");
}

/// A certificate for a host, and its key: as PEM, below a key of YAML.
fn certified(host: &str) -> (rcgen::CertifiedKey<rcgen::KeyPair>, [String; 2]) {
    let signed = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let below = |pem: String| pem.replace('\n', "\n    ");
    let pems = [below(signed.cert.pem()), below(signed.signing_key.serialize_pem())];
    (signed, pems)
}

/// A server that says its name at once, over TLS, and nothing to whoever does not speak it.
async fn tls_server(name: &'static str, signed: &rcgen::CertifiedKey<rcgen::KeyPair>) -> SocketAddr {
    let key = rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                stream.write_all(name.as_bytes()).await?;
                stream.shutdown().await
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_routes_tls_ends_its_endpoints_are_spoken_to_as_their_policy_says() {
    let (of_edge, [edge_certificate, edge_key]) = certified("a.shop.test");
    let (of_vault, [vault_certificate, _]) = certified("vault.test");
    let vault = tls_server("vault", &of_vault).await;
    let port = free_port().await;
    let objects = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: pontoon
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners:
  - {{name: tls, port: {port}, protocol: TLS, tls: {{certificateRefs: [{{name: edge}}]}}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: edge}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
    {edge_certificate}
  tls.key: |
    {edge_key}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: authority}}
data:
  ca.crt: |
    {vault_certificate}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: vault}}
spec:
  targetRefs: [{{group: pontoon.dev, kind: Pool, name: vault}}]
  validation: {{hostname: vault.test, caCertificateRefs: [{{group: '', kind: ConfigMap, name: authority}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {{name: vault}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [a.shop.test]
  rules: [{{backendRefs: [{{name: vault, kind: Pool, group: pontoon.dev}}]}}]
"
    );
    let served = Served::start(&(objects + &pool("vault", vault))).await;
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let _proxy = proxy(&served.xds, served.dir.path(), &http).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(of_edge.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("a.shop.test".try_into().unwrap(), stream).await.unwrap();
    let mut said = [0; 5];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut said)).await.expect("in time").unwrap();
    assert_eq!(&said, b"vault");
}
