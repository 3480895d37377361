//! A proxy that the server drives, with its gate, its load and what it should have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{bail, ensure};
use pontoon_e2e::gate::Gate;
use pontoon_e2e::inventory::Instance;
use pontoon_e2e::load::{Answer, Load, Plan};
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use pontoon_e2e::report::Report;
use pontoon_e2e::wait::{get, until};
use serde_json::{Value, json};

use super::PATIENCE;
use super::server::Server;
use super::world::World;

pub(super) const VARIANTS: [&str; 2] = ["delta", "sotw"];

#[derive(Debug)]
pub(super) struct Driven {
    pub(super) variant: &'static str,
    pub(super) gate: Gate,
    pub(super) world: World,
    pub(super) load: Load,
    process: Process,
    admin: SocketAddr,
}

impl Driven {
    /// Starts one, waits until it serves, and sends it so many requests a second.
    pub(super) async fn start(
        variant: &'static str,
        program: &Path,
        folder: &Path,
        server: &Server,
        [legacy, modern]: &[Instance; 2],
        rate: u32,
    ) -> anyhow::Result<Driven> {
        let world = World {
            clusters: BTreeMap::from([
                ("a", vec![legacy.address.port()]),
                ("b", vec![modern.address.port()]),
            ]),
            cold: BTreeSet::new(),
            refused: BTreeSet::new(),
            routes: vec![("/stock", "a"), ("/b", "b")],
            listeners: BTreeMap::from([("http", ports::free()?), ("other", ports::free()?)]),
            https: ports::free()?,
            certificate: None,
        };
        server.publish(variant, &world.resources()).await?;
        let gate = Gate::start(server.xds).await?;
        let admin = SocketAddr::from(([127, 0, 0, 1], ports::free()?));
        let mut command = Command::new(program);
        match variant {
            // As a bootstrap of Envoy's says it.
            "sotw" => {
                let config = folder.join("sotw.json");
                std::fs::write(&config, bootstrap(variant, admin, gate.address).to_string())?;
                command.arg("--config").arg(config);
            }
            _ => {
                command.arg(format!("--xds-server=http://{}", gate.address));
                command.arg(format!("--admin={admin}")).arg(format!("--node-id={variant}"));
            }
        }
        command.arg("--workers=1");
        let mut process = Process::start(&format!("proxy-{variant}"), command, folder)?;
        until("the proxy to be ready", PATIENCE, async || {
            match get(&format!("http://{admin}/ready")).await {
                Ok(_) => Ok(Ok(())),
                Err(error) => match process.check_alive() {
                    Ok(()) => Err(error),
                    Err(ended) => Ok(Err(ended)),
                },
            }
        })
        .await??;
        let url = format!("http://127.0.0.1:{}/stock", world.listeners["http"]);
        let load = Load::start(Plan {
            url,
            rate,
            users: 10,
            user_header: "x-user-id",
            timeout: Duration::from_secs(10),
        })?;
        Ok(Driven { variant, gate, world, load, process, admin })
    }

    /// Runs a case about it. One that fails leaves the next what there was before.
    pub(super) async fn case(
        &mut self,
        report: &mut Report,
        server: &Server,
        name: &str,
        run: impl AsyncFnOnce(&Server, &mut Driven) -> anyhow::Result<String>,
    ) {
        let (name, before) = (format!("{}: {name}", self.variant), self.world.clone());
        if !report.case(&name, run(server, self)).await {
            self.world = before;
            // The next case tells what is wrong.
            let _ = self.publish(server).await;
        }
    }

    /// Publishes what it should have.
    pub(super) async fn publish(&self, server: &Server) -> anyhow::Result<()> {
        server.publish(self.variant, &self.world.resources()).await
    }

    /// Who answers at a path of a plain listener.
    pub(super) async fn side(&self, listener: &str, path: &str) -> anyhow::Result<String> {
        let answer = get(&self.url(listener, path)).await?;
        Ok(serde_json::from_str::<Answer>(&answer)?.side)
    }

    /// Waits until a side answers there.
    pub(super) async fn answered_by(&self, side: &str, path: &str) -> anyhow::Result<()> {
        until(&format!("{side} to answer at {path}"), PATIENCE, async || {
            let answered = self.side("http", path).await?;
            ensure!(answered == side, "{answered} answers");
            Ok(())
        })
        .await
    }

    /// Waits until there is no route there.
    pub(super) async fn unrouted(&self, path: &str) -> anyhow::Result<()> {
        until(&format!("{path} to lead nowhere"), PATIENCE, async || match self.side("http", path).await {
            Err(error) if error.to_string().contains("answered 404") => Ok(()),
            other => bail!("{other:?}"),
        })
        .await
    }

    fn url(&self, listener: &str, path: &str) -> String {
        let port = self.world.listeners.get(listener).copied().unwrap_or_default();
        format!("http://127.0.0.1:{port}{path}")
    }

    /// The admin port's word on what it has of its control plane.
    pub(super) async fn ready(&self) -> anyhow::Result<String> {
        get(&format!("http://{}/ready?verbose", self.admin)).await
    }

    /// Waits until the admin port says so.
    pub(super) async fn says(&self, words: &str) -> anyhow::Result<String> {
        self.says_within(PATIENCE, words).await
    }

    pub(super) async fn says_within(&self, within: Duration, words: &str) -> anyhow::Result<String> {
        until(&format!("the proxy in {} to say {words:?}", self.variant), within, async || {
            let said = self.ready().await?;
            let line = said.lines().find(|line| line.contains(words));
            line.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("{said}"))
        })
        .await
    }

    pub(super) async fn admin(&self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&get(&format!("http://{}/{path}", self.admin)).await?)?)
    }

    /// Waits for the server to complain.
    pub(super) async fn pings_less(&mut self, within: Duration) -> anyhow::Result<String> {
        self.process.prints("the server wants fewer pings", within).await?;
        self.says(": connected, for").await
    }

    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        self.process.check_alive()
    }
}

fn bootstrap(node: &str, admin: SocketAddr, server: SocketAddr) -> Value {
    let address = |at: SocketAddr| json!({"socket_address": {"address": at.ip(), "port_value": at.port()}});
    let service = json!([{"envoy_grpc": {"cluster_name": "xds"}}]);
    let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address(server)}}]}]);
    json!({
        "node": {"id": node, "cluster": "e2e"},
        "admin": {"address": address(admin)},
        "dynamic_resources": {
            "ads_config": {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": service},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"clusters": [{
            "name": "xds", "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }},
            "load_assignment": {"cluster_name": "xds", "endpoints": endpoints},
        }]},
    })
}
