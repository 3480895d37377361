//! What routes send to: an HTTP/1.1 server with a fixed answer, at the node's address, that can be taken away and
//! brought back: connections to it are refused then, as of a pod whose process has died.

use std::net::{Ipv4Addr, SocketAddr};

use pontoon_e2e::kubernetes::NODE;
use pontoon_e2e::ports;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The header that says which backend it was.
pub(super) const BACKEND: &str = "x-backend";
/// Longer requests are nobody's here.
const MAX_REQUEST_BYTES: usize = 8 * 1024;
const BACKLOG: u32 = 1024;

/// A server.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) port: u16,
    serving: Option<JoinHandle<()>>,
}

impl Backend {
    /// Starts one.
    pub(super) fn start(name: &str) -> anyhow::Result<Backend> {
        let mut backend = Backend { name: name.to_owned(), port: ports::free()?, serving: None };
        backend.bring_back()?;
        Ok(backend)
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        NODE
    }

    /// From now on connections to it are refused, and those that there are have ended.
    pub(super) async fn take_away(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            // The sockets are closed when it has ended.
            let _ = serving.await;
        }
    }

    /// It takes connections again.
    pub(super) fn bring_back(&mut self) -> anyhow::Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((NODE, self.port)))?;
        let listener = socket.listen(BACKLOG)?;
        let answer = format!("HTTP/1.1 200 OK\r\n{BACKEND}: {}\r\ncontent-length: 2\r\n\r\nok", self.name);
        self.serving = Some(tokio::spawn(serve(listener, answer.into_bytes())));
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

async fn serve(listener: TcpListener, answer: Vec<u8>) {
    // They end with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => drop(connections.spawn(connection(socket, answer.clone()))),
                Err(_) => tokio::task::yield_now().await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Requests have no body here.
async fn connection(mut socket: TcpStream, answer: Vec<u8>) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let (mut have, mut part) = (Vec::new(), [0; 2048]);
    loop {
        while let Some(at) = have.windows(4).position(|window| window == b"\r\n\r\n") {
            have.drain(..at + 4);
            socket.write_all(&answer).await?;
        }
        match socket.read(&mut part).await? {
            0 => return Ok(()),
            length => have.extend_from_slice(&part[..length]),
        }
        if have.len() > MAX_REQUEST_BYTES {
            return Ok(());
        }
    }
}
