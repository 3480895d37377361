//! What applications and peers send to the registry as JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon::registry::eureka::wire::json;

fuzz_target!(|body: &[u8]| {
    // Taken or refused; what it becomes is tested beside the code.
    let _ = json::read_instance(body);
    let _ = json::read_batch(body);
});
