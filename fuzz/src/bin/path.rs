//! The normalisation of paths: what comes out is normal, stays so, and hides nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pontoon_proxy::config::listener::PathOptions;
use pontoon_proxy::http::path::normalise;

fuzz_target!(|input: (bool, bool, &str)| {
    let (merge_slashes, reject_escaped_slashes, path) = input;
    let options = PathOptions { normalize: true, merge_slashes, reject_escaped_slashes };
    let Ok(changed) = normalise(path, options) else { return };
    let normal = changed.as_deref().unwrap_or(path);
    assert!(normal.starts_with('/'));
    assert_eq!(normalise(normal, options), Ok(None), "{normal:?} is not normal");
    assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")), "{normal:?}");
    let lower = normal.to_ascii_lowercase();
    assert!(!lower.contains("%00") && !lower.contains("%0d") && !lower.contains("%0a"), "{normal:?}");
    // What Tomcat and what a server that decodes slashes would make of it.
    for segment in lower.replace("%2f", "/").replace("%5c", "/").split('/') {
        assert!(!matches!(segment.split(';').next(), Some("." | "..")), "{normal:?}");
    }
});
