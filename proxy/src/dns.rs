//! DNS for the application beside a sidecar: names of the mesh have stable virtual addresses ([`mesh`]), everything
//! else is asked of the host's own resolvers and kept for a while ([`forward`]). It runs on the control runtime.
//!
//! Names of the mesh are asked for on demand, as requests ask for them. Without a control plane those that are known
//! go on being answered, and all others are forwarded at once.

mod cache;
mod forward;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod mesh;
mod metrics;
mod serve;
mod upstreams;

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::discovery::Shared;
use forward::{Forwarder, Wants};
use mesh::{Mesh, Verdict};
use metrics::{Counters, Outcome};
pub use serve::Sockets;

/// What we take in one UDP datagram, and the most that we send in one: it is over loopback.
const UDP_BYTES: u16 = 4_096;
/// What every client takes (RFC 1035).
const LEAST_UDP_BYTES: u16 = 512;
/// The only version of EDNS (RFC 6891).
const EDNS_VERSION: u8 = 0;

/// How DNS is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where, by UDP and TCP.
    pub addresses: Vec<SocketAddr>,
    /// Who is asked for names that are not the mesh's, in this order.
    pub upstreams: Vec<SocketAddr>,
    /// Whether a flag (or the environment) says that, which goes before a file that is read again.
    pub by_flag: bool,
    /// For how long clients may keep a virtual address. Default 30 s: a service that goes for good is noticed.
    pub ttl: Duration,
    /// For an upstream's answer, before the next is asked. Default 2 s.
    pub timeout: Duration,
    /// For how long an answer is given after it has run out, where no upstream answers. Default 1 day, the least that
    /// RFC 8767 recommends.
    pub max_stale: Duration,
    /// What is kept of upstreams' answers. Default 4 MiB.
    pub cache_bytes: usize,
    /// What questions to upstreams are marked with (`SO_MARK`), so that rules of interception leave them alone.
    pub mark: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            upstreams: Vec::new(),
            by_flag: false,
            ttl: Duration::from_secs(30),
            timeout: Duration::from_secs(2),
            max_stale: Duration::from_secs(86_400),
            cache_bytes: 4 * 1024 * 1024,
            mark: None,
        }
    }
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The resolvers and search domains that `/etc/resolv.conf` says.
///
/// # Errors
/// When it cannot be read or names no resolver.
pub fn system() -> Result<(Vec<SocketAddr>, Vec<String>), String> {
    let text = std::fs::read(RESOLV_CONF).map_err(|error| format!("{RESOLV_CONF}: {error}"))?;
    let config = resolv_conf::Config::parse(text).map_err(|error| format!("{RESOLV_CONF}: {error}"))?;
    if config.nameservers.is_empty() {
        return Err(format!("{RESOLV_CONF} has no nameserver"));
    }
    let upstreams = config.nameservers.iter().map(|server| SocketAddr::new(server.into(), 53)).collect();
    let search =
        config.get_last_search_or_domain().map(|domain| domain.trim_matches('.').to_ascii_lowercase());
    Ok((upstreams, search.collect()))
}

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

/// The resolver of a sidecar.
#[derive(Debug)]
pub struct Dns {
    mesh: Mesh,
    forwarder: Arc<Forwarder>,
    counters: Arc<Counters>,
    stop: watch::Sender<bool>,
}

/// What serves it; stopped when dropped.
#[derive(Debug)]
pub struct Serving {
    dns: Arc<Dns>,
    at: Vec<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
}

impl Dns {
    /// For a sidecar's names; `None` where the process is not one.
    pub fn new(settings: &Settings, discovery: &Shared) -> Option<Arc<Dns>> {
        let counters = Arc::new(Counters::default());
        let on_demand = discovery.on_demand()?.clone();
        Some(Arc::new(Dns {
            mesh: Mesh::new(on_demand, discovery.clone(), settings.ttl),
            forwarder: Arc::new(Forwarder::new(settings, counters.clone())),
            counters,
            stop: watch::Sender::new(false),
        }))
    }

    /// Answers on these sockets.
    ///
    /// # Errors
    /// When one is none of these.
    pub fn serve(self: &Arc<Self>, sockets: Vec<Sockets>) -> io::Result<Serving> {
        let (mut at, mut tasks) = (Vec::new(), Vec::new());
        for Sockets { tcp, udp } in sockets {
            let (tcp, udp) = (TcpListener::from_std(tcp)?, UdpSocket::from_std(udp)?);
            let address = udp.local_addr()?;
            tracing::info!(%address, "DNS is served");
            at.push(address);
            tasks.push(tokio::spawn(serve::udp(self.clone(), udp)));
            tasks.push(tokio::spawn(serve::tcp(self.clone(), tcp)));
        }
        Ok(Serving { dns: self.clone(), at, tasks })
    }

    /// Asks others from now on; what is known of those who stay is kept, and so are answers.
    pub(crate) fn ask_others(&self, upstreams: &[SocketAddr]) {
        self.forwarder.ask_others(upstreams);
    }

    /// The answer to a query, as bytes; `None`: what came is no query, and is dropped.
    async fn answer(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let started = Instant::now();
        let query = match Message::from_vec(bytes) {
            Ok(query) => query,
            Err(error) => {
                self.counters.count(Outcome::Malformed);
                tracing::debug!(%error, "a DNS query cannot be read");
                return malformed(bytes);
            }
        };
        if query.metadata.message_type != MessageType::Query {
            self.counters.count(Outcome::Malformed);
            return None;
        }
        let (mut response, outcome) = self.respond(&query).await;
        self.counters.count(outcome);
        if let Some(question) = query.queries.first() {
            tracing::debug!(
                name = %question.name(), ty = %question.query_type(), code = %response.metadata.response_code,
                outcome = outcome.as_str(), took = ?started.elapsed(), "DNS"
            );
        }
        frame(&query, &mut response);
        encode(&response, limit(&query, transport))
    }

    async fn respond(&self, query: &Message) -> (Message, Outcome) {
        let refuse = |code| (code_only(code), Outcome::Refused);
        if query.edns.as_ref().is_some_and(|edns| edns.version() > EDNS_VERSION) {
            return refuse(ResponseCode::BADVERS);
        }
        if query.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [question] = query.queries.as_slice() else {
            return (code_only(ResponseCode::FormErr), Outcome::Malformed);
        };
        if question.query_class() != DNSClass::IN
            || matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR)
        {
            return refuse(ResponseCode::Refused);
        }
        match self.mesh.answer(question).await {
            Verdict::Answer(answer) => (answer, Outcome::Mesh),
            Verdict::Unsure => (code_only(ResponseCode::ServFail), Outcome::Failed),
            Verdict::Elsewhere => self.forwarder.resolve(question, wants(query)).await,
        }
    }

    /// What there is to say in Prometheus' text.
    pub(crate) fn render_metrics(&self, out: &mut String) {
        self.counters.render(out);
        let (entries, bytes) = self.forwarder.size();
        let rows = [
            ("pontoon_dns_cache_entries", "Answers of upstreams that are kept.", entries),
            ("pontoon_dns_cache_bytes", "What they take.", bytes),
        ];
        for (name, help, value) in rows {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
    }

    /// Names with their addresses, and how the upstreams do, for an operator.
    pub(crate) fn describe(&self) -> String {
        let mut out = String::new();
        let (entries, bytes) = self.forwarder.size();
        for (address, failed) in self.forwarder.upstreams(Instant::now()) {
            let _ = match failed {
                None => writeln!(out, "upstream {address}"),
                Some(ago) => writeln!(out, "upstream {address}: failed {:.1} s ago", ago.as_secs_f64()),
            };
        }
        let _ = writeln!(out, "cache: {entries} answers, {bytes} bytes");
        for (name, address) in self.mesh.names() {
            let addresses: Vec<String> = address.addresses().map(|address| address.to_string()).collect();
            let _ = writeln!(out, "name {name}: {}", addresses.join(" "));
        }
        out
    }
}

impl Serving {
    /// Where it answers.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.at
    }

    /// Answers what has come, takes nothing more, and lets go of the sockets.
    pub async fn stop(mut self) {
        self.dns.stop.send_replace(true);
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Binds the sockets of addresses. Where `beside` another process that still serves, they are shared with it.
///
/// # Errors
/// When an address cannot be had; the message says which, and what to do.
pub fn bind(addresses: &[SocketAddr], beside: bool) -> anyhow::Result<Vec<Sockets>> {
    addresses.iter().map(|address| serve::bind(*address, beside)).collect()
}

/// What a client says beside its question, as far as it makes another answer.
fn wants(query: &Message) -> Wants {
    let dnssec = query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
    Wants { dnssec, unchecked: query.metadata.checking_disabled }
}

/// A response without records.
fn code_only(code: ResponseCode) -> Message {
    Message::error_msg(0, OpCode::Query, code)
}

/// Makes a response the response to a query: its id, its question, its flags, and EDNS if it has that.
fn frame(query: &Message, response: &mut Message) {
    let metadata = &mut response.metadata;
    metadata.id = query.metadata.id;
    metadata.op_code = query.metadata.op_code;
    metadata.message_type = MessageType::Response;
    metadata.recursion_desired = query.metadata.recursion_desired;
    metadata.recursion_available = true;
    metadata.checking_disabled = query.metadata.checking_disabled;
    // RFC 6840: only for those who ask.
    metadata.authentic_data &= query.metadata.authentic_data || wants(query).dnssec;
    metadata.truncation = false;
    response.queries.clone_from(&query.queries);
    response.edns = query.edns.as_ref().map(|asked| {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES).set_version(EDNS_VERSION);
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        edns
    });
    if response.edns.is_none() && response.metadata.response_code.high() > 0 {
        response.metadata.response_code = ResponseCode::ServFail;
    }
}

/// How long a response may be.
fn limit(query: &Message, transport: Transport) -> usize {
    match (transport, &query.edns) {
        (Transport::Tcp, _) => u16::MAX.into(),
        (Transport::Udp, None) => LEAST_UDP_BYTES.into(),
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(LEAST_UDP_BYTES, UDP_BYTES).into(),
    }
}

/// A response that is too long for the transport says so, and its client comes back by TCP. It has as many of the answers
/// as fit, for clients that do not come back (musl before 1.2.4).
fn encode(response: &Message, limit: usize) -> Option<Vec<u8>> {
    let encoded = match response.to_vec() {
        Ok(bytes) if bytes.len() <= limit => Ok(bytes),
        Ok(_) => truncated(response, limit),
        Err(error) => Err(error),
    };
    encoded.inspect_err(|error| tracing::debug!(%error, "a DNS response cannot be written")).ok()
}

fn truncated(response: &Message, limit: usize) -> Result<Vec<u8>, ProtoError> {
    let mut part = response.truncate();
    let mut bytes = part.to_vec()?;
    let (mut fit, mut most) = (0, response.answers.len());
    while fit < most {
        let count = (fit + most).div_ceil(2);
        part.answers = response.answers[..count].to_vec();
        let longer = part.to_vec()?;
        if longer.len() <= limit {
            (fit, bytes) = (count, longer);
        } else {
            most = count - 1;
        }
    }
    Ok(bytes)
}

/// FORMERR where there is a header to answer to; an answer to what may be an answer could go on for ever.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let [high, low, flags, ..] = bytes else { return None };
    if bytes.len() < 12 || flags & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([*high, *low]);
    Message::error_msg(id, OpCode::from_u8((flags >> 3) & 0x0f), ResponseCode::FormErr).to_vec().ok()
}

/// The key by which names are compared: in lower case, without the final dot. `None`: no name of a host.
fn plain(question: &Query) -> Option<String> {
    let name = question.name().to_lowercase().to_ascii();
    let name = name.strip_suffix('.').unwrap_or(&name);
    // A backslash escapes what no host's name has.
    (!name.is_empty() && !name.contains('\\')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests;
