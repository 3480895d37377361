//! A stream that has switched protocols (RFC 9110, 7.8; RFC 8441) or that a CONNECT has opened: bytes both ways,
//! until an end closes, nothing has moved for the stream's idle time, it has lived as long as it may, or the proxy's
//! drain time is over.

use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::exchange::Exchange;
use crate::error::Error;
use crate::listener::Phase;
use crate::listener::io::Io;
use crate::listener::transport::Rewound;
use crate::tcp::copy::{self, Bounds, End, Side};
use crate::upstream::connect::Stream;
use crate::upstream::http1::Socket;
use crate::upstream::http2::Duplex;
use crate::upstream::open::Opened;
use crate::upstream::pool::Lease;

/// The upstream's end. The lease counts it as in flight at the endpoint.
pub(crate) enum Far {
    /// A stream of HTTP/2.
    Stream(Duplex, Lease),
    /// A connection that has carried HTTP/1.1.
    Switched(Rewound<Socket>, Lease),
    /// A connection of its own.
    Opened(Opened),
}

/// The upstream's half, waiting for the client's.
pub(crate) struct Tunnel {
    pub(crate) far: Far,
    pub(crate) exchange: Rc<Exchange>,
    pub(crate) bounds: Bounds,
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

    async fn copy<N: copy::Stream>(self, near: N, owns_connection: bool) {
        let Self { far, exchange, bounds } = self;
        match far {
            Far::Stream(far, lease) => {
                between(&exchange, near, far, &bounds, owns_connection).await;
                drop(lease);
            }
            Far::Switched(far, lease) => {
                between(&exchange, near, far, &bounds, owns_connection).await;
                drop(lease);
            }
            Far::Opened(Opened { stream, endpoint }) => {
                match stream {
                    Stream::Plain(far) => between(&exchange, near, far, &bounds, owns_connection).await,
                    Stream::Tls(far) => between(&exchange, near, far, &bounds, owns_connection).await,
                }
                drop(endpoint);
            }
        }
        exchange.response_done.set(true);
    }
}

/// `owns_connection`: the client's whole connection is this tunnel. Otherwise its driver ends it when drained.
async fn between<N, F>(exchange: &Rc<Exchange>, near: N, far: F, bounds: &Bounds, owns_connection: bool)
where
    N: copy::Stream,
    F: copy::Stream,
{
    let moved = |from, length| {
        let counter = if from == Side::Near { &exchange.received } else { &exchange.sent };
        counter.set(counter.get() + length as u64);
        exchange.progressed();
    };
    let closed = |cx: &mut Context<'_>| match owns_connection {
        true => exchange.conn.poll_phase(Phase::Closed, cx),
        false => Poll::Pending,
    };
    match copy::between(exchange.worker(), near, far, bounds, moved, closed).await {
        End::Idle => drop(exchange.fail(Error::StreamIdle)),
        End::TooLong => drop(exchange.fail(Error::StreamTooLong)),
        End::Complete | End::Broken(..) | End::Closed => {}
    }
}
