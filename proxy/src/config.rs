//! From xDS resources to what the request path reads. Everything is decided here, when a resource arrives:
//! matchers built, names resolved to handles, unsupported fields refused. Nothing here runs on the path.

mod api_listener;
mod authz;
pub mod bootstrap;
mod cds;
pub mod chains;
pub mod differing;
mod eds;
mod filters;
mod hcm;
mod in_place;
pub mod keepalive;
mod lds;
pub mod listener;
mod matching;
pub mod overload;
pub mod problem;
mod proxy_protocol;
mod rate_limit;
mod rbac;
mod rds;
mod secrets;
mod session;
pub(crate) mod sidecar;
pub mod store;
mod stream_log;
pub mod support;
mod tcp_proxy;
mod tls;
mod tls_upstream;
pub mod virtual_address;
mod zones;

pub use self::store::{Dumped, OwnEndpoints, Refused, Store};
