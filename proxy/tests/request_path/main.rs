//! The request path, in process: real workers between scripted peers on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // clippy.toml exempts #[test] functions, not their helpers

/// Runs `$body` with HTTP/1.1 and HTTP/2 in front and behind.
macro_rules! on_all_protocols {
    ($( $(#[doc = $doc:literal])* async fn $name:ident($front:ident, $back:ident) $body:block )+) => { $(
        mod $name {
            use super::*;

            async fn run($front: Http, $back: Http) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn h1_to_h1() { run(Http::One, Http::One).await }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn h1_to_h2() { run(Http::One, Http::Two).await }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn h2_to_h1() { run(Http::Two, Http::One).await }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn h2_to_h2() { run(Http::Two, Http::Two).await }
        }
    )+ };
}

mod authz;
mod beginnings;
mod bounds;
mod breakers;
mod client_certificates;
mod draining;
mod failing;
mod fixture;
mod forwarding;
mod framing;
mod grpc;
mod identity;
mod intercepted;
mod names;
mod policies;
mod rbac;
mod scheme;
mod sds;
mod sessions;
mod streaming;
mod tcp;
mod tls;
mod tunnels;
mod upstream_tls;
