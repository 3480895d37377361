//! The running control plane: the registry and the objects feed the [`bridge`], which publishes to the xDS
//! server; the [`api`] shows and changes. Each listener has explicit limits.

pub mod api;
pub mod bridge;
pub mod http;
pub mod in_force;
pub mod metrics;
pub mod roster;
pub mod start;
pub mod tenants;
pub mod world;
