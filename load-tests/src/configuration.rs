//! Equivalent configurations: one listener, one hundred prefix routes, one upstream over keep-alive, one thread,
//! no access log.

use std::fmt::Write as _;
use std::path::Path;

/// Routes of every peer; the load takes one from the middle.
pub(crate) const ROUTES: usize = 100;

/// The path that the load asks for.
pub(crate) fn path() -> String {
    format!("/route-{}/item", ROUTES / 2)
}

fn routes(line: impl Fn(usize) -> String) -> String {
    (0..ROUTES).fold(String::new(), |mut all, i| {
        let _ = writeln!(all, "{}", line(i));
        all
    })
}

/// Where nginx puts what it never needs here.
fn nginx_paths(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp; \
         uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;"
    )
}

/// The upstream: nginx with a fixed answer of 1 KiB.
pub(crate) fn upstream(folder: &Path, port: u16) -> String {
    format!(
        "daemon off; master_process off; pid {folder}/upstream.pid; error_log stderr warn;
         worker_rlimit_nofile 20000; events {{ worker_connections 12000; }}
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; {paths}
           server {{ listen 127.0.0.1:{port} reuseport; location / {{ return 200 \"{body}\"; }} }} }}",
        folder = folder.display(),
        paths = nginx_paths(folder),
        body = "x".repeat(1024),
    )
}

/// nginx as the proxy.
pub(crate) fn nginx(folder: &Path, port: u16, upstream: u16) -> String {
    let locations = routes(|i| {
        format!(
            "location /route-{i}/ {{ proxy_pass http://upstream; proxy_http_version 1.1; proxy_set_header Connection ''; \
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Request-Id $request_id; }}"
        )
    });
    format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;
         worker_rlimit_nofile 20000; events {{ worker_connections 20000; }}
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; {paths}
           upstream upstream {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
           server {{ listen 127.0.0.1:{port}; {locations} }} }}",
        folder = folder.display(),
        paths = nginx_paths(folder),
    )
}

/// HAProxy as the proxy.
pub(crate) fn haproxy(port: u16, upstream: u16) -> String {
    let rules = routes(|i| format!("  use_backend upstream if {{ path_beg /route-{i}/ }}"));
    format!(
        "global
  nbthread 1
  no strict-limits
  ulimit-n 20000
  maxconn 10100
defaults
  mode http
  timeout connect 2s
  timeout client 300s
  timeout server 300s
  timeout http-keep-alive 300s
  http-reuse always
frontend front
  bind 127.0.0.1:{port}
  option forwardfor
  unique-id-format %[uuid()]
  unique-id-header X-Request-Id
{rules}
backend upstream
  server one 127.0.0.1:{upstream} pool-max-conn 256
"
    )
}

/// Envoy as the proxy, with a static configuration.
pub(crate) fn envoy(port: u16, upstream: u16) -> String {
    let routes = routes(|i| {
        format!("                - {{ match: {{ prefix: /route-{i}/ }}, route: {{ cluster: upstream }} }}")
    });
    format!(
        "static_resources:
  listeners:
  - name: front
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          use_remote_address: true
          stream_idle_timeout: 300s
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes:
{routes}
          http_filters:
          - name: router
            typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 2s
    circuit_breakers: {{ thresholds: [ {{ max_connections: 20000, max_requests: 20000, max_pending_requests: 20000 }} ] }}
    load_assignment:
      cluster_name: upstream
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {upstream} }} }} }} }} ] }} ]
"
    )
}
