//! The one normalisation of a path, before it is matched and sent on: what a route matched is what the upstream
//! gets. RFC 3986, 6.2.2: needless escapes are undone, dot segments removed. Gives up (400) where an escape is
//! malformed or hides a control character, and where dot segments leave the root.

use crate::config::listener::PathOptions;
use crate::error::Error;

/// The normal form of `path` (without its query), or `None` where it is normal already.
pub fn normalise(path: &str, options: PathOptions) -> Result<Option<String>, Error> {
    let bytes = path.as_bytes();
    if !path.starts_with('/') {
        return Err(Error::BadPath);
    }
    let as_it_came = !options.normalize && !options.merge_slashes && !options.reject_escaped_slashes;
    if as_it_came || is_plain(bytes, options) {
        return Ok(None);
    }
    let decoded = undo_escapes(bytes, options)?;
    let mut out = if options.normalize { remove_dots(&decoded)? } else { decoded };
    if options.merge_slashes {
        out.dedup_by(|byte, before| *byte == b'/' && *before == b'/');
    }
    let out = String::from_utf8(out).map_err(|_| Error::BadPath)?;
    Ok((out != path).then_some(out))
}

/// Nothing in it that any rule could touch: the usual case, one pass and no allocation.
fn is_plain(bytes: &[u8], options: PathOptions) -> bool {
    let mut after_slash = false;
    for &byte in bytes {
        match byte {
            b'%' | b'\\' => return false,
            b'.' if after_slash && options.normalize => return false,
            b'/' if after_slash && options.merge_slashes => return false,
            _ => {}
        }
        after_slash = byte == b'/';
    }
    true
}

fn undo_escapes(bytes: &[u8], options: PathOptions) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let code = match bytes.get(at + 1..at + 3) {
                    Some(&[high, low]) => hex(high).zip(hex(low)).map(|(h, l)| h << 4 | l),
                    _ => None,
                };
                let code = code.ok_or(Error::BadPath)?;
                match code {
                    0..=31 | 127 => return Err(Error::BadPath),
                    b'/' | b'\\' if options.reject_escaped_slashes => return Err(Error::BadPath),
                    _ if options.normalize && is_unreserved(code) => out.push(code),
                    _ => out.extend_from_slice(&bytes[at..at + 3]),
                }
                at += 3;
            }
            // What browsers send as `/`; some servers read it so, none may read it otherwise than we did.
            b'\\' if options.normalize => {
                out.push(b'/');
                at += 1;
            }
            byte => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Ok(out)
}

fn remove_dots(path: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {
                if last {
                    out.push(b'/');
                }
            }
            b".." => {
                let parent = out.iter().rposition(|byte| *byte == b'/').ok_or(Error::BadPath)?;
                out.truncate(parent);
                if last {
                    out.push(b'/');
                }
            }
            _ if hides_dots(segment) => return Err(Error::BadPath),
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Ok(out)
}

/// Whether some reader finds a dot segment in a path.
pub(crate) fn has_dot_segment(path: &str) -> bool {
    path.split('/').any(|segment| hides_dots(segment.as_bytes()))
}

/// A segment that we keep and another reader takes for dot segments: Tomcat drops path parameters (`..;x`) before
/// it looks, others decode slashes (`..%2fx`).
fn hides_dots(segment: &[u8]) -> bool {
    if !segment.contains(&b'.') {
        return false;
    }
    let text = segment.to_ascii_lowercase();
    let mut rest = &text[..];
    loop {
        let end = rest.windows(3).position(|window| window == b"%2f" || window == b"%5c");
        let part = &rest[..end.unwrap_or(rest.len())];
        let name = part.split(|byte| *byte == b';').next().unwrap_or_default();
        if name == b"." || name == b".." {
            return true;
        }
        match end {
            Some(end) => rest = &rest[end + 3..],
            None => return false,
        }
    }
}

fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}

/// RFC 3986, 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EDGE: PathOptions =
        PathOptions { normalize: true, merge_slashes: false, reject_escaped_slashes: false };
    const AS_IT_CAME: PathOptions =
        PathOptions { normalize: false, merge_slashes: false, reject_escaped_slashes: false };
    const MERGE: PathOptions = PathOptions { merge_slashes: true, ..EDGE };

    fn normal(path: &str, options: PathOptions) -> Result<String, Error> {
        normalise(path, options).map(|changed| changed.unwrap_or_else(|| path.to_owned()))
    }

    #[test]
    fn the_table() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/a/%2e%2E/b", "/b"),
            ("/api../admin", "/api../admin"),
            ("/a/...", "/a/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/%61%62", "/ab"),
            ("/a%2fb", "/a%2fb"),
            ("/a%20b;x", "/a%20b;x"),
            ("/a\\..\\b", "/b"),
            ("//a", "//a"),
            ("/a//../b", "/a/b"),
            ("/%e4%b8%ad", "/%e4%b8%ad"),
            // Decoded once, never twice.
            ("/%252e%252e/a", "/%252e%252e/a"),
        ] {
            assert_eq!(normal(path, EDGE).as_deref(), Ok(expected), "{path}");
        }
        for path in ["/100%", "/a%0Ab/../c", "/a%zz"] {
            assert_eq!(normalise(path, AS_IT_CAME), Ok(None), "{path}");
        }
        for (path, expected) in [("//a///b", "/a/b"), ("/", "/"), ("//", "/"), ("/a/./../b//", "/b/")] {
            assert_eq!(normal(path, MERGE).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn dot_segments_that_other_readers_would_see_are_refused() {
        for path in
            ["/a/..;/b", "/a/..;x=y/b", "/a/.;/b", "/a/..%2fb", "/a%2F..%2Fb", "/a%5c..", "/a/%2e%2e;/b"]
        {
            assert_eq!(normalise(path, EDGE), Err(Error::BadPath), "{path}");
        }
        for path in ["/a/b;x=..", "/a/...;x", "/a/b..;x", "/a%2fb.c", "/a/..b%2f"] {
            assert_eq!(normal(path, EDGE).as_deref(), Ok(path));
        }
    }

    #[test]
    fn refused() {
        for path in
            ["", "*", "a", "/%", "/%2", "/%zz", "/%00", "/a%0d%0ab", "/..", "/a/../..", "/%2e%2e/x", "/%7f"]
        {
            assert_eq!(normalise(path, EDGE), Err(Error::BadPath), "{path}");
        }
        let strict = PathOptions { reject_escaped_slashes: true, ..EDGE };
        assert_eq!(normalise("/a%2Fb", strict), Err(Error::BadPath));
        assert_eq!(normalise("/a%5cb", strict), Err(Error::BadPath));
    }

    proptest! {
        #[test]
        fn normalising_twice_is_normalising_once(path in "/[a./%2eE0\\\\5cfF;]{0,24}", merge: bool) {
            let options = PathOptions { merge_slashes: merge, ..EDGE };
            if let Ok(once) = normal(&path, options) {
                prop_assert!(once.starts_with('/'));
                prop_assert_eq!(normal(&once, options), Ok(once.clone()));
                prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."), "{}", once);
            }
        }
    }
}
