//! A stream that has switched protocols (RFC 9110, 7.8; RFC 8441) or that a CONNECT has opened: bytes both ways,
//! until an end closes, nothing has moved for the stream's idle time, or the proxy's drain time is over.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use super::exchange::Exchange;
use crate::error::Error;
use crate::listener::Phase;
use crate::listener::io::Io;
use crate::upstream::pool::Lease;

/// The upstream's end.
pub(crate) enum Far {
    /// Waits for the upstream's connection to be handed over. The lease counts it as in flight at the endpoint.
    Upgrade(OnUpgrade, Lease),
    /// A connection of its own.
    Tcp(TcpStream),
    /// The same under TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// The upstream's half, waiting for the client's.
pub(crate) struct Tunnel {
    pub(crate) far: Far,
    pub(crate) exchange: Rc<Exchange>,
    pub(crate) idle: Option<Duration>,
}

impl Tunnel {
    /// Takes over an HTTP/1.1 connection whose 101 (or 200 to a CONNECT) has been written. Bytes that came with the
    /// handshake are in `io`'s prefix.
    pub(crate) async fn run(self, io: Io) {
        self.copy(io, true).await;
    }

    /// Takes over an HTTP/2 stream as soon as its 200 is on its way.
    pub(crate) fn spawn(self, near: OnUpgrade) {
        tokio::task::spawn_local(async move {
            match near.await {
                Ok(near) => self.copy(TokioIo::new(near), false).await,
                Err(_) => drop(self.exchange.fail(Error::ClientGone)),
            }
        });
    }

    async fn copy<N: AsyncRead + AsyncWrite + Unpin>(self, near: N, owns_connection: bool) {
        let Self { far, exchange, idle } = self;
        match far {
            Far::Upgrade(upstream, lease) => {
                match upstream.await {
                    Ok(far) => between(&exchange, near, TokioIo::new(far), idle, owns_connection).await,
                    Err(_) => drop(exchange.fail(Error::UpstreamReset)),
                }
                drop(lease);
            }
            Far::Tcp(far) => between(&exchange, near, far, idle, owns_connection).await,
            Far::Tls(far) => between(&exchange, near, far, idle, owns_connection).await,
        }
        exchange.response_done.set(true);
    }
}

/// `owns_connection`: the client's whole connection is this tunnel. Otherwise its driver ends it when drained.
async fn between<N, F>(
    exchange: &Rc<Exchange>,
    near: N,
    far: F,
    idle: Option<Duration>,
    owns_connection: bool,
) where
    N: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let mut near = near;
    let moved = Cell::new((0, 0));
    let mut far = Counted { inner: far, moved: &moved, exchange };
    let mut seen = moved.get();
    let mut timer = idle.map(|idle| exchange.worker().timer(Instant::now() + idle));
    {
        let mut copy = pin!(tokio::io::copy_bidirectional(&mut near, &mut far));
        poll_fn(|cx| {
            if copy.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if owns_connection && exchange.conn.poll_phase(Phase::Closed, cx).is_ready() {
                return Poll::Ready(());
            }
            if let (Some(timer), Some(idle)) = (&mut timer, idle) {
                while let Some(mut sleep) = timer.sleep()
                    && sleep.as_mut().poll(cx).is_ready()
                {
                    if std::mem::replace(&mut seen, moved.get()) == moved.get() {
                        exchange.fail(Error::StreamIdle);
                        return Poll::Ready(());
                    }
                    sleep.as_mut().reset(Instant::now() + idle);
                }
            }
            Poll::Pending
        })
        .await;
    }
    let (received, sent) = moved.get();
    exchange.received.set(received);
    exchange.sent.set(sent);
}

/// The upstream's end, with a count of what went to it and came from it.
struct Counted<'a, F> {
    inner: F,
    moved: &'a Cell<(u64, u64)>,
    exchange: &'a Exchange,
}

impl<F> Counted<'_, F> {
    fn count(&self, to: usize, from: usize) {
        let (all_to, all_from) = self.moved.get();
        self.moved.set((all_to + to as u64, all_from + from as u64));
        self.exchange.progressed();
    }
}

impl<F: AsyncRead + Unpin> AsyncRead for Counted<'_, F> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(cx, buf);
        if polled.is_ready() {
            this.count(0, buf.filled().len() - before);
        }
        polled
    }
}

impl<F: AsyncWrite + Unpin> AsyncWrite for Counted<'_, F> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(length)) = &polled {
            this.count(*length, 0);
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
