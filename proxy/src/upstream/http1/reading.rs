//! An answer as it is read: what has come, and where in it the reader is.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::{Frame, SizeHint};

use super::answer::{self, Body};
use super::chunks::Piece;
use crate::error::Error;
use crate::upstream::connect::MAX_HEADER_BYTES;

/// The bytes that were read and not used yet, and what they are.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) bytes: BytesMut,
    /// How far in them the head's end was looked for.
    looked: usize,
    /// Bytes of interim answers and empty lines: who sends nothing else would be read for as long as the route lets a request
    /// idle.
    interim: usize,
    /// An empty map, for its headers.
    room: HeaderMap,
    body: Body,
}

impl Reading {
    /// Before an answer. The map is used again, which saves making one.
    pub(super) fn new(mut room: HeaderMap) -> Reading {
        room.clear();
        Reading { bytes: BytesMut::new(), looked: 0, interim: 0, room, body: Body::Done }
    }

    /// The answer to a request of that method, once its head is whole, and whether another may follow on the connection. Of
    /// answers before it (1xx) `interim` is told.
    pub(super) fn head(
        &mut self,
        asked: &Method,
        mut interim: impl FnMut(StatusCode),
    ) -> Result<Option<(Response<()>, bool)>, Error> {
        loop {
            if self.looked == 0 {
                let empty = answer::empty_lines(&self.bytes);
                self.bytes.advance(empty);
                self.before(empty)?;
            }
            let answer = answer::head(&mut self.bytes, &mut self.looked, asked, &mut self.room)?;
            let Some(answer) = answer else { return Ok(None) };
            let status = answer.response.status();
            if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                self.body = answer.body;
                self.let_go();
                return Ok(Some((answer.response, answer.persists)));
            }
            self.before(answer.bytes)?;
            interim(status);
        }
    }

    /// So much came before the answer.
    fn before(&mut self, bytes: usize) -> Result<(), Error> {
        self.interim += bytes;
        if self.interim > MAX_HEADER_BYTES as usize { Err(Error::UpstreamProtocol) } else { Ok(()) }
    }

    /// The next frame of the body in what has come.
    pub(super) fn frame(&mut self) -> Result<Option<Frame<Bytes>>, Error> {
        let bytes = &mut self.bytes;
        let frame = match &mut self.body {
            Body::Done => return Ok(None),
            Body::Chunked(chunks) => match chunks.next(bytes)? {
                None => return Ok(None),
                Some(Piece::Data(data)) => {
                    if chunks.ends(bytes) {
                        self.body = Body::Done;
                    }
                    Some(Frame::data(data))
                }
                Some(Piece::Trailers(trailers)) => {
                    self.body = Body::Done;
                    Some(Frame::trailers(trailers))
                }
                Some(Piece::End) => {
                    self.body = Body::Done;
                    None
                }
            },
            _ if bytes.is_empty() => return Ok(None),
            Body::UntilClose => Some(Frame::data(bytes.split().freeze())),
            Body::Length(left) => {
                let length = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= length as u64;
                if *left == 0 {
                    self.body = Body::Done;
                }
                Some(Frame::data(bytes.split_to(length).freeze()))
            }
        };
        self.let_go();
        Ok(frame)
    }

    /// The endpoint has closed the connection; whether the body may end so.
    pub(super) fn close(&mut self) -> bool {
        let may = matches!(self.body, Body::UntilClose);
        if may {
            self.body = Body::Done;
        }
        may
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.body, Body::Done)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self.body {
            Body::Done => SizeHint::with_exact(0),
            Body::Length(left) => SizeHint::with_exact(left),
            Body::Chunked(_) | Body::UntilClose => SizeHint::default(),
        }
    }

    /// An empty piece of a buffer would keep all of it.
    fn let_go(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
        }
    }
}

/// What is fuzzed of this room.
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    use http::{HeaderMap, Method};

    use super::Reading;

    /// An answer that was read.
    #[derive(Debug, PartialEq, Eq)]
    pub struct Read {
        /// Its status, from 101 or 200 on.
        pub status: u16,
        /// Its headers.
        pub headers: HeaderMap,
        /// All of its body.
        pub body: Vec<u8>,
        /// Its trailers, if it has any.
        pub trailers: Option<HeaderMap>,
        /// Another may follow it.
        pub persists: bool,
        /// What has come behind it.
        pub rest: Vec<u8>,
    }

    /// Reads an answer to a GET, in these pieces, which are all. `None`: it is not whole, or none that is passed on.
    pub fn answer(pieces: &[&[u8]]) -> Option<Read> {
        let mut reading = Reading::new(HeaderMap::new());
        let mut pieces = pieces.iter();
        let (response, persists) = loop {
            match reading.head(&Method::GET, drop).ok()? {
                Some(head) => break head,
                None => reading.bytes.extend_from_slice(pieces.next()?),
            }
        };
        let (mut body, mut trailers) = (Vec::new(), None);
        while !reading.is_done() {
            match reading.frame().ok()?.map(http_body::Frame::into_data) {
                Some(Ok(piece)) => body.extend_from_slice(&piece),
                Some(Err(frame)) => trailers = frame.into_trailers().ok(),
                None if reading.is_done() => {}
                None => match pieces.next() {
                    Some(piece) => reading.bytes.extend_from_slice(piece),
                    None if reading.close() => {}
                    None => return None,
                },
            }
        }
        let mut rest = reading.bytes.to_vec();
        pieces.for_each(|piece| rest.extend_from_slice(piece));
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Some(Read { status, headers, body, trailers, persists, rest })
    }
}
