//! HTTP/2 frames written and read by hand (RFC 9113), with the little of HPACK (RFC 7541) that this needs.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::fixture::PATIENCE;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const CANCEL: u32 = 8;
pub(crate) const COMPRESSION_ERROR: u32 = 9;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame as it is on the wire.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field as a literal that is not indexed, whatever its bytes are.
pub(crate) fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    string(&mut bytes, name);
    string(&mut bytes, value);
    bytes
}

fn string(bytes: &mut Vec<u8>, text: &[u8]) {
    integer(bytes, 7, text.len());
    bytes.extend(text);
}

/// RFC 7541, 5.1, with no flag bits set.
pub(crate) fn integer(bytes: &mut Vec<u8>, prefix: u32, mut value: usize) {
    let most = (1 << prefix) - 1;
    if value < most {
        bytes.push(value as u8);
        return;
    }
    bytes.push(most as u8);
    value -= most;
    while value >= 128 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The pseudo-headers of `METHOD http://a/PATH`.
pub(crate) fn request(method: &str, path: &str) -> Vec<u8> {
    let fields: [(&str, &str); 4] =
        [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)];
    fields.iter().flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes())).collect()
}

/// One frame as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The code of a RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }

    /// The status of a HEADERS frame whose first field it is, as h2 writes it.
    pub(crate) fn status(&self) -> Option<u16> {
        if self.kind != HEADERS {
            return None;
        }
        match *self.payload.first()? {
            // After a change of the table's size.
            0x20..=0x3f => Frame { payload: self.payload[1..].to_vec(), ..self.clone() }.status(),
            0x88 => Some(200),
            0x8c => Some(400),
            0x8d => Some(404),
            0x8e => Some(500),
            0x48 | 0x08 => digits(self.payload.get(1..)?),
            _ => None,
        }
    }
}

/// Three digits, plain or in Huffman code.
fn digits(value: &[u8]) -> Option<u16> {
    let (first, rest) = value.split_first()?;
    let text = rest.get(..usize::from(first & 0x7f))?;
    if first & 0x80 == 0 {
        return std::str::from_utf8(text).ok()?.parse().ok();
    }
    let bits: Vec<u8> = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let take = |length: usize| {
            bits.get(at..at + length).map(|bits| bits.iter().fold(0, |sum, bit| sum << 1 | u16::from(*bit)))
        };
        // 0, 1 and 2 have five bits, 3 to 9 six, from 011001 on.
        let (digit, length) = match take(5)? {
            short @ 0..=2 => (short, 5),
            _ => (take(6)? - 0b01_1001 + 3, 6),
        };
        number = number * 10 + digit;
        at += length;
    }
    Some(number)
}

/// A client of raw frames.
pub(crate) struct Raw {
    pub(crate) read: OwnedReadHalf,
    pub(crate) write: OwnedWriteHalf,
    buffer: Vec<u8>,
}

impl Raw {
    /// Connected, with the preface and `settings` (pairs) sent and the server's settings acknowledged.
    pub(crate) async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Raw {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut raw = Raw::over(stream);
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &payload), &frame(SETTINGS, ACK, 0, &[])].concat()).await;
        raw
    }

    pub(crate) fn over(stream: TcpStream) -> Raw {
        stream.set_nodelay(true).unwrap();
        let (read, write) = stream.into_split();
        Raw { read, write, buffer: Vec::new() }
    }

    /// Writes what the server still takes; it may have ended the connection.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = tokio::time::timeout(PATIENCE, self.write.write_all(bytes)).await;
        matches!(sent, Ok(Ok(())))
    }

    /// Writes until done, refused, or stuck for `limit`.
    pub(crate) async fn push(&mut self, bytes: &[u8], limit: Duration) -> bool {
        matches!(tokio::time::timeout(limit, self.write.write_all(bytes)).await, Ok(Ok(())))
    }

    /// The next frame; `None` where the server has ended the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let reading = async {
            loop {
                if let Some(frame) = self.take() {
                    return Some(frame);
                }
                let mut chunk = [0; 4 * 1024];
                match self.read.read(&mut chunk).await {
                    Ok(0) | Err(_) => return None,
                    Ok(length) => self.buffer.extend_from_slice(&chunk[..length]),
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("a frame or an end in time")
    }

    fn take(&mut self) -> Option<Frame> {
        let head: [u8; 9] = self.buffer.get(..9)?.try_into().unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = self.buffer.get(9..9 + length)?.to_vec();
        self.buffer.drain(..9 + length);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The first frame that `wanted` takes.
    pub(crate) async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// What becomes of a stream: its first HEADERS or RST_STREAM, or the GOAWAY that ends it all.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Outcome {
        let found = self
            .find(|frame| {
                frame.kind == GOAWAY || frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM)
            })
            .await;
        match found {
            None => Outcome::Closed,
            Some(frame) => match frame.kind {
                GOAWAY => Outcome::GoAway(frame.code().unwrap()),
                RST_STREAM => Outcome::Reset(frame.code().unwrap()),
                _ => Outcome::Status(frame.status().unwrap_or(0)),
            },
        }
    }

    /// The code of the GOAWAY that ends the connection; `None` where it ends without one.
    pub(crate) async fn goaway(&mut self) -> Option<u32> {
        self.find(|frame| frame.kind == GOAWAY).await.and_then(|frame| frame.code())
    }
}

/// What a server did with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    Closed,
}
