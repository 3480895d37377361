//! A stream that is a tunnel (RFC 9113, 8.5; RFC 8441): DATA both ways, of which each ends by itself.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::sending::poll_room;

/// Its bytes. Where it is dropped before both ways have ended, it is reset.
pub(crate) struct Duplex {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Has come and was not read.
    came: Bytes,
    /// Nothing more is sent.
    ended: bool,
}

impl Duplex {
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive, came: Bytes::new(), ended: false }
    }
}

impl AsyncRead for Duplex {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.came.is_empty() {
            match ready!(this.receive.poll_data(cx)) {
                Some(Ok(data)) => this.came = data,
                None => return Poll::Ready(Ok(())),
                // An end is said so, too, by who has no use for the other way either.
                Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let length = this.came.len().min(buf.remaining());
        buf.put_slice(&this.came[..length]);
        this.came.advance(length);
        // A piece of a buffer keeps all of it.
        if this.came.is_empty() {
            this.came = Bytes::new();
        }
        let _ = this.receive.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.reserve_capacity(1);
        if !ready!(poll_room(&mut this.send, cx)) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        this.send.send_data(Bytes::copy_from_slice(buf), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(buf.len()))
    }

    /// h2 sends by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.ended, true) {
            this.send.send_data(Bytes::new(), true).map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}
