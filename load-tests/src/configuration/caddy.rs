//! Caddy as a peer. It passes no bytes without a plugin.

use super::{Front, POOL, Scenario, routes};

pub(crate) fn proxy(scenario: &Scenario, port: u16, upstream: u16) -> String {
    let (scheme, to) = match scenario.front {
        Front::H2c => ("http", format!("h2c://127.0.0.1:{upstream}")),
        Front::Tls => ("https", format!("127.0.0.1:{upstream}")),
        Front::Http | Front::Tcp => ("http", format!("127.0.0.1:{upstream}")),
    };
    let tls = scenario.pair.as_ref().map_or_else(String::new, |pair| {
        format!("tls {} {}", pair.certificate.display(), pair.key.display())
    });
    let handlers = routes(scenario, |i| {
        format!(
            "  handle /route-{i}/* {{
    reverse_proxy {to} {{
      header_up X-Request-Id {{http.request.uuid}}
      transport http {{
        keepalive_idle_conns_per_host {POOL}
      }}
    }}
  }}"
        )
    });
    format!(
        "{{
  admin off
  auto_https off
  persist_config off
  log default {{
    level ERROR
  }}
  servers {{
    protocols h1 h2 h2c
  }}
}}
{scheme}://localhost:{port}, {scheme}://127.0.0.1:{port} {{
  bind 127.0.0.1
  {tls}
{handlers}}}
"
    )
}
