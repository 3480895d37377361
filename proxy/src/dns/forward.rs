//! Names that are not the mesh's: from the cache, else from the upstreams in turn. Clients that ask the same at the
//! same time wait for one answer. An answer that has run out is told where no upstream has a newer one in time.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::cache::{Cache, Found, Key};
use super::metrics::{Counters, Outcome};
use super::upstreams::Upstreams;
use super::{Settings, code_only};

/// What crosses any network unfragmented (DNS flag day 2020).
const UDP_BYTES: u16 = 1_232;
/// Room for an upstream that sends more than it was asked to.
const UDP_ROOM: usize = 4_096;
/// For all upstreams together; a client asks again after 5 s.
const LONGEST: Duration = Duration::from_millis(4_500);
/// A client with an answer that has run out is not kept waiting for longer (RFC 8767).
const PATIENCE: Duration = Duration::from_millis(1_800);
/// Questions that upstreams are asked at a time.
const MOST_QUESTIONS: usize = 512;

/// What a client says beside its question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wants {
    /// DNSSEC records.
    pub(super) dnssec: bool,
    /// What was not checked.
    pub(super) unchecked: bool,
}

/// An upstream's answer; `None`: none of them has answered.
type Reply = Option<Arc<Message>>;

/// The way to the upstreams.
#[derive(Debug)]
pub(super) struct Forwarder {
    cache: Mutex<Cache>,
    upstreams: Mutex<Upstreams>,
    under_way: Mutex<HashMap<Key, watch::Receiver<Option<Reply>>>>,
    timeout: Duration,
    mark: Option<u32>,
    counters: Arc<Counters>,
}

impl Forwarder {
    pub(super) fn new(settings: &Settings, counters: Arc<Counters>) -> Self {
        Self {
            cache: Mutex::new(Cache::new(settings.cache_bytes, settings.max_stale)),
            upstreams: Mutex::new(Upstreams::new(&settings.upstreams)),
            under_way: Mutex::default(),
            timeout: settings.timeout,
            mark: settings.mark,
            counters,
        }
    }

    /// Entries and bytes of the cache.
    pub(super) fn size(&self) -> (usize, usize) {
        lock(&self.cache).size()
    }

    /// Each upstream, and how long ago it failed, where it did the last time.
    pub(super) fn upstreams(&self, now: Instant) -> Vec<(SocketAddr, Option<Duration>)> {
        lock(&self.upstreams).states(now)
    }

    /// Asks others from now on.
    pub(super) fn ask_others(&self, addresses: &[SocketAddr]) {
        lock(&self.upstreams).replace(addresses);
    }

    /// The answer to a question.
    pub(super) async fn resolve(self: &Arc<Self>, question: &Query, wants: Wants) -> (Message, Outcome) {
        let key = Key::new(question, wants.dnssec, wants.unchecked);
        let found = lock(&self.cache).get(&key, Instant::now());
        let stale = match found {
            Found::Fresh(answer) => return (answer, Outcome::Cached),
            Found::Stale { answer, ask: false } => return (answer, Outcome::Stale),
            Found::Stale { answer, ask: true } => Some(answer),
            Found::Nothing => None,
        };
        let Some(mut reply) = self.ask(key, question, wants) else {
            return failed(stale);
        };
        let longest = if stale.is_some() { PATIENCE } else { LONGEST + self.timeout };
        let reply = match timeout(longest, reply.wait_for(Option::is_some)).await {
            Ok(Ok(reply)) => reply.clone().flatten(),
            Ok(Err(_)) | Err(_) => None,
        };
        match (reply, stale) {
            (Some(answer), Some(stale)) if is_failure(&answer) => (stale, Outcome::Stale),
            (Some(answer), _) => (Message::clone(&answer), Outcome::Forwarded),
            (None, stale) => failed(stale),
        }
    }

    /// Asks the upstreams, unless they are being asked the same. The question goes on although nobody waits for the
    /// answer any more: the next will find it. `None`: too many questions.
    fn ask(
        self: &Arc<Self>,
        key: Key,
        question: &Query,
        wants: Wants,
    ) -> Option<watch::Receiver<Option<Reply>>> {
        let mut under_way = lock(&self.under_way);
        if let Some(reply) = under_way.get(&key) {
            return Some(reply.clone());
        }
        if under_way.len() >= MOST_QUESTIONS {
            return None;
        }
        let (sender, reply) = watch::channel(None);
        under_way.insert(key.clone(), reply.clone());
        let forwarder = self.clone();
        let question = question.clone();
        tokio::spawn(async move {
            let reply = timeout(LONGEST, forwarder.ask_in_turn(&question, wants)).await.ok().flatten();
            let now = Instant::now();
            match &reply {
                Some(answer) if !is_failure(answer) => {
                    lock(&forwarder.cache).put(key.clone(), answer, now);
                }
                _ => lock(&forwarder.cache).not_renewed(&key, now),
            }
            lock(&forwarder.under_way).remove(&key);
            // Whoever waited may have gone.
            let _ = sender.send(Some(reply.map(Arc::new)));
        });
        Some(reply)
    }

    /// The first answer that says something; else the first that says why not.
    async fn ask_in_turn(&self, question: &Query, wants: Wants) -> Option<Message> {
        let order = lock(&self.upstreams).order(Instant::now());
        let mut refusal = None;
        for upstream in order {
            let asked = timeout(self.timeout, exchange(upstream, self.mark, question, wants)).await;
            let answer = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            let is_good = answer.as_ref().is_ok_and(|answer| !is_failure(answer));
            // One that says that it cannot answer is there: others may still be better for other names.
            lock(&self.upstreams).note(upstream, answer.is_ok(), Instant::now());
            if !is_good {
                self.counters.upstream_failed();
            }
            match answer {
                Ok(answer) if is_good => return Some(answer),
                Ok(answer) => {
                    tracing::debug!(%upstream, code = %answer.metadata.response_code, "a DNS upstream cannot answer");
                    refusal.get_or_insert(answer);
                }
                Err(error) => tracing::debug!(%upstream, %error, "a DNS upstream does not answer"),
            }
        }
        refusal
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says nothing about the name.
fn is_failure(answer: &Message) -> bool {
    !matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

fn failed(stale: Option<Message>) -> (Message, Outcome) {
    match stale {
        Some(answer) => (answer, Outcome::Stale),
        None => (code_only(ResponseCode::ServFail), Outcome::Failed),
    }
}

/// One question to one upstream: by UDP, and by TCP where the answer is too long for that.
async fn exchange(
    upstream: SocketAddr,
    mark: Option<u32>,
    question: &Query,
    wants: Wants,
) -> io::Result<Message> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.metadata.checking_disabled = wants.unchecked;
    // RFC 6840: so that it says whether it has checked.
    query.metadata.authentic_data = true;
    query.add_query(question.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES).set_dnssec_ok(wants.dnssec);
    query.set_edns(edns);
    let mut answer = by_udp(upstream, mark, &query).await?;
    if answer.metadata.response_code == ResponseCode::FormErr && answer.edns.is_none() {
        // From before EDNS (RFC 6891, 7).
        query.edns = None;
        answer = by_udp(upstream, mark, &query).await?;
    }
    if answer.metadata.truncation {
        answer = by_tcp(upstream, mark, &query).await?;
    }
    Ok(answer)
}

async fn by_udp(upstream: SocketAddr, mark: Option<u32>, query: &Message) -> io::Result<Message> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A socket a question: the kernel's choice of port is half of what a forger has to guess.
    let socket = UdpSocket::bind(any).await?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(upstream).await?;
    socket.send(&encoded(query)?).await?;
    let mut buffer = vec![0; UDP_ROOM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let received = buffer.get(..length).unwrap_or_default();
        // What does not belong to the question is passed over: another answer may still come.
        if let Some(answer) = Message::from_vec(received).ok().filter(|answer| belongs(query, answer)) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(upstream: SocketAddr, mark: Option<u32>, query: &Message) -> io::Result<Message> {
    let socket = if upstream.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    let mut stream = socket.connect(upstream).await?;
    let bytes = encoded(query)?;
    let length = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat()).await?;
    let mut buffer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(io::Error::other)?;
    if !belongs(query, &answer) {
        return Err(io::Error::other("it answers another question"));
    }
    Ok(answer)
}

fn encoded(query: &Message) -> io::Result<Vec<u8>> {
    query.to_vec().map_err(io::Error::other)
}

/// Whether an answer is that to a query. A server that did not understand the question need not repeat it.
fn belongs(query: &Message, answer: &Message) -> bool {
    let metadata = &answer.metadata;
    let not_understood = matches!(metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp);
    let same_question = answer.queries == query.queries || (not_understood && answer.queries.is_empty());
    metadata.id == query.metadata.id && metadata.message_type == MessageType::Response && same_question
}
