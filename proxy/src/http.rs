//! One request, from its head to the end of its answer: checked, normalised, routed, sent on, answered.

pub(crate) mod body;
pub(crate) mod client_certificate;
pub(crate) mod exchange;
pub(crate) mod forwarded;
pub(crate) mod grpc;
pub(crate) mod grpc_web;
pub(crate) mod headers;
mod mirror;
pub mod path;
mod receiving;
pub(crate) mod respond;
pub(crate) mod service;
pub(crate) mod tunnel;
pub(crate) mod upgrade;
