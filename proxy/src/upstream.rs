//! The other side: clusters, their endpoints, connections to them and the pools those wait in.

pub mod cluster;
pub(crate) mod connect;
pub mod dial;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod open;
pub(crate) mod original;
pub(crate) mod pool;
