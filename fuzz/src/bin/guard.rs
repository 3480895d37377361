//! The reader of HTTP/1 heads and framing: it says the same of the same bytes however they are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon_proxy::fuzzing::guard;

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (cuts, bytes) = input;
    let whole = guard(&[bytes]);
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for cut in cuts {
        let (now, later) = rest.split_at(usize::from(cut).min(rest.len()));
        pieces.push(now);
        rest = later;
    }
    pieces.push(rest);
    assert_eq!(guard(&pieces).map(|(_, error)| error), whole.map(|(_, error)| error));
});
