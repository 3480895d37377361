//! The HTTP API.

pub mod auth;
pub mod problem;
