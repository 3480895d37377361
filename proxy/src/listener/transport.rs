//! A client's bytes as HTTP reads and writes them: of the socket itself, or through TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::gather::Wire;

/// A socket, and bytes that were read of it before it was known who reads them.
pub(crate) struct Rewound<S = TcpStream> {
    pub(crate) prefix: Bytes,
    pub(crate) socket: S,
}

/// Serves what was read before, as far as there is room. An empty piece of a buffer would keep all of it.
pub(super) fn read_prefix(prefix: &mut Bytes, buf: &mut ReadBuf<'_>) {
    let length = prefix.len().min(buf.remaining());
    buf.put_slice(&prefix[..length]);
    prefix.advance(length);
    if prefix.is_empty() {
        *prefix = Bytes::new();
    }
}

/// A client's connection.
pub(crate) type Transport = Wire<TlsStream<Rewound>>;

impl Transport {
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Transport::Plain(socket) => socket,
            Transport::Tls(tls) => &tls.get_ref().0.socket,
        }
    }

    /// Whether all that was taken from the socket has been read, and all that is for it is in it. A client's first bytes may
    /// come with the end of its handshake.
    pub(super) fn has_nothing(&self) -> bool {
        match self {
            Transport::Plain(_) => true,
            Transport::Tls(tls) => {
                let (rewound, session) = tls.get_ref();
                rewound.prefix.is_empty() && session.wants_read() && !session.wants_write()
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.prefix.is_empty() {
            return Pin::new(&mut this.socket).poll_read(cx, buf);
        }
        read_prefix(&mut this.prefix, buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
