//! The sample service of the quickstart: one instance of `inventory`, old or new. It is a process of its own,
//! answers as a Spring application would, and when told of a Eureka server registers and renews there over
//! the real protocol. SIGTERM takes the same steps as Spring's: say DOWN, deregister, finish what is in flight.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::{Json, Router, routing};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

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
