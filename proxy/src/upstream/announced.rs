//! What hyper does not tell of an HTTP/2 server, read along: how many streams it takes at once, from its first frame, which
//! has to be SETTINGS (RFC 9113, 3.4), since a stream too many would wait for another's end instead of getting a connection;
//! and a flood of frames that carry nothing, interim answers (1xx) among them, which h2 would read without end.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::connect::MAX_STREAMS;
use crate::error::Error;
use crate::listener::connection::TICK;
use crate::listener::frames::{DATA, Flood, Frames, HEADERS};

const FRAME_HEADER: usize = 9;
/// Of the first frame; forty settings. There are eight that are known.
const KEPT: usize = FRAME_HEADER + 240;
const SETTINGS: u8 = 4;
/// `SETTINGS_MAX_CONCURRENT_STREAMS`
const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];

/// Streams that may be open at once. What changes later on is not seen: h2 holds those too many back.
pub(crate) type StreamLimit = Rc<Cell<usize>>;

/// A connection whose frames are read along.
pub(super) struct Announced<S> {
    stream: S,
    start: Vec<u8>,
    limit: Option<StreamLimit>,
    came: Frames,
    went: Frames,
    flood: Flood,
    /// Since when the flood is counted.
    since: Instant,
    /// Heads and pieces of bodies that went, and pieces that came.
    work: u64,
}

impl<S> Announced<S> {
    pub(super) fn new(stream: S) -> (Self, StreamLimit) {
        let limit = Rc::new(Cell::new(MAX_STREAMS));
        let announced = Self {
            stream,
            start: Vec::new(),
            limit: Some(Rc::clone(&limit)),
            came: Frames::of_server(),
            went: Frames::of_client(),
            flood: Flood::default(),
            since: Instant::now(),
            work: 0,
        };
        (announced, limit)
    }

    /// Fails where the server sends more than what it was asked can call for.
    fn count(&mut self, read: &[u8]) -> io::Result<()> {
        let (mut control, mut data) = (0, 0);
        self.came.each(read, |kind, length| match kind {
            // One without a byte may end a body, and h2 bounds those that do not.
            DATA => data += u64::from(length > 0),
            _ => control += 1,
        });
        self.flood.add(control);
        self.work += data;
        if self.flood.is_one(self.work) {
            let now = Instant::now();
            if now - self.since < TICK {
                return Err(io::Error::other(Error::UpstreamProtocol));
            }
            self.since = now;
            self.flood.forget(self.work);
        }
        Ok(())
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let work = &mut self.work;
        self.went.each(bytes, |kind, _| *work += u64::from(matches!(kind, DATA | HEADERS)));
    }

    fn look(&mut self, read: &[u8]) {
        let Some(limit) = &self.limit else { return };
        self.start.extend_from_slice(&read[..read.len().min(KEPT - self.start.len())]);
        let Some((header, payload)) = self.start.split_at_checked(FRAME_HEADER) else { return };
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        if payload.len() < length && self.start.len() < KEPT {
            return;
        }
        if header[3] == SETTINGS {
            for setting in payload[..length.min(payload.len())].chunks_exact(6) {
                if let [a, b, value @ ..] = setting
                    && [*a, *b] == MAX_CONCURRENT_STREAMS
                    && let Ok(value) = value.try_into().map(u32::from_be_bytes)
                {
                    // With none at all there would be no use in another connection either.
                    limit.set((value as usize).clamp(1, MAX_STREAMS));
                }
            }
        }
        (self.start, self.limit) = (Vec::new(), None);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Announced<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        if this.limit.is_some() {
            this.look(read);
        }
        Poll::Ready(this.count(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Announced<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        this.wrote(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let of_buf = left.min(buf.len());
            this.wrote(&buf[..of_buf]);
            left -= of_buf;
        }
        Poll::Ready(Ok(written))
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

/// What is fuzzed of this room.
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    /// How many streams a server takes that begins with these bytes, read in these pieces.
    pub fn streams(pieces: &[&[u8]]) -> usize {
        let (mut announced, limit) = super::Announced::new(());
        pieces.iter().for_each(|piece| announced.look(piece));
        limit.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is learnt of these bytes, however they are cut.
    fn learnt(bytes: &[u8]) -> usize {
        let found: Vec<usize> = (1..=bytes.len())
            .map(|piece| {
                let (mut announced, limit) = Announced::new(());
                bytes.chunks(piece).for_each(|piece| announced.look(piece));
                limit.get()
            })
            .collect();
        assert!(found.iter().all(|limit| *limit == found[0]), "{found:?}");
        found[0]
    }

    #[test]
    fn the_servers_limit_is_read_and_nothing_else() {
        let frame =
            |kind: u8, payload: &[u8]| [&[0, 0, payload.len() as u8, kind, 0, 0, 0, 0, 0], payload].concat();
        let window = [0, 4, 0, 1, 0, 0];
        assert_eq!(learnt(&frame(SETTINGS, &[&window[..], &[0, 3, 0, 0, 0, 2]].concat())), 2);
        assert_eq!(learnt(&frame(SETTINGS, &[0, 3, 0, 0, 0, 0])), 1);
        assert_eq!(learnt(&frame(SETTINGS, &[0, 3, 255, 255, 255, 255])), MAX_STREAMS);
        assert_eq!(learnt(&frame(SETTINGS, &window)), MAX_STREAMS);
        assert_eq!(learnt(&frame(0, &[0, 3, 0, 0, 0, 2])), MAX_STREAMS);
        let later = [frame(SETTINGS, &[]), frame(SETTINGS, &[0, 3, 0, 0, 0, 2])].concat();
        assert_eq!(learnt(&later), MAX_STREAMS);
        // Longer than what is kept of it.
        assert_eq!(
            learnt(&frame(SETTINGS, &[&window.repeat(41)[..], &[0, 3, 0, 0, 0, 2]].concat())),
            MAX_STREAMS
        );
    }
}
