//! Several pieces in one system call. Pieces that are small together are copied into one: that costs less than
//! to describe them to the kernel, a twentieth of what a small answer costs in all.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What is copied rather than described: a head and a small body.
const SMALL: usize = 4 * 1024;

/// Writes `bufs`, or the start of them.
pub(crate) fn poll_write(
    socket: Pin<&mut TcpStream>,
    cx: &mut Context<'_>,
    bufs: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [only] = bufs {
        return socket.poll_write(cx, only);
    }
    if bufs.iter().map(|buf| buf.len()).sum::<usize>() > SMALL {
        return socket.poll_write_vectored(cx, bufs);
    }
    let mut room = [MaybeUninit::uninit(); SMALL];
    let mut joined = ReadBuf::uninit(&mut room);
    for buf in bufs {
        joined.put_slice(buf);
    }
    socket.poll_write(cx, joined.filled())
}

/// A connection: the socket itself, or TLS over one. One type for both, so that hyper and h2 are compiled for one.
pub(crate) enum Wire<T> {
    /// TCP alone.
    Plain(TcpStream),
    /// After the handshake. Boxed: rustls's state is large.
    Tls(Box<T>),
}

/// Calls a method of whichever it is.
macro_rules! either {
    ($this:expr, $stream:ident => $call:expr) => {
        match $this.get_mut() {
            Wire::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Wire::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
        }
    };
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(socket) => poll_write(Pin::new(socket), cx, bufs),
            Wire::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn what_is_written_arrives_in_order_whatever_its_size() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        for sizes in [&[5][..], &[3, 0, 4], &[SMALL - 1, 1], &[SMALL, 1], &[10, 20_000]] {
            let pieces: Vec<Vec<u8>> = (b'a'..).zip(sizes).map(|(byte, size)| vec![byte; *size]).collect();
            let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let wrote = poll_fn(|cx| poll_write(Pin::new(&mut near), cx, &slices)).await.unwrap();
            let mut got = vec![0; wrote];
            far.read_exact(&mut got).await.unwrap();
            assert!(got == pieces.concat()[..wrote], "{sizes:?}");
        }
    }
}
