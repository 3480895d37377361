//! The sample service of the quickstart: one instance of `inventory`, old or new. It is a process of its own,
//! answers as a Spring application would, and when told of a Eureka server registers and renews there over
//! the real protocol. SIGTERM takes the same steps as Spring's: say DOWN, deregister, finish what is in flight.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::{Json, Router, routing};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::registry::eureka::client::{Client, Registration};

/// The response header that names the side that answered.
pub const SIDE_HEADER: &str = "x-side";

/// How one instance is started.
#[derive(Debug, Clone, clap::Args)]
pub struct SampleArgs {
    /// The application's name.
    #[arg(long, default_value = "inventory")]
    pub app: String,
    /// Which side of the migration this instance stands for.
    #[arg(long, value_enum)]
    pub side: Side,
    /// The port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Register with this Eureka server, for example http://127.0.0.1:8761/eureka/.
    #[arg(long)]
    pub eureka: Option<String>,
}

/// The two pools of a migration, as the answers name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where the service runs today.
    Legacy,
    /// Where it goes.
    Target,
}

impl Side {
    /// As it stands in headers and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Legacy => "legacy",
            Side::Target => "target",
        }
    }
}

/// What `GET /stock/{sku}` answers.
#[derive(Debug, Serialize)]
struct Stock {
    sku: String,
    side: Side,
    port: u16,
}

#[derive(Debug, Clone, Copy)]
struct Instance {
    side: Side,
    port: u16,
}

/// Runs the instance until SIGTERM or SIGINT.
pub async fn run(args: SampleArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))
        .await
        .with_context(|| format!("cannot listen on 127.0.0.1:{}", args.port))?;
    let instance = Instance { side: args.side, port: listener.local_addr()?.port() };
    let client = args.eureka.as_deref().map(|eureka| register(&args.app, eureka, instance)).transpose()?;
    let app = Router::new().route("/stock/{sku}", routing::get(stock)).with_state(instance);
    axum::serve(listener, app).with_graceful_shutdown(goodbye(client)).await?;
    Ok(())
}

async fn stock(State(instance): State<Instance>, Path(sku): Path<String>) -> impl IntoResponse {
    let Instance { side, port } = instance;
    ([(SIDE_HEADER, side.as_str())], Json(Stock { sku, side, port }))
}

fn register(app: &str, eureka: &str, instance: Instance) -> anyhow::Result<Client> {
    let port = instance.port;
    let registration = Registration {
        base_url: eureka.to_owned(),
        app: app.to_uppercase(),
        instance_id: format!("127.0.0.1:{app}:{port}"),
        host: "localhost".into(),
        ip: Ipv4Addr::LOCALHOST.into(),
        port,
        vip: app.to_owned(),
        metadata: BTreeMap::from([("side".into(), instance.side.as_str().into())]),
        renewal_interval: Duration::from_secs(30),
        lease_duration: Duration::from_secs(90),
    };
    Client::start(registration).context("cannot register")
}

/// Waits to be told to end, then says so to the registry before the last answers are given.
async fn goodbye(client: Option<Client>) {
    let (terminate, interrupt) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    if let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    if let Some(client) = client {
        client.stop().await;
    }
}
