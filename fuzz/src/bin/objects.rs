//! A file of objects: each document becomes an object or a problem with its place, and what is in force compiles.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon::compile::compile;
use pontoon::model::Model;
use pontoon::objects::{load_text, semantic_problems};

fuzz_target!(|text: &str| {
    let loaded = load_text("fuzz.yaml", text);
    assert_eq!(loaded, load_text("fuzz.yaml", text));
    let compiled = compile(&Model { objects: loaded.objects.clone(), ..Model::default() });
    for problem in loaded.problems.iter().chain(&semantic_problems(&loaded, &compiled.statuses)) {
        assert!(!problem.message.is_empty(), "{problem:?}");
    }
});
