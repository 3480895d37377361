//! Clients whose stream broke off and who are expected back: they serve what they had, so a change is not
//! everywhere before they have it or have stayed away for too long. Plain bookkeeping, without a clock.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::lock;
use super::status::Client;
use super::stream::Stream;
use crate::resource::ResourceType;

/// The missing ones.
#[derive(Debug, Default)]
pub(super) struct Away {
    clients: HashMap<Client, Missing>,
}

#[derive(Debug)]
struct Missing {
    until: Instant,
    /// Its last stream, which tells what it followed. None: it is known by name only.
    stream: Option<Arc<Mutex<Stream>>>,
}

impl Away {
    /// Expects `client` back before `until`. At most `max` are expected at once; nobody is in the place of another.
    pub(super) fn expect(
        &mut self,
        client: Client,
        stream: Option<Arc<Mutex<Stream>>>,
        until: Instant,
        max: usize,
    ) {
        if self.clients.len() < max || self.clients.contains_key(&client) {
            self.clients.insert(client, Missing { until, stream });
        }
    }

    /// It has said goodbye.
    pub(super) fn forget(&mut self, client: &Client) {
        self.clients.remove(client);
    }

    /// When the next has stayed away for too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clients.values().map(|missing| missing.until).min()
    }

    /// Forgets those who have stayed away for too long.
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<Client> {
        self.clients.extract_if(|_, missing| missing.until <= now).map(|(client, _)| client).collect()
    }

    pub(super) fn clients(&self) -> impl Iterator<Item = &Client> {
        self.clients.keys()
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
        let missing = self.clients.iter().filter(|(client, missing)| {
            client.view == view
                && !following.contains(&client.node)
                && match &missing.stream {
                    Some(stream) => lock(stream).follows(ty, name),
                    None => !settled.contains(&client.node),
                }
        });
        missing.map(|(client, _)| client.node.clone()).collect()
    }
}
