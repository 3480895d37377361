//! `envoy.config.listener.v3.Listener`: one socket, and the filter chains of which one takes a connection.

mod chain;

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, CidrRange, SocketAddress as SocketAddressMessage, address,
};
use envoy_types::pb::envoy::config::listener::v3::{Listener, ListenerFilter, listener_filter};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst as OriginalDstFilter;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use ipnet::IpNet;
use pontoon_xds::json::type_of;
use pontoon_xds::messages::Coded;
use prost::Name as _;

use super::chains::{Announced, Inspect, OriginalDst};
use super::hcm::limit;
use super::keepalive::{self, Clients};
use super::problem::{Problem, Under, each};
use super::proxy_protocol;
use super::support::{Message, support};
pub(super) use chain::{Compiled as CompiledChain, MESSAGES as CHAIN_MESSAGES, Reader};

pub(super) const MESSAGES: &[Message] = &[
    LISTENER,
    LISTENER_FILTER,
    TLS_INSPECTOR,
    HTTP_INSPECTOR,
    ORIGINAL_DST,
    CIDR_RANGE,
    ADDRESS,
    SOCKET_ADDRESS,
];

support! {
    LISTENER_FILTER, listener_filter_fields: ListenerFilter = "envoy.config.listener.v3.ListenerFilter";
    read: config_type;
    ignored:
        name => "the type says what it is";
    refused: filter_disabled;
}

support! {
    ADDRESS, address_fields: Address = "envoy.config.core.v3.Address";
    read: address;
    ignored:;
    refused: ;
}

support! {
    SOCKET_ADDRESS, socket_fields: SocketAddressMessage = "envoy.config.core.v3.SocketAddress";
    read: protocol, address, port_specifier;
    ignored:;
    differs:
        ipv4_compat => "an IPv6 listener takes IPv4 as the system is set";
    refused: resolver_name, network_namespace_filepath;
}

/// Envoy's default for the time in which the first bytes must come.
const DEFAULT_INSPECT: Duration = Duration::from_secs(15);
/// One choice looks at each of them.
const MOST_CHAINS: usize = 10_000;

support! {
    LISTENER, listener: Listener = "envoy.config.listener.v3.Listener";
    read: name, address, filter_chains, api_listener, metadata, default_filter_chain, listener_filters, listener_filters_timeout, continue_on_listener_filters_timeout, use_original_dst, transparent, tcp_keepalive;
    ignored:
        stat_prefix => "it only names statistics",
        stats_matcher => "it only names statistics",
        traffic_direction => "it only names statistics",
        max_connections_to_accept_per_socket_event => "a worker always takes one at a time",
        reuse_port => "each worker always has a socket of its own",
        enable_reuse_port => "each worker always has a socket of its own",
        connection_balance_config => "the kernel spreads connections over the workers";
    differs:
        per_connection_buffer_limit_bytes => "64 KiB over HTTP/1.1, 256 KiB a stream over HTTP/2",
        bypass_overload_manager => "what is short of memory takes nothing new anywhere",
        ignore_global_conn_limit => "the limit of all connections holds for all";
    refused: bind_to_port, access_log, additional_addresses, fcds_config, filter_chain_matcher, per_connection_buffer_high_watermark_timeout, deprecated_v1, freebind, socket_options, tcp_fast_open_queue_length, udp_listener_config, tcp_backlog_size, enable_mptcp, listener_specifier, drain_type;
}

support! {
    TLS_INSPECTOR, tls_inspector: TlsInspector = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    read: ;
    ignored:
        initial_read_buffer_size => "a fixed limit of our own holds",
        close_connection_on_client_hello_parsing_errors => "what begins as TLS and goes on otherwise is always closed";
    refused: enable_ja3_fingerprinting, enable_ja4_fingerprinting, max_client_hello_size;
}

support! {
    HTTP_INSPECTOR, http_inspector: HttpInspector = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
    read: ;
    ignored:;
    refused: ;
}

support! {
    ORIGINAL_DST, original_dst: OriginalDstFilter = "envoy.extensions.filters.listener.original_dst.v3.OriginalDst";
    read: ;
    ignored:;
    refused: ;
}

support! {
    CIDR_RANGE, cidr_range: CidrRange = "envoy.config.core.v3.CidrRange";
    read: address_prefix, prefix_len;
    ignored:;
    refused: ;
}

/// A listener, before its routes are looked up.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) address: SocketAddr,
    pub(super) inspect: Inspect,
    pub(super) original: Option<OriginalDst>,
    pub(super) keepalive: Clients,
    /// The sockets take connections to addresses that are not this machine's (TPROXY).
    pub(super) transparent: bool,
    /// With the path of each; the default one, if there is one, is the last.
    pub(super) chains: Vec<(String, CompiledChain)>,
    pub(super) has_default: bool,
}

pub(super) fn compile(message: &Listener) -> Result<Compiled, Problem> {
    listener(message)?;
    let address = message.address.as_ref().ok_or_else(|| Problem::new("address", "is missing"))?;
    let address = socket_address(address).under(|| "address".into())?;
    if message.filter_chains.len() > MOST_CHAINS {
        let reason = format!("has {} elements; the most is {MOST_CHAINS}", message.filter_chains.len());
        return Err(Problem::new("filter_chains", reason));
    }
    let mut chains: Vec<(String, CompiledChain)> = Vec::new();
    for (position, chain) in message.filter_chains.iter().enumerate() {
        let path = format!("filter_chains[{position}]");
        let compiled = chain::compile(chain).under(|| path.clone())?;
        if let Some((other, _)) = chains.iter().find(|(_, other)| other.matches == compiled.matches) {
            return Err(Problem::new(
                format!("{path}.filter_chain_match"),
                format!("is the same as that of {other}"),
            ));
        }
        chains.push((path, compiled));
    }
    if let Some(chain) = &message.default_filter_chain {
        let path = String::from("default_filter_chain");
        let compiled = chain::compile(chain).under(|| path.clone())?;
        chains.push((path, compiled));
    }
    if chains.is_empty() {
        return Err(Problem::new("filter_chains", "is empty"));
    }
    let filters = each("listener_filters", &message.listener_filters, inspector)?;
    let inspect = inspect(message, &filters, &chains)?;
    let set = |value: Option<BoolValue>| value.is_some_and(|value| value.value);
    let original = filters.contains(&Inspector::OriginalDst) || set(message.use_original_dst);
    let transparent = set(message.transparent);
    let original = original.then_some(OriginalDst { keep_source: false });
    Ok(Compiled {
        address,
        inspect,
        original,
        keepalive: keepalive::clients(message.tcp_keepalive.as_ref()).under(|| "tcp_keepalive".into())?,
        transparent,
        chains,
        has_default: message.default_filter_chain.is_some(),
    })
}

/// What must be read before a chain is chosen: what the filters say, and what the matches need.
fn inspect(
    message: &Listener,
    filters: &[Inspector],
    chains: &[(String, CompiledChain)],
) -> Result<Inspect, Problem> {
    let needs_tls = |chain: &CompiledChain| {
        let matches = &chain.matches;
        !matches.server_names.is_empty() || matches.transport.is_some() || !matches.protocols.is_empty()
    };
    let timeout = limit("listener_filters_timeout", message.listener_filters_timeout, DEFAULT_INSPECT)?;
    let announced = filters.iter().find_map(|filter| match filter {
        Inspector::Proxy(announced) => Some(*announced),
        _ => None,
    });
    Ok(Inspect {
        announced,
        tls: filters.contains(&Inspector::Tls) || chains.iter().any(|(_, chain)| needs_tls(chain)),
        http: filters.contains(&Inspector::Http),
        origin_form: filters.contains(&Inspector::OriginalDst),
        timeout: timeout.unwrap_or(Duration::MAX),
        proceed: message.continue_on_listener_filters_timeout,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inspector {
    Proxy(Announced),
    Tls,
    Http,
    OriginalDst,
}

fn inspector(message: &ListenerFilter) -> Result<Inspector, Problem> {
    listener_filter_fields(message)?;
    let Some(listener_filter::ConfigType::TypedConfig(config)) = &message.config_type else {
        return Err(Problem::new("typed_config", "is missing"));
    };
    if config.type_url == ProxyProtocol::type_url() {
        let announced = unpack(config).and_then(|message| proxy_protocol::listener(&message));
        return announced.under(|| "typed_config".into()).map(Inspector::Proxy);
    }
    if config.type_url == HttpInspector::type_url() {
        return http_inspector(&unpack(config)?).under(|| "typed_config".into()).map(|()| Inspector::Http);
    }
    if config.type_url == OriginalDstFilter::type_url() {
        let read = original_dst(&unpack(config)?).under(|| "typed_config".into());
        return read.map(|()| Inspector::OriginalDst);
    }
    tls_inspector(&unpack(config)?).under(|| "typed_config".into()).map(|()| Inspector::Tls)
}

/// Decodes an extension that must be of this type.
pub(super) fn unpack<M: Coded>(any: &Any) -> Result<M, Problem> {
    if any.type_url != M::type_url() {
        let reason = format!("is a {}; this proxy supports {} here", type_of(any), M::full_name());
        return Err(Problem::new("typed_config", reason));
    }
    M::decoded(&any.value).map_err(|e| Problem::new("typed_config", format!("cannot be decoded: {e}")))
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
    address_fields(message)?;
    let Some(address::Address::SocketAddress(socket)) = &message.address else {
        return Err(Problem::new("", "must be a socket_address"));
    };
    socket_fields(socket).under(|| "socket_address".into())?;
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

/// A network. Bits beyond the prefix do not count.
pub(super) fn network(message: &CidrRange) -> Result<IpNet, Problem> {
    cidr_range(message)?;
    let text = format!("{}/{}", message.address_prefix, message.prefix_len.map_or(0, |n| n.value));
    let parsed = text.parse::<IpNet>().map(|net| net.trunc());
    parsed.map_err(|error| Problem::new("address_prefix", format!("is {text:?}: {error}")))
}
