//! Names on demand, as the request path has them: a lookup without a lock for a name that is known, and a bounded
//! wait for one that is not. A name that nobody serves is remembered as such; what is kept of names is bounded by
//! [`Limits`], whatever hosts clients ask for.
//!
//! DNS asks here too, for the virtual address of a name; and who has a connection to such an address finds the
//! name's routes by it, also where only the control plane still knows whose it is: it has a listener of that name. So
//! does who has a connection to `IP:PORT`, where a Kubernetes Service has routes of its own there.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use pontoon_xds::client::Status;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::naming::Naming;
use crate::config::listener::RouteHandle;
use crate::config::virtual_address::VirtualAddress;
use crate::error::Error;
use crate::route::RouteTable;

/// No DNS name is longer.
const MAX_NAME_BYTES: usize = 253;
/// The port of a host that names none, in plain HTTP.
const HTTP: u16 = 80;
/// For the control plane to say whether a destination is a Service's with routes. Nearly all are not, and requests to them
/// wait for that alone.
const LONGEST: Duration = Duration::from_secs(1);

/// What names may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Names that are kept at a time, those included that nobody serves. Default 1,024.
    pub max_names: usize,
    /// Requests that wait for a name at a time. Default 1,024.
    pub max_waiting: usize,
    /// How long a request waits. Default 5 s, in which a control plane restarts.
    pub resolve: Duration,
    /// A name without a request for so long is dropped. Default 10 min.
    pub idle: Duration,
    /// The same for a name that nobody serves. Default 30 s.
    pub absent: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_names: 1_024,
            max_waiting: 1_024,
            resolve: Duration::from_secs(5),
            idle: Duration::from_secs(600),
            absent: Duration::from_secs(30),
        }
    }
}

/// The names of a sidecar, shared by its workers.
#[derive(Debug)]
pub struct OnDemand {
    known: ArcSwap<Known>,
    asks: mpsc::Sender<Ask>,
    waiting: AtomicUsize,
    /// The control plane says so where there is no name, as far as is known. Not each does, and none in the state of the
    /// world.
    tells_absence: AtomicBool,
    epoch: Instant,
    limits: Limits,
    naming: Naming,
    status: watch::Receiver<Status>,
}

/// What is known of names at one moment.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: HashMap<Arc<str>, Arc<Name>>,
    addresses: HashMap<IpAddr, Arc<Name>>,
    destinations: HashMap<SocketAddr, Arc<Name>>,
}

/// What a name resolves to; `None` is a service without an address.
pub(crate) type Resolved = Result<Option<Arc<VirtualAddress>>, Error>;

/// A name whose state is known.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) state: State,
    /// What it resolves to.
    pub(super) address: Option<Arc<VirtualAddress>>,
    /// The second of the last request, on [`OnDemand`]'s clock.
    used: AtomicU32,
}

/// What is known of a name.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// It has routes.
    Routes(Arc<RouteHandle>),
    /// It exists, and its routes are on their way.
    Arriving,
    /// It has none, and this is why.
    None(Error),
}

/// A request that waits for a name.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) name: Arc<str>,
    pub(super) reply: Reply,
}

type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// What is wanted of a name, and where the answer goes.
#[derive(Debug)]
pub(super) enum Reply {
    /// Its routes.
    Table(Answer<Arc<RouteTable>>),
    /// What it resolves to; `None`: to nothing.
    Address(Answer<Option<Arc<VirtualAddress>>>),
}

impl Reply {
    /// Whoever asked may have gone.
    pub(super) fn answer(self, name: &Name) {
        match self {
            Reply::Table(reply) => drop(reply.send(match &name.state {
                State::Routes(handle) => handle.table.load_full().ok_or(Error::NameTimeout),
                State::Arriving => Err(Error::NameTimeout),
                State::None(error) => Err(*error),
            })),
            Reply::Address(reply) => drop(reply.send(match name.state {
                State::Routes(_) | State::Arriving => Ok(name.address.clone()),
                State::None(error) => Err(error),
            })),
        }
    }

    pub(super) fn refuse(self, error: Error) {
        match self {
            Reply::Table(reply) => drop(reply.send(Err(error))),
            Reply::Address(reply) => drop(reply.send(Err(error))),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        match self {
            Reply::Table(reply) => reply.is_closed(),
            Reply::Address(reply) => reply.is_closed(),
        }
    }
}

impl Known {
    pub(super) fn new(names: HashMap<Arc<str>, Arc<Name>>) -> Self {
        let mut addresses: HashMap<IpAddr, Arc<Name>> = HashMap::new();
        for (key, name) in &names {
            for address in name.address.iter().flat_map(|address| address.addresses()) {
                // Of a service's names the first, where it is here: what does not depend on a map's order.
                let first = name.address.as_ref().is_some_and(|address| address.name == *key);
                if first || !addresses.contains_key(&address) {
                    addresses.insert(address, name.clone());
                }
            }
        }
        let destination = |(key, name): (&Arc<str>, &Arc<Name>)| Some((key.parse().ok()?, name.clone()));
        let destinations = names.iter().filter_map(destination).collect();
        Self { names, addresses, destinations }
    }
}

impl OnDemand {
    pub(super) fn new(
        limits: Limits,
        naming: Naming,
        status: watch::Receiver<Status>,
    ) -> (Arc<Self>, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(limits.max_waiting.max(1));
        let names = Self {
            known: ArcSwap::default(),
            asks,
            waiting: AtomicUsize::new(0),
            tells_absence: AtomicBool::new(true),
            epoch: Instant::now(),
            limits,
            naming,
            status,
        };
        (Arc::new(names), asked)
    }

    /// The routes of `host`, as a request has it. Waits where the name is new.
    ///
    /// # Errors
    /// When nobody serves the name, when the answer takes too long, or when there are too many names or requests
    /// that wait.
    pub(crate) async fn table(&self, host: &str, now: Instant) -> Result<Arc<RouteTable>, Error> {
        let Some(name) = canonical(host) else {
            return match address(host) {
                Some(address) if self.is_virtual(address) => self.table_at(address, now).await,
                _ => Err(Error::UnknownName),
            };
        };
        let name = self.naming.within_zone(&name);
        let found = self.table_of(name, now).await;
        if matches!(found, Err(Error::UnknownName))
            && let Some(short) = self.naming.unsearched(name)
        {
            // As DNS answers it: the name with a search domain after it.
            return self.table_of(short, now).await;
        }
        found
    }

    /// The routes of the service that has a virtual address.
    ///
    /// # Errors
    /// As [`table`](Self::table).
    pub(crate) async fn table_at(&self, address: IpAddr, now: Instant) -> Result<Arc<RouteTable>, Error> {
        if let Some(found) = self.known.load().addresses.get(&address)
            && let Some(answer) = self.ready(found, now)
        {
            return answer;
        }
        // The control plane has a listener of that name.
        self.table_of(&address.to_string(), now).await
    }

    /// The routes of the Service's port that a connection was going to.
    ///
    /// # Errors
    /// As [`table`](Self::table).
    pub(crate) async fn table_to(
        &self,
        destination: SocketAddr,
        now: Instant,
    ) -> Result<Arc<RouteTable>, Error> {
        if let Some(found) = self.known.load().destinations.get(&destination)
            && let Some(answer) = self.ready(found, now)
        {
            return answer;
        }
        Box::pin(self.ask_whose(destination)).await
    }

    /// Asks for a destination that is not known; but not a control plane that does not say where there is none.
    async fn ask_whose(&self, destination: SocketAddr) -> Result<Arc<RouteTable>, Error> {
        if !self.tells_absence.load(Relaxed) {
            return Err(Error::NameTimeout);
        }
        let found = self.wait(destination.to_string().into(), LONGEST, Reply::Table).await;
        if matches!(found, Err(Error::NameTimeout)) && self.is_connected() {
            self.tells_absence.store(false, Relaxed);
        }
        found
    }

    /// The routes of the Service's port that a host with a port means, where it is not known where a request was going.
    ///
    /// # Errors
    /// As [`table`](Self::table).
    pub(crate) async fn table_of_port(&self, host: &str, now: Instant) -> Result<Arc<RouteTable>, Error> {
        let port = host.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(HTTP);
        match (canonical(host), address(host)) {
            (Some(name), _) => {
                self.table_of(&format!("{}:{port}", self.naming.within_zone(&name)), now).await
            }
            (None, Some(address)) => self.table_to(SocketAddr::new(address, port), now).await,
            (None, None) => Err(Error::UnknownName),
        }
    }

    /// Whether an address is one of the range that services have theirs from.
    pub(crate) fn is_virtual(&self, address: IpAddr) -> bool {
        self.naming.is_virtual(address)
    }

    /// The name of the service that has a virtual address, where it is known here.
    pub(crate) fn name_of(&self, address: IpAddr) -> Option<Arc<str>> {
        let known = self.known.load();
        let virtual_address = known.addresses.get(&address)?.address.as_ref()?;
        Some(virtual_address.name.clone())
    }

    /// How names are written here.
    pub(crate) fn naming(&self) -> &Naming {
        &self.naming
    }

    /// The names that are known to exist, with what they resolve to.
    pub(crate) fn addresses(&self) -> Vec<(Arc<str>, Arc<VirtualAddress>)> {
        let known = self.known.load();
        let all = known.names.iter();
        let mut all: Vec<_> =
            all.filter_map(|(key, name)| Some((key.clone(), name.address.clone()?))).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// What a name resolves to, as far as it is known here; `None`: it is not.
    pub(crate) fn known_address(&self, name: &str, now: Instant) -> Option<Resolved> {
        let known = self.known.load();
        let found = known.names.get(name)?;
        found.use_at(self.second(now));
        match found.state {
            State::Routes(_) | State::Arriving => Some(Ok(found.address.clone())),
            State::None(error) => Some(Err(error)),
        }
    }

    /// What a name resolves to: `None` is a service without an address. Waits where the name is new, but not longer
    /// than `longest`. The name is one to subscribe to: without final dot, in lower case.
    ///
    /// # Errors
    /// As [`table`](Self::table).
    pub(crate) async fn address(&self, name: &str, now: Instant, longest: Duration) -> Resolved {
        if let Some(known) = self.known_address(name, now) {
            return known;
        }
        self.wait(name.into(), longest.min(self.limits.resolve), Reply::Address).await
    }

    async fn table_of(&self, name: &str, now: Instant) -> Result<Arc<RouteTable>, Error> {
        if let Some(found) = self.known.load().names.get(name)
            && let Some(answer) = self.ready(found, now)
        {
            return answer;
        }
        // Boxed, so that a request for a known name carries none of it.
        Box::pin(self.wait(name.into(), self.limits.resolve, Reply::Table)).await
    }

    /// What can be said of a name without a wait.
    fn ready(&self, found: &Name, now: Instant) -> Option<Result<Arc<RouteTable>, Error>> {
        found.use_at(self.second(now));
        match &found.state {
            State::Routes(handle) => handle.table.load_full().map(Ok),
            State::Arriving => None,
            State::None(error) => Some(Err(*error)),
        }
    }

    async fn wait<T>(
        &self,
        name: Arc<str>,
        longest: Duration,
        reply: impl FnOnce(Answer<T>) -> Reply,
    ) -> Result<T, Error> {
        let _waiting = Waiting::begin(self)?;
        let (sender, answer) = oneshot::channel();
        self.asks.try_send(Ask { name, reply: reply(sender) }).map_err(|_| Error::TooManyNames)?;
        match tokio::time::timeout(longest.min(self.patience()), answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Error::NameTimeout),
        }
    }

    /// Whether there is a control plane.
    pub(super) fn is_connected(&self) -> bool {
        self.status.borrow().connected
    }

    /// How long a control plane is waited for: no longer than it takes to come back from a restart, counted from when it
    /// went. One that stays away must not slow down each request for a name that is not known.
    fn patience(&self) -> Duration {
        let status = self.status.borrow();
        let away = if status.connected { Duration::ZERO } else { status.since.elapsed().unwrap_or_default() };
        self.limits.resolve.saturating_sub(away)
    }

    /// The control plane has said that a name does not exist.
    pub(super) fn told_absence(&self) {
        self.tells_absence.store(true, Relaxed);
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// The second that `now` is in.
    pub(super) fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.epoch).as_secs()).unwrap_or(u32::MAX)
    }

    pub(super) fn put(&self, known: Known) {
        self.known.store(Arc::new(known));
    }
}

impl Name {
    pub(super) fn new(state: State, address: Option<Arc<VirtualAddress>>, second: u32) -> Arc<Self> {
        Arc::new(Self { state, address, used: AtomicU32::new(second) })
    }

    pub(super) fn used(&self) -> u32 {
        self.used.load(Relaxed)
    }

    /// Written once a second at most, so that workers do not fight for the cache line.
    fn use_at(&self, second: u32) {
        if self.used.load(Relaxed) != second {
            self.used.store(second, Relaxed);
        }
    }
}

/// One of the requests that wait.
struct Waiting<'d>(&'d OnDemand);

impl<'d> Waiting<'d> {
    fn begin(names: &'d OnDemand) -> Result<Self, Error> {
        let waiting = Self(names);
        // Counted first, so that dropping it always takes one off.
        if names.waiting.fetch_add(1, Relaxed) >= names.limits.max_waiting {
            return Err(Error::TooManyNames);
        }
        Ok(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// A host as a name to subscribe to: without port and final dot, in lower case. `None` is no name: an address,
/// or longer than any.
fn canonical(host: &str) -> Option<Cow<'_, str>> {
    if host.starts_with('[') {
        return None;
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.parse::<std::net::Ipv4Addr>().is_ok() {
        return None;
    }
    Some(if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    })
}

/// A host that is an address, with or without a port.
fn address(host: &str) -> Option<IpAddr> {
    if let Some(bracketed) = host.strip_prefix('[') {
        return bracketed.split_once(']').and_then(|(address, _)| address.parse().ok().map(IpAddr::V6));
    }
    host.split_once(':').map_or(host, |(address, _)| address).parse().ok().map(IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_without_port_dot_and_case() {
        for (host, name) in [
            ("orders", Some("orders")),
            ("Orders:8080", Some("orders")),
            ("orders.default.svc.cluster.local.", Some("orders.default.svc.cluster.local")),
            ("10.0.0.1:80", None),
            ("[::1]:80", None),
            ("", None),
        ] {
            assert_eq!(canonical(host).as_deref(), name, "{host}");
        }
        assert_eq!(canonical(&"a".repeat(254)), None);
        assert_eq!(address("10.0.0.1:80"), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(address("[fd00::1]:80"), Some("fd00::1".parse().unwrap()));
        assert_eq!(address("orders:80"), None);
    }
}
