//! An xDS server, over ADS and over a stream a type. Views (groups of clients that should have the same resources) are published as snapshots;
//! every stream is brought to the newest snapshot of its view, and what it acknowledged is kept for all to
//! see. Bookkeeping is in [`stream`], without I/O; `service` feeds it.

mod away;
mod connections;
mod frames;
mod service;
mod shares;
mod status;
pub mod stream;
mod views;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::service::Routes;

use crate::pb::envoy::config::core::v3::Node;
use crate::resource::ResourceType;
use crate::snapshot::Snapshot;

use away::{Away, Left};
use connections::network;
pub use connections::{Connection, Limits, Peer, within};
use shares::Shares;
pub use status::{Acknowledged, Client, Nack, NodeStatus, Refusal, Standing, TypeStatus};
use stream::Stream;
pub use views::StandIn;
use views::Views;

/// Who opens a stream.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'c> {
    /// Who it says that it is.
    pub node: &'c Node,
    /// Where it comes from; `None` where the transport does not tell.
    pub address: Option<IpAddr>,
}

/// Which view a client belongs to; the error is told to the client with `PERMISSION_DENIED`.
pub type ViewOf = dyn Fn(&Caller<'_>) -> Result<String, String> + Send + Sync;

/// How a server behaves.
#[derive(Clone)]
pub struct Options {
    /// Chooses a client's view.
    pub view_of: Arc<ViewOf>,
    /// Names the view that stands in for one that nobody published. Default: none does.
    pub stand_in: StandIn,
    /// Names that one stream may subscribe to, per type. Above: `RESOURCE_EXHAUSTED`. Default 100,000.
    pub max_names: usize,
    /// Resources of one response together, if they may be split over several (all but the state of the world
    /// of clusters and listeners); a larger one travels alone. Default 256 KiB: gRPC's clients take 4 MiB by default, and
    /// tonic's keep, for as long as a stream lives, a buffer of twice its longest message.
    pub max_response_bytes: usize,
    /// Streams at once. Above, one from an address (an IPv6 /64) that has fewer than another takes the place of that one's
    /// newest; else: `RESOURCE_EXHAUSTED`. Default 10,000.
    pub max_streams: usize,
    /// How long listeners and routes wait for a client to answer what it does not have yet of clusters and endpoints, and
    /// removals for its answers to everything, before they are sent all the same. Default 5 s. Each answer to a part of
    /// what is new gives as much again, up to twelve times that in all.
    pub order_timeout: Duration,
    /// How long a client whose stream broke off is expected back. Default 30 s: our own client tries at least
    /// every 10 s.
    pub expected_back: Duration,
}

impl Options {
    /// The defaults, with this choice of view by what a client says of itself.
    pub fn new(view_of: impl Fn(&Node) -> Result<String, String> + Send + Sync + 'static) -> Options {
        Options::by_caller(move |caller| view_of(caller.node))
    }

    /// The same, by where it comes from too.
    pub fn by_caller(
        view_of: impl Fn(&Caller<'_>) -> Result<String, String> + Send + Sync + 'static,
    ) -> Options {
        Options {
            view_of: Arc::new(view_of),
            stand_in: |_| None,
            max_names: 100_000,
            max_response_bytes: 256 * 1024,
            max_streams: 10_000,
            order_timeout: Duration::from_secs(5),
            expected_back: Duration::from_secs(30),
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("max_names", &self.max_names)
            .field("max_response_bytes", &self.max_response_bytes)
            .field("max_streams", &self.max_streams)
            .field("order_timeout", &self.order_timeout)
            .finish_non_exhaustive()
    }
}

/// The server's shared part. Clones are the same server.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    views: Views,
    streams: Mutex<Streams>,
    changes: watch::Sender<u64>,
    members: watch::Sender<u64>,
    dismissed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Streams {
    next_id: u64,
    open: HashMap<u64, Open>,
    shares: Shares<u64>,
    away: Away,
    /// Those who were given up, each with when.
    lost: BTreeMap<Client, Instant>,
}

/// An open stream.
#[derive(Debug, Clone)]
struct Open {
    id: u64,
    stream: Arc<Mutex<Stream>>,
    address: IpAddr,
    /// Another has its place.
    replaced: Arc<Notify>,
}

/// How long one that was given up is named for it. It may have gone for good, without a word.
const NAMED_LOST: Duration = Duration::from_secs(600);

impl Server {
    /// A server without views: clients wait until theirs is published.
    pub fn new(options: Options) -> Server {
        let shared = Shared {
            views: Views::new(options.stand_in),
            options,
            streams: Mutex::default(),
            changes: watch::Sender::new(0),
            members: watch::Sender::new(0),
            dismissed: watch::Sender::new(0),
        };
        Server { shared: Arc::new(shared) }
    }

    /// Makes `snapshot` what the clients of `view` should have. One that nothing was changed in wakes nobody.
    pub fn publish(&self, view: &str, snapshot: Snapshot) {
        self.shared.views.set(view, Some(&snapshot));
    }

    /// Forgets a view. Its clients get what stands in for it; else they keep what they have and wait for it to be
    /// published again.
    pub fn remove_view(&self, view: &str) {
        self.shared.views.set(view, None);
    }

    /// What the clients of `view` should have.
    pub fn snapshot(&self, view: &str) -> Option<Snapshot> {
        self.shared.views.get(view)
    }

    /// The gRPC services: ADS, and one for each type. Serve them with [`crate::server::grpc_server`], whose limits
    /// they rely on.
    pub fn routes(&self) -> Routes {
        service::routes(self.clone())
    }

    /// Every connected client that has said who it is.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        let mut nodes: Vec<NodeStatus> =
            self.streams().iter().filter_map(|stream| lock(stream).status()).collect();
        nodes.sort_by(|a, b| a.id.cmp(&b.id).then(a.connected_at.cmp(&b.connected_at)));
        nodes
    }

    /// Which connected clients of `view` that subscribe to a resource have acknowledged this version of it.
    pub fn acknowledged(&self, view: &str, ty: ResourceType, name: &str, version: &str) -> Acknowledged {
        let mut answer = Acknowledged::default();
        let open = self.streams();
        for stream in &open {
            lock(stream).tell_acknowledged(view, ty, name, version, &mut answer);
        }
        answer.away = lock(&self.shared.streams).away.of_resource(view, ty, name, &open);
        answer
    }

    /// How far this version of a resource has come among the clients of `view`. Cheaper than
    /// [`Server::acknowledged`]: it looks no further than to the first that lacks it.
    pub fn standing(&self, view: &str, ty: ResourceType, name: &str, version: &str) -> Standing {
        let open = self.streams();
        let mut has_any = false;
        for stream in &open {
            match lock(stream).has_version(view, ty, name, version) {
                Some(true) => has_any = true,
                Some(false) => return Standing::Waiting,
                None => {}
            }
        }
        if !lock(&self.shared.streams).away.of_resource(view, ty, name, &open).is_empty() {
            Standing::Waiting
        } else if has_any {
            Standing::Everybody
        } else {
            Standing::Nobody
        }
    }

    /// What connected clients last said against resources, as far as it stands: of one view, or of all. By node.
    pub fn refusals(&self, view: Option<&str>) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for stream in &self.streams() {
            let stream = lock(stream);
            let client = stream.client().filter(|client| view.is_none_or(|view| client.view == view));
            refusals.extend(client.into_iter().flat_map(|client| stream.refusals(client)));
        }
        refusals
            .sort_by(|a: &Refusal, b| (&a.client.node, a.ty.index()).cmp(&(&b.client.node, b.ty.index())));
        refusals
    }

    /// Whether any client is connected that has said who it is.
    pub fn has_clients(&self) -> bool {
        self.streams().iter().any(|stream| lock(stream).client().is_some())
    }

    /// Expects clients that an earlier server knew, as if their streams had broken off now.
    pub fn expect(&self, clients: impl IntoIterator<Item = Client>) {
        let Options { max_streams, expected_back, .. } = self.shared.options;
        let until = Instant::now() + expected_back;
        let mut streams = lock(&self.shared.streams);
        for client in clients {
            streams.away.expect((client, None), None, until, max_streams);
        }
    }

    /// Expects clients back no more: they have gone, as is known from elsewhere. Those that are connected stay.
    pub fn forget(&self, clients: &BTreeSet<Client>) {
        let has_forgotten = {
            let mut streams = lock(&self.shared.streams);
            streams.lost.retain(|client, _| !clients.contains(client));
            streams.away.forget_clients(clients)
        };
        if has_forgotten {
            self.bump_members();
        }
    }

    /// Nodes of `view` that stayed away for too long, lately, and have not come back.
    pub fn lost(&self, view: &str) -> Vec<String> {
        let lost: BTreeSet<Client> = {
            let now = Instant::now();
            let streams = lock(&self.shared.streams);
            let of_view = |(client, at): &(&Client, &Instant)| client.view == view && now < **at + NAMED_LOST;
            streams.lost.iter().filter(of_view).map(|(client, _)| client.clone()).collect()
        };
        if lost.is_empty() {
            return Vec::new();
        }
        let open = self.streams();
        let back: HashSet<Client> = open.iter().filter_map(|stream| lock(stream).client().cloned()).collect();
        lost.into_iter().filter(|client| !back.contains(client)).map(|client| client.node).collect()
    }

    /// The connected clients and those that are expected back.
    pub fn known(&self) -> BTreeSet<Client> {
        let open = self.streams();
        let mut known: BTreeSet<Client> =
            open.iter().filter_map(|stream| lock(stream).client().cloned()).collect();
        known.extend(lock(&self.shared.streams).away.clients().cloned());
        known
    }

    /// Those of [`Server::known`] that follow resources of this type, and those of whom it is not known whether they do.
    pub fn following(&self, ty: ResourceType) -> BTreeSet<Client> {
        let open = self.streams();
        let mut following = BTreeSet::new();
        for stream in &open {
            let stream = lock(stream);
            following.extend(stream.client().filter(|_| stream.follows_any(ty)).cloned());
        }
        following.extend(lock(&self.shared.streams).away.following(ty).cloned());
        following
    }

    /// When [`Server::give_up`] should be called next.
    pub fn overdue_at(&self) -> Option<Instant> {
        lock(&self.shared.streams).away.deadline()
    }

    /// Stops expecting those who have stayed away for too long, and gives them.
    pub fn give_up(&self) -> Vec<Client> {
        let now = Instant::now();
        let mut given_up = lock(&self.shared.streams).away.give_up(now);
        if !given_up.is_empty() {
            let open = self.streams();
            let is_back = |client: &Client| open.iter().any(|stream| lock(stream).client() == Some(client));
            given_up.retain(|client| !is_back(client));
            {
                let mut streams = lock(&self.shared.streams);
                streams.lost.retain(|_, at| now < *at + NAMED_LOST);
                let room = self.shared.options.max_streams.saturating_sub(streams.lost.len());
                streams.lost.extend(given_up.iter().take(room).map(|client| (client.clone(), now)));
            }
            self.bump_members();
        }
        given_up.into_iter().collect()
    }

    /// Changes whenever [`Server::known`] or [`Server::overdue_at`] may.
    pub fn members(&self) -> watch::Receiver<u64> {
        self.shared.members.subscribe()
    }

    /// Changes with every connect, disconnect, ACK and NACK.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Ends all streams, with the word that another server is to be asked.
    pub fn dismiss(&self) {
        self.shared.dismissed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn streams(&self) -> Vec<Arc<Mutex<Stream>>> {
        lock(&self.shared.streams).open.values().map(|open| open.stream.clone()).collect()
    }

    /// `None`: there is no place for it.
    fn open(&self, stream: Stream, address: Option<IpAddr>) -> Option<Open> {
        // Where the transport does not tell, all are one.
        let address = address.map_or(Ipv4Addr::UNSPECIFIED.into(), network);
        let mut streams = lock(&self.shared.streams);
        let replaced = if streams.open.len() >= self.shared.options.max_streams {
            Some(streams.shares.make_room(Some(address))?)
        } else {
            None
        };
        let id = streams.next_id;
        streams.next_id += 1;
        let stream = Arc::new(Mutex::new(stream));
        let open = Open { id, stream, address, replaced: Arc::default() };
        streams.shares.add(address, id);
        streams.open.insert(id, open.clone());
        drop(streams);
        if let Some(replaced) = replaced {
            self.close(replaced, false);
        }
        Some(open)
    }

    /// `left`: the client ended it, and is not expected back.
    fn close(&self, id: u64, left: bool) {
        {
            let mut streams = lock(&self.shared.streams);
            // Where another has its place that was done then.
            let Some(Open { stream, address, replaced, .. }) = streams.open.remove(&id) else { return };
            streams.shares.remove(address, &id);
            replaced.notify_one();
            let end = lock(&stream).end();
            if let Some(end) = end {
                streams.lost.remove(&end.0);
                if left {
                    streams.away.forget(&end);
                } else {
                    let Options { max_streams, expected_back, .. } = self.shared.options;
                    let until = Instant::now() + expected_back;
                    streams.away.expect(end, Some(Left { stream, address }), until, max_streams);
                }
            }
        }
        self.bump_members();
    }

    fn bump_members(&self) {
        self.shared.members.send_modify(|n| *n = n.wrapping_add(1));
        self.bump();
    }

    fn bump(&self) {
        self.shared.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
}

/// Locks for a moment; nobody holds one of these over an await, and a panic elsewhere does not matter here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A tonic server with the limits that [`Server::routes`] relies on. tonic by itself sets no limit on
/// concurrent streams.
pub fn grpc_server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// The connections of such a server, within the default [`Limits`].
pub fn incoming(
    listener: TcpListener,
) -> impl futures_util::Stream<Item = std::io::Result<Connection>> + Send {
    connections::within(listener, Limits::default())
}

/// A client needs one, and one more for what else it reports; each may hold a whole request.
const MAX_CONCURRENT_STREAMS: u32 = 10;
/// Requests are small but for the first after a break.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bounds, with the header list, how many CONTINUATION frames a head may have.
const MAX_FRAME: u32 = 16 * 1024;
/// Envoy sends under 1 KiB.
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// h2's own default, made explicit (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
/// Streams that a client's errors make us reset (CVE-2025-8671); hyper's default is ten times as many.
const MAX_LOCAL_RESETS: usize = 100;
/// A client that is gone without a word is noticed after interval and timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::variant::Variant;

    #[test]
    fn one_address_does_not_keep_others_from_streams() {
        let options = Options { max_streams: 10, ..Options::new(|_| Ok("edge".to_owned())) };
        let server = Server::new(options);
        let open = |last: u8| {
            let stream = Stream::new(Variant::Delta, None, &server.shared.options);
            server.open(stream, Some(IpAddr::from([10, 0, 0, last])))
        };
        let many: Vec<Open> = (0..10).filter_map(|_| open(1)).collect();
        assert_eq!(many.len(), 10, "there is room");
        assert!(open(1).is_none());
        let node = Node { id: "edge-1".into(), ..Node::default() };
        lock(&many[9].stream).identify(&node, "edge");
        let other = open(2).unwrap();
        let is_replaced = |one: usize| many[one].replaced.notified().now_or_never().is_some();
        assert!(is_replaced(9) && !is_replaced(8));
        assert_eq!(server.known().len(), 1, "it serves what it had, and is expected back");
        assert_eq!((0..9).filter_map(|_| open(2)).count(), 4, "five and five");
        // That it ended is told twice; its place is another's.
        server.close(many[9].id, true);
        assert_eq!(server.streams().len(), 10);
        server.close(other.id, true);
        assert!(open(1).is_some());
    }
}
