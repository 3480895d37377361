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

#[cfg(test)]
mod tests {
    use super::*;

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
