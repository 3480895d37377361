//! What lies under `deploy/` and in the reference is what the program reads: the JSON Schemas are those of its
//! types (`UPDATE=1` writes them anew), and every example is served without an error.
#![allow(clippy::expect_used, clippy::panic, reason = "a broken helper is a failed test")]

use std::path::{Path, PathBuf};

use pontoon::objects::{schema, validate};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_schemas_are_those_of_the_types() {
    for (name, schema) in schema::all() {
        let path = root().join("deploy/schemas").join(&name);
        let is = serde_json::to_string_pretty(&schema).expect("JSON") + "\n";
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &is).expect("written");
        }
        let was = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(was == is, "deploy/schemas/{name} is out of date: run with UPDATE=1");
    }
}

#[test]
fn every_example_is_served_as_written() {
    let examples = std::fs::read_dir(root().join("deploy/examples")).expect("the examples");
    let mut count = 0;
    for example in examples {
        let path = example.expect("an entry").path();
        if path.is_dir() {
            let report = validate(&path);
            assert!(report.problems.is_empty() && report.objects > 0, "{}:\n{report}", path.display());
            count += 1;
        }
    }
    assert!(count > 0);
}

/// Each YAML block is checked by itself: as a document on its own, so that references may be missing.
#[test]
fn every_example_in_the_reference_is_read() {
    let text = std::fs::read_to_string(root().join("docs/reference/objects.md")).expect("the page");
    let mut blocks = 0;
    for block in text.split("```yaml\n").skip(1) {
        let yaml = block.split("```").next().expect("a block");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("block.yaml"), yaml).expect("written");
        let loaded = pontoon::objects::load(folder.path()).expect("read");
        assert!(loaded.problems.is_empty() && !loaded.is_empty(), "{:?}\n{yaml}", loaded.problems);
        blocks += 1;
    }
    assert!(blocks > 0);
}

#[test]
fn the_definitions_are_those_of_the_types() {
    for (name, is) in pontoon::kubernetes::crds::all().expect("definitions") {
        let path = root().join("deploy/helm/pontoon/files/crds").join(&name);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &is).expect("written");
        }
        let was = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(was == is, "{name} is out of date: run with UPDATE=1, then cargo xtask manifests");
    }
}
