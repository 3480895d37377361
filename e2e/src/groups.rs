//! One file a group.

pub(crate) mod conformance;
pub(crate) mod envoy;
pub(crate) mod equal;
pub(crate) mod go_control_plane;
pub(crate) mod grpc;
pub(crate) mod h2spec;
pub(crate) mod kubernetes;
pub(crate) mod network;
pub(crate) mod spring;

use std::path::PathBuf;

use anyhow::Context;

/// A place that `cargo xtask` gives.
fn place(variable: &str) -> anyhow::Result<PathBuf> {
    let place =
        std::env::var_os(variable).with_context(|| format!("{variable} is not set; use cargo xtask e2e"))?;
    Ok(std::path::absolute(PathBuf::from(place))?)
}
