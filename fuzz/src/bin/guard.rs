//! The reader of HTTP/1 heads and framing: it says the same of the same bytes however they are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon_fuzz::cut;
use pontoon_proxy::fuzzing::guard;

fuzz_target!(|input: (Vec<u8>, &[u8])| {
    let (cuts, bytes) = input;
    let whole = guard(&[bytes]);
    let pieces = cut(bytes, &cuts);
    assert_eq!(guard(&pieces).map(|(_, error)| error), whole.map(|(_, error)| error));
});
