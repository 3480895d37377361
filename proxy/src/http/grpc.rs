//! gRPC's view of what we answer ourselves: HTTP 200, and the error in `grpc-status` and `grpc-message`, all in the
//! head (gRPC over HTTP/2, "Trailers-Only"). Statuses are mapped as Envoy and gRPC map them.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(crate) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// A code that no HTTP status stands for.
pub(crate) const DEADLINE_EXCEEDED: u16 = 4;

/// Whether this `Content-Type` is gRPC's: `application/grpc`, with or without a message format or parameters.
/// gRPC-Web has another.
pub(crate) fn is_grpc(content_type: &HeaderValue) -> bool {
    matches!(content_type.as_bytes().strip_prefix(b"application/grpc"), Some([] | [b'+', ..] | [b';', ..]))
}

/// Whether a request's head says so.
pub(crate) fn asks(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(is_grpc)
}

/// The code for an HTTP status that did not come from a gRPC server.
pub(crate) fn code(status: StatusCode) -> u16 {
    match status.as_u16() {
        200..=299 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// A message as a header value: what is not printable ASCII, and `%`, is percent-encoded.
pub(crate) fn message(text: &[u8]) -> HeaderValue {
    let mut out = String::with_capacity(text.len());
    for &byte in text.trim_ascii() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(percent_encoding::percent_encode_byte(byte)),
        }
    }
    HeaderValue::try_from(out).unwrap_or(HeaderValue::from_static(""))
}

/// A prefix: whether the message is compressed, and its length.
const PREFIX_BYTES: u8 = 5;

/// Where a body stands in its messages, which come one after the other, each behind a prefix (gRPC over HTTP/2,
/// "Length-Prefixed-Message").
#[derive(Debug, Default)]
pub(crate) struct Messages {
    /// What has come of a prefix, and how many bytes that is.
    prefix: u32,
    have: u8,
    /// Of the message that has begun.
    left: u32,
}

impl Messages {
    /// Reads the next bytes.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) {
        while let [first, rest @ ..] = bytes {
            if self.left > 0 {
                let skipped = bytes.len().min(self.left as usize);
                self.left -= skipped as u32;
                bytes = &bytes[skipped..];
                continue;
            }
            // The byte that is no part of the length is shifted out.
            self.prefix = self.prefix << 8 | u32::from(*first);
            self.have += 1;
            if self.have == PREFIX_BYTES {
                (self.left, self.have) = (self.prefix, 0);
            }
            bytes = rest;
        }
    }

    /// All that have begun are whole.
    pub(crate) fn are_whole(&self) -> bool {
        self.left == 0 && self.have == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_are_whole_where_they_end_however_they_are_cut(
            lengths in prop::collection::vec(0_usize..300, 1..10), piece in 1_usize..40, short in 1_usize..305,
        ) {
            let message = |length: &usize| [&[1], &(*length as u32).to_be_bytes()[..], &vec![7; *length]].concat();
            let bytes: Vec<u8> = lengths.iter().flat_map(message).collect();
            let mut messages = Messages::default();
            bytes.chunks(piece).for_each(|piece| messages.read(piece));
            prop_assert!(messages.are_whole());
            // Without a part of the last one.
            let last = lengths[lengths.len() - 1] + usize::from(PREFIX_BYTES);
            let mut messages = Messages::default();
            bytes[..bytes.len() - short.min(last)].chunks(piece).for_each(|piece| messages.read(piece));
            prop_assert_eq!(messages.are_whole(), short >= last);
        }
    }

    #[test]
    fn content_types() {
        for yes in ["application/grpc", "application/grpc+proto", "application/grpc; charset=utf-8"] {
            assert!(is_grpc(&HeaderValue::from_static(yes)), "{yes}");
        }
        for no in ["application/grpc-web", "application/grpcx", "application/json", ""] {
            assert!(!is_grpc(&HeaderValue::from_static(no)), "{no}");
        }
    }

    #[test]
    fn messages_are_encoded() {
        assert_eq!(message("100 % ä\nb\n".as_bytes()), "100 %25 %C3%A4%0Ab");
    }
}
