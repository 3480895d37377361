//! A gate between a client and its server, on TCP: it passes bytes on, or does what a broken server does.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// No protocol begins so, and neither does an HTTP/2 frame of a length that is allowed.
const NONSENSE: &[u8] = b"\xff\xfe\xfd NOT WHAT YOU EXPECT \x00\x01\x02";

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They reach the server.
    Pass,
    /// They are accepted, and nothing is read or written; those that reached the server end.
    Silent,
    /// Those that reach the server stay, and nothing passes any more; new ones as in `Silent`.
    Frozen,
    /// They are answered with bytes that mean nothing; those that reached the server end.
    Nonsense,
}

/// A running gate. Dropping it ends it.
#[derive(Debug)]
pub struct Gate {
    /// Where the client is to be sent.
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    _stop: DropGuard,
}

impl Gate {
    /// Starts one before the server at the address, that passes all on.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(server: SocketAddr) -> anyhow::Result<Gate> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::ports::free()?)).await?;
        let address = listener.local_addr()?;
        let (mode, stop) = (watch::Sender::new(Mode::Pass), CancellationToken::new());
        let receiver = mode.subscribe();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, server, receiver.clone()));
            }
        }));
        Ok(Gate { address, mode, _stop: stop.drop_guard() })
    }

    /// Changes what becomes of connections.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

/// Ends with either side's connection, with a mode that ends it, and with the gate.
async fn connection(mut client: TcpStream, server: SocketAddr, mut mode: watch::Receiver<Mode>) {
    let at_first = *mode.borrow_and_update();
    if at_first == Mode::Nonsense && client.write_all(NONSENSE).await.is_err() {
        return;
    }
    if at_first != Mode::Pass {
        // What comes is left in the socket, except after nonsense: then the client's end is waited for.
        let read = async {
            match at_first {
                Mode::Nonsense => while client.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {},
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = read => {}
            _ = mode.wait_for(|mode| *mode != at_first) => {}
        }
        return;
    }
    let Ok(mut upstream) = TcpStream::connect(server).await else { return };
    let mut relay = pin!(tokio::io::copy_bidirectional(&mut client, &mut upstream));
    loop {
        tokio::select! {
            _ = &mut relay => return,
            changed = mode.wait_for(|mode| *mode != Mode::Pass) => match changed.map(|mode| *mode) {
                Ok(Mode::Frozen) => {}
                _ => return,
            },
        }
        // Not polled, it neither reads nor writes.
        if mode.wait_for(|mode| *mode != Mode::Frozen).await.is_err() {
            return;
        }
    }
}
