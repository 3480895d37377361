//! What a hostile client does, by the names of the attacks: raw bytes and raw frames in, and upstreams that record
//! exactly what arrives. Nothing here goes through a library that would refuse to send it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // clippy.toml exempts #[test] functions, not their helpers

mod amplify;
mod apart;
mod chaos;
mod costs;
mod downgrade;
#[path = "../request_path/fixture.rs"]
#[allow(dead_code, reason = "shared with the request path's tests")]
mod fixture;
mod floods;
mod frames;
mod limits;
mod named;
mod origin;
mod pipeline;
mod recorder;
mod slow;
mod smuggling;
