//! `envoy.config.listener.v3.Listener`: one socket with one HTTP connection manager.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, address};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener, filter};
use envoy_types::pb::google::protobuf::Any;
use prost::Name;

use super::filters;
use super::hcm::{self, Manager};
use super::problem::{Problem, Under, each};
use super::support::{Message, support};

pub(super) const MESSAGES: &[Message] = &[LISTENER, FILTER_CHAIN];

support! {
    LISTENER, listener: Listener = "envoy.config.listener.v3.Listener";
    read: name, address, filter_chains;
    ignored:
        stat_prefix => "it only names statistics",
        stats_matcher => "it only names statistics",
        metadata => "no filter here reads it",
        traffic_direction => "it only names statistics",
        per_connection_buffer_limit_bytes => "buffers here are bounded anyway",
        reuse_port => "each worker always has a socket of its own",
        enable_reuse_port => "each worker always has a socket of its own",
        drain_type => "a listener always drains",
        max_connections_to_accept_per_socket_event => "a worker always takes one at a time",
        continue_on_listener_filters_timeout => "there are no listener filters",
        listener_filters_timeout => "there are no listener filters",
        bypass_overload_manager => "what is short of memory takes nothing new anywhere",
        ignore_global_conn_limit => "the limit of all connections guards the process",
        connection_balance_config => "the kernel balances over the workers";
    refused: bind_to_port, access_log, additional_addresses, fcds_config, filter_chain_matcher, use_original_dst, default_filter_chain, per_connection_buffer_high_watermark_timeout, deprecated_v1, listener_filters, transparent, freebind, socket_options, tcp_fast_open_queue_length, udp_listener_config, api_listener, tcp_backlog_size, enable_mptcp, tcp_keepalive, listener_specifier;
}

support! {
    FILTER_CHAIN, filter_chain: FilterChain = "envoy.config.listener.v3.FilterChain";
    read: filters, name;
    ignored:
        metadata => "no filter here reads it",
        transport_socket_connect_timeout => "without TLS there is no handshake";
    refused: filter_chain_match, use_proxy_proto, transport_socket;
}

/// A listener, before its routes are looked up.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) address: SocketAddr,
    pub(super) manager: Manager,
}

pub(super) fn compile(message: &Listener) -> Result<Compiled, Problem> {
    listener(message)?;
    let address = message.address.as_ref().ok_or_else(|| Problem::new("address", "is missing"))?;
    let address = socket_address(address).under(|| "address".into())?;
    let [chain] = message.filter_chains.as_slice() else {
        let reason = format!("has {} elements; this proxy supports one", message.filter_chains.len());
        return Err(Problem::new("filter_chains", reason));
    };
    let manager = manager_of(chain).under(|| "filter_chains[0]".into())?;
    Ok(Compiled { address, manager })
}

fn manager_of(chain: &FilterChain) -> Result<Manager, Problem> {
    filter_chain(chain)?;
    let mut limit = 0;
    let managers = each("filters", &chain.filters, |filter| {
        let config = match &filter.config_type {
            Some(filter::ConfigType::TypedConfig(config)) => config,
            Some(filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(Problem::new("config_discovery", "is not supported; give a typed_config"));
            }
            None => return Err(Problem::new("typed_config", "is missing")),
        };
        if let Some(connections) = filters::connections(config).under(|| "typed_config".into())? {
            limit = connections;
            return Ok(None);
        }
        hcm::compile(&unpack(config)?).under(|| "typed_config".into()).map(Some)
    })?;
    let managers: Vec<Manager> = managers.into_iter().flatten().collect();
    match <[Manager; 1]>::try_from(managers) {
        Ok([manager]) => Ok(Manager { max_connections: limit, ..manager }),
        Err(all) => {
            let reason =
                format!("has {} elements; this proxy supports one, an HTTP connection manager", all.len());
            Err(Problem::new("filters", reason))
        }
    }
}

/// Decodes an extension that must be of this type.
pub(super) fn unpack<M: prost::Message + Name + Default>(any: &Any) -> Result<M, Problem> {
    if any.type_url != M::type_url() {
        let reason = format!("is a {}; this proxy supports {} here", any.type_url, M::full_name());
        return Err(Problem::new("typed_config", reason));
    }
    M::decode(any.value.as_slice())
        .map_err(|e| Problem::new("typed_config", format!("cannot be decoded: {e}")))
}

/// An IP address and a port.
pub(super) fn socket_address(message: &Address) -> Result<SocketAddr, Problem> {
    let (host, port) = host_and_port(message)?;
    let ip = host.parse().map_err(|_| {
        Problem::new("socket_address.address", format!("is {host:?}, which is not an IPv4 or IPv6 address"))
    })?;
    Ok(SocketAddr::new(ip, port))
}

/// A host, which may be a name, and a port.
pub(super) fn host_and_port(message: &Address) -> Result<(&str, u16), Problem> {
    let Some(address::Address::SocketAddress(socket)) = &message.address else {
        return Err(Problem::new("", "must be a socket_address"));
    };
    if socket.protocol != 0 {
        return Err(Problem::new("socket_address.protocol", "must be TCP"));
    }
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
        return Err(Problem::new("socket_address.port_value", "is missing"));
    };
    let port = u16::try_from(port)
        .map_err(|_| Problem::new("socket_address.port_value", format!("is {port}; must be 0 to 65535")))?;
    Ok((&socket.address, port))
}
