//! Whether what the lists call read is read: a field's name must occur as `.name` or `.name()` in the code of the
//! file that lists its message, outside of the lists. That is no proof that it is obeyed, for another message may have
//! a field of that name; but one that nobody reads is found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use regex::Regex;

use crate::config::in_place;

/// Read in another file than the one that lists the message.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("envoy.config.route.v3.RouteConfiguration", "validate_clusters", "store.rs"),
    ("envoy.config.endpoint.v3.ClusterLoadAssignment", "cluster_name", "store.rs"),
    ("envoy.config.listener.v3.Listener", "name", "store.rs"),
    ("envoy.config.listener.v3.Listener", "api_listener", "api_listener.rs"),
    ("envoy.config.listener.v3.Listener", "metadata", "api_listener.rs"),
    (
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        "tls_certificate_sds_secret_configs",
        "secrets.rs",
    ),
    ("envoy.extensions.transport_sockets.tls.v3.CommonTlsContext", "validation_context_type", "secrets.rs"),
];

/// The files of `config`, by their paths in it.
fn sources() -> BTreeMap<String, String> {
    fn read(folder: &Path, at: &str, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{at}{}", path.file_name().unwrap().to_str().unwrap());
            match path.is_dir() {
                true => read(&path, &format!("{name}/"), found),
                false => drop(found.insert(name, std::fs::read_to_string(path).unwrap())),
            }
        }
    }
    let mut found = BTreeMap::new();
    read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/config")), "", &mut found);
    found.retain(|name, _| !name.ends_with("tests.rs") && !name.starts_with("support"));
    found
}

/// A file without its tests, its lists and its comments.
fn code(source: &str, lists: &Regex) -> String {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let source = lists.replace_all(source, "");
    source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn reads(code: &str, field: &str) -> bool {
    Regex::new(&format!(r"\.\s*(r#)?{field}\b")).unwrap().is_match(code)
}

#[test]
fn what_is_listed_as_read_is_read() {
    let lists = Regex::new(r"(?s)\nsupport! \{\n(.*?)\n\}\n").unwrap();
    let list = Regex::new(r#"(?s)= "([^"]+)";\n    read: ?(.*?);"#).unwrap();
    let sources = sources();
    let code: BTreeMap<&str, String> =
        sources.iter().map(|(name, source)| (name.as_str(), code(source, &lists))).collect();
    let (mut unread, mut met, mut looked) = (BTreeSet::new(), BTreeSet::<&(&str, &str, &str)>::new(), 0);
    for (file, source) in &sources {
        for block in lists.captures_iter(source) {
            let found = list.captures(&block[1]).unwrap_or_else(|| panic!("{file}: {}", &block[1]));
            let fields = found[2].split(',').map(|field| field.trim().trim_start_matches("r#"));
            for field in fields.filter(|field| !field.is_empty()) {
                looked += 1;
                let elsewhere = ELSEWHERE.iter().find(|(of, name, _)| *of == &found[1] && *name == field);
                met.extend(elsewhere);
                let file = elsewhere.map_or(file.as_str(), |(_, _, file)| *file);
                if !reads(&code[file], field) {
                    unread.insert(format!("{}.{field}, in {file}", &found[1]));
                }
            }
        }
    }
    // Of those that are read where they stand it is not known where that is.
    for message in in_place::MESSAGES {
        let of = |field: &&&str| !code.values().any(|code| reads(code, field.trim_start_matches("r#")));
        unread.extend(message.read.iter().filter(of).map(|field| format!("{}.{field}", message.name)));
    }
    assert!(looked > 200, "only {looked} fields were found in the lists");
    assert!(unread.is_empty(), "listed as read, and read nowhere: {unread:#?}");
    assert_eq!(met.len(), ELSEWHERE.len(), "listed as read elsewhere, and as read nowhere");
}
