//! What a worker keeps for each filter chain of a listener: its settings, with the logs that they name opened.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;

use crate::config::chains::{Chain, Chains};
use crate::config::listener::HttpSettings;
use crate::telemetry::access_log::{Entry, Sink};
use crate::worker::local::Worker;

/// A chain's settings as this worker uses them.
pub(crate) struct Settings {
    pub(crate) http: Arc<HttpSettings>,
    pub(crate) sinks: Vec<Sink>,
    pub(crate) server: HeaderValue,
}

/// One worker's part of a chain.
pub(crate) struct ChainLocal {
    pub(crate) chain: Arc<Chain>,
    settings: RefCell<Rc<Settings>>,
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
        let settings = RefCell::new(Rc::new(Settings::new(chain.http.load_full(), worker)));
        Self { chain, settings }
    }

    /// The settings in force.
    pub(crate) fn settings(&self, worker: &Worker) -> Rc<Settings> {
        let now = self.chain.http.load();
        let mut kept = self.settings.borrow_mut();
        if !Arc::ptr_eq(&kept.http, &now) {
            *kept = Rc::new(Settings::new(Arc::clone(&now), worker));
        }
        Rc::clone(&kept)
    }
}

impl Settings {
    fn new(http: Arc<HttpSettings>, worker: &Worker) -> Settings {
        let sinks = http.access_log.iter().filter_map(|log| match worker.sinks.open(log) {
            Ok(sink) => Some(sink),
            Err(error) => {
                tracing::error!(path = %log.path, %error, "access log cannot be opened; requests are served without it");
                None
            }
        });
        let sinks = sinks.collect();
        let server = HeaderValue::from_str(&http.server_name).unwrap_or(HeaderValue::from_static("pontoon"));
        Settings { http, sinks, server }
    }

    /// Writes a line to every access log; makes it only where there is one.
    pub(crate) fn log(&self, entry: impl FnOnce() -> Entry) {
        if let Some((last, rest)) = self.sinks.split_last() {
            let entry = entry();
            rest.iter().for_each(|sink| sink.log(entry.clone()));
            last.log(entry);
        }
    }
}
