//! What the page of results says of each peer's configuration: the very text that the peer is started with for
//! HTTP/1.1, but with one route, the first of a hundred.

use std::path::Path;

use super::{Front, Scenario};
use crate::peer::Name;

const PORT: u16 = 8080;
const UPSTREAM: u16 = 9090;

/// A peer's notes and its configuration, as Markdown.
pub(crate) fn shown(name: Name) -> String {
    let scenario = Scenario { routes: 1, ..Scenario::of(Front::Http) };
    let folder = Path::new("/bench");
    let (notes, text) = match name {
        Name::Pontoon => (
            "`--workers 1 --max-connections 12000`, built with `--release` (what is shipped is of the profile `dist`). A listener, a route configuration with prefix routes and a cluster with its endpoint \
             come by xDS (`load-tests/src/configuration/ours.rs`); metrics are on, as they always are. Trace headers are passed on, and a request \
             id is made where there is none.",
            String::new(),
        ),
        Name::Haproxy => (
            "`haproxy -db`. The routes are in a map of prefixes, which HAProxy makes a tree of.",
            format!(
                "{}\n# haproxy.map\n{}",
                super::haproxy(folder, &scenario, PORT, UPSTREAM),
                super::haproxy_map(&scenario)
            ),
        ),
        Name::Nginx => (
            "One process. Requests are passed on as they come, as all others do it. HTTP/2 goes on by `grpc_pass`: this \
             version speaks it to no other upstream.",
            super::nginx(folder, &scenario, PORT, UPSTREAM),
        ),
        Name::Envoy => (
            "`--concurrency 1`. Its limits on an upstream are raised, as nobody else has any.",
            super::envoy(&scenario, PORT, UPSTREAM),
        ),
        Name::Pingora => (
            "`ServerConf { threads: 1, upstream_keepalive_pool_size: 2_048, .. }`; the program is `load-tests/pingora`. HTTP/2: 100 streams a connection to the upstream. A \
             route is found by comparing one after the other: Pingora leaves routing to its user.",
            String::new(),
        ),
        Name::Caddy => (
            "`GOMAXPROCS=1`: one thread runs Go code, the collector among it. It passes no bytes without a plugin.",
            super::caddy(&scenario, PORT, UPSTREAM),
        ),
        Name::SpringCloudGateway => (
            "The application `e2e/spring/modern/gateway` with the file below. One worker cannot be forced on a JVM: Netty \
             has one event loop, but collector and compiler have threads of their own, so its CPU time may be more than \
             one thread's. The JVM takes itself to have one processor and 1 GiB of heap. Before the \
             first round it is loaded in rounds of 5 s until it has served 30,000 requests and a request costs hardly less than \
             in the round before. No request id is set. It is left out where a phase is not about \
             HTTP/1.1 from end to end, and has the first load alone where a phase has several.",
            super::spring_cloud_gateway(&scenario, UPSTREAM),
        ),
        Name::Zuul => (
            "The application `e2e/spring/legacy/zuul` with the file below, on the same JVM with the same options and \
             warmed likewise. One worker cannot be forced on it at all: Tomcat has a thread for each request in flight, \
             200 at most. Connections are kept for any number of requests, which takes code \
             (`e2e/spring/legacy/zuul`). No request id is set.",
            super::zuul(&scenario, UPSTREAM),
        ),
    };
    let start =
        if name.is_on_jvm() { format!(" `{}`.", super::spring::spring_options()) } else { String::new() };
    let mut out = format!("### {}\n\n{notes}{start}\n", name.text());
    if !text.is_empty() {
        out.push_str("\n```text\n");
        out.push_str(text.trim_end());
        out.push_str("\n```\n");
    }
    out
}
