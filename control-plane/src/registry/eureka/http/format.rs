//! Which format a client takes, and which its body is in. Nothing said means XML, as with Netflix' server.

use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use crate::registry::eureka::refusal::Refusal;
use crate::registry::eureka::wire::Format;

/// `None` where neither will do.
pub(super) fn accepted(accept: Option<&str>) -> Option<Format> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else { return Some(Format::Xml) };
    let mut best: Option<(u16, Format)> = None;
    for range in accept.split(',') {
        let (range, weight) = weighted(range);
        let format = match range.to_ascii_lowercase().as_str() {
            "application/json" | "application/*+json" => Format::Json,
            "application/xml" | "application/*" | "*/*" => Format::Xml,
            _ => continue,
        };
        // Of equals the first.
        if weight > best.map_or(0, |(weight, _)| weight) {
            best = Some((weight, format));
        }
    }
    best.map(|(_, format)| format)
}

pub(super) fn takes_gzip(accept_encoding: Option<&str>) -> bool {
    accept_encoding.unwrap_or_default().split(',').map(weighted).any(|(coding, weight)| {
        weight > 0 && (coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip"))
    })
}

pub(super) fn of_body(headers: &HeaderMap) -> Result<Format, Refusal> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = match weighted(kind).0.to_ascii_lowercase().as_str() {
        "application/json" => Format::Json,
        "application/xml" => Format::Xml,
        _ => return Err(Refusal::MediaType),
    };
    match headers.get(CONTENT_ENCODING) {
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(Refusal::Encoded(String::from_utf8_lossy(coding.as_bytes()).into_owned()))
        }
        _ => Ok(format),
    }
}

/// The value without its parameters, and its `q` in thousandths.
fn weighted(value: &str) -> (&str, u16) {
    let mut parts = value.split(';');
    let name = parts.next().unwrap_or_default().trim();
    let q = parts.find_map(|part| part.trim().strip_prefix("q=")?.trim().parse::<f32>().ok()).unwrap_or(1.0);
    (name, (q.clamp(0.0, 1.0) * 1000.0) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_accept_headers_get_the_recorded_formats() {
        for (accept, format) in [
            (None, Some(Format::Xml)),
            (Some("*/*"), Some(Format::Xml)),
            (Some("application/json"), Some(Format::Json)),
            (Some("application/json, application/*+json"), Some(Format::Json)),
            (Some("text/html"), None),
            (Some("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"), Some(Format::Xml)),
            (Some("application/xml;q=0.5, application/json"), Some(Format::Json)),
            (Some("application/json;q=0"), None),
        ] {
            assert_eq!(accepted(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn gzip_is_given_to_who_takes_it() {
        for (header, taken) in [
            (None, false),
            (Some("gzip"), true),
            (Some("gzip, x-gzip, deflate"), true),
            (Some("gzip;q=0"), false),
            (Some("deflate"), false),
        ] {
            assert_eq!(takes_gzip(header), taken, "{header:?}");
        }
    }
}
