//! The running control plane.

pub mod api;
pub mod http;
pub mod in_force;
