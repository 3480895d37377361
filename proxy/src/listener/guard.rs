//! Reads along an HTTP/1 client's bytes before hyper does, and finds what hyper mends silently: a `Content-Length`
//! beside `Transfer-Encoding`, and lines that end without a carriage return. Two readers may disagree on where
//! such a request ends, so it is refused. Follows each message's framing to know where the next head begins.

use memchr::memchr;

use crate::error::Error;

/// Where in the stream of bytes a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the lines of a head, from the request line on.
    Head,
    /// In a body, with this many bytes to come.
    Length(u64),
    /// In the line that gives a chunk's size: digits are still read, or an extension is.
    Size { size: u64, digits: u8, extension: bool },
    /// In a chunk's data, its closing line end counted.
    Chunk(u64),
    /// In the lines after the last chunk.
    Trailers,
}

/// The longest start of a line that is looked at: `transfer-encoding:`, or a length with its digits.
const KEPT: usize = 48;

/// The start of the current line, where its end has not come yet.
#[derive(Debug)]
struct Line {
    start: [u8; KEPT],
    /// How many bytes it has so far, those not kept included.
    length: usize,
    last: u8,
}

/// One connection's reader.
#[derive(Debug)]
pub(crate) struct Guard {
    state: State,
    line: Line,
    first_line: bool,
    length: Option<u64>,
    chunked: bool,
}

/// What is wrong, and at which byte of those given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What came before it may be passed on.
    pub(crate) at: usize,
    pub(crate) error: Error,
    /// It is in a body: there is nothing to wait for.
    pub(crate) in_body: bool,
}

impl Guard {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Head,
            line: Line { start: [0; KEPT], length: 0, last: 0 },
            first_line: true,
            length: None,
            chunked: false,
        }
    }

    /// Whether the next byte is the first of a message.
    pub(crate) fn is_between(&self) -> bool {
        self.state == State::Head && self.first_line && self.line.length == 0
    }

    /// Reads the next bytes.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += match self.state {
                State::Head => self.head(rest).map_err(|error| Refusal { at, error, in_body: false })?,
                State::Trailers => {
                    self.trailers(rest).map_err(|error| Refusal { at, error, in_body: true })?
                }
                State::Length(left) => {
                    let taken = left.min(rest.len() as u64);
                    self.state = if taken == left { State::Head } else { State::Length(left - taken) };
                    taken as usize
                }
                State::Chunk(left) => {
                    let taken = left.min(rest.len() as u64);
                    self.state = if taken == left { new_size() } else { State::Chunk(left - taken) };
                    taken as usize
                }
                State::Size { size, digits, extension } => {
                    self.state = next_size(rest[0], size, digits, extension).ok_or(Refusal {
                        at,
                        error: Error::Malformed,
                        in_body: true,
                    })?;
                    1
                }
            };
        }
        Ok(())
    }

    /// One line of a head, or what there is of it. Gives how many bytes that was.
    fn head(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let Some(end) = memchr(b'\n', bytes) else {
            self.line.keep(bytes);
            return Ok(bytes.len());
        };
        let whole = self.line.length == 0;
        let before = if end > 0 { bytes[end - 1] } else { self.line.last };
        if before != b'\r' {
            return Err(Error::BareLineFeed);
        }
        if whole {
            self.end_line(&bytes[..end - 1], end - 1)?;
        } else {
            self.line.keep(&bytes[..end]);
            let length = self.line.length - 1;
            let start = self.line.start;
            self.end_line(&start[..length.min(KEPT)], length)?;
        }
        self.line.end();
        Ok(end + 1)
    }

    /// A line of `length` bytes without its end. Only its start where it is long and came in parts.
    fn end_line(&mut self, line: &[u8], length: usize) -> Result<(), Error> {
        if line.is_empty() {
            // Empty lines before a request are skipped (RFC 9112, 2.2).
            if !self.first_line {
                self.end_head()?;
            }
            return Ok(());
        }
        if self.first_line {
            self.first_line = false;
            return Ok(());
        }
        match line[0] | 0x20 {
            b'c' => {
                if let Some(value) = value_of(line, b"content-length") {
                    // Of one that came in parts the end would be lost, and the next head looked for elsewhere than
                    // hyper does. No honest sender pads a number so.
                    if length > KEPT {
                        return Err(Error::Malformed);
                    }
                    // What cannot be read here, hyper refuses; so does it two that differ.
                    let length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    self.length = Some(length.unwrap_or(u64::MAX));
                }
            }
            b't' => self.chunked |= value_of(line, b"transfer-encoding").is_some(),
            _ => {}
        }
        Ok(())
    }

    fn end_head(&mut self) -> Result<(), Error> {
        let (length, chunked) = (self.length.take(), std::mem::take(&mut self.chunked));
        self.first_line = true;
        self.state = match (length, chunked) {
            (Some(_), true) => return Err(Error::LengthAndChunked),
            (None, true) => new_size(),
            (None | Some(0), false) => State::Head,
            (Some(length), false) => State::Length(length),
        };
        Ok(())
    }

    fn trailers(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let Some(end) = memchr(b'\n', bytes) else {
            self.line.keep(bytes);
            return Ok(bytes.len());
        };
        let before = if end > 0 { bytes[end - 1] } else { self.line.last };
        if before != b'\r' {
            return Err(Error::BareLineFeed);
        }
        if self.line.length + end == 1 {
            self.state = State::Head;
        }
        self.line.end();
        Ok(end + 1)
    }
}

/// After one more byte of a chunk's line; `None` where it is no such line. Of digits there may be sixteen, zeros in
/// front counted: who reads more of them may read another size.
fn next_size(byte: u8, size: u64, digits: u8, extension: bool) -> Option<State> {
    Some(match byte {
        b'\n' if digits == 0 => return None,
        b'\n' if size == 0 => State::Trailers,
        b'\n' => State::Chunk(size.saturating_add(2)),
        _ if extension => State::Size { size, digits, extension },
        b';' | b' ' | b'\t' | b'\r' => State::Size { size, digits, extension: true },
        _ if digits == 16 => return None,
        _ => {
            let digit = (byte as char).to_digit(16)?;
            State::Size { size: size << 4 | u64::from(digit), digits: digits + 1, extension }
        }
    })
}

fn new_size() -> State {
    State::Size { size: 0, digits: 0, extension: false }
}

/// The value, without white space around it, where the line's name is `name` (lower case).
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (found, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    found.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

impl Line {
    fn end(&mut self) {
        self.length = 0;
        self.last = 0;
    }

    fn keep(&mut self, bytes: &[u8]) {
        if let Some(free) = self.start.get_mut(self.length..) {
            let taken = free.len().min(bytes.len());
            free[..taken].copy_from_slice(&bytes[..taken]);
        }
        self.length += bytes.len();
        self.last = bytes.last().copied().unwrap_or(self.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNKED: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

    fn read(text: &str) -> Result<(), Refusal> {
        Guard::new().read(text.as_bytes())
    }

    fn error(text: &str) -> Option<Error> {
        read(text).err().map(|refusal| refusal.error)
    }

    #[test]
    fn a_length_beside_chunks_is_refused_in_any_order_and_case() {
        for head in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "TRANSFER-ENCODING:chunked\r\nX: y\r\ncontent-LENGTH:\t0",
            "Transfer-Encoding: identity\r\nContent-Length: nonsense",
        ] {
            assert_eq!(error(&format!("POST / HTTP/1.1\r\n{head}\r\n\r\n")), Some(Error::LengthAndChunked));
        }
        for head in
            ["Content-Length: 0", "Transfer-Encoding: chunked", "X-Content-Length: 3\r\nContent-Length: 0"]
        {
            assert_eq!(error(&format!("POST / HTTP/1.1\r\n{head}\r\n\r\n")), None);
        }
    }

    #[test]
    fn a_bare_line_feed_is_refused_in_heads_and_trailers_only() {
        for text in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: a\n\r\n".into(),
            "GET / HTTP/1.1\r\nHost: a\r\n\n".into(),
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            format!("{CHUNKED}0\r\nx: y\n\r\n"),
        ] {
            assert_eq!(error(&text), Some(Error::BareLineFeed), "{text:?}");
        }
        assert_eq!(error("POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\n\n\n\nGET / HTTP/1.1\r\n\r\n"), None);
        assert_eq!(error(&format!("{CHUNKED}2;x=\"y\"\r\n\n\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n")), None);
    }

    #[test]
    fn a_chunk_size_that_may_be_read_otherwise_is_refused() {
        for size in ["00000000000000005", "10000000000000000", "", "5g", "-1", "0x5"] {
            let refusal = read(&format!("{CHUNKED}{size}\r\nhello\r\n0\r\n\r\n")).unwrap_err();
            assert_eq!((refusal.error, refusal.in_body), (Error::Malformed, true), "{size}");
        }
        assert_eq!(error(&format!("{CHUNKED}0000000000000005 ;x\r\nhello\r\n0\r\n\r\n")), None);
    }

    #[test]
    fn a_padded_length_is_refused_however_it_is_cut() {
        for value in [" ".repeat(60) + "3", "0".repeat(60) + "5", "3".to_owned() + &" ".repeat(60)] {
            let head = format!("POST / HTTP/1.1\r\nContent-Length:{value}\r\nHost: a\r\n\r\n");
            for cut in 0..head.len() {
                let (first, second) = head.as_bytes().split_at(cut);
                let mut guard = Guard::new();
                let refused = guard.read(first).and_then(|()| guard.read(second)).unwrap_err();
                assert_eq!(refused.error, Error::Malformed, "{cut}");
            }
        }
        assert_eq!(
            error("POST / HTTP/1.1\r\nContent-Length:                             3\r\n\r\nabc"),
            None
        );
    }

    #[test]
    fn what_stands_before_the_fault_may_pass() {
        let good = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        let refusal = read(&format!("{good}GET / HTTP/1.1\n")).unwrap_err();
        assert_eq!(refusal, Refusal { at: good.len(), error: Error::BareLineFeed, in_body: false });
    }

    /// A message with its body, in one of the ways that a body can be framed.
    fn message() -> impl Strategy<Value = String> {
        let body = "[a\r\n:0]{0,40}";
        prop_oneof![
            body.prop_map(|body| format!("PUT /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())),
            (body, "[a-z]{0,30}", proptest::bool::ANY).prop_map(|(body, extension, trailer)| {
                let chunk = if body.is_empty() {
                    String::new()
                } else {
                    format!("{:X};{extension}\r\n{body}\r\n", body.len())
                };
                let trailer = if trailer { "x: y\r\n" } else { "" };
                format!("{CHUNKED}{chunk}0\r\n{trailer}\r\n")
            }),
            Just("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn framing_is_followed_however_the_bytes_are_cut(
            messages in proptest::collection::vec(message(), 1..5),
            cuts in proptest::collection::vec(1_usize..30, 1..30),
        ) {
            let mut text = messages.concat();
            text.push_str("GET /last HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n");
            let mut guard = Guard::new();
            let mut rest = text.as_bytes();
            let mut found = None;
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                if let Err(refusal) = guard.read(now) {
                    found = Some((refusal.error, later.is_empty()));
                    break;
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, Some((Error::LengthAndChunked, true)));
        }
    }
}
