//! The HTTP API.

pub mod auth;
pub mod problem;
pub mod types;
