//! Where listening sockets come from: the process that this one replaces, systemd, or the kernel. A socket that is
//! replaced rather than passed on loses the connections in its queue, so all sockets of a listener are passed
//! on, one for each of the workers that had it, and shared out among those that are there now.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::keepalive::CLIENTS;
use crate::config::listener::Listener;
use crate::listener::bind;
use crate::upgrade::Predecessor;
use crate::upstream::dial::set_transparent;

/// A listener's name and the address that its resource says.
type Key = (Arc<str>, SocketAddr);

/// The name that the health port goes by among them.
pub(crate) const HEALTH: &str = "bootstrap/health";
/// The same for DNS.
pub(crate) const DNS: &str = "bootstrap/dns";

/// The listening sockets of the process.
#[derive(Debug, Default)]
pub struct Sockets {
    predecessor: Option<Predecessor>,
    /// Those that systemd passed and nobody has taken.
    activated: Mutex<Vec<TcpListener>>,
    /// Those in use, by listener and by the address that its resource says.
    held: Mutex<BTreeMap<Key, Vec<TcpListener>>>,
}

impl Sockets {
    /// Sockets that may come from a process that is being replaced, or from systemd.
    pub fn new(predecessor: Option<Predecessor>, activated: Vec<TcpListener>) -> Self {
        Self { predecessor, activated: Mutex::new(activated), held: Mutex::default() }
    }

    /// Sockets for a listener, as many shares as there are workers, none of them empty.
    pub(crate) async fn have(
        &self,
        listener: &Listener,
        workers: usize,
    ) -> io::Result<Vec<Vec<TcpListener>>> {
        let Listener { name, address, transparent, .. } = listener;
        let address = *address;
        let mut sockets = match &self.predecessor {
            Some(predecessor) => predecessor.sockets(name, address).await,
            None => Vec::new(),
        };
        if sockets.is_empty() {
            sockets = self.activated(address)?;
        }
        if sockets.is_empty() {
            sockets = bind_all(address, workers)?;
        } else {
            tracing::info!(listener = %name, %address, sockets = sockets.len(), "taken over");
        }
        for socket in &sockets {
            socket.set_nonblocking(true)?;
            CLIENTS.set(socket);
            if *transparent {
                set_transparent(socket, address)?;
            }
        }
        let kept = sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        let shares = share(sockets, workers)?;
        lock(&self.held).insert((name.clone(), address), kept);
        Ok(shares)
    }

    /// The health port's socket: the one that the process before has `passed` on, systemd's, or a new one. It goes
    /// from process to process as those of listeners do; with one each, each would get a part of the probes.
    pub(crate) fn health(&self, address: SocketAddr, passed: Option<TcpListener>) -> io::Result<TcpListener> {
        let socket = match passed {
            Some(passed) => passed,
            None => match self.activated(address)?.pop() {
                Some(activated) => activated,
                None => bind(address)?,
            },
        };
        socket.set_nonblocking(true)?;
        lock(&self.held).insert((HEALTH.into(), address), vec![socket.try_clone()?]);
        Ok(socket)
    }

    /// Keeps what serves DNS for the process that replaces this one, beside the listeners'.
    pub(crate) fn keep_dns(&self, address: SocketAddr, sockets: Vec<TcpListener>) {
        lock(&self.held).insert((DNS.into(), address), sockets);
    }

    /// Those that systemd has bound to an address.
    pub(crate) fn activated(&self, address: SocketAddr) -> io::Result<Vec<TcpListener>> {
        let mut activated = lock(&self.activated);
        let (mut found, mut rest) = (Vec::new(), Vec::new());
        for socket in activated.drain(..) {
            if socket.local_addr()? == address { found.push(socket) } else { rest.push(socket) }
        }
        *activated = rest;
        Ok(found)
    }

    /// The sockets of a listener, for the process that replaces this one.
    pub(crate) fn give(&self, name: &str, address: SocketAddr) -> io::Result<Vec<TcpListener>> {
        match lock(&self.held).get(&(Arc::from(name), address)) {
            Some(sockets) => sockets.iter().map(TcpListener::try_clone).collect(),
            None => Ok(Vec::new()),
        }
    }

    /// A listener has gone.
    pub(crate) fn remove(&self, name: &Arc<str>, address: SocketAddr) {
        lock(&self.held).remove(&(name.clone(), address));
    }

    /// Lets go of all: a socket that nobody accepts from must not be held open.
    pub(crate) fn forget(&self) {
        lock(&self.held).clear();
        lock(&self.activated).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bind_all(mut address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = bind(address)?;
        // Port 0 is one port for all.
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Each socket goes to one worker; where there are fewer sockets than workers, some are accepted from by several.
fn share(sockets: Vec<TcpListener>, workers: usize) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut shares: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    let have = sockets.len();
    for worker in have..workers {
        shares[worker].push(sockets[worker % have].try_clone()?);
    }
    for (number, socket) in sockets.into_iter().enumerate() {
        shares[number % workers].push(socket);
    }
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_has_a_worker_and_every_worker_a_socket() {
        for (have, workers) in [(1, 1), (1, 4), (2, 2), (4, 2), (3, 2), (2, 3)] {
            let sockets = bind_all("127.0.0.1:0".parse().unwrap(), have).unwrap();
            let shares = share(sockets, workers).unwrap();
            assert_eq!(shares.len(), workers);
            assert!(shares.iter().all(|share| !share.is_empty()), "{have} over {workers}");
            assert_eq!(shares.iter().map(Vec::len).sum::<usize>(), have.max(workers));
        }
    }
}
