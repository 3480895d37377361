//! HAProxy as a peer.

use std::path::Path;

use super::{Front, Scenario};

/// The routes, as a file that HAProxy makes a tree of.
pub(crate) fn map(scenario: &Scenario) -> String {
    super::routes(scenario, |i| format!("/route-{i}/ upstream"))
}

/// With a second server, and a socket at which it is taken out and put back.
pub(crate) fn changing(
    folder: &Path,
    scenario: &Scenario,
    port: u16,
    upstreams: [u16; 2],
    socket: &Path,
) -> String {
    let [stays, moves] = upstreams;
    // The text ends with the servers, and a second global section adds to the first.
    format!(
        "{}  server two 127.0.0.1:{moves}\nglobal\n  stats socket {} level admin\n",
        proxy(folder, scenario, port, stays),
        socket.display()
    )
}

pub(crate) fn proxy(folder: &Path, scenario: &Scenario, port: u16, upstream: u16) -> String {
    let (mode, front, back) = match scenario.front {
        Front::Tcp => ("tcp", "", ""),
        Front::H2c => ("http", " proto h2", " proto h2"),
        Front::Http | Front::Tls => ("http", "", ""),
    };
    let tls =
        scenario.pair.as_ref().map_or_else(String::new, |pair| format!(" ssl crt {}", pair.both.display()));
    let rules = match scenario.front {
        Front::Tcp => String::from("  default_backend upstream"),
        _ => format!(
            "  option forwardfor\n  unique-id-format %[uuid()]\n  unique-id-header X-Request-Id\n  \
             use_backend %[path,map_beg({}/haproxy.map)]\n",
            folder.display()
        ),
    };
    let options = if mode == "http" { "  http-reuse always\n" } else { "" };
    format!(
        "global
  nbthread 1
  no strict-limits
  ulimit-n 20000
  maxconn 10100
  tune.h2.max-concurrent-streams 256
  tune.pipesize 262144
defaults
  mode {mode}
  timeout connect 2s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 300s
{options}  option splice-auto
frontend front
  bind 127.0.0.1:{port}{front}{tls}
{rules}
backend upstream
  server one 127.0.0.1:{upstream}{back}
"
    )
}
