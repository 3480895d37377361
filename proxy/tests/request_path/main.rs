//! The request path, in process: real workers between scripted peers on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // clippy.toml exempts #[test] functions, not their helpers

mod draining;
mod failing;
mod fixture;
mod forwarding;
mod framing;
mod streaming;
