//! Sessions that are with an endpoint: their requests name it, and which it is is known at run time only.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::cluster;

/// Two endpoints; and twice the same of which the first drains, once so that sessions may stay with it.
pub(super) fn clusters(a: u16, b: u16) -> [Value; 3] {
    let both = cluster("both", &[a, b]);
    let mut ending = cluster("ending", &[a, b]);
    ending["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["health_status"] = "DRAINING".into();
    let mut kept = ending.clone();
    kept["name"] = "kept".into();
    kept["common_lb_config"] = json!({"override_host_status": {"statuses": ["HEALTHY", "DRAINING"]}});
    [both, ending, kept]
}

/// A request with what names the first endpoint (`$a`, `$addressa`), the second (`$b`), none that is there (`$gone`), and
/// the first in a cookie whose time is over (`$over`).
pub(super) fn filled(request: &str, a: SocketAddr, b: SocketAddr) -> String {
    let cookie = |address: &str, more: &[u8]| {
        let head = [b'\n', address.len() as u8];
        STANDARD.encode([&head[..], address.as_bytes(), more].concat())
    };
    let (a, b) = (a.to_string(), b.to_string());
    // In 2017.
    let over = b"\x10\x80\xde\xa0\xcb\x05";
    request
        .replace("$addressa", &STANDARD.encode(&a))
        .replace("$a", &cookie(&a, &[]))
        .replace("$b", &cookie(&b, &[]))
        .replace("$gone", &cookie("127.0.0.1:1", &[]))
        .replace("$over", &cookie(&a, over))
}
