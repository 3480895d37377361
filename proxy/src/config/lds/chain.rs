//! One `FilterChain`: which connections it takes, how TLS is terminated, and what then reads them.

use std::time::Duration;

use super::{network, unpack};
use crate::config::chains::{ChainMatch, Transport};
use crate::config::filters;
use crate::config::hcm::{self, Manager, duration};
use crate::config::problem::{Problem, Under, each, filled};
use crate::config::support::{Message, support};
use crate::config::tcp_proxy;
use crate::config::tls::{self, Downstream};
use envoy_types::pb::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use prost::Name as _;

pub(in crate::config) const MESSAGES: &[Message] = &[FILTER_CHAIN, FILTER_CHAIN_MATCH];

/// For a handshake; Envoy's default is none, which holds a connection for as long as a client likes.
const DEFAULT_HANDSHAKE: Duration = Duration::from_secs(10);

support! {
    FILTER_CHAIN, filter_chain: FilterChain = "envoy.config.listener.v3.FilterChain";
    read: filters, name, filter_chain_match, transport_socket, transport_socket_connect_timeout;
    ignored:
        metadata => "no filter here reads it";
    refused: use_proxy_proto;
}

support! {
    FILTER_CHAIN_MATCH, filter_chain_match: FilterChainMatch = "envoy.config.listener.v3.FilterChainMatch";
    read: destination_port, prefix_ranges, direct_source_prefix_ranges, source_prefix_ranges, source_ports, server_names, transport_protocol, application_protocols, source_type;
    ignored:;
    refused: address_suffix, suffix_len;
}

/// A chain, before routes and certificates are looked up.
#[derive(Debug)]
pub(in crate::config) struct Compiled {
    pub(in crate::config) name: Box<str>,
    pub(in crate::config) matches: ChainMatch,
    pub(in crate::config) tls: Option<Downstream>,
    pub(in crate::config) handshake_timeout: Duration,
    pub(in crate::config) reader: Reader,
}

/// What reads a chain's connections.
#[derive(Debug)]
pub(in crate::config) enum Reader {
    Http(Box<Manager>),
    Tcp(tcp_proxy::Proxy),
}

pub(super) fn compile(message: &FilterChain) -> Result<Compiled, Problem> {
    filter_chain(message)?;
    let matches = match &message.filter_chain_match {
        Some(matches) => chain_match(matches).under(|| "filter_chain_match".into())?,
        None => ChainMatch::default(),
    };
    let timeout = duration("transport_socket_connect_timeout", message.transport_socket_connect_timeout)?;
    Ok(Compiled {
        name: message.name.as_str().into(),
        matches,
        tls: tls::compile(message.transport_socket.as_ref()).under(|| "transport_socket".into())?,
        handshake_timeout: timeout.filter(|t| !t.is_zero()).unwrap_or(DEFAULT_HANDSHAKE),
        reader: reader(message)?,
    })
}

/// The last filter reads; a limit of connections may stand before it.
fn reader(message: &FilterChain) -> Result<Reader, Problem> {
    let mut limit = 0;
    let readers = each("filters", &message.filters, |filter| {
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
        let reader = if config.type_url == TcpProxy::type_url() {
            let message: TcpProxy = unpack(config)?;
            filled("stat_prefix", &message.stat_prefix)
                .and_then(|()| tcp_proxy::compile(&message).map(Reader::Tcp))
        } else {
            let message: HttpConnectionManager = unpack(config)?;
            filled("stat_prefix", &message.stat_prefix)
                .and_then(|()| hcm::compile(&message).map(|manager| Reader::Http(Box::new(manager))))
        };
        reader.under(|| "typed_config".into()).map(Some)
    })?;
    let readers: Vec<Reader> = readers.into_iter().flatten().collect();
    match <[Reader; 1]>::try_from(readers) {
        Ok([Reader::Http(manager)]) => {
            Ok(Reader::Http(Box::new(Manager { max_connections: limit, ..*manager })))
        }
        Ok([Reader::Tcp(proxy)]) => Ok(Reader::Tcp(tcp_proxy::Proxy { max_connections: limit, ..proxy })),
        Err(all) => {
            let reason = format!(
                "has {} elements; this proxy supports one, an HTTP connection manager or a TCP proxy",
                all.len()
            );
            Err(Problem::new("filters", reason))
        }
    }
}

fn chain_match(message: &FilterChainMatch) -> Result<ChainMatch, Problem> {
    filter_chain_match(message)?;
    if message.source_type() != ConnectionSourceType::Any {
        return Err(Problem::new("source_type", "must be ANY"));
    }
    let port = |field: &str, port: u32| {
        u16::try_from(port).map_err(|_| Problem::new(field, format!("is {port}; must be 0 to 65535")))
    };
    let transport = match message.transport_protocol.as_str() {
        "" => None,
        "tls" => Some(Transport::Tls),
        "raw_buffer" => Some(Transport::RawBuffer),
        other => {
            return Err(Problem::new(
                "transport_protocol",
                format!("is {other:?}; must be tls or raw_buffer"),
            ));
        }
    };
    Ok(ChainMatch {
        destination_port: message
            .destination_port
            .map(|value| port("destination_port", value.value))
            .transpose()?,
        destinations: each("prefix_ranges", &message.prefix_ranges, network)?,
        server_names: each("server_names", &message.server_names, |name| server_name(name))?,
        transport,
        protocols: message.application_protocols.iter().map(|name| name.as_bytes().into()).collect(),
        direct_sources: each("direct_source_prefix_ranges", &message.direct_source_prefix_ranges, network)?,
        sources: each("source_prefix_ranges", &message.source_prefix_ranges, network)?,
        source_ports: each("source_ports", &message.source_ports, |value| port("", *value))?,
    })
}

fn server_name(name: &str) -> Result<Box<str>, Problem> {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    if rest.is_empty() || rest.contains('*') {
        let reason = format!("is {name:?}; must be a name, or *. and a name");
        return Err(Problem::new("", reason));
    }
    Ok(name.to_ascii_lowercase().into())
}
