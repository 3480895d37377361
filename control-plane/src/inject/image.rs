//! Names of images, as containers' runtimes read them: `[HOST[:PORT]/]NAME[/NAME...][:TAG][@ALGORITHM:DIGEST]`.

/// By the letters: a runtime has the last word.
pub(super) fn is_image(text: &str) -> bool {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    // A colon before a slash is a port's.
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    // The first part is a host if it cannot be a name.
    let names = match path.split_once('/') {
        Some((host, names)) if is_host(host) => names,
        _ => path,
    };
    names.split('/').all(is_name) && tag.is_none_or(is_tag) && digest.is_none_or(is_digest)
}

fn is_host(text: &str) -> bool {
    let (host, is_told) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().is_ok()),
        None => (text, text == "localhost" || text.contains(|c: char| c == '.' || c.is_ascii_uppercase())),
    };
    is_told && !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c))
}

fn is_name(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(ends)
        && text.ends_with(ends)
        && text.chars().all(|c| ends(c) || ['.', '_', '-'].contains(&c))
}

fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(word) && text.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, digest)| {
        is_name(algorithm) && digest.len() >= 32 && digest.chars().all(|c| c.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::is_image;

    #[test]
    fn names_are_told_from_garbage() {
        let digest = format!("example.com/proxy:1@sha256:{}", "0f".repeat(32));
        for image in [
            "proxy",
            "proxy:1.2-rc_3",
            "example.com/pontoon/pontoon-proxy:v1",
            "Example.com:5000/a__b/proxy",
            "localhost/proxy",
            "registry:5000/proxy:latest",
            "[fd00::1]:5000/proxy",
            digest.as_str(),
        ] {
            assert!(is_image(image), "{image}");
        }
        for garbage in [
            "",
            "bad image!!",
            "Proxy",
            "example.com/Proxy:1",
            "example.com/:1",
            "proxy:",
            "proxy:a b",
            "https://example.com/proxy",
            "example.com//proxy",
            "proxy@sha256:12",
            "/proxy",
        ] {
            assert!(!is_image(garbage), "{garbage}");
        }
    }
}
