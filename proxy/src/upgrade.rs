//! One process takes over from another without a connection refused or reset. The new one asks the old one over a
//! Unix socket for its listening sockets, loads its own configuration, and says when it is ready; only then does
//! the old one stop accepting and finish what it has. A new process that fails before leaves the old one serving.
//!
//! Both ends check that the other runs as the same user or as root.

mod channel;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod give;

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use channel::Channel;
pub(crate) use give::{Takeover, listen, serve, withdraw};

/// From the first question of a new process to its being ready. After it the old one serves on alone.
pub const LIMIT: Duration = Duration::from_secs(60);
/// The first words of both ends; another number is another protocol.
const GREETING: &str = "pontoon-upgrade 1";

/// The process that this one is to replace.
#[derive(Debug, Clone)]
pub struct Predecessor {
    channel: Arc<Mutex<Option<Channel>>>,
}

impl Predecessor {
    /// Finds the process that serves `path`; `None` where there is none, so that this one starts by itself.
    ///
    /// # Errors
    /// When there is one that does not want to be replaced, or is another user's.
    pub fn find(path: &Path) -> io::Result<Option<Self>> {
        is_ours(path)?;
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut channel = Channel::new(stream, LIMIT)?;
        channel.send(GREETING, &[])?;
        match channel.receive()? {
            (answer, _) if answer == GREETING => {}
            (answer, _) => {
                return Err(io::Error::other(format!(
                    "the process at {} answers {answer:?}",
                    path.display()
                )));
            }
        }
        Ok(Some(Self { channel: Arc::new(Mutex::new(Some(channel))) }))
    }

    /// Its sockets of a listener; none where it has none, or has ended.
    pub(crate) async fn sockets(&self, name: &str, address: SocketAddr) -> Vec<TcpListener> {
        // A name goes to the end of its line.
        if name.contains(char::is_control) {
            return Vec::new();
        }
        self.ask(format!("socket {address} {name}")).await.map(|(_, sockets)| sockets).unwrap_or_default()
    }

    /// The socket of its admin port.
    pub(crate) async fn admin(&self) -> Option<TcpListener> {
        self.ask("admin".into()).await?.1.pop()
    }

    /// Says that this process is ready; on return the other one accepts no more. False: it has ended.
    pub(crate) async fn ready(&self) -> bool {
        let done = self.ask("ready".into()).await.is_some_and(|(answer, _)| answer == "done");
        // What comes to be bound later it does not have.
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
        done
    }

    async fn ask(&self, question: String) -> Option<(String, Vec<TcpListener>)> {
        let channel = self.channel.clone();
        // The other process answers at once; but should it hang, it must not hang us.
        let asked = tokio::task::spawn_blocking(move || {
            let mut channel = channel.lock().unwrap_or_else(PoisonError::into_inner);
            let open = channel.as_mut()?;
            let answer = open.send(&question, &[]).and_then(|()| open.receive());
            match answer {
                Ok(answer) => Some(answer),
                Err(error) => {
                    tracing::warn!(%error, question, "the process that is to be replaced does not answer any more");
                    *channel = None;
                    None
                }
            }
        });
        asked.await.ok().flatten()
    }
}

/// Nothing is there, or what was there has ended.
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Removes what systemd said to this process and not to the next one, which would take it for its own.
pub(crate) fn successor(program: &Path) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    command.args(std::env::args_os().skip(1));
    for variable in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(variable);
    }
    command
}

/// A user for a message.
fn describe(peer: &rustix::net::UCred) -> String {
    let mut text = String::new();
    let _ = write!(text, "process {} of user {}", peer.pid.as_raw_nonzero(), peer.uid.as_raw());
    text
}

/// Whatever else is at the path is not replaced, and not removed.
fn is_ours(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something else than a socket"))
        }
        // What cannot be seen is found out by whoever uses it.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_at_the_path_stays() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "kept").unwrap();
        let error = Predecessor::find(file.path()).unwrap_err();
        assert_eq!(error.to_string(), "there is something else than a socket");
        assert!(listen(file.path()).is_err());
        withdraw(file.path());
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "kept");
    }
}
