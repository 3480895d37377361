//! What uploads go to: an HTTP/1.1 server that reads a request to its end before it answers. nginx's fixed answer comes
//! at once, and a proxy may then do what it likes with the rest of the body.

use std::net::Ipv4Addr;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The first argument that makes this program the server.
pub(crate) const SERVER: &str = "sink";
const BUFFER: usize = 64 * 1_024;

/// Answers until the process is ended.
pub(crate) async fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    loop {
        let (socket, _) = listener.accept().await?;
        tokio::spawn(connection(socket));
    }
}

async fn connection(socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(BUFFER, socket);
    let mut line = String::new();
    loop {
        let mut length: u64 = 0;
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
        }
        let read = tokio::io::copy_buf(&mut (&mut stream).take(length), &mut tokio::io::sink()).await?;
        if read < length {
            return Ok(());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
    }
}
