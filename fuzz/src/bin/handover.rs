//! What one process says to another that is to take its sockets over.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon_proxy::fuzzing::lines;

fuzz_target!(|input: (u8, &[u8])| {
    let (start, bytes) = input;
    let start: &[u8] = match start % 4 {
        0 => b"",
        1 => b"0 ",
        2 => b"0 pontoon-upgrade 1\n0 socket 127.0.0.1:80 ",
        _ => b"0 socket ",
    };
    let bytes = [start, bytes].concat();
    for (text, asked) in lines(&bytes).expect("a pair of sockets") {
        assert!(!text.contains('\n') && text.len() <= 4096);
        if let Some((address, name)) = asked {
            assert!(text.ends_with(&name) && !address.to_string().is_empty());
        }
    }
});
