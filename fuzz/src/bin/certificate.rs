//! A client's certificate, as far as we read it ourselves: its names and its end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon_proxy::fuzzing::certificate;

fuzz_target!(|der: &[u8]| {
    if let Some((names, _)) = certificate(der) {
        assert!(names.iter().map(String::len).sum::<usize>() <= 16 * der.len());
    }
});
