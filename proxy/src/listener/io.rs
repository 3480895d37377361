//! The client's socket, with the bytes that were read before the connection was handed on, and with notes on its
//! progress for the connection's clock.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::ConnState;
use super::guard::{Guard, Refusal};
use super::transport::{Transport, read_prefix};

/// hyper's own answer to a head that it cannot parse is not longer.
const REFUSAL_BYTES: usize = 200;

pub(crate) struct Io {
    pub(crate) stream: Transport,
    /// Served before the socket's own bytes. A reader has read them.
    pub(crate) prefix: Bytes,
    conn: Rc<ConnState>,
    /// As long as an HTTP/1 connection is busy.
    guarded: Option<Box<Guarded>>,
}

/// What an HTTP/1 connection is read through.
struct Guarded {
    guard: Guard,
    refusal: Option<Refusal>,
    /// From the refused byte on. A tunnel, which has no heads, gets them after all.
    held: Bytes,
}

impl Io {
    pub(crate) fn new(stream: Transport, prefix: Bytes, conn: Rc<ConnState>) -> Self {
        Self { stream, prefix, conn, guarded: None }
    }

    /// Reads all bytes from here on as HTTP/1 messages, where that has not begun.
    pub(crate) fn guard(&mut self) {
        if self.guarded.is_some() {
            return;
        }
        let mut guarded = Guarded { guard: Guard::new(), refusal: None, held: Bytes::new() };
        let passed = guarded.read(&self.prefix);
        self.prefix.truncate(passed);
        self.guarded = Some(Box::new(guarded));
    }

    /// The stream alone, where nothing of a next message has come. Between two messages the next is read as the first
    /// was.
    pub(crate) fn unused(self: Box<Self>) -> Result<Transport, Box<Io>> {
        let is_between = self.guarded.as_ref().is_none_or(|guarded| guarded.is_between());
        if is_between && self.prefix.is_empty() { Ok(self.stream) } else { Err(self) }
    }

    /// Passes all bytes from here on as they are.
    pub(crate) fn unguard(&mut self) {
        if let Some(guarded) = self.guarded.take().filter(|guarded| !guarded.held.is_empty()) {
            self.prefix = [&self.prefix[..], &guarded.held[..]].concat().into();
        }
    }

    /// Takes back what was read and not used. An empty piece of a buffer would keep all of the buffer.
    pub(crate) fn unread(&mut self, bytes: Bytes) {
        if self.prefix.is_empty() {
            self.prefix = if bytes.is_empty() { Bytes::new() } else { bytes };
        } else if !bytes.is_empty() {
            self.prefix = [&bytes[..], &self.prefix[..]].concat().into();
        }
    }

    /// Refuses, once the request before it has been answered, and the client has the answer: until then the connection's clock
    /// has it asked again.
    fn poll_refused(&self, refusal: Refusal, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if !refusal.in_body && (self.conn.in_flight.get() > 0 || self.conn.write_blocked.get()) {
            self.conn.refusal_waker.replace(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        let refused = if refusal.in_body { &self.conn.refused_body } else { &self.conn.refused };
        refused.set(Some(refusal.error));
        Poll::Ready(Err(io::Error::other(refusal.error)))
    }

    /// Keeps back what looks like hyper's own answer to a head that it cannot parse: where it is, the connection
    /// ends with an answer that has a reason; where it is not, it is written after all.
    fn withhold(&self, bufs: &[IoSlice<'_>]) -> Option<usize> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        let looks = self.guarded.is_some()
            && self.conn.in_flight.get() == 0
            && length <= REFUSAL_BYTES
            && bufs
                .first()
                .is_some_and(|buf| buf.starts_with(b"HTTP/1.1 4") || buf.starts_with(b"HTTP/1.0 4"));
        if !looks {
            return None;
        }
        let mut withheld = self.conn.withheld.borrow_mut();
        bufs.iter().for_each(|buf| withheld.extend_from_slice(buf));
        Some(length)
    }

    /// What something follows was not hyper's last word.
    fn poll_before_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.conn.release.set(!self.conn.withheld.borrow().is_empty());
        self.poll_release(cx)
    }

    /// Writes what was withheld and is hyper's to say.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.conn.release.get() {
            let mut withheld = self.conn.withheld.borrow_mut();
            if withheld.is_empty() {
                self.conn.release.set(false);
                break;
            }
            let result = Pin::new(&mut self.stream).poll_write(cx, &withheld);
            // Its connection is not idle as long as it waits.
            self.conn.write_blocked.set(result.is_pending());
            withheld.drain(..ready!(result)?);
        }
        Poll::Ready(Ok(()))
    }

    fn wrote<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.conn.write_blocked.set(result.is_pending());
        if result.is_ready() {
            self.conn.progressed();
        }
        result
    }
}

impl Guarded {
    fn is_between(&self) -> bool {
        self.refusal.is_none() && self.guard.is_between()
    }

    /// Gives how many of these bytes may be passed on.
    fn read(&mut self, bytes: &[u8]) -> usize {
        match self.guard.read(bytes) {
            Ok(()) => bytes.len(),
            Err(refusal) => {
                self.held = Bytes::copy_from_slice(&bytes[refusal.at..]);
                self.refusal = Some(refusal);
                refusal.at
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.prefix.is_empty() {
            read_prefix(&mut this.prefix, buf);
            return Poll::Ready(Ok(()));
        }
        if let Some(refusal) = this.guarded.as_ref().and_then(|guarded| guarded.refusal) {
            return this.poll_refused(refusal, cx);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.conn.progressed();
        if let Some(guarded) = &mut this.guarded {
            let passed = guarded.read(&buf.filled()[before..]);
            buf.set_filled(before + passed);
            if let (0, Some(refusal)) = (passed, guarded.refusal) {
                return this.poll_refused(refusal, cx);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_before_write(cx))?;
        if let Some(length) = this.withhold(&[IoSlice::new(buf)]) {
            return Poll::Ready(Ok(length));
        }
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_before_write(cx))?;
        if let Some(length) = this.withhold(bufs) {
            return Poll::Ready(Ok(length));
        }
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_release(cx))?;
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        // TLS takes more than the socket does. As long as it holds some of that, the connection is not idle.
        if matches!(this.stream, Transport::Tls(_)) {
            this.conn.write_blocked.set(flushed.is_pending());
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.guarded {
            // hyper's end is not the connection's: there may be a refusal to write.
            Some(_) => self.poll_flush(cx),
            None => Pin::new(&mut self.get_mut().stream).poll_shutdown(cx),
        }
    }
}
