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

/// A socket that is written to in this way.
pub(crate) struct Gathering(pub(crate) TcpStream);

impl AsyncRead for Gathering {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gathering {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write(Pin::new(&mut self.get_mut().0), cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
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
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let mut near = Gathering(near);
        for sizes in [&[5][..], &[3, 0, 4], &[SMALL - 1, 1], &[SMALL, 1], &[10, 20_000]] {
            let pieces: Vec<Vec<u8>> = (b'a'..).zip(sizes).map(|(byte, size)| vec![byte; *size]).collect();
            let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let wrote = poll_fn(|cx| Pin::new(&mut near).poll_write_vectored(cx, &slices)).await.unwrap();
            let mut got = vec![0; wrote];
            far.read_exact(&mut got).await.unwrap();
            assert!(got == pieces.concat()[..wrote], "{sizes:?}");
        }
    }
}
