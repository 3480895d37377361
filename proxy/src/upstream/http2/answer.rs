//! An answer whose head has come: its body, and what is still sent of its request meanwhile.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http_body::{Frame, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use super::sending::{Sending, Stopped};
use super::{Duplex, classify};
use crate::error::Error;

/// With it the stream ends, if need be by a reset.
pub(in crate::upstream) struct Answer {
    body: RecvStream,
    /// So much of it is still to come, where that is known. h2 holds the endpoint to its word.
    left: Option<u64>,
    rest: Rest,
}

/// What of the request has not gone.
pub(super) enum Rest {
    Nothing,
    /// Sends the rest of a body, until this is dropped.
    Body {
        _task: AbortOnDropHandle<()>,
    },
    Tunnel(SendStream<Bytes>),
}

impl Rest {
    pub(super) fn body(mut sending: Sending) -> Self {
        let task = tokio::task::spawn_local(async move {
            // An answer to what has failed is of no use; who reads it hears of the reset.
            if let Err(Stopped::Body(_)) = poll_fn(|cx| sending.poll(cx)).await {
                sending.cancel();
            }
        });
        Self::Body { _task: AbortOnDropHandle::new(task) }
    }
}

impl Answer {
    pub(super) fn new(body: RecvStream, length: Option<u64>, rest: Rest) -> Self {
        let left = if body.is_end_stream() { Some(0) } else { length };
        Self { body, left, rest }
    }

    pub(in crate::upstream) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(data) = ready!(self.body.poll_data(cx)) {
            let data = data.map_err(|error| broken_off(&error))?;
            // Of a stream that has ended meanwhile there is nothing to give back.
            let _ = self.body.flow_control().release_capacity(data.len());
            self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(self.body.poll_trailers(cx)).map_err(|error| broken_off(&error))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    pub(in crate::upstream) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(in crate::upstream) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    /// What follows where a tunnel was granted.
    pub(in crate::upstream) fn into_tunnel(self) -> Option<Duplex> {
        match self.rest {
            Rest::Tunnel(stream) => Some(Duplex::new(stream, self.body)),
            Rest::Nothing | Rest::Body { .. } => None,
        }
    }
}

/// Why the rest of an answer does not come. What was refused was not answered (RFC 9113, 8.7), and is not sent again.
fn broken_off(error: &h2::Error) -> Error {
    match classify(error) {
        Error::RefusedStream => Error::UpstreamReset,
        other => other,
    }
}
