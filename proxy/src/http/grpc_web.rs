//! gRPC-Web (the protocol of grpc-web's PROTOCOL-WEB.md) to gRPC and back: browsers cannot read trailers, so these
//! become the last frame of the body; the text form is the binary one in base64.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};

use super::grpc;

const BINARY: &[u8] = b"application/grpc-web";
const TEXT: &[u8] = b"application/grpc-web-text";
/// A frame that holds trailers, in the byte that says for others whether they are compressed.
const TRAILERS: u8 = 0x80;

/// How a client speaks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Web {
    /// Its request is in base64.
    pub(crate) text_in: bool,
    /// Its answer is to be.
    pub(crate) text_out: bool,
}

/// Whether this `Content-Type` may be gRPC-Web's.
pub(crate) fn is_web(content_type: &HeaderValue) -> bool {
    content_type.as_bytes().starts_with(BINARY)
}

/// Makes a gRPC request of a gRPC-Web one. `None`: it is none.
pub(crate) fn translate_request(method: &Method, headers: &mut HeaderMap) -> Option<Web> {
    if *method != Method::POST {
        return None;
    }
    let value = headers.get(CONTENT_TYPE)?.as_bytes();
    let (text_in, suffix) = match (value.strip_prefix(TEXT), value.strip_prefix(BINARY)) {
        (Some(suffix), _) => (true, suffix),
        (None, Some(suffix)) => (false, suffix),
        _ => return None,
    };
    if !matches!(suffix, [] | [b'+' | b';', ..]) {
        return None;
    }
    let translated = HeaderValue::from_bytes(&[b"application/grpc", suffix].concat()).ok()?;
    let accepted = headers.get(ACCEPT).map(HeaderValue::as_bytes);
    let text_out = accepted
        .map_or(text_in, |accepted| accepted.starts_with(TEXT) || text_in && !accepted.starts_with(BINARY));
    headers.insert(CONTENT_TYPE, translated);
    if text_in {
        headers.remove(CONTENT_LENGTH);
    }
    Some(Web { text_in, text_out })
}

/// Gives a gRPC answer's head the client's content type. `None`: it is not gRPC and passes as it is.
pub(crate) fn translate_response(web: Web, headers: &mut HeaderMap) -> Option<Encoder> {
    let content_type = headers.get(CONTENT_TYPE).filter(|value| grpc::is_grpc(value))?;
    let suffix = content_type.as_bytes().strip_prefix(b"application/grpc").unwrap_or_default();
    // Clients look for the message format.
    let suffix = if suffix.is_empty() { b"+proto" } else { suffix };
    let prefix = if web.text_out { TEXT } else { BINARY };
    let translated = HeaderValue::from_bytes(&[prefix, suffix].concat()).ok()?;
    headers.insert(CONTENT_TYPE, translated);
    headers.remove(CONTENT_LENGTH);
    Some(Encoder { text: web.text_out, carry: Vec::new(), done: false })
}

/// An answer's body on its way to the client.
#[derive(Debug)]
pub(crate) struct Encoder {
    text: bool,
    /// Fewer than three bytes, which make no base64 of their own yet.
    carry: Vec<u8>,
    done: bool,
}

impl Encoder {
    /// What of the body can be sent now.
    pub(crate) fn data(&mut self, data: Bytes) -> Bytes {
        if !self.text {
            return data;
        }
        let mut all = std::mem::take(&mut self.carry);
        all.extend_from_slice(&data);
        let whole = all.len() / 3 * 3;
        self.carry = all.split_off(whole);
        BASE64_STANDARD.encode(all).into()
    }

    /// The end, with trailers where there are any.
    pub(crate) fn end(&mut self, trailers: Option<&HeaderMap>) -> Bytes {
        self.done = true;
        let mut out = BytesMut::from(&std::mem::take(&mut self.carry)[..]);
        if let Some(trailers) = trailers {
            let mut lines = Vec::new();
            for (name, value) in trailers {
                for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                    lines.extend_from_slice(part);
                }
            }
            out.put_u8(TRAILERS);
            out.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
            out.extend_from_slice(&lines);
        }
        if self.text { BASE64_STANDARD.encode(out).into() } else { out.freeze() }
    }

    /// Nothing more will come of it.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }
}

/// A request's body that comes in base64, in any number of padded pieces.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// Fewer than four characters.
    carry: Vec<u8>,
}

impl Decoder {
    /// What is decoded of it; `None` where it is no base64.
    pub(crate) fn data(&mut self, data: &[u8]) -> Option<Bytes> {
        let mut all = std::mem::take(&mut self.carry);
        all.extend_from_slice(data);
        self.carry = all.split_off(all.len() / 4 * 4);
        let mut out = Vec::with_capacity(all.len() / 4 * 3);
        for piece in all.split_inclusive_at_padding() {
            BASE64_STANDARD.decode_vec(piece, &mut out).ok()?;
        }
        Some(out.into())
    }

    /// Whether all of it was decoded.
    pub(crate) fn is_whole(&self) -> bool {
        self.carry.is_empty()
    }
}

/// Cuts behind each quantum that ends in padding.
trait Pieces {
    fn split_inclusive_at_padding(&self) -> impl Iterator<Item = &[u8]>;
}

impl Pieces for Vec<u8> {
    fn split_inclusive_at_padding(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self[..];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let padded = rest.chunks_exact(4).position(|quantum| quantum[3] == b'=');
            let (piece, later) = rest.split_at(padded.map_or(rest.len(), |at| (at + 1) * 4));
            rest = later;
            Some(piece)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(content_type: &str, accept: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        headers.insert(CONTENT_LENGTH, 4.into());
        if let Some(accept) = accept {
            headers.insert(ACCEPT, accept.parse().unwrap());
        }
        headers
    }

    #[test]
    fn heads_are_translated() {
        for (from, accept, to, text_in, text_out) in [
            ("application/grpc-web", None, "application/grpc", false, false),
            ("application/grpc-web+proto", Some("*/*"), "application/grpc+proto", false, false),
            ("application/grpc-web-text+proto", None, "application/grpc+proto", true, true),
            ("application/grpc-web-text", Some("application/grpc-web"), "application/grpc", true, false),
            ("application/grpc-web", Some("application/grpc-web-text"), "application/grpc", false, true),
        ] {
            let mut map = headers(from, accept);
            let web = translate_request(&Method::POST, &mut map).unwrap();
            assert_eq!((web.text_in, web.text_out), (text_in, text_out), "{from}");
            assert_eq!(map[CONTENT_TYPE], to);
            assert_eq!(map.contains_key(CONTENT_LENGTH), !text_in);
        }
        assert!(translate_request(&Method::POST, &mut headers("application/grpc-webx", None)).is_none());
        assert!(translate_request(&Method::GET, &mut headers("application/grpc-web", None)).is_none());
        let web = Web { text_in: false, text_out: true };
        let mut answer = headers("application/grpc", None);
        assert!(translate_response(web, &mut answer).is_some());
        assert_eq!(answer[CONTENT_TYPE], "application/grpc-web-text+proto");
        assert!(translate_response(web, &mut headers("text/html", None)).is_none());
    }

    #[test]
    fn trailers_are_the_last_frame() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 0.into());
        let mut encoder = Encoder { text: false, carry: Vec::new(), done: false };
        assert_eq!(encoder.end(Some(&trailers)), &b"\x80\0\0\0\x10grpc-status: 0\r\n"[..]);
        assert!(encoder.is_done());
    }

    proptest! {
        #[test]
        fn text_is_whole_however_it_is_cut(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9),
            cut in 1_usize..7,
        ) {
            let mut encoder = Encoder { text: true, carry: Vec::new(), done: false };
            let mut text = Vec::new();
            for piece in &pieces {
                text.extend_from_slice(&encoder.data(piece.clone().into()));
            }
            text.extend_from_slice(&encoder.end(None));
            // Another sender's pieces, each with its own padding.
            text.extend_from_slice(b"YQ==YWI=");
            let mut decoder = Decoder::default();
            let mut back = Vec::new();
            for piece in text.chunks(cut) {
                back.extend_from_slice(&decoder.data(piece).unwrap());
            }
            prop_assert!(decoder.is_whole());
            prop_assert_eq!(back, [&pieces.concat()[..], b"aab"].concat());
        }
    }
}
