//! The program as it is shipped, as a process: what signals do to it, and what breaks around it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // clippy.toml exempts #[test] functions, not their helpers

mod admin;
mod clock;
mod control_plane;
mod hangup;
mod reread;
mod running;
mod tls;
mod upstream;
mod weather;
