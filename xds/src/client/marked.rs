//! Connections that bear a mark (`SO_MARK`), so that rules which bring a machine's connections to its proxy leave
//! the proxy's own to its server alone.

use std::io;

use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tonic::transport::{Channel, Endpoint, Error, Uri};

pub(super) async fn connect(endpoint: &Endpoint, mark: Option<u32>) -> Result<Channel, Error> {
    match mark {
        None => endpoint.connect().await,
        Some(mark) => {
            let connector =
                tower::service_fn(move |uri| async move { open(uri, mark).await.map(TokioIo::new) });
            endpoint.connect_with_connector(connector).await
        }
    }
}

/// To the first address of the host's that takes it.
async fn open(server: Uri, mark: u32) -> io::Result<TcpStream> {
    let host = server.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the server's name has no address");
    for address in lookup_host((host, server.port_u16().unwrap_or(80))).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        SockRef::from(&socket).set_mark(mark)?;
        match socket.connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
