//! The data plane. Rooms follow a request: `listener`, then `http`, then `route`, `balance`, `resilience`,
//! `upstream`. Beside the path: `config` (resource to snapshot), `discovery`, `telemetry`, `admin`; `intercept`
//! is a command of its own.

pub mod admin;
mod allocator;
pub mod balance;
mod batch;
pub mod bootstrap;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod dns;
pub mod error;
pub mod explain;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gather;
pub mod http;
pub mod intercept;
mod listener;
pub mod overload;
pub mod proxy_protocol;
pub mod resilience;
pub mod route;
mod run;
mod tcp;
pub mod telemetry;
pub mod tls;
pub mod upgrade;
pub mod upstream;
pub mod worker;

pub use explain::explain;
pub use run::{LogFilter, run, start_logging};
