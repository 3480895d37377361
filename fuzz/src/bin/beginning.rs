//! The first bytes of a connection: PROXY protocol, TLS, HTTP or none of them, the same however they are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon_fuzz::cut;
use pontoon_proxy::fuzzing::beginning;

fuzz_target!(|input: (Vec<u8>, u8, &[u8])| {
    let (cuts, start, bytes) = input;
    let start: &[u8] = match start % 5 {
        0 => b"",
        1 => b"PROXY TCP4 ",
        2 => b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
        3 => b"\x16\x03\x01",
        _ => b"PRI * HTTP/2.0\r\n",
    };
    let bytes = [start, bytes].concat();
    let whole = beginning(&[&bytes]);
    let pieces = cut(&bytes, &cuts);
    let again = beginning(&pieces);
    assert_eq!(again.0, whole.0);
    if whole.0.starts_with("Ok") {
        assert_eq!(again.1, whole.1);
        assert!(bytes.ends_with(&whole.1));
    }
});
