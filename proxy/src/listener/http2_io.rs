//! The socket of an HTTP/2 client: frames are counted as they come, a flood of them ends the connection, and what is written
//! in one turn goes in one piece.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::ConnState;
use super::frames::Frames;
use super::io::Io;
use super::transport::{Transport, read_prefix};
use crate::batch::Batched;
use crate::error::Error;

/// GOAWAY with ENHANCE_YOUR_CALM. Which streams were looked at is h2's to know: any may have been.
const CALM_DOWN: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0x0b];

pub(super) struct Http2Io {
    stream: Batched<Transport>,
    /// Served before the socket's own bytes. They are counted.
    prefix: Bytes,
    conn: Rc<ConnState>,
    frames: Frames,
}

impl Http2Io {
    /// Of a connection whose bytes begin with HTTP/2's preface; and what sends for it.
    pub(super) fn new(io: Io, conn: &Rc<ConnState>) -> (Box<Self>, Batched<Transport>) {
        let mut frames = Frames::of_client();
        conn.flood.add(frames.read(&io.prefix));
        let stream = Batched::new(io.stream);
        let sends = stream.clone();
        (Box::new(Self { stream, prefix: io.prefix, conn: Rc::clone(conn), frames }), sends)
    }

    /// Ends a connection that costs more than it asks for.
    fn calm_down(&mut self, error: Error, cx: &mut Context<'_>) -> io::Error {
        self.conn.refused.set(Some(error));
        // Between two frames only. Whether the client still takes it does not matter.
        if !self.conn.write_blocked.get() {
            let _ = Pin::new(&mut self.stream).poll_write(cx, &CALM_DOWN);
            let _ = self.stream.poll_send(cx);
        }
        io::Error::other(error)
    }
}

impl AsyncRead for Http2Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.prefix.is_empty() {
            read_prefix(&mut this.prefix, buf);
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = this.conn.abuse() {
            return Poll::Ready(Err(this.calm_down(error, cx)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.conn.progressed();
        this.conn.flood.add(this.frames.read(&buf.filled()[before..]));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Io {
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
