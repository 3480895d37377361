//! An HTTP/1.1 upstream that records every byte. It reads as the simplest origin does: a head, then the body that
//! `Content-Length` or `chunked` announces.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The bytes of each connection, in the order of the connections.
#[derive(Clone, Default)]
pub(crate) struct Recorded(Arc<Mutex<Vec<Vec<u8>>>>);

/// One message as the origin read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// The head without its last empty line.
    pub(crate) head: String,
    /// The body with the chunks' framing undone.
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// The values of a header, in order.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let lines = self.head.split("\r\n").skip(1);
        lines
            .filter_map(|line| line.split_once(':'))
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }
}

impl Recorded {
    /// All bytes, lossily, for messages.
    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap().iter().all(Vec::is_empty)
    }

    pub(crate) fn connections(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Everything as messages; panics where bytes are left over that are none.
    pub(crate) fn messages(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        for bytes in self.0.lock().unwrap().iter() {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (message, length) = next(rest).unwrap_or_else(|| {
                    panic!("not a whole message: {:?}", String::from_utf8_lossy(rest));
                });
                messages.push(message);
                rest = &rest[length..];
            }
        }
        messages
    }
}

/// The first message of `bytes`, where all of it is there, and how long it is.
fn next(bytes: &[u8]) -> Option<(Message, usize)> {
    let end = find(bytes, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let start = end + 4;
    let message = Message { head, body: Vec::new() };
    if !message.values("transfer-encoding").is_empty() {
        let mut body = Vec::new();
        let mut at = start;
        loop {
            let line = find(&bytes[at..], b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).ok()?, 16).ok()?;
            at += line + 2;
            if size == 0 {
                let trailers = find(&bytes[at - 2..], b"\r\n\r\n")?;
                return Some((Message { body, ..message }, at + trailers + 2));
            }
            body.extend_from_slice(bytes.get(at..at + size)?);
            at += size + 2;
        }
    }
    let length = message.values("content-length").first().map_or(0, |value| value.parse().unwrap());
    let body = bytes.get(start..start + length)?.to_vec();
    Some((Message { body, ..message }, start + length))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Answers every message with `answer`.
pub(crate) async fn recorder(answer: &'static [u8]) -> (SocketAddr, Recorded) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let recorded = Recorded::default();
    let kept = recorded.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let place = {
                let mut all = kept.0.lock().unwrap();
                all.push(Vec::new());
                all.len() - 1
            };
            tokio::spawn(record(stream, kept.clone(), place, answer));
        }
    });
    (address, recorded)
}

async fn record(mut stream: TcpStream, recorded: Recorded, place: usize, answer: &'static [u8]) {
    let mut seen = 0;
    let mut chunk = [0; 4096];
    loop {
        let length = match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let answers = {
            let mut all = recorded.0.lock().unwrap();
            let bytes = &mut all[place];
            bytes.extend_from_slice(&chunk[..length]);
            let mut answers = 0;
            while let Some((_, length)) = next(&bytes[seen..]) {
                seen += length;
                answers += 1;
            }
            answers
        };
        for _ in 0..answers {
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
