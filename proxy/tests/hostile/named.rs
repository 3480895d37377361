//! The page of attacks names tests that exist.

use std::path::Path;

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn the_page_of_attacks_names_tests_that_exist() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(here.join("../docs/reference/attacks.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.ends_with("` |"));
    let named: Vec<&str> = rows
        .flat_map(|row| row.rsplit(" | ").next().unwrap().split('`').skip(1).step_by(2))
        .filter(|name| !name.starts_with("cargo "))
        .collect();
    assert!(named.len() > 50, "{named:?}");
    for name in named {
        let (folder, test) = match name.split_once(": ") {
            Some((file, test)) => (here.join("tests").join(file), test),
            None if name == "memory" => (here.join("tests/memory"), "what_clients_cost"),
            None => (here.join("src"), name),
        };
        let mut text = String::new();
        if folder.is_dir() {
            sources(&folder, &mut text);
            if !name.contains(": ") {
                sources(&here.join("../xds/src"), &mut text);
            }
        } else if let Some((file, _)) = name.split_once(": ") {
            for tests in ["../control-plane/tests", "../xds/tests"] {
                let folder = here.join(tests).join(file);
                text.push_str(&std::fs::read_to_string(folder.with_extension("rs")).unwrap_or_default());
                if folder.is_dir() {
                    sources(&folder, &mut text);
                }
            }
        }
        let is_there = text.contains(&format!("fn {test}(")) || text.contains(&format!("    {test}: ["));
        assert!(is_there, "docs/reference/attacks.md names {name}, which is no test");
    }
}
