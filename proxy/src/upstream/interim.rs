//! Bounds what an HTTP/1.1 upstream sends ahead of its answer. Interim answers (1xx) are passed over, and an upstream
//! that sends nothing else would have us read for as long as the route lets a request idle.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connect::MAX_HEADER_BYTES;
use crate::error::Error;

/// A head as large as it may be, and as much for what comes before it. With so much read and no answer known, nothing
/// more is read; how much comes with the head in one read is the body's size to say.
const MOST: usize = 2 * MAX_HEADER_BYTES as usize;
/// No answer is waited for.
const ANSWERED: usize = usize::MAX;

/// The bytes that have come since the request, as long as its answer has not. Shared by the connection's sender and
/// its socket, which have the same thread, but hyper does not know that.
#[derive(Debug, Clone)]
pub(crate) struct Ahead(Arc<AtomicUsize>);

impl Ahead {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(ANSWERED)))
    }

    /// A request is sent.
    pub(crate) fn ask(&self) {
        self.0.store(0, Relaxed);
    }

    /// The head of its answer has come.
    pub(crate) fn answered(&self) {
        self.0.store(ANSWERED, Relaxed);
    }

    /// Whether more may be read.
    fn check(&self) -> io::Result<()> {
        match self.0.load(Relaxed) {
            ANSWERED | ..=MOST => Ok(()),
            _ => Err(io::Error::other(Error::UpstreamProtocol)),
        }
    }

    fn came(&self, length: usize) {
        let before = self.0.load(Relaxed);
        if before != ANSWERED {
            self.0.store(before + length, Relaxed);
        }
    }
}

/// A stream that is read from within that bound.
pub(crate) struct Bounded<S> {
    pub(crate) stream: S,
    pub(crate) ahead: Ahead,
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.ahead.check()?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.ahead.came(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
