//! What applications send to the registry as XML.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon::registry::eureka::wire::xml;

fuzz_target!(|body: &[u8]| {
    // Taken or refused; what it becomes is tested beside the code.
    let _ = xml::read_instance(body);
});
