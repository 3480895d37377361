//! An HTTP/1.1 endpoint's answer: read alike however it is cut, and what has come behind it is left as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon_fuzz::cut;
use pontoon_proxy::fuzzing::answer;

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (cuts, bytes) = input;
    let whole = answer(&[bytes]);
    assert_eq!(answer(&cut(bytes, &cuts)), whole);
    if let Some(read) = whole {
        assert!(bytes.ends_with(&read.rest) && read.body.len() + read.rest.len() < bytes.len());
    }
});
