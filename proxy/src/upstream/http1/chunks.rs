//! Chunked bodies (RFC 9112, 7.1), read strictly: a line that one reader takes for a chunk's size and another for
//! something else is the end of the connection.

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;

use super::answer::{fields, section};
use crate::error::Error;

/// Extensions are passed over, up to so many bytes in a body.
const MAX_EXTENSIONS: usize = 16 * 1024;
const MAX_TRAILER_BYTES: usize = 16 * 1024;
const MAX_TRAILERS: usize = 100;
/// Digits of a chunk's size.
const MAX_DIGITS: usize = 16;
/// White space behind them, with which some servers fill up.
const MAX_SPACE: usize = 64;

/// Where in a body its reader is.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    extensions: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    /// In a chunk, with so many bytes to come.
    Data(u64),
    /// Behind a chunk's data.
    DataEnd,
    /// Behind the last chunk; how far the trailers' end was looked for.
    Trailers(usize),
}

/// What is next of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Chunks {
    /// The next piece of what is at the start of `bytes`; `None`: more has to be read.
    pub(super) fn next(&mut self, bytes: &mut BytesMut) -> Result<Option<Piece>, Error> {
        loop {
            match self.at {
                At::Size => match size(bytes)? {
                    None => return Ok(None),
                    Some((size, line)) => {
                        self.extensions += line.extensions;
                        if self.extensions > MAX_EXTENSIONS {
                            return Err(Error::UpstreamProtocol);
                        }
                        bytes.advance(line.length);
                        self.at = if size == 0 { At::Trailers(0) } else { At::Data(size) };
                    }
                },
                At::Data(left) => {
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    let length = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    let left = left - length as u64;
                    self.at = if left == 0 { At::DataEnd } else { At::Data(left) };
                    return Ok(Some(Piece::Data(bytes.split_to(length).freeze())));
                }
                At::DataEnd => match &bytes[..] {
                    [b'\r', b'\n', ..] => {
                        bytes.advance(2);
                        self.at = At::Size;
                    }
                    [] | [b'\r'] => return Ok(None),
                    _ => return Err(Error::UpstreamProtocol),
                },
                At::Trailers(looked) => return self.trailers(bytes, looked),
            }
        }
    }

    /// Whether nothing follows but what ends a body without trailers, and that has come: it is taken.
    pub(super) fn ends(&self, bytes: &mut BytesMut) -> bool {
        const END: &[u8] = b"\r\n0\r\n\r\n";
        let ends = self.at == At::DataEnd && bytes.starts_with(END);
        if ends {
            bytes.advance(END.len());
        }
        ends
    }

    fn trailers(&mut self, bytes: &mut BytesMut, looked: usize) -> Result<Option<Piece>, Error> {
        if bytes.starts_with(b"\r\n") {
            bytes.advance(2);
            return Ok(Some(Piece::End));
        }
        let length = section(bytes, looked);
        if length.unwrap_or(bytes.len()) > MAX_TRAILER_BYTES {
            return Err(Error::UpstreamProtocol);
        }
        let Some(length) = length else {
            self.at = At::Trailers(bytes.len());
            return Ok(None);
        };
        let section = bytes.split_to(length).freeze();
        let mut room = [httparse::EMPTY_HEADER; MAX_TRAILERS];
        match httparse::parse_headers(&section, &mut room) {
            Ok(httparse::Status::Complete((read, parsed))) if read == section.len() => {
                Ok(Some(Piece::Trailers(fields(&section, parsed, HeaderMap::new())?)))
            }
            _ => Err(Error::UpstreamProtocol),
        }
    }
}

/// A chunk's first line, by bytes.
struct Line {
    length: usize,
    extensions: usize,
}

fn size(bytes: &[u8]) -> Result<Option<(u64, Line)>, Error> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits > MAX_DIGITS || digits == 0 && !bytes.is_empty() {
        return Err(Error::UpstreamProtocol);
    }
    let rest = &bytes[digits..];
    // White space before an extension is allowed to be there (RFC 9112, 7.1.1), and bounded with it.
    let end = match rest {
        [] | [b'\r'] => return Ok(None),
        [b'\r', ..] => 0,
        [b';' | b' ' | b'\t', ..] => match memchr::memchr2(b'\r', b'\n', rest) {
            None if rest.len() > MAX_EXTENSIONS => return Err(Error::UpstreamProtocol),
            None => return Ok(None),
            Some(end) => end,
        },
        _ => return Err(Error::UpstreamProtocol),
    };
    match &rest[end..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] => return Ok(None),
        _ => return Err(Error::UpstreamProtocol),
    }
    let space = rest[..end].iter().take_while(|byte| **byte != b';').count();
    if space > MAX_SPACE {
        return Err(Error::UpstreamProtocol);
    }
    let size = std::str::from_utf8(&bytes[..digits]).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    let line = Line { length: digits + end + 2, extensions: end - space };
    size.map(|size| Some((size, line))).ok_or(Error::UpstreamProtocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a body in pieces of this size: data, trailers, and what is left behind it.
    fn read(text: &str, piece: usize) -> Result<(String, Option<HeaderMap>, String), Error> {
        let (mut chunks, mut bytes, mut data) = (Chunks::default(), BytesMut::new(), Vec::new());
        let mut pieces = text.as_bytes().chunks(piece);
        let trailers = loop {
            match chunks.next(&mut bytes)? {
                Some(Piece::Data(piece)) => data.extend_from_slice(&piece),
                Some(Piece::Trailers(trailers)) => break Some(trailers),
                Some(Piece::End) => break None,
                None => match pieces.next() {
                    Some(piece) => bytes.extend_from_slice(piece),
                    None => return Err(Error::UpstreamReset),
                },
            }
        };
        pieces.for_each(|piece| bytes.extend_from_slice(piece));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((text(&data), trailers, text(&bytes)))
    }

    #[test]
    fn a_body_is_the_same_however_it_is_cut() {
        let text =
            "5\r\nhello\r\n00B ; a=\"b\"\r\n, and world\r\n0;last\r\nX-Sum: 1\r\nx-sum:2\r\n\r\nHTTP/1.1";
        for piece in 1..=text.len() {
            let (data, trailers, rest) = read(text, piece).unwrap();
            let trailers = trailers.unwrap();
            let sums: Vec<_> = trailers.get_all("x-sum").iter().collect();
            assert_eq!((data.as_str(), rest.as_str()), ("hello, and world", "HTTP/1.1"));
            assert_eq!(sums, ["1", "2"]);
        }
        assert_eq!(read("0\r\n\r\n", 1).unwrap(), (String::new(), None, String::new()));
    }

    #[test]
    fn what_two_readers_may_read_differently_is_refused() {
        for text in [
            "\r\n",
            "g\r\n",
            "-1\r\na",
            "+1\r\na",
            "0x1\r\na",
            "1\na\r\n0\r\n\r\n",
            "1\r\na0\r\n\r\n",
            "1\r\na\n0\r\n\r\n",
            "1;a\nb\r\na\r\n0\r\n\r\n",
            "1;a\rb\r\na\r\n0\r\n\r\n",
            " 1\r\na\r\n0\r\n\r\n",
            "11111111111111111\r\n",
            "0\r\na b: c\r\n\r\n",
            "0\r\n a: c\r\n\r\n",
        ] {
            assert_eq!(read(text, 1).map(|_| ()), Err(Error::UpstreamProtocol), "{text:?}");
            assert_eq!(read(text, text.len()).map(|_| ()), Err(Error::UpstreamProtocol), "{text:?}");
        }
        assert_eq!(read("1\r\na\r\n", 1).map(|_| ()), Err(Error::UpstreamReset), "not whole");
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let one = format!("1;{}\r\na\r\n", "x".repeat(MAX_EXTENSIONS / 2));
        assert!(read(&format!("{one}0\r\n\r\n"), 4096).is_ok());
        assert!(read(&format!("{one}{one}0\r\n\r\n"), 4096).is_err());
        assert!(
            read(&format!("1;{}", "x".repeat(MAX_EXTENSIONS + 2)), 4096)
                .is_err_and(|e| e != Error::UpstreamReset)
        );
        let padded = |space, chunks| format!("1{}\r\na\r\n", " ".repeat(space)).repeat(chunks) + "0\r\n\r\n";
        assert!(read(&padded(7, MAX_EXTENSIONS), 4096).is_ok());
        assert!(read(&padded(MAX_SPACE + 1, 1), 4096).is_err());
        let trailers = |count| format!("0\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert!(
            read(&trailers(MAX_TRAILERS), 4096).is_ok() && read(&trailers(MAX_TRAILERS + 1), 4096).is_err()
        );
        let long = format!("0\r\na: {}", "b".repeat(MAX_TRAILER_BYTES));
        assert_eq!(read(&long, 4096).map(|_| ()), Err(Error::UpstreamProtocol));
    }

    #[test]
    fn an_end_is_seen_with_the_last_piece() {
        let mut bytes = BytesMut::from("1\r\na\r\n0\r\n\r\nHTTP");
        let mut chunks = Chunks::default();
        assert!(!chunks.ends(&mut bytes));
        assert_eq!(chunks.next(&mut bytes), Ok(Some(Piece::Data(Bytes::from_static(b"a")))));
        assert!(chunks.ends(&mut bytes));
        assert_eq!(&bytes[..], b"HTTP");
    }
}
