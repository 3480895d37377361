//! Clients whose stream broke off and who are expected back: they serve what they had, so a change is not
//! everywhere before they have it or have stayed away for too long. Plain bookkeeping, without a clock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::lock;
use super::shares::Shares;
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
    /// Those of them whose address is known.
    shares: Shares<(Instant, End)>,
    /// Of all their streams.
    bytes: usize,
}

/// What is left of a stream that broke off.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) stream: Arc<Mutex<Stream>>,
    /// From where it came.
    pub(super) address: IpAddr,
}

#[derive(Debug)]
struct Missing {
    until: Instant,
    /// `None`: an earlier server knew it.
    address: Option<IpAddr>,
    /// Its last stream of this kind, which tells what it followed. None: it is known by name only.
    stream: Option<Arc<Mutex<Stream>>>,
    /// Of what is kept of it.
    bytes: usize,
}

impl Away {
    /// Expects a client back before `until`. At most `max` are expected at once; nobody is in the place of another, but where
    /// one address has most of them.
    pub(super) fn expect(&mut self, end: End, left: Option<Left>, until: Instant, max: usize) {
        let address = left.as_ref().map(|left| left.address);
        if self.clients.len() >= max && !self.clients.contains_key(&end) {
            let Some((_, other)) = self.shares.make_room(address) else { return };
            self.forget(&other);
        }
        self.forget(&end);
        let stream = left.map(|left| left.stream);
        let bytes = stream.as_ref().map_or(0, |stream| lock(stream).put_aside());
        let fits = self.bytes + bytes <= MAX_BYTES;
        let (stream, bytes) = if fits { (stream, bytes) } else { (None, 0) };
        self.bytes += bytes;
        if let Some(address) = address {
            self.shares.add(address, (until, end.clone()));
        }
        self.clients.insert(end, Missing { until, address, stream, bytes });
    }

    /// It has said goodbye.
    pub(super) fn forget(&mut self, end: &End) {
        if let Some(missing) = self.clients.remove(end) {
            self.left(end, &missing);
        }
    }

    fn left(&mut self, end: &End, missing: &Missing) {
        self.bytes -= missing.bytes;
        if let Some(address) = missing.address {
            self.shares.remove(address, &(missing.until, end.clone()));
        }
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
        given_up.iter().for_each(|(end, missing)| self.left(end, missing));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Options;
    use super::*;
    use crate::variant::Variant;

    fn end(view: &str, node: String) -> End {
        (Client { view: view.to_owned(), node }, None)
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_does_not_keep_others_from_being_expected() {
        const MAX: usize = 10;
        let mut away = Away::default();
        let options = Options::new(|_| Ok(String::new()));
        let expect = |away: &mut Away, end: End, address: [u8; 4], after: u64| {
            let stream = Arc::new(Mutex::new(Stream::new(Variant::Delta, None, &options)));
            let left = Left { stream, address: address.into() };
            away.expect(end, Some(left), Instant::now() + Duration::from_secs(after), MAX);
        };
        // Known by an earlier server.
        away.expect(end("shop", "before".into()), None, Instant::now() + Duration::from_secs(30), MAX);
        for number in 0..50 {
            expect(&mut away, end("shop", format!("made-up-{number}")), [10, 0, 0, 1], 30);
        }
        assert_eq!(away.clients.len(), MAX);
        for number in 2..5 {
            expect(&mut away, end("bank", format!("proxy-{number}")), [10, 0, 0, number], 31);
        }
        let nodes: BTreeSet<&str> = away.clients().map(|client| &*client.node).collect();
        assert!(["before", "proxy-2", "proxy-3", "proxy-4"].iter().all(|node| nodes.contains(node)));
        assert_eq!(nodes.len(), MAX);
        // One that comes back and breaks off anew is the same.
        expect(&mut away, end("bank", "proxy-2".into()), [10, 0, 0, 2], 32);
        away.forget(&end("bank", "proxy-3".into()));
        assert_eq!(away.give_up(Instant::now() + Duration::from_secs(30)).len(), MAX - 3);
        assert_eq!(away.give_up(Instant::now() + Duration::from_secs(32)).len(), 2);
        assert_eq!((away.shares.make_room(None), away.bytes), (None, 0));
    }
}
