//! The old process's end: it gives its sockets away, and learns when it is replaced.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::channel::Channel;
use super::{GREETING, LIMIT, is_ours};
use crate::worker::sockets::Sockets;

/// New processes that wait to be noticed.
const BACKLOG: i32 = 4;

/// A new process is ready. It begins to accept when it is told that this one has stopped.
#[derive(Debug)]
pub(crate) struct Takeover {
    /// To be told that nothing is accepted any more.
    pub(crate) stopped: oneshot::Sender<()>,
}

/// Takes the place at `path`, also from a process that has it. Only its owner may connect.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    is_ours(path)?;
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    // Left behind by a process of the same id.
    let _ = std::fs::remove_file(&fresh);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(Path::new(&fresh))?)?;
    // Nobody can connect before it listens, and it does not listen before only its owner may.
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    std::fs::rename(&fresh, path)?;
    UnixListener::from_std(socket.into())
}

/// Gives the place up: a process that starts from here on starts by itself.
pub(crate) fn withdraw(path: &Path) {
    if is_ours(path).is_ok() {
        // It may have gone.
        let _ = std::fs::remove_file(path);
    }
}

/// Serves new processes, one at a time, until one has taken over.
pub(crate) async fn serve(
    listener: UnixListener,
    sockets: Arc<Sockets>,
    admin: Arc<TcpListener>,
    takeovers: mpsc::Sender<Takeover>,
) {
    let one = Arc::new(Semaphore::new(1));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the upgrade socket cannot accept; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let permit = one.clone().try_acquire_owned().ok();
        let (sockets, admin, takeovers) = (sockets.clone(), admin.clone(), takeovers.clone());
        tokio::task::spawn_blocking(move || {
            let busy = permit.is_none();
            match converse(stream, busy, &sockets, &admin, &takeovers) {
                Ok(()) => {}
                Err(error) => tracing::warn!(%error, "a new process has not taken over; serving on"),
            }
            drop(permit);
        });
    }
}

fn converse(
    stream: UnixStream,
    busy: bool,
    sockets: &Sockets,
    admin: &TcpListener,
    takeovers: &mpsc::Sender<Takeover>,
) -> io::Result<()> {
    let mut channel = Channel::new(stream.into_std()?, LIMIT)?;
    match channel.receive()?.0 {
        greeting if greeting != GREETING => return channel.send("it does not know this protocol", &[]),
        _ if busy => return channel.send("another process is taking over already", &[]),
        _ => channel.send(GREETING, &[])?,
    }
    tracing::info!("a new process asks for the sockets");
    loop {
        let question = channel.receive()?.0;
        match question.as_str() {
            "admin" => channel.send("admin", &[admin.try_clone()?])?,
            "ready" => {
                let (stopped, answer) = oneshot::channel();
                let told = takeovers.blocking_send(Takeover { stopped }).is_ok();
                let word = if told && answer.blocking_recv().is_ok() { "done" } else { "no" };
                return channel.send(word, &[]);
            }
            question => match asked_for(question) {
                Some((address, name)) => channel.send("sockets", &sockets.give(name, address)?)?,
                None => return Err(io::Error::other(format!("it asks {question:?}"))),
            },
        }
    }
}

pub(super) fn asked_for(question: &str) -> Option<(SocketAddr, &str)> {
    let (address, name) = question.strip_prefix("socket ")?.split_once(' ')?;
    Some((address.parse().ok()?, name))
}
