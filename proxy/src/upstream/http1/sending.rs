//! A request on its way out (RFC 9112, 3 and 7): the head and what is at hand of the body in one piece, then the body as
//! it comes. No more is asked of it than what the endpoint takes.

use std::cell::Cell;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::header::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Request, request};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite;

use crate::error::Error;
use crate::http::body::RequestBody;

/// What is copied behind the head rather than written beside it.
const SMALL: usize = 4 * 1024;
/// As much is gathered before it is written, where more is at hand.
const ENOUGH: usize = 16 * 1024;
/// Room that is kept for the worker's next request.
const KEPT: usize = 32 * 1024;

thread_local! {
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Why a request is not sent on.
#[derive(Debug)]
pub(super) enum Stopped {
    /// Its body has failed, which says why.
    Body(Error),
    /// The endpoint takes no more. It may have answered none the less.
    Socket,
}

/// A request, and how much of it has gone.
pub(super) struct Sending {
    /// Gathered, of which `gone` bytes have gone.
    out: Vec<u8>,
    gone: usize,
    /// Follows it, and has itself to be followed by the end of its chunk.
    piece: Bytes,
    chunk_end: &'static [u8],
    body: RequestBody,
    framing: Framing,
    /// All of the body has been taken.
    whole: bool,
}

enum Framing {
    /// So much is still to come.
    Length(u64),
    /// With the trailers that were announced.
    Chunked(Vec<HeaderName>),
}

impl Sending {
    /// Of the request's headers, which are written, the map is given back.
    pub(super) fn new(request: Request<RequestBody>) -> (Sending, HeaderMap) {
        let (parts, body) = request.into_parts();
        let whole = body.is_end_stream();
        let announced = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let (length, framing) = match (announced, body.size_hint().exact()) {
            (Some(length), _) => (None, Framing::Length(length)),
            _ if whole => (None, Framing::Length(0)),
            (None, Some(length)) => (Some(length), Framing::Length(length)),
            (None, None) => (None, Framing::Chunked(trailers(&parts))),
        };
        // One that announces more than it has is not sent to its end: the next request's first bytes would be the rest.
        let whole = whole && !matches!(framing, Framing::Length(1..));
        let mut out = ROOM.take();
        out.clear();
        head(&mut out, &parts);
        // Into memory, which takes it.
        let _ = match (&framing, length) {
            (Framing::Chunked(_), _) => write!(out, "{TRANSFER_ENCODING}: chunked\r\n\r\n"),
            (Framing::Length(_), Some(length)) => write!(out, "{CONTENT_LENGTH}: {length}\r\n\r\n"),
            (Framing::Length(_), None) => out.write_all(b"\r\n"),
        };
        let sending = Sending { out, gone: 0, piece: Bytes::new(), chunk_end: b"", body, framing, whole };
        (sending, parts.headers)
    }

    /// Ready when all of it has gone.
    pub(super) fn poll<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stopped>> {
        loop {
            let waits = self.gather(cx).map_err(Stopped::Body)?;
            ready!(self.poll_write(socket, cx)).map_err(|_| Stopped::Socket)?;
            if self.whole || waits {
                ready!(Pin::new(&mut *socket).poll_flush(cx)).map_err(|_| Stopped::Socket)?;
                return if self.whole { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    /// Takes of the body what is at hand, as far as there is room; whether it is waited for.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let gathers = |this: &Self| {
            this.piece.is_empty() && this.chunk_end.is_empty() && this.out.len() - this.gone < ENOUGH
        };
        while !self.whole && gathers(self) {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Some(frame)) => {
                    self.take(frame?)?;
                    if !self.whole && self.body.is_end_stream() {
                        self.end()?;
                    }
                }
                Poll::Ready(None) => self.end()?,
            }
        }
        Ok(false)
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), Error> {
        let data = match frame.into_data() {
            // An empty chunk would be the last.
            Ok(data) if data.is_empty() => return Ok(()),
            Ok(data) => data,
            Err(frame) => {
                if let (Framing::Chunked(announced), Ok(trailers)) = (&self.framing, frame.into_trailers()) {
                    self.out.extend_from_slice(b"0\r\n");
                    let known = trailers.iter().filter(|(name, _)| announced.contains(name));
                    known.for_each(|(name, value)| line(&mut self.out, name, value.as_bytes()));
                    self.out.extend_from_slice(b"\r\n");
                    self.whole = true;
                }
                return Ok(());
            }
        };
        let after: &'static [u8] = match &mut self.framing {
            Framing::Length(left) => {
                // hyper and h2 hold the client to its word.
                *left = left.checked_sub(data.len() as u64).ok_or(Error::BadHeader)?;
                b""
            }
            Framing::Chunked(_) => {
                let _ = write!(self.out, "{:x}\r\n", data.len());
                b"\r\n"
            }
        };
        if data.len() <= SMALL {
            self.out.extend_from_slice(&data);
            self.out.extend_from_slice(after);
        } else {
            (self.piece, self.chunk_end) = (data, after);
        }
        Ok(())
    }

    /// The body has ended.
    fn end(&mut self) -> Result<(), Error> {
        match self.framing {
            Framing::Length(1..) => return Err(Error::ClientGone),
            Framing::Length(0) => {}
            // Behind a piece that has not gone yet it is the next to go.
            Framing::Chunked(_) if !self.chunk_end.is_empty() => self.chunk_end = b"\r\n0\r\n\r\n",
            Framing::Chunked(_) => self.out.extend_from_slice(b"0\r\n\r\n"),
        }
        self.whole = true;
        Ok(())
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let out = &self.out[self.gone..];
            let parts = [out, &self.piece[..], self.chunk_end];
            let wrote = match parts {
                [[], [], []] => break,
                [out, [], []] => ready!(Pin::new(&mut *socket).poll_write(cx, out))?,
                parts => ready!(Pin::new(&mut *socket).poll_write_vectored(cx, &parts.map(IoSlice::new)))?,
            };
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_out = wrote.min(out.len());
            let of_piece = (wrote - of_out).min(self.piece.len());
            self.gone += of_out;
            self.piece.advance(of_piece);
            self.chunk_end = &self.chunk_end[wrote - of_out - of_piece..];
        }
        self.out.clear();
        self.gone = 0;
        // A piece of a buffer keeps all of it.
        self.piece = Bytes::new();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.out.capacity() <= KEPT {
            ROOM.set(std::mem::take(&mut self.out));
        }
    }
}

/// Trailers that the head announces. Others are not sent: who does not expect them may take them for headers.
fn trailers(parts: &request::Parts) -> Vec<HeaderName> {
    let values = parts.headers.get_all(TRAILER).iter();
    let names = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect()
}

/// The first line and the headers, without the empty line behind them.
fn head(out: &mut Vec<u8>, parts: &request::Parts) {
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    match parts.uri.path_and_query() {
        Some(target) if parts.uri.authority().is_none() => out.extend_from_slice(target.as_str().as_bytes()),
        // Into memory, which takes it.
        _ => drop(write!(out, "{}", parts.uri)),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    // Framed anew.
    for (name, value) in parts.headers.iter().filter(|(name, _)| **name != TRANSFER_ENCODING) {
        line(out, name, value.as_bytes());
    }
}

fn line(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn request(fields: &[(&str, &str)], frames: Vec<Frame<Bytes>>) -> Request<RequestBody> {
        let body = if frames.is_empty() { RequestBody::empty() } else { RequestBody::of(frames, true) };
        let mut request = Request::post("/a?b").body(body).unwrap();
        for (name, value) in fields {
            request.headers_mut().append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        request
    }

    /// What goes out, to an endpoint that takes so many bytes at once.
    async fn sent(request: Request<RequestBody>, room: usize) -> Result<String, String> {
        let (mut near, mut far) = tokio::io::duplex(room);
        let send = async move {
            let (mut sending, _) = Sending::new(request);
            let sent = std::future::poll_fn(|cx| sending.poll(&mut near, cx)).await;
            sent.map_err(|stopped| format!("{stopped:?}"))
        };
        let mut got = String::new();
        let (sent, read) = tokio::join!(send, far.read_to_string(&mut got));
        read.unwrap();
        sent.map(|()| got)
    }

    fn data(text: &str) -> Frame<Bytes> {
        Frame::data(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[tokio::test]
    async fn a_request_is_framed_by_what_is_known_of_its_body() {
        for room in [1, 7, 100_000] {
            assert_eq!(
                sent(request(&[("host", "shop"), ("x", "")], Vec::new()), room).await.unwrap(),
                "POST /a?b HTTP/1.1\r\nhost: shop\r\nx: \r\n\r\n"
            );
            assert_eq!(
                sent(request(&[("content-length", "5")], vec![data("hel"), data(""), data("lo")]), room)
                    .await
                    .unwrap(),
                "POST /a?b HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello"
            );
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "1".parse().unwrap());
            trailers.insert("x-other", "2".parse().unwrap());
            let frames = || vec![data("0123456789abcdef"), data(""), Frame::trailers(trailers.clone())];
            let head = "POST /a?b HTTP/1.1\r\ntrailer: X-Sum, y\r\ntransfer-encoding: chunked\r\n\r\n";
            assert_eq!(
                sent(request(&[("trailer", "X-Sum, y")], frames()), room).await.unwrap(),
                format!("{head}10\r\n0123456789abcdef\r\n0\r\nx-sum: 1\r\n\r\n")
            );
            let long = "x".repeat(2 * ENOUGH);
            assert_eq!(
                sent(
                    request(&[("content-length", "65537")], vec![data(&long), data(&long), data("y")]),
                    room
                )
                .await
                .unwrap(),
                format!("POST /a?b HTTP/1.1\r\ncontent-length: 65537\r\n\r\n{long}{long}y")
            );
            let chunk = format!("8000\r\n{long}\r\n");
            assert_eq!(
                sent(request(&[], vec![data(&long), data("y"), data(&long)]), room).await.unwrap(),
                format!(
                    "POST /a?b HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{chunk}1\r\ny\r\n{chunk}0\r\n\r\n"
                )
            );
        }
    }

    #[tokio::test]
    async fn a_body_that_is_not_of_its_length_is_not_sent_as_one() {
        let with = |length: &'static str| request(&[("content-length", length)], vec![data("hello")]);
        assert_eq!(sent(with("4"), 10).await.unwrap_err(), "Body(BadHeader)");
        assert_eq!(sent(with("6"), 10).await.unwrap_err(), "Body(ClientGone)");
        assert_eq!(
            sent(request(&[("content-length", "1")], Vec::new()), 10).await.unwrap_err(),
            "Body(ClientGone)"
        );
        let mut broken = request(&[], Vec::new());
        *broken.body_mut() = RequestBody::of(vec![data("hello")], false);
        assert_eq!(sent(broken, 10).await.unwrap_err(), "Body(ClientGone)");
    }

    #[tokio::test]
    async fn no_more_is_taken_of_a_body_than_the_endpoint_takes() {
        let (mut near, mut far) = tokio::io::duplex(1024);
        let frames = (0..100).map(|_| data(&"x".repeat(SMALL))).collect();
        let (mut sending, _) = Sending::new(request(&[], frames));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(sending.poll(&mut near, &mut cx).is_pending());
        assert!(sending.out.len() <= ENOUGH + SMALL + 100);
        drop(far.read_u8().await);
        drop(far);
        assert!(matches!(sending.poll(&mut near, &mut cx), Poll::Ready(Err(Stopped::Socket))));
    }

    #[test]
    fn a_target_is_written_as_it_is() {
        for target in ["/", "/a?b", "*", "http://other/a", "http://other"] {
            let mut out = Vec::new();
            let (mut parts, ()) = Request::new(()).into_parts();
            parts.uri = target.parse().unwrap();
            head(&mut out, &parts);
            let expected = if target == "http://other" { "http://other/" } else { target };
            assert_eq!(out, format!("GET {expected} HTTP/1.1\r\n").as_bytes());
        }
    }
}
