//! What is fuzzed of this room.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use http::Uri;
use pontoon_xds::client::{Config, Handler as _, Update};
use pontoon_xds::pb::envoy::config::core::v3::Node;
use pontoon_xds::{Resource, ResourceType};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::cache::{Cache, Found, Key};
use super::{Dns, Settings, Transport, plain};
use crate::discovery::naming::Naming;
use crate::discovery::{self, Sidecar};

/// For what needs no time.
const PATIENCE: Duration = Duration::from_secs(5);

/// A sidecar's resolver with a control plane that has gone and without upstreams.
pub struct Resolver {
    runtime: Runtime,
    dns: Arc<Dns>,
}

impl Resolver {
    /// It knows this service of the mesh: a listener of that name. `corp.example` is a search domain.
    ///
    /// # Panics
    /// When it cannot be had: there is nothing to fuzz then.
    #[allow(clippy::unwrap_used, reason = "no part of the program")]
    pub fn new(name: &str, listener: Resource) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dns = runtime.block_on(async {
            let config = Config::new(Uri::from_static("http://127.0.0.1:1"), Node::default());
            let naming = Naming { search: vec!["corp.example".into()], ..Naming::default() };
            let sidecar = Sidecar { naming, ..Sidecar::default() };
            let shared = discovery::start(Some(config), Some(sidecar), Vec::new()).unwrap();
            let names = Arc::clone(shared.on_demand().unwrap());
            let wanted: Arc<str> = name.into();
            let asked = tokio::spawn(async move { names.address(&wanted, Instant::now(), PATIENCE).await });
            while !asked.is_finished() {
                let changed = vec![listener.clone()];
                let update = Update { ty: ResourceType::Listener, changed, removed: Vec::new() };
                assert!(shared.clone().apply(update).is_empty());
                tokio::task::yield_now().await;
            }
            assert!(asked.await.unwrap().is_ok_and(|found| found.is_some()));
            Dns::new(&Settings::default(), &shared).unwrap()
        });
        Self { runtime, dns }
    }

    /// The answer to a query, by TCP or UDP.
    pub fn answer(&self, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        self.runtime.block_on(self.dns.answer(query, transport))
    }

    /// The same for a question of a name in its presentation form, as it is compared with others.
    pub fn ask(&self, name: &str, ty: u16) -> Option<(Option<String>, Vec<u8>)> {
        let mut query = Message::query();
        let question = Query::query(Name::from_ascii(name).ok()?, RecordType::from(ty));
        let compared = plain(&question);
        query.add_query(question);
        Some((compared, self.answer(&query.to_vec().ok()?, true)?))
    }
}

/// The longest TTL of an upstream's answer to a question of this type, and that of what a client is told of it so many
/// seconds later. `None`: it is no answer, or is not kept.
pub fn kept(ty: u16, answer: &[u8], later: u32) -> Option<(u32, u32)> {
    let answer = Message::from_vec(answer).ok()?;
    let longest = |message: &Message| {
        let sections = [&message.answers, &message.authorities, &message.additionals];
        sections.into_iter().flatten().map(|record| record.ttl).max().unwrap_or(0)
    };
    let question = Query::query(Name::root(), RecordType::from(ty));
    let key = || Key::new(&question, false, false);
    let mut cache = Cache::new(1 << 20, Duration::from_secs(86_400));
    let now = Instant::now();
    cache.put(key(), &answer, now);
    match cache.get(&key(), now + Duration::from_secs(later.into())) {
        Found::Fresh(told) | Found::Stale { answer: told, .. } => Some((longest(&answer), longest(&told))),
        Found::Nothing => None,
    }
}
