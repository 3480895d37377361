//! What an HTTP/2 connection writes in one turn of its task, in one system call at the turn's end. By itself h2 writes and
//! flushes each piece of a body from 256 bytes on, and with many streams a turn has many.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What waits at most. Twice the socket's share of a turn would only leave the cache.
const MOST: usize = 16 * 1024;
/// Pieces from here on are written from where they are: to copy them costs more than a call.
const LARGE: usize = 8 * 1024;

/// A connection that writes when it is told to, by its driver: what h2 takes for flushed waits until then.
pub(crate) struct Batched<S>(Rc<RefCell<Batch<S>>>);

struct Batch<S> {
    stream: S,
    waiting: Vec<u8>,
    /// Of what waits, what has gone already.
    gone: usize,
    /// Since the last flush that went through, something was written.
    is_open: bool,
    /// All bytes that h2 has written.
    taken: u64,
    /// Why it cannot be written to any more.
    failed: Option<io::ErrorKind>,
}

impl<S> Clone for Batched<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S> Batched<S> {
    pub(crate) fn new(stream: S) -> Self {
        let batch = Batch { stream, waiting: Vec::new(), gone: 0, is_open: false, taken: 0, failed: None };
        Self(Rc::new(RefCell::new(batch)))
    }

    /// Of all that h2 has written, what has gone.
    pub(crate) fn sent(&self) -> u64 {
        let batch = self.0.borrow();
        batch.taken - (batch.waiting.len() - batch.gone) as u64
    }
}

impl<S: AsyncWrite + Unpin> Batched<S> {
    /// Writes what waits. Of a failure h2 hears when it is polled next, which is at once.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut batch = self.0.borrow_mut();
        if !batch.is_open {
            return Poll::Ready(());
        }
        let result = ready!(batch.poll_send(cx));
        batch.is_open = false;
        if let Err(error) = result {
            batch.failed = Some(error.kind());
            cx.waker().wake_by_ref();
        }
        Poll::Ready(())
    }
}

impl<S: AsyncWrite + Unpin> Batch<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gone < self.waiting.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.waiting[self.gone..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => self.gone += length,
            }
        }
        // An idle connection holds no room.
        (self.waiting, self.gone) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.failed {
            return Poll::Ready(Err(kind.into()));
        }
        let length = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if self.waiting.len() + length > MOST || length >= LARGE {
            ready!(self.poll_empty(cx))?;
        }
        self.is_open = true;
        let written = if length >= LARGE {
            ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?
        } else {
            bufs.iter().for_each(|buf| self.waiting.extend_from_slice(buf));
            length
        };
        self.taken += written as u64;
        Poll::Ready(Ok(written))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow().failed.map_or(Ok(()), |kind| Err(kind.into())))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut batch = self.0.borrow_mut();
        ready!(batch.poll_empty(cx))?;
        Pin::new(&mut batch.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Counts the calls that write.
    struct Counted(tokio::io::DuplexStream, usize);

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    fn pair(room: usize) -> (Batched<Counted>, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(room);
        (Batched::new(Counted(near, 0)), far)
    }

    #[tokio::test]
    async fn a_turns_pieces_are_one_write_and_come_in_order() {
        let (batched, mut far) = pair(1 << 20);
        let mut writer = batched.clone();
        for piece in [&b"head "[..], b"of one ", b"and its body"] {
            writer.write_all(piece).await.unwrap();
            writer.flush().await.unwrap();
        }
        assert_eq!(batched.0.borrow().stream.1, 0);
        poll_fn(|cx| batched.poll_send(cx)).await;
        assert_eq!((batched.0.borrow().stream.1, batched.0.borrow().waiting.capacity()), (1, 0));
        let mut got = [0; 24];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"head of one and its body");
        poll_fn(|cx| batched.poll_send(cx)).await;
        assert_eq!(batched.0.borrow().stream.1, 1, "nothing waits");
    }

    #[tokio::test]
    async fn what_does_not_fit_is_not_taken_and_nothing_is_lost() {
        for room in [1, 100, 20_000] {
            let (batched, mut far) = pair(room);
            let mut writer = batched.clone();
            let sizes = [1, 300, 9_000, 7_000, 7_000, 7_000, 40_000, 5];
            let sent: Vec<u8> = sizes.iter().zip(b'a'..).flat_map(|(size, byte)| vec![byte; *size]).collect();
            let expected = sent.clone();
            let write = async move {
                let mut left = &sent[..];
                for size in sizes {
                    writer.write_all(&left[..size]).await.unwrap();
                    assert!(writer.0.borrow().waiting.len() <= MOST);
                    left = &left[size..];
                }
                writer.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(write, far.read_to_end(&mut got));
            read.unwrap();
            assert!(got == expected, "{room}");
        }
    }

    #[tokio::test]
    async fn a_failure_is_heard_of_by_who_writes() {
        let (batched, far) = pair(10);
        drop(far);
        let mut writer = batched.clone();
        writer.write_all(b"nobody reads this").await.unwrap();
        poll_fn(|cx| batched.poll_send(cx)).await;
        assert!(writer.flush().await.is_err() && writer.write_all(b"nor this").await.is_err());
    }
}
