//! The bootstrap's file, ours or Envoy's, with the static resources in it: taken, or refused with the place of what is
//! wrong.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon_proxy::fuzzing::bootstrap;

fuzz_target!(|text: &str| {
    let read = bootstrap(text);
    if let Err(reason) = &read {
        assert!(reason.starts_with("fuzz.yaml:"), "no place in {reason:?}");
    }
    assert_eq!(read, bootstrap(text));
});
