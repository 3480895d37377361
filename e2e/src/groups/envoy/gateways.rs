//! The three gateways: their objects, the Envoy processes, and what can be asked of them besides requests.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use pontoon_e2e::pontoon::ControlPlane;
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use pontoon_e2e::wait::{get, until};
use rcgen::{CertifiedKey, KeyPair};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::PATIENCE;

/// What RE2 makes of an expression has so many instructions at most; of its own Envoy takes 100.
const LONGEST_REGEX: u32 = 20;

/// As `pontoon envoy-bootstrap --variant` spells them; the gateways are named after them.
pub(super) const VARIANTS: [&str; 2] = ["delta", "sotw"];

/// Where the gateways listen.
#[derive(Debug)]
pub(super) struct Ports {
    plain: [u16; 3],
    pub(super) https: [u16; 3],
}

impl Ports {
    pub(super) fn take() -> anyhow::Result<Ports> {
        Ok(Ports {
            plain: [ports::free()?, ports::free()?, ports::free()?],
            https: [ports::free()?, ports::free()?, ports::free()?],
        })
    }

    pub(super) fn http(&self) -> [u16; 3] {
        self.plain
    }

    /// Name and port.
    pub(super) fn gateways(&self) -> [(&'static str, u16); 3] {
        let [delta, sotw, own] = self.plain;
        [("delta", delta), ("sotw", sotw), ("own", own)]
    }
}

/// An Envoy that serves a gateway.
#[derive(Debug)]
pub(super) struct Envoy {
    pub(super) process: Process,
    pub(super) admin: SocketAddr,
    pub(super) variant: String,
}

impl Envoy {
    /// Starts one with the bootstrap that the command line prints, and waits until it is ready.
    pub(super) async fn start(
        program: &Path,
        plane: &ControlPlane,
        folder: &Path,
        variant: &str,
    ) -> anyhow::Result<Envoy> {
        let admin = SocketAddr::from(([127, 0, 0, 1], ports::free()?));
        let (xds_server, at) = (plane.xds.to_string(), admin.to_string());
        let arguments =
            ["envoy-bootstrap", variant, "--variant", variant, "--xds-server", &xds_server, "--admin", &at];
        let bootstrap = folder.join(format!("envoy-{variant}.json"));
        let mut content: Value = serde_json::from_str(&plane.run(&arguments).await?)?;
        // So that there is something that is refused by these Envoys and by nobody before them.
        content["layered_runtime"] = json!({ "layers": [{
            "name": "short", "static_layer": { "re2.max_program_size.error_level": LONGEST_REGEX },
        }] });
        std::fs::write(&bootstrap, content.to_string())?;
        let mut command = Command::new(program);
        command.args(["--disable-hot-restart", "--concurrency", "1", "-c"]).arg(&bootstrap);
        let mut process = Process::start(&format!("envoy-{variant}"), command, folder)?;
        let url = format!("http://{admin}/ready");
        until("Envoy to be ready", PATIENCE, async || {
            if let Err(ended) = process.check_alive() {
                return Ok(Err(ended));
            }
            get(&url).await.map(|_| Ok(()))
        })
        .await??;
        Ok(Envoy { process, admin, variant: variant.to_owned() })
    }
}

/// A handshake that trusts this certificate alone; and the control plane knows that Envoy has it.
pub(super) async fn tls(
    port: u16,
    certified: &CertifiedKey<KeyPair>,
    plane: &ControlPlane,
    variant: &str,
) -> anyhow::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone())?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    until("a handshake", PATIENCE, async || {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        connector.connect(ServerName::try_from("shop.example")?, stream).await?;
        Ok(())
    })
    .await?;
    until("all five types to be acknowledged", PATIENCE, async || {
        let proxy = proxy(plane, variant).await?;
        for ty in ["CDS", "EDS", "LDS", "RDS", "SDS"] {
            let of_type = &proxy["types"][ty];
            let acknowledged = of_type["acknowledged"].as_object().is_some_and(|all| !all.is_empty());
            ensure!(of_type["in_sync"] == true && acknowledged, "{ty}: {of_type}");
        }
        Ok(())
    })
    .await?;
    Ok("CDS, EDS, LDS, RDS and SDS acknowledged".to_owned())
}

pub(super) async fn proxy(plane: &ControlPlane, variant: &str) -> anyhow::Result<Value> {
    let node = format!("envoy-default-{variant}");
    let mut streams = plane.json(&["proxies", &node]).await?;
    streams.get_mut(0).map(Value::take).with_context(|| format!("no stream of {node}"))
}

/// A listener is asked for on a port that somebody else has: no more than Envoy can know that.
pub(super) async fn refused(
    plane: &ControlPlane,
    folder: &Path,
    ports: &Ports,
    certified: &CertifiedKey<KeyPair>,
    envoys: &[Envoy],
) -> anyhow::Result<String> {
    let taken = TcpListener::bind("0.0.0.0:0").await?;
    let port = taken.local_addr()?.port();
    let file = folder.join("objects/objects.yaml");
    std::fs::write(&file, objects(ports, certified, Some(port)))?;
    let mut said = String::new();
    for variant in VARIANTS {
        let resource = format!("default/{variant}/taken");
        until("the refusal among the proxies", PATIENCE, async || {
            let nack = proxy(plane, variant).await?["types"]["LDS"]["last_nack"].take();
            let names =
                nack["resources"].as_array().is_some_and(|all| all.iter().any(|one| one == &*resource));
            ensure!(names, "last refusal: {nack}");
            let row = plane.run(&["proxies"]).await?;
            ensure!(row.contains(&resource) && row.contains("cannot bind"), "{row}");
            Ok(())
        })
        .await?;
        if let Some(envoy) = envoys.iter().find(|envoy| envoy.variant == variant) {
            super::dumps::refused_listener(envoy.admin, &resource).await?;
        }
        let view = plane.json(&["objects"]).await?;
        let name = format!("default/{variant}");
        let objects = view["objects"].as_array().context("no objects")?;
        let gateway = objects
            .iter()
            .find(|object| object["kind"] == "Gateway" && object["name"] == name.as_str())
            .context("no such gateway")?;
        let message = gateway["messages"].to_string();
        let node = format!("envoy-default-{variant}");
        ensure!(gateway["ok"] == false, "the gateway is called good: {gateway}");
        ensure!(
            message.contains(&node) && message.contains(&resource) && message.contains("cannot bind"),
            "{message}"
        );
        said = message;
    }
    std::fs::write(&file, objects(ports, certified, None))?;
    for variant in VARIANTS {
        until("the refusal's end", PATIENCE, async || {
            let proxy = proxy(plane, variant).await?;
            ensure!(proxy["types"]["LDS"]["last_nack"].is_null(), "{}", proxy["types"]["LDS"]);
            ensure!(!plane.run(&["objects"]).await?.contains("refuses"), "the object still says so");
            Ok(())
        })
        .await?;
    }
    Ok(said)
}

/// The objects; with a listener on `taken` at each Envoy, if that is given.
pub(super) fn objects(ports: &Ports, certified: &CertifiedKey<KeyPair>, taken: Option<u16>) -> String {
    let mut text = String::new();
    for (index, (name, port)) in ports.gateways().into_iter().enumerate() {
        text.push_str(&format!(
            "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  gatewayClassName: pontoon
  listeners:
  - {{name: http, port: {port}, protocol: HTTP}}
"
        ));
        if let Some(https) = ports.https.get(index) {
            text.push_str(&format!(
                "  - {{name: https, port: {https}, protocol: HTTPS, tls: {{certificateRefs: [{{name: shop}}]}}}}\n"
            ));
            if let Some(taken) = taken.filter(|_| VARIANTS.contains(&name)) {
                text.push_str(&format!("  - {{name: taken, port: {taken}, protocol: HTTP}}\n"));
            }
        }
        text.push_str("---\n");
    }
    let indented = |pem: String| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    text.push_str(&format!(
        "\
apiVersion: v1
kind: Secret
metadata: {{name: shop}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
{}  tls.key: |
{}---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop}}
spec:
  parentRefs: [{{name: delta}}, {{name: sotw}}, {{name: own}}]
  rules:
  - matches:
    - path: {{type: PathPrefix, value: /stock}}
    backendRefs:
    - {{name: inventory}}
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: {{name: legacy}}
spec: {{eureka: {{application: inventory, selector: {{lab: legacy}}}}, connectTimeout: 5s}}
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: {{name: modern}}
spec: {{eureka: {{application: inventory, selector: {{lab: modern}}}}, connectTimeout: 5s}}
---
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {{name: inventory}}
spec:
  service: inventory
  legacy: {{pool: legacy}}
  target: {{pool: modern}}
  key: {{header: x-user-id}}
  canary:
  - header: {{name: x-canary, value: \"always\"}}
",
        indented(certified.cert.pem()),
        indented(certified.signing_key.serialize_pem())
    ));
    text
}
