//! Frame headers read along: an HTTP/2 client's, of which those are counted that carry nothing. The same however they are
//! cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon_fuzz::cut;
use pontoon_proxy::fuzzing::frames;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fuzz_target!(|input: (Vec<u8>, bool, &[u8])| {
    let (cuts, preface, bytes) = input;
    let client = if preface { [PREFACE, bytes].concat() } else { bytes.to_vec() };
    let counted = frames(&[&client]);
    assert_eq!(frames(&cut(&client, &cuts)), counted);
    // Each has a header of nine bytes.
    assert!(counted as usize <= client.len().saturating_sub(PREFACE.len()) / 9);
});
