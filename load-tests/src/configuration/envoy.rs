//! Envoy as a peer, with a static configuration, or with one by xDS.

use std::net::SocketAddr;

use super::{Front, Scenario, routes};

pub(crate) fn proxy(scenario: &Scenario, port: u16, upstream: u16) -> String {
    let filter = match scenario.front {
        Front::Tcp => String::from(
            "      - name: tcp
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: front
          cluster: upstream",
        ),
        _ => manager(scenario),
    };
    let tls = scenario.pair.as_ref().map_or_else(String::new, |pair| {
        format!(
            "
      transport_socket:
        name: tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates:
            - {{ certificate_chain: {{ filename: {} }}, private_key: {{ filename: {} }} }}",
            pair.certificate.display(),
            pair.key.display()
        )
    });
    let protocol =
        if scenario.front == Front::H2c { "http2_protocol_options" } else { "http_protocol_options" };
    format!(
        "static_resources:
  listeners:
  - name: front
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
{filter}{tls}
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 2s
    circuit_breakers: {{ thresholds: [ {{ max_connections: 20000, max_requests: 20000, max_pending_requests: 20000 }} ] }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ {protocol}: {{}} }}
    load_assignment:
      cluster_name: upstream
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {upstream} }} }} }} }} ] }} ]
"
    )
}

/// All by ADS from there.
pub(crate) fn dynamic(server: SocketAddr) -> String {
    let (host, port) = (server.ip(), server.port());
    format!(
        "node: {{ id: envoy, cluster: bench }}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [ {{ envoy_grpc: {{ cluster_name: xds }} }} ]
  cds_config: {{ ads: {{}}, resource_api_version: V3 }}
  lds_config: {{ ads: {{}}, resource_api_version: V3 }}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    connect_timeout: 2s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: xds
      endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: {host}, port_value: {port} }} }} }} }} ] }} ]
"
    )
}

fn manager(scenario: &Scenario) -> String {
    let routes = routes(scenario, |i| {
        format!("                - {{ match: {{ prefix: /route-{i}/ }}, route: {{ cluster: upstream }} }}")
    });
    format!(
        "      - name: hcm
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          use_remote_address: true
          stream_idle_timeout: 300s
          http2_protocol_options: {{ max_concurrent_streams: 256 }}
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              routes:
{routes}
          http_filters:
          - name: router
            typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}"
    )
}
