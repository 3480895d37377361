//! An Ingress on the Gateway that its class names, judged by what clients see, and by what users are told.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::kubernetes::{Cluster, NODE, Namespace, PATIENCE};
use pontoon_e2e::pontoon::ControlPlane;
use pontoon_e2e::ports;
use pontoon_e2e::wait::until;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::plane::{CLASS, install};
use super::smoke::hello;
use crate::groups::place;

const HOST: &str = "shop.example.com";
/// For one answer.
const ANSWER: Duration = Duration::from_secs(5);
const REQUESTS: usize = 400;
/// Of a hundred.
const WEIGHT: usize = 25;

/// More than one client may send within a minute, by each proxy.
const LIMIT: usize = 2;
/// So many Pontoons may stand behind an address.
const REPLICAS: usize = 4;

/// TLS, a rewrite and a canary on one Ingress and its canary, limits on another, and others whose requests somebody is asked
/// about; what is not supported is told by an Event.
pub(super) async fn served(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    install(cluster, "standard").await?;
    cluster.apply(CLASS).await?;
    let namespace = cluster.namespace("ingress", &[]).await?;
    namespace.apply(&hello(1)).await?;
    let next = hello(1).replace("{name: hello}", "{name: next}").replace("app: hello", "app: next");
    namespace.apply(&next).await?;
    let mut plane = ControlPlane::prepare(&place("PONTOON_E2E_PONTOON")?, &folder.join("ingress"), "")?
        .on_kubernetes(&cluster.kubeconfig(), &namespace.name)
        .with_gateways("pontoon.dev/pontoon-proxy:0.1.0");
    plane.xds = (NODE, ports::free()?).into();
    let _serving = plane.start().await?;
    let certified = rcgen::generate_simple_self_signed(vec![HOST.to_owned()])?;
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "shop" }, "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": certified.cert.pem(), "tls.key": certified.signing_key.serialize_pem() },
    });
    namespace.apply(&secret.to_string()).await?;
    cluster.apply(&class(&namespace.name)).await?;
    namespace.apply(&OBJECTS.replace("NAMESPACE", &namespace.name)).await?;

    let address = until("the Ingress to say where it is reached", PATIENCE, async || {
        let ingress = namespace.get(&["ingress", "shop"]).await?;
        let ip = ingress["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned);
        ip.with_context(|| ingress["status"].to_string())
    })
    .await?;
    let gateway = namespace.get(&["gateway", "edge"]).await?;
    ensure!(gateway["status"]["addresses"][0]["value"] == address.as_str(), "{}", gateway["status"]);
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone())?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let ask = async |path: &str, header: &str| {
        let stream = TcpStream::connect((address.as_str(), 443)).await?;
        exchange(connector.connect(ServerName::try_from(HOST)?, stream).await?, path, header).await
    };
    until("the Ingress to be served over TLS", PATIENCE, async || {
        let said = ask("/api/v1/orders", "-").await?;
        ensure!(said.starts_with("200 "), "{said}");
        Ok(())
    })
    .await?;
    let said = ask("/api/v1/orders", "never").await?;
    ensure!(said.contains("hello from hello-") && said.contains(" /v1/orders"), "not rewritten: {said}");
    let said = ask("/api", "always").await?;
    ensure!(said.contains("hello from next-"), "not the canary: {said}");
    let said = ask("/else", "-").await?;
    ensure!(said.starts_with("404 "), "{said}");
    let plain = TcpStream::connect((address.as_str(), 80)).await?;
    let said = exchange(plain, "/api/x?y=z", "-").await?.to_ascii_lowercase();
    let there = format!("location: https://{HOST}/api/x?y=z");
    ensure!(said.starts_with("308 ") && said.contains(&there), "{said}");
    let mut next = 0;
    for _ in 0..REQUESTS {
        let said = ask("/api/", "-").await?;
        ensure!(said.starts_with("200 "), "{said}");
        next += usize::from(said.contains("hello from next-"));
    }
    // Five standard deviations of a fair choice.
    let (expected, spread) = (REQUESTS * WEIGHT / 100, 44);
    ensure!(next.abs_diff(expected) <= spread, "{next} of {REQUESTS} went to the canary");
    let mut limited = 0;
    for _ in 0..=LIMIT * REPLICAS {
        let said = ask("/limited", "-").await?;
        ensure!(said.starts_with("200 ") || said.starts_with("429 "), "{said}");
        limited += usize::from(said.starts_with("429 "));
    }
    ensure!((1..=LIMIT * REPLICAS - 1).contains(&limited), "{limited} requests were too many");
    let said = ask("/others", "-").await?;
    ensure!(said.starts_with("403 "), "not on the list, and let through: {said}");
    let said = ask("/asked", "-").await?;
    ensure!(said.contains("hello from hello-") && said.contains("\ndate: "), "asked, and not told: {said}");
    ensure!(ask("/api/sick", "always").await?.contains("hello from next-"));
    let said = ask("/asked", "-").await?;
    ensure!(said.starts_with("500 ") && said.contains("ext_authz_failed"), "let through: {said}");
    let said = ask("/nobody", "-").await?;
    ensure!(said.starts_with("500 "), "nobody could be asked, and let through: {said}");
    told(&namespace).await?;
    namespace.delete(&["ingress", "shop", "next", "limited", "others", "asked", "nobody"]).await?;
    cluster.kubectl(&["delete", "ingressclass", "edge"]).await?;
    Ok(format!("{next} of {REQUESTS} requests went to the canary of {WEIGHT} %"))
}

/// One request on a connection of its own; the answer from its status on.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
    header: &str,
) -> anyhow::Result<String> {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\nx-next: {header}\r\nconnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let exchanging = async {
        stream.write_all(request.as_bytes()).await?;
        stream.read_to_end(&mut answer).await
    };
    timeout(ANSWER, exchanging).await??;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.strip_prefix("HTTP/1.1 ").map(str::to_owned).with_context(|| answer.clone())
}

async fn told(namespace: &Namespace) -> anyhow::Result<()> {
    until("an Event to name what is not supported", PATIENCE, async || {
        let events = namespace.get(&["events", "--field-selector=involvedObject.kind=Ingress"]).await?;
        let events = events["items"].as_array().cloned().unwrap_or_default();
        let said =
            events.iter().find(|event| event["reason"] == "UnsupportedAnnotation").context("no Event")?;
        let message = said["message"].as_str().unwrap_or_default();
        ensure!(message.contains("nginx.ingress.kubernetes.io/limit-connections"), "{message}");
        ensure!(said["involvedObject"]["name"] == "shop", "{said}");
        Ok(())
    })
    .await
}

fn class(namespace: &str) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {{name: edge}}
spec:
  controller: pontoon.dev/ingress-controller
  parameters: {{apiGroup: gateway.networking.k8s.io, kind: Gateway, scope: Namespace, namespace: {namespace}, name: edge}}
"
    )
}

const OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: edge}
data:
  service: 'spec: {type: ClusterIP}'
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: pontoon
  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: edge}}
  listeners:
  - {name: http, protocol: HTTP, port: 80}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: shop
  annotations:
    nginx.ingress.kubernetes.io/rewrite-target: /$2
    nginx.ingress.kubernetes.io/limit-connections: '5'
spec:
  ingressClassName: edge
  tls: [{hosts: [shop.example.com], secretName: shop}]
  rules:
  - host: shop.example.com
    http:
      paths:
      - pathType: ImplementationSpecific
        path: /api(/|$)(.*)
        backend: {service: {name: hello, port: {number: 80}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: next
  annotations:
    nginx.ingress.kubernetes.io/canary: 'true'
    nginx.ingress.kubernetes.io/canary-by-header: x-next
    nginx.ingress.kubernetes.io/canary-weight: '25'
spec:
  ingressClassName: edge
  rules:
  - host: shop.example.com
    http:
      paths:
      - pathType: ImplementationSpecific
        path: /api(/|$)(.*)
        backend: {service: {name: next, port: {number: 80}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: limited
  annotations:
    nginx.ingress.kubernetes.io/limit-rpm: '2'
    nginx.ingress.kubernetes.io/limit-burst-multiplier: '1'
spec:
  ingressClassName: edge
  rules:
  - host: shop.example.com
    http: {paths: [{pathType: Exact, path: /limited, backend: {service: {name: hello, port: {number: 80}}}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: others
  annotations: {nginx.ingress.kubernetes.io/whitelist-source-range: 192.0.2.0/24}
spec:
  ingressClassName: edge
  rules:
  - host: shop.example.com
    http: {paths: [{pathType: Exact, path: /others, backend: {service: {name: hello, port: {number: 80}}}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: asked
  annotations:
    nginx.ingress.kubernetes.io/auth-url: http://next.NAMESPACE.svc.cluster.local/alive
    nginx.ingress.kubernetes.io/auth-response-headers: Date
spec:
  ingressClassName: edge
  rules:
  - host: shop.example.com
    http: {paths: [{pathType: Exact, path: /asked, backend: {service: {name: hello, port: {number: 80}}}}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: nobody
  annotations: {nginx.ingress.kubernetes.io/auth-url: 'http://nobody.NAMESPACE.svc'}
spec:
  ingressClassName: edge
  rules:
  - host: shop.example.com
    http: {paths: [{pathType: Exact, path: /nobody, backend: {service: {name: hello, port: {number: 80}}}}]}
";
