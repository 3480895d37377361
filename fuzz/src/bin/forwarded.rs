//! `X-Forwarded-*` and `Connection`: nobody who is not trusted has a say in who the client is, and none can take
//! away what we say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon_proxy::fuzzing::{Seen, forwarded};

fuzz_target!(|input: (bool, u8, Vec<(u8, &str)>)| {
    let (trusted, hops, lines) = input;
    let Some(Seen { client, headers }) = forwarded(trusted, u32::from(hops), &lines) else { return };
    let last = |name: &str| headers.get_all(name).iter().next_back().map(|value| value.as_bytes().to_vec());
    if !trusted && hops == 0 {
        assert_eq!(client.to_string(), "192.0.2.1");
        assert_eq!(last("x-forwarded-proto").as_deref(), Some(&b"http"[..]));
        assert_eq!(last("x-forwarded-host").as_deref(), Some(&b"shop"[..]));
        assert!(!headers.contains_key("x-forwarded-prefix"));
    }
    assert!(last("x-forwarded-for").is_some_and(|list| list.ends_with(b"192.0.2.1")));
    assert_eq!(headers.get_all("host").iter().count(), 1);
    for gone in ["connection", "te", "upgrade", "keep-alive", "proxy-connection", "transfer-encoding"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
});
