//! What a worker keeps for each filter chain of a listener: its settings, with the logs that they name opened.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderValue;

use crate::config::chains::{Chain, Chains, Serves};
use crate::config::listener::{AccessLog, HttpSettings, TcpSettings};
use crate::telemetry::access_log::{Entry, Sink};
use crate::worker::local::Worker;

/// When a chain without HTTP goes with its listener: connections cannot be told to come to an end. Envoy's default
/// for the drain time.
const TCP_DRAIN: Duration = Duration::from_secs(600);

/// A chain's settings as this worker uses them.
pub(crate) struct Settings {
    pub(crate) http: Arc<HttpSettings>,
    pub(crate) logs: Logs,
    pub(crate) server: HeaderValue,
}

/// The same of a chain without HTTP.
pub(crate) struct TcpLocal {
    pub(crate) tcp: Arc<TcpSettings>,
    pub(crate) logs: Logs,
}

/// The open access logs.
pub(crate) struct Logs(Vec<Sink>);

/// What is made of the settings in force, and made anew when they change.
pub(crate) struct Local<T, U> {
    now: Arc<ArcSwap<T>>,
    made: RefCell<(Arc<T>, Rc<U>)>,
    make: fn(Arc<T>, &Worker) -> U,
}

/// One worker's part of a chain.
pub(crate) struct ChainLocal {
    pub(crate) chain: Arc<Chain>,
    pub(crate) serves: ServesLocal,
}

/// What reads the connections.
pub(crate) enum ServesLocal {
    Http(Rc<Local<HttpSettings, Settings>>),
    Tcp(Rc<Local<TcpSettings, TcpLocal>>),
}

/// One worker's part of a listener's chains, in one version.
pub(crate) struct ChainsLocal {
    pub(crate) chains: Arc<Chains>,
    /// In the order of [`Chains::iter`].
    locals: Vec<Rc<ChainLocal>>,
}

impl ChainsLocal {
    /// With what `earlier` has of the chains that stay.
    pub(crate) fn new(chains: Arc<Chains>, earlier: Option<&ChainsLocal>, worker: &Worker) -> Rc<Self> {
        let local = |chain: &Arc<Chain>| match earlier.and_then(|earlier| earlier.of(chain)) {
            Some(kept) => kept,
            None => Rc::new(ChainLocal::new(Arc::clone(chain), worker)),
        };
        let locals = chains.iter().map(local).collect();
        Rc::new(Self { chains, locals })
    }

    pub(crate) fn of(&self, chain: &Arc<Chain>) -> Option<Rc<ChainLocal>> {
        self.locals.iter().find(|local| Arc::ptr_eq(&local.chain, chain)).cloned()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rc<ChainLocal>> {
        self.locals.iter()
    }
}

impl ChainLocal {
    fn new(chain: Arc<Chain>, worker: &Worker) -> Self {
        let serves = match &chain.serves {
            Serves::Http(now) => ServesLocal::Http(Local::new(now, Settings::new, worker)),
            Serves::Tcp(now) => ServesLocal::Tcp(Local::new(now, TcpLocal::new, worker)),
        };
        Self { chain, serves }
    }

    /// How long what is in flight may take when the listener goes.
    pub(crate) fn drain_limit(&self, worker: &Worker) -> Duration {
        match &self.serves {
            ServesLocal::Http(local) => local.get(worker).http.timeouts.drain,
            ServesLocal::Tcp(_) => TCP_DRAIN,
        }
    }

    /// 0 is no limit.
    pub(crate) fn max_connections(&self, worker: &Worker) -> usize {
        match &self.serves {
            ServesLocal::Http(local) => local.get(worker).http.max_connections,
            ServesLocal::Tcp(local) => local.get(worker).tcp.max_connections,
        }
    }

    /// Logs what became no connection.
    pub(crate) fn log(&self, worker: &Worker, entry: impl FnOnce() -> Entry) {
        match &self.serves {
            ServesLocal::Http(local) => local.get(worker).logs.log(entry),
            ServesLocal::Tcp(local) => local.get(worker).logs.log(entry),
        }
    }
}

impl<T, U> Local<T, U> {
    fn new(now: &Arc<ArcSwap<T>>, make: fn(Arc<T>, &Worker) -> U, worker: &Worker) -> Rc<Self> {
        let first = now.load_full();
        let made = Rc::new(make(Arc::clone(&first), worker));
        Rc::new(Self { now: Arc::clone(now), made: RefCell::new((first, made)), make })
    }

    /// Of the settings in force.
    pub(crate) fn get(&self, worker: &Worker) -> Rc<U> {
        let now = self.now.load();
        let mut made = self.made.borrow_mut();
        if !Arc::ptr_eq(&made.0, &now) {
            *made = (Arc::clone(&now), Rc::new((self.make)(Arc::clone(&now), worker)));
        }
        Rc::clone(&made.1)
    }
}

impl Settings {
    fn new(http: Arc<HttpSettings>, worker: &Worker) -> Settings {
        let logs = Logs::open(&http.access_log, worker);
        let server = HeaderValue::from_str(&http.server_name).unwrap_or(HeaderValue::from_static("pontoon"));
        Settings { http, logs, server }
    }
}

impl TcpLocal {
    fn new(tcp: Arc<TcpSettings>, worker: &Worker) -> TcpLocal {
        let logs = Logs::open(&tcp.access_log, worker);
        TcpLocal { tcp, logs }
    }
}

impl Logs {
    fn open(logs: &[AccessLog], worker: &Worker) -> Logs {
        let sinks = logs.iter().filter_map(|log| match worker.sinks.open(log) {
            Ok(sink) => Some(sink),
            Err(error) => {
                tracing::error!(path = %log.path, %error, "access log cannot be opened; requests are served without it");
                None
            }
        });
        Logs(sinks.collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes a line to every access log; makes it only where there is one.
    pub(crate) fn log(&self, entry: impl FnOnce() -> Entry) {
        if let Some((last, rest)) = self.0.split_last() {
            let entry = entry();
            rest.iter().for_each(|sink| sink.log(entry.clone()));
            last.log(entry);
        }
    }
}
