//! Clients whose stream broke off and who are expected back: they serve what they had, so a change is not
//! everywhere before they have it or have stayed away for too long. Plain bookkeeping, without a clock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::lock;
use super::status::Client;
use super::stream::Stream;
use crate::resource::ResourceType;

/// For the names that all of them followed. Whoever comes beyond is known by name only.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Whose stream it is, and the type that it is for where it is not for all.
pub(super) type End = (Client, Option<ResourceType>);

/// The missing ones.
#[derive(Debug, Default)]
pub(super) struct Away {
    clients: HashMap<End, Missing>,
    /// Of all their streams.
    bytes: usize,
}

#[derive(Debug)]
struct Missing {
    until: Instant,
    /// Its last stream of this kind, which tells what it followed. None: it is known by name only.
    stream: Option<Arc<Mutex<Stream>>>,
    /// Of what is kept of it.
    bytes: usize,
}

impl Away {
    /// Expects a client back before `until`. At most `max` are expected at once; nobody is in the place of another.
    pub(super) fn expect(
        &mut self,
        end: End,
        stream: Option<Arc<Mutex<Stream>>>,
        until: Instant,
        max: usize,
    ) {
        if self.clients.len() >= max && !self.clients.contains_key(&end) {
            return;
        }
        self.forget(&end);
        let bytes = stream.as_ref().map_or(0, |stream| lock(stream).put_aside());
        let fits = self.bytes + bytes <= MAX_BYTES;
        let (stream, bytes) = if fits { (stream, bytes) } else { (None, 0) };
        self.bytes += bytes;
        self.clients.insert(end, Missing { until, stream, bytes });
    }

    /// It has said goodbye.
    pub(super) fn forget(&mut self, end: &End) {
        self.bytes -= self.clients.remove(end).map_or(0, |missing| missing.bytes);
    }

    /// Whatever of these clients is awaited is so no more; says whether anything was.
    pub(super) fn forget_clients(&mut self, clients: &BTreeSet<Client>) -> bool {
        let gone: Vec<End> =
            self.clients.keys().filter(|(client, _)| clients.contains(client)).cloned().collect();
        gone.iter().for_each(|end| self.forget(end));
        !gone.is_empty()
    }

    /// When the next has stayed away for too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clients.values().map(|missing| missing.until).min()
    }

    /// Forgets those who have stayed away for too long.
    pub(super) fn give_up(&mut self, now: Instant) -> BTreeSet<Client> {
        let given_up: Vec<(End, Missing)> =
            self.clients.extract_if(|_, missing| missing.until <= now).collect();
        self.bytes -= given_up.iter().map(|(_, missing)| missing.bytes).sum::<usize>();
        given_up.into_iter().map(|((client, _), _)| client).collect()
    }

    pub(super) fn clients(&self) -> impl Iterator<Item = &Client> {
        self.clients.keys().map(|(client, _)| client)
    }

    /// Those that followed resources of a type, or are known by name only.
    pub(super) fn following(&self, ty: ResourceType) -> impl Iterator<Item = &Client> {
        let followed = move |missing: &Missing| {
            missing.stream.as_ref().is_none_or(|stream| lock(stream).follows_any(ty))
        };
        self.clients.iter().filter(move |(_, missing)| followed(missing)).map(|((client, _), _)| client)
    }

    /// Nodes of `view` that followed a resource, and whose new stream, if there is one, does not yet.
    pub(super) fn of_resource(
        &self,
        view: &str,
        ty: ResourceType,
        name: &str,
        open: &[Arc<Mutex<Stream>>],
    ) -> Vec<String> {
        if self.clients.is_empty() {
            return Vec::new();
        }
        let (mut following, mut settled) = (HashSet::new(), HashSet::new());
        for stream in open {
            let stream = lock(stream);
            if let Some(client) = stream.client().filter(|client| client.view == view) {
                if stream.follows(ty, name) {
                    following.insert(client.node.clone());
                }
                if stream.has_acknowledged(ty) {
                    settled.insert(client.node.clone());
                }
            }
        }
        let missing = self.clients.iter().filter(|((client, _), missing)| {
            client.view == view
                && !following.contains(&client.node)
                && match &missing.stream {
                    Some(stream) => lock(stream).follows(ty, name),
                    None => !settled.contains(&client.node),
                }
        });
        let missing: BTreeSet<&str> = missing.map(|((client, _), _)| &*client.node).collect();
        missing.into_iter().map(str::to_owned).collect()
    }
}
