//! The head of an answer, and what it says of the body (RFC 9112, 4 and 6.3).

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};
use httparse::{Header, ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use super::chunks::Chunks;
use crate::error::Error;
use crate::http::headers::has_token;
use crate::upstream::connect::MAX_HEADER_BYTES;

/// Headers of an answer.
const MAX_HEADERS: usize = 100;

/// What is known of an answer once its head has come.
pub(super) struct Answer {
    pub(super) response: Response<()>,
    pub(super) body: Body,
    /// Another request may follow on the connection.
    pub(super) persists: bool,
    /// Of the head.
    pub(super) bytes: usize,
}

/// What is still to come of a body.
#[derive(Debug)]
pub(super) enum Body {
    /// Nothing.
    Done,
    /// So many bytes.
    Length(u64),
    /// Chunks, then trailers.
    Chunked(Chunks),
    /// All until the endpoint closes.
    UntilClose,
}

/// The first line and the headers at the start of `bytes`, which they are taken from; `None` as long as they are not whole.
/// `looked` says how far their end was looked for, and `room` is an empty map that is used for them.
pub(super) fn head(
    bytes: &mut BytesMut,
    looked: &mut usize,
    asked: &Method,
    room: &mut HeaderMap,
) -> Result<Option<Answer>, Error> {
    let Some(length) = section(bytes, *looked) else {
        *looked = bytes.len();
        return if bytes.len() > MAX_HEADER_BYTES as usize { Err(Error::UpstreamProtocol) } else { Ok(None) };
    };
    *looked = 0;
    if length > MAX_HEADER_BYTES as usize {
        return Err(Error::UpstreamProtocol);
    }
    parse(&bytes.split_to(length).freeze(), asked, std::mem::take(room)).map(Some)
}

/// How many bytes at the start are empty lines. Before a head they are passed over, as hyper does.
pub(super) fn empty_lines(bytes: &[u8]) -> usize {
    let mut left = bytes;
    while let [b'\n', rest @ ..] | [b'\r', b'\n', rest @ ..] = left {
        left = rest;
    }
    bytes.len() - left.len()
}

/// Where lines end of which the last is empty, looked for from `from` on.
pub(super) fn section(bytes: &[u8], from: usize) -> Option<usize> {
    // The end may have been cut.
    let from = from.saturating_sub(2);
    memchr::memchr_iter(b'\n', &bytes[from..]).find_map(|at| {
        let next = from + at + 1;
        match &bytes[next..] {
            [b'\n', ..] => Some(next + 1),
            [b'\r', b'\n', ..] => Some(next + 2),
            _ => None,
        }
    })
}

fn parse(head: &Bytes, asked: &Method, headers: HeaderMap) -> Result<Answer, Error> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    match ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, &mut room) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        _ => return Err(Error::UpstreamProtocol),
    }
    let mut response = Response::new(());
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    *response.status_mut() = status.ok_or(Error::UpstreamProtocol)?;
    *response.version_mut() = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    // hyper writes the usual one itself.
    if let Some(reason) = parsed.reason
        && Some(reason) != response.status().canonical_reason()
        && let Ok(reason) = ReasonPhrase::try_from(head.slice_ref(reason.as_bytes()))
    {
        response.extensions_mut().insert(reason);
    }
    *response.headers_mut() = fields(head, parsed.headers, headers)?;
    let body = body(&response, asked)?;
    let headers = response.headers();
    // Two ends for one body: who reads on may be told what was meant for another.
    let ambiguous = headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH);
    let persists = persists(&response) && !matches!(body, Body::UntilClose) && !ambiguous;
    Ok(Answer { response, body, persists, bytes: head.len() })
}

/// The fields as they were parsed in `section`, in a map that is empty.
pub(super) fn fields(
    section: &Bytes,
    parsed: &[Header<'_>],
    mut headers: HeaderMap,
) -> Result<HeaderMap, Error> {
    headers.reserve(parsed.len());
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Error::UpstreamProtocol)?;
        let value = HeaderValue::from_maybe_shared(section.slice_ref(field.value))
            .map_err(|_| Error::UpstreamProtocol)?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn persists(response: &Response<()>) -> bool {
    let mut connection = response.headers().get_all(CONNECTION).iter();
    match response.version() {
        Version::HTTP_11 => !connection.any(|value| has_token(value, "close")),
        _ => {
            let (mut keeps, mut closes) = (false, false);
            for value in connection {
                keeps |= has_token(value, "keep-alive");
                closes |= has_token(value, "close");
            }
            keeps && !closes
        }
    }
}

/// RFC 9112, 6.3.
fn body(response: &Response<()>, asked: &Method) -> Result<Body, Error> {
    let status = response.status();
    let headers = response.headers();
    if *asked == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        return Ok(Body::Done);
    }
    if let Some(coding) = headers.get_all(TRANSFER_ENCODING).iter().next_back() {
        if response.version() == Version::HTTP_10 {
            return Err(Error::UpstreamProtocol);
        }
        let last = coding.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
        let chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
        return Ok(if chunked { Body::Chunked(Chunks::default()) } else { Body::UntilClose });
    }
    match length(headers)? {
        None => Ok(Body::UntilClose),
        Some(0) => Ok(Body::Done),
        Some(length) => Ok(Body::Length(length)),
    }
}

/// What all `Content-Length`s agree on.
fn length(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let mut agreed = None;
    let values = headers.get_all(CONTENT_LENGTH).iter();
    for value in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
        let digits = value.trim_ascii();
        // What a number may have beside digits is no length.
        let length = Some(digits)
            .filter(|digits| digits.iter().all(u8::is_ascii_digit))
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
            .ok_or(Error::UpstreamProtocol)?;
        if agreed.is_some_and(|agreed: u64| agreed != length) {
            return Err(Error::UpstreamProtocol);
        }
        agreed = Some(length);
    }
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, asked: Method) -> Result<Option<(Answer, String)>, Error> {
        let mut bytes = BytesMut::from(&text[empty_lines(text.as_bytes())..]);
        let answer = head(&mut bytes, &mut 0, &asked, &mut HeaderMap::new())?;
        Ok(answer.map(|answer| (answer, String::from_utf8_lossy(&bytes).into_owned())))
    }

    fn framing(fields: &str, version: &str, asked: Method) -> String {
        match read(&format!("HTTP/1.{version}\r\n{fields}\r\n"), asked) {
            Ok(Some((answer, _))) => {
                let body = match answer.body {
                    Body::Done => "nothing".to_owned(),
                    Body::Length(length) => length.to_string(),
                    Body::Chunked(_) => "chunks".to_owned(),
                    Body::UntilClose => "all".to_owned(),
                };
                if answer.persists { body } else { body + ", then the end" }
            }
            Ok(None) => "not whole".to_owned(),
            Err(error) => error.reason().to_owned(),
        }
    }

    #[test]
    fn the_body_is_framed_as_the_rfc_says() {
        let get = |fields: &str| framing(fields, "1 200 OK", Method::GET);
        assert_eq!(get("content-length: 5\r\n"), "5");
        assert_eq!(get("content-length: 0\r\n"), "nothing");
        assert_eq!(get("content-length: 5, 5\r\ncontent-length:5\r\n"), "5");
        for odd in ["5, 6", "+5", "-5", "0x5", "5 5", "", "18446744073709551616", "5,"] {
            assert_eq!(get(&format!("content-length: {odd}\r\n")), "upstream_protocol", "{odd}");
        }
        assert_eq!(get("content-length: 5\r\ncontent-length: 6\r\n"), "upstream_protocol");
        assert_eq!(get("transfer-encoding: chunked\r\n"), "chunks");
        assert_eq!(get("transfer-encoding: gzip\r\ntransfer-encoding: gzip, Chunked\r\n"), "chunks");
        assert_eq!(get("transfer-encoding: chunked, gzip\r\n"), "all, then the end");
        assert_eq!(get("transfer-encoding: xchunked\r\n"), "all, then the end");
        assert_eq!(get("transfer-encoding: chunked\r\ncontent-length: 3\r\n"), "chunks, then the end");
        assert_eq!(get(""), "all, then the end");
        assert_eq!(get("content-length: 5\r\nconnection: x, Close\r\n"), "5, then the end");
        assert_eq!(framing("content-length: 5\r\n", "1 200 OK", Method::HEAD), "nothing");
        assert_eq!(framing("content-length: 5\r\n", "1 304 Not Modified", Method::GET), "nothing");
        assert_eq!(framing("", "1 204", Method::GET), "nothing");
        let old = |fields: &str| framing(fields, "0 200 OK", Method::GET);
        assert_eq!(old("content-length: 5\r\n"), "5, then the end");
        assert_eq!(old("content-length: 5\r\nconnection: keep-alive\r\n"), "5");
        assert_eq!(
            old("content-length: 5\r\nconnection: keep-alive\r\nconnection: close\r\n"),
            "5, then the end"
        );
        assert_eq!(old("transfer-encoding: chunked\r\n"), "upstream_protocol");
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for text in [
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
            "HTTP/1.1 200 OK\r\na : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\0\r\n\r\n",
        ] {
            assert_eq!(read(text, Method::GET).map(|_| ()), Err(Error::UpstreamProtocol), "{text:?}");
        }
        let many = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
        assert!(read(&many(MAX_HEADERS), Method::GET).is_ok());
        assert!(read(&many(MAX_HEADERS + 1), Method::GET).is_err());
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MAX_HEADER_BYTES as usize));
        assert!(read(&long, Method::GET).is_err() && read(&(long + "\r\n\r\n"), Method::GET).is_err());
    }

    #[test]
    fn a_head_is_the_same_however_it_is_cut() {
        assert_eq!([empty_lines(b"\r\n\n\r\nHTTP"), empty_lines(b"\rHTTP"), empty_lines(b"\r")], [5, 0, 0]);
        let text = "\r\nHTTP/1.1 299 Fine\r\nServer: one\r\nx: \r\nserver:  two \r\n\r\nbody";
        let (whole, rest) = read(text, Method::GET).unwrap().unwrap();
        assert_eq!((whole.response.status().as_u16(), rest.as_str()), (299, "body"));
        let named: Vec<_> = whole.response.headers().get_all("server").iter().collect();
        assert_eq!(named, ["one", "two"]);
        assert_eq!(whole.response.headers()["x"], "");
        let reason = whole.response.extensions().get::<ReasonPhrase>();
        assert_eq!(reason.map(ReasonPhrase::as_bytes), Some(b"Fine".as_slice()));
        for piece in 1..text.len() {
            let (mut bytes, mut looked, mut found) = (BytesMut::new(), 0, None);
            for piece in text.as_bytes().chunks(piece) {
                bytes.extend_from_slice(piece);
                if found.is_none() {
                    found = head(&mut bytes, &mut looked, &Method::GET, &mut HeaderMap::new()).unwrap();
                }
            }
            let found = found.unwrap().response;
            assert_eq!((found.headers(), &bytes[..]), (whole.response.headers(), &b"body"[..]), "{piece}");
        }
        assert!(read("HTTP/1.1 200 OK\nserver: one\n\n", Method::GET).unwrap().is_some());
    }
}
