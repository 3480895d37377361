//! A request's body on its way out. What the endpoint has no room for is not asked for, but for the first piece, the last,
//! and one that waits.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;

use crate::error::Error;
use crate::http::body::RequestBody;

/// Why a body is not sent on.
#[derive(Debug)]
pub(super) enum Stopped {
    /// It has failed, which says why.
    Body(Error),
    /// The endpoint takes no more. It may have answered none the less.
    Stream,
}

pub(super) struct Sending {
    stream: SendStream<Bytes>,
    body: RequestBody,
    /// What waits for room, and whether it is the last.
    piece: Option<(Bytes, bool)>,
    /// The first piece has gone. That waits for nothing: h2 keeps it until the stream is open, and sends it with the head.
    has_begun: bool,
}

impl Sending {
    pub(super) fn new(stream: SendStream<Bytes>, body: RequestBody) -> Self {
        Self { stream, body, piece: None, has_begun: false }
    }

    /// Ready when h2 has all of it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        match self.poll_all(cx) {
            // Who waits for the client hears of the endpoint, too.
            Poll::Pending if self.stream.poll_reset(cx).is_ready() => Poll::Ready(Err(Stopped::Stream)),
            polled => polled,
        }
    }

    /// Tells the endpoint that no more of it comes.
    pub(super) fn cancel(&mut self) {
        self.stream.send_reset(Reason::CANCEL);
    }

    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            // The last piece waits for nothing either: then an answer that comes before its request ends does not stop it.
            if self.has_begun
                && matches!(self.piece, Some((_, false)))
                && !ready!(poll_room(&mut self.stream, cx))
            {
                return Poll::Ready(Err(Stopped::Stream));
            }
            if let Some((piece, is_last)) = self.piece.take() {
                self.has_begun = true;
                self.stream.send_data(piece, is_last).map_err(|_| Stopped::Stream)?;
                if is_last {
                    return Poll::Ready(Ok(()));
                }
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Err(Stopped::Body(error))),
                None => {
                    return Poll::Ready(
                        self.stream.send_data(Bytes::new(), true).map_err(|_| Stopped::Stream),
                    );
                }
            };
            let is_last = self.body.is_end_stream();
            match frame.into_data() {
                // It takes no room.
                Ok(data) if data.is_empty() && is_last => {
                    return Poll::Ready(self.stream.send_data(data, true).map_err(|_| Stopped::Stream));
                }
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    // The rest is reserved by the piece itself. What is reserved for one that has not come would be
                    // kept from the other streams.
                    if self.has_begun && !is_last {
                        self.stream.reserve_capacity(1);
                    }
                    self.piece = Some((data, is_last));
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return Poll::Ready(self.stream.send_trailers(trailers).map_err(|_| Stopped::Stream));
                    }
                }
            }
        }
    }
}

/// Ready when there is some of what was reserved, or with `false`: the stream takes no more.
pub(super) fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<bool> {
    while stream.capacity() == 0 {
        if !matches!(ready!(stream.poll_capacity(cx)), Some(Ok(_))) {
            return Poll::Ready(false);
        }
    }
    Poll::Ready(true)
}
