//! The filter chains of a listener, and which of them takes a connection. The choice is Envoy's: one criterion after
//! the other, and of each the most specific match alone goes on (`FilterChainMatch` in listener_components.proto).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;

use super::keepalive::Clients;
use super::listener::{HttpSettings, RouteHandle, TcpSettings};
use crate::tls::server::ServerTls;

/// What a listener does with its connections, in one version.
#[derive(Debug)]
pub struct Chains {
    /// What is read of a connection before a chain is chosen.
    pub inspect: Inspect,
    /// Whether connections come by interception, so that the kernel knows where they were going to.
    pub original: Option<OriginalDst>,
    /// Whether and when clients are probed.
    pub keepalive: Clients,
    /// Each has another match.
    pub all: Vec<Arc<Chain>>,
    /// For connections that no other takes.
    pub default: Option<Arc<Chain>>,
}

/// One filter chain. The handle lives over updates that leave its match as it is; what it holds is swapped.
#[derive(Debug)]
pub struct Chain {
    /// `FilterChain.name`, may be empty.
    pub name: Box<str>,
    /// Which connections it takes.
    pub matches: ChainMatch,
    /// How TLS is terminated. `None`: it is not.
    pub tls: Option<ChainTls>,
    /// What reads the connections. Of which kind it is stays for the handle's life.
    pub serves: Serves,
}

/// What reads a chain's connections.
#[derive(Debug)]
pub enum Serves {
    /// HTTP. Connections read the settings anew for each request.
    Http(Arc<ArcSwap<HttpSettings>>),
    /// Nothing: bytes are passed on as they are.
    Tcp(Arc<ArcSwap<TcpSettings>>),
}

impl Serves {
    /// Puts the settings of `newer` in force, where it is of the same kind.
    pub(super) fn take(&self, newer: Serves) {
        match (self, newer) {
            (Serves::Http(mine), Serves::Http(newer)) => mine.store(newer.load_full()),
            (Serves::Tcp(mine), Serves::Tcp(newer)) => mine.store(newer.load_full()),
            _ => {}
        }
    }

    /// The routes, be they of requests or of connections.
    pub fn routes(&self) -> Arc<RouteHandle> {
        match self {
            Serves::Http(settings) => settings.load().routes.clone(),
            Serves::Tcp(settings) => settings.load().routes.clone(),
        }
    }
}

/// TLS on a chain.
#[derive(Debug)]
pub struct ChainTls {
    /// `None`: a certificate has not arrived, or could not be read; connections are closed.
    pub server: ArcSwapOption<ServerTls>,
    /// `transport_socket_connect_timeout`: for the handshake. Default 10 s.
    pub handshake_timeout: Duration,
}

/// Connections that were on their way elsewhere (the listener filter `original_dst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginalDst {
    /// Where they are passed on to their own destination, that sees the client's address as theirs.
    pub keep_source: bool,
}

/// What is read of a connection before a chain is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inspect {
    /// Whether it begins with a PROXY protocol header.
    pub announced: Option<Announced>,
    /// Whether it begins with a TLS `ClientHello`, and what that says.
    pub tls: bool,
    /// Whether it begins as HTTP/1 or HTTP/2 does.
    pub http: bool,
    /// Whether HTTP that is asked of a proxy (CONNECT, a target in absolute form) is taken for something else: what was
    /// intercepted on its way to one is not for us.
    pub origin_form: bool,
    /// How long bytes are waited for. Default 15 s (Envoy's).
    pub timeout: Duration,
    /// Whether a connection without bytes goes on after that, as one that speaks last must. Else it is closed.
    pub proceed: bool,
}

/// Which PROXY protocol headers are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// A connection may do without.
    pub optional: bool,
    /// The text form.
    pub v1: bool,
    /// The binary form.
    pub v2: bool,
}

/// `FilterChainMatch`. What is empty or none takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainMatch {
    /// `destination_port`.
    pub destination_port: Option<u16>,
    /// `prefix_ranges`: of the destination.
    pub destinations: Vec<IpNet>,
    /// `server_names`, in lower case; `*.example.com` takes all names under it.
    pub server_names: Vec<Box<str>>,
    /// `transport_protocol`.
    pub transport: Option<Transport>,
    /// `application_protocols`: one of those that TLS or the first bytes announce.
    pub protocols: Vec<Box<[u8]>>,
    /// `direct_source_prefix_ranges`: of the peer itself.
    pub direct_sources: Vec<IpNet>,
    /// `source_prefix_ranges`: of the client that the peer stands for.
    pub sources: Vec<IpNet>,
    /// `source_ports`.
    pub source_ports: Vec<u16>,
}

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TLS `ClientHello`.
    Tls,
    /// Anything else.
    RawBuffer,
}

/// What is known of a connection when its chain is chosen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Where the client wanted to go.
    pub destination: SocketAddr,
    /// The client.
    pub source: SocketAddr,
    /// The peer, which may stand for the client.
    pub direct_source: IpAddr,
    /// What it begins with.
    pub transport: Transport,
    /// The name in the `ClientHello`, in lower case.
    pub server_name: Option<Box<str>>,
    /// What TLS offers (ALPN), or what the first bytes are: `http/1.0`, `http/1.1` or `h2c`.
    pub protocols: Vec<Box<[u8]>>,
}

impl Inspect {
    /// Whether anything is read at all.
    pub fn reads(&self) -> bool {
        self.announced.is_some() || self.tls || self.http
    }
}

impl Chains {
    /// The one chain of a listener that has nothing to choose and nothing to inspect.
    pub fn only(&self) -> Option<&Arc<Chain>> {
        if self.inspect.reads() || self.original.is_some() {
            return None;
        }
        match (self.all.as_slice(), &self.default) {
            ([chain], None) if chain.matches == ChainMatch::default() => Some(chain),
            ([], Some(chain)) => Some(chain),
            _ => None,
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Chain>> {
        self.all.iter().chain(&self.default)
    }

    /// The chain that takes such a connection.
    pub fn select(&self, seen: &Seen) -> Option<&Arc<Chain>> {
        let mut left: Vec<&Arc<Chain>> = self.all.iter().collect();
        narrow(&mut left, |m| one_of(m.destination_port.as_slice(), &seen.destination.port()));
        narrow(&mut left, |m| longest_prefix(&m.destinations, seen.destination.ip()));
        narrow(&mut left, |m| most_specific_name(&m.server_names, seen.server_name.as_deref()));
        narrow(&mut left, |m| one_of(m.transport.as_slice(), &seen.transport));
        narrow(&mut left, |m| first_protocol(&m.protocols, &seen.protocols));
        narrow(&mut left, |m| longest_prefix(&m.direct_sources, seen.direct_source));
        narrow(&mut left, |m| longest_prefix(&m.sources, seen.source.ip()));
        narrow(&mut left, |m| one_of(&m.source_ports, &seen.source.port()));
        left.first().copied().or(self.default.as_ref())
    }
}

/// Keeps the chains that match best. `None` is no match; 0 is a chain that does not care.
fn narrow(left: &mut Vec<&Arc<Chain>>, score: impl Fn(&ChainMatch) -> Option<usize>) {
    let best = left.iter().filter_map(|chain| score(&chain.matches)).max();
    left.retain(|chain| best.is_some() && score(&chain.matches) == best);
}

fn one_of<T: PartialEq>(wanted: &[T], seen: &T) -> Option<usize> {
    match wanted {
        [] => Some(0),
        wanted => wanted.contains(seen).then_some(1),
    }
}

fn longest_prefix(wanted: &[IpNet], seen: IpAddr) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    let seen = seen.to_canonical();
    wanted.iter().filter(|net| net.contains(&seen)).map(|net| usize::from(net.prefix_len()) + 1).max()
}

fn most_specific_name(wanted: &[Box<str>], seen: Option<&str>) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    let seen = seen?;
    let score = |name: &str| match name.strip_prefix('*') {
        Some(suffix) => (seen.len() > suffix.len() && seen.ends_with(suffix)).then_some(suffix.len()),
        None => (name == seen).then_some(usize::MAX),
    };
    wanted.iter().filter_map(|name| score(name)).max()
}

/// The client's order of preference counts.
fn first_protocol(wanted: &[Box<[u8]>], seen: &[Box<[u8]>]) -> Option<usize> {
    if wanted.is_empty() {
        return Some(0);
    }
    seen.iter().position(|protocol| wanted.contains(protocol)).map(|position| usize::MAX - position)
}

#[cfg(test)]
mod tests;
