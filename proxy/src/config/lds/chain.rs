//! One `FilterChain`: which connections it takes, how TLS is terminated, and what then reads them.

use std::time::Duration;

use super::{network, unpack};
use crate::config::chains::{ChainMatch, Transport};
use crate::config::filters;
use crate::config::hcm::{self, Manager, duration};
use crate::config::problem::{Problem, Under, each};
use crate::config::support::{Message, support};
use crate::config::tls::{self, Downstream};
use envoy_types::pb::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch, filter};

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
    pub(in crate::config) manager: Manager,
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
        manager: manager(message)?,
    })
}

fn manager(message: &FilterChain) -> Result<Manager, Problem> {
    let mut limit = 0;
    let managers = each("filters", &message.filters, |filter| {
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
