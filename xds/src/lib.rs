//! xDS v3 over gRPC: resources and snapshots of them, a server and an ADS client, both in state of the world and in
//! delta. What the resources mean is not this crate's business.
//!
//! The protocol is the one of
//! <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>.

pub mod client;
pub mod json;
pub mod messages;
pub mod resource;
pub mod server;
pub mod snapshot;
mod variant;
pub mod wire;

pub use resource::{Resource, ResourceType};
pub use snapshot::{ResourceMap, Snapshot};
pub use variant::Variant;

/// The ready-made v3 messages and service stubs.
pub use envoy_types::pb;
