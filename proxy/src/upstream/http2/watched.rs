//! What h2 does not tell of a connection, read along: which heads have gone, as those of requests that nobody waits for
//! any more do not leave its queue; and a flood of frames that carry nothing, interim answers (1xx) among them, which h2
//! would read without end.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::Known;
use crate::listener::connection::TICK;
use crate::listener::frames::{DATA, Flood, Frames, HEADERS};

/// The kind of error by which a flood ends a connection, and nothing else does.
pub(super) const FLOOD: io::ErrorKind = io::ErrorKind::QuotaExceeded;

/// A connection whose frames are read along.
pub(super) struct Watched<S> {
    stream: S,
    known: Rc<Known>,
    came: Frames,
    went: Frames,
    flood: Flood,
    /// Since when the flood is counted.
    since: Instant,
    /// Heads and pieces of bodies that went, and pieces that came.
    work: u64,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, known: Rc<Known>) -> Self {
        let (came, went) = (Frames::of_server(), Frames::of_client());
        Self { stream, known, came, went, flood: Flood::default(), since: Instant::now(), work: 0 }
    }

    /// Fails where the server sends more than what it was asked can call for.
    fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (mut control, mut data) = (0, 0);
        self.came.each(bytes, |frame| match frame.kind {
            // One without a byte may end a body, and h2 bounds those that do not.
            DATA => data += u64::from(frame.length > 0),
            _ => control += 1,
        });
        self.flood.add(control);
        self.work += data;
        if self.flood.is_one(self.work) {
            let now = Instant::now();
            if now - self.since < TICK {
                return Err(FLOOD.into());
            }
            self.since = now;
            self.flood.forget(self.work);
        }
        Ok(())
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let Self { work, known, went, .. } = self;
        went.each(bytes, |frame| match frame.kind {
            HEADERS => {
                *work += 1;
                // Trailers are of streams before it.
                known.written.set(known.written.get().max(frame.stream));
            }
            DATA => *work += 1,
            _ => {}
        });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.known.heard.set(true);
        Poll::Ready(this.read(&buf.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, buf));
        // TLS may fail with some of it gone.
        this.wrote(&buf[..*written.as_ref().unwrap_or(&buf.len())]);
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs));
        let mut left = *written.as_ref().unwrap_or(&usize::MAX);
        for buf in bufs {
            let of_buf = left.min(buf.len());
            this.wrote(&buf[..of_buf]);
            left -= of_buf;
        }
        Poll::Ready(written)
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
