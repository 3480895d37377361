//! The number of a request for a weighted choice. The same arithmetic as Envoy's, so that any xDS client
//! splits users alike: xxHash64 with seed 0, combined by rotating left by one and exclusive or.

use http::HeaderMap;
use http::header::{COOKIE, HeaderName, HeaderValue};
use twox_hash::XxHash64;

use super::trace::{Step, Trace};
use super::{HashPolicy, RequestHead};

/// A combined hash, and the cookie that was made for it.
#[derive(Debug, Default)]
pub(super) struct Hashed {
    pub(super) hash: Option<u64>,
    pub(super) set_cookie: Option<HeaderValue>,
}

pub(super) fn combine(policies: &[HashPolicy], head: &RequestHead<'_>, trace: &mut impl Trace) -> Hashed {
    let mut hashed = Hashed::default();
    for policy in policies {
        let (own, terminal, seen) = match policy {
            HashPolicy::Header { name, terminal } => {
                (header_hash(head.headers, name), *terminal, Seen::Header(name))
            }
            HashPolicy::Cookie { name, ttl, path, terminal } => {
                let mut own = cookie_value(head.headers, name).map(|v| XxHash64::oneshot(0, v));
                if let (None, Some(ttl)) = (own, ttl) {
                    let value = format!("{:016x}", head.random);
                    own = Some(XxHash64::oneshot(0, value.as_bytes()));
                    hashed.set_cookie = make_cookie(name, &value, *ttl, path);
                }
                (own, *terminal, Seen::Cookie(name))
            }
            HashPolicy::SourceIp { terminal } => {
                let text = head.client.to_string();
                (Some(XxHash64::oneshot(0, text.as_bytes())), *terminal, Seen::SourceIp)
            }
        };
        if let Some(own) = own {
            hashed.hash = Some(hashed.hash.map_or(own, |earlier| earlier.rotate_left(1) ^ own));
        }
        let combined = hashed.hash;
        trace.step(|| seen.step(head, own.is_some(), combined));
        if terminal && combined.is_some() {
            break;
        }
    }
    hashed
}

/// One value is hashed as it is; several are sorted, and each one's hash is the next one's seed.
fn header_hash(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    if values.next().is_none() {
        return Some(XxHash64::oneshot(0, first.as_bytes()));
    }
    let mut all: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    all.sort_unstable();
    Some(all.into_iter().fold(0, XxHash64::oneshot))
}

/// The value of the first cookie of that name, without its quotes.
pub(super) fn cookie_value<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    headers.get_all(COOKIE).iter().find_map(|line| {
        line.as_bytes().split(|b| *b == b';').find_map(|pair| {
            let pair = pair.trim_ascii();
            let value =
                pair.strip_prefix(name.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
            let bare = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
            (!bare.is_empty()).then_some(bare)
        })
    })
}

fn make_cookie(name: &str, value: &str, ttl: std::time::Duration, path: &str) -> Option<HeaderValue> {
    let age = if ttl.is_zero() { String::new() } else { format!("; Max-Age={}", ttl.as_secs()) };
    let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
    HeaderValue::try_from(format!("{name}={value}{age}{path}; HttpOnly")).ok()
}

enum Seen<'p> {
    Header(&'p HeaderName),
    Cookie(&'p str),
    SourceIp,
}

impl Seen<'_> {
    fn step(&self, head: &RequestHead<'_>, found: bool, combined: Option<u64>) -> Step {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (policy, value) = match self {
            Seen::Header(name) => {
                (format!("header {name}"), head.headers.get(*name).map(|v| text(v.as_bytes())))
            }
            Seen::Cookie(name) => {
                let sent = cookie_value(head.headers, name).map(text);
                (format!("cookie {name}"), sent.or_else(|| found.then(|| String::from("made here"))))
            }
            Seen::SourceIp => (String::from("source address"), Some(head.client.to_string())),
        };
        Step::HashPolicy { policy, value, combined: combined.map(|h| format!("{h:016x}")) }
    }
}
