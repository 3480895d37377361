//! A connection that has switched protocols (RFC 9110, 7.8): bytes both ways, until an end closes, nothing has
//! moved for the stream's idle time, or the proxy's drain time is over.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::exchange::Exchange;
use crate::error::Error;
use crate::listener::Phase;
use crate::listener::connection::ConnState;
use crate::listener::io::Io;
use crate::upstream::pool::Lease;

/// The upstream's half, waiting for the client's 101 to be written.
pub(crate) struct Tunnel {
    pub(crate) upstream: OnUpgrade,
    pub(crate) exchange: Rc<Exchange>,
    /// Counts as in flight at the endpoint.
    pub(crate) lease: Lease,
}

impl Tunnel {
    /// Copies until the end. Bytes that came with the handshake are in `io`'s prefix.
    pub(crate) async fn run(self, conn: &ConnState, mut io: Io) {
        let Self { upstream, exchange, lease } = self;
        let Ok(upstream) = upstream.await else {
            exchange.fail(Error::UpstreamReset);
            return;
        };
        let mut upstream = TokioIo::new(upstream);
        let idle = exchange.settings.http.timeouts.stream_idle;
        let mut seen = conn.progress();
        let mut timer = idle.map(|idle| exchange.worker().timer(Instant::now() + idle));
        let mut copy = pin!(tokio::io::copy_bidirectional(&mut io, &mut upstream));
        let copied = poll_fn(|cx| {
            if let Poll::Ready(result) = copy.as_mut().poll(cx) {
                return Poll::Ready(result.ok());
            }
            if conn.poll_phase(Phase::Closed, cx).is_ready() {
                return Poll::Ready(None);
            }
            if let (Some(timer), Some(idle)) = (&mut timer, idle) {
                while let Some(mut sleep) = timer.sleep()
                    && sleep.as_mut().poll(cx).is_ready()
                {
                    if std::mem::replace(&mut seen, conn.progress()) == conn.progress() {
                        exchange.fail(Error::StreamIdle);
                        return Poll::Ready(None);
                    }
                    sleep.as_mut().reset(Instant::now() + idle);
                }
            }
            Poll::Pending
        })
        .await;
        if let Some((received, sent)) = copied {
            exchange.received.set(received);
            exchange.sent.set(sent);
        }
        exchange.response_done.set(true);
        drop(lease);
    }
}
