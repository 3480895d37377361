use std::collections::BTreeMap;

use super::*;

fn of(pairs: &[(&str, &str)]) -> Annotations {
    let all = pairs.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned()));
    let mut ingress = Ingress::default();
    ingress.metadata.annotations = Some(all.collect::<BTreeMap<_, _>>());
    read(&ingress)
}

#[test]
fn what_is_not_read_is_named() {
    for (name, is_closed) in [
        ("limit-connections", false),
        ("limit-burst-multiplier", false),
        ("proxy-buffering", false),
        ("affinity", false),
        ("session-cookie-name", false),
        ("cors-max-age", false),
        ("canary-weight", false),
        ("unheard-of", false),
        ("auth-url", true),
        ("auth-tls-secret", true),
        ("satisfy", true),
        ("server-snippet", true),
    ] {
        let read = of(&[(name, "1")]);
        assert_eq!(read.errors.len(), 1, "{name}");
        assert!(read.errors[0].1.message.contains(&format!("{PREFIX}{name}")), "{name}");
        assert_eq!(read.is_closed, is_closed, "{name}");
    }
    let mut ingress = Ingress::default();
    ingress.metadata.annotations = Some(BTreeMap::from([("example.com/mine".to_owned(), "x".to_owned())]));
    assert!(read(&ingress).errors.is_empty(), "others' annotations are none of ours");
}

#[test]
fn values_that_cannot_be_read_are_named_and_passed_over() {
    for (name, value) in [
        ("rewrite-target", "$scheme/x"),
        ("rewrite-target", "x"),
        ("rewrite-target", "/x?y=$1"),
        ("rewrite-target", "/$"),
        ("use-regex", "yes"),
        ("ssl-redirect", "1"),
        ("permanent-redirect", "https://$host/"),
        ("permanent-redirect", "shop.example.com"),
        ("permanent-redirect", "//elsewhere.example.com"),
        ("permanent-redirect", "https://user@elsewhere.example.com"),
        ("temporal-redirect", "ftp://shop.example.com"),
        ("app-root", "app"),
        ("proxy-read-timeout", "0"),
        ("proxy-read-timeout", "1m"),
        ("proxy-body-size", "8x"),
        ("limit-rps", "0"),
        ("limit-rpm", "many"),
        ("proxy-body-size", "5g"),
        ("backend-protocol", "AJP"),
        ("backend-protocol", "FCGI"),
        ("upstream-vhost", "$host"),
        ("server-alias", "a.example.com,~^b"),
        ("proxy-next-upstream", "http_503"),
        ("proxy-next-upstream-tries", "0"),
    ] {
        let read = of(&[(name, value)]);
        assert_eq!(read.errors.len(), 1, "{name}: {value}");
        assert_eq!(read.errors[0].1.reason, INVALID, "{name}: {value}");
    }
    for pairs in [
        [("canary", "true"), ("canary-weight", "101")],
        [("canary", "true"), ("canary-by-header-pattern", "(")],
        [("canary", "true"), ("canary-by-header-value", "x")],
        [("enable-cors", "true"), ("cors-allow-origin", "shop.example.com")],
        [("permanent-redirect", "/x"), ("permanent-redirect-code", "200")],
        [("affinity", "cookie"), ("session-cookie-max-age", "soon")],
        [("affinity", "cookie"), ("affinity-mode", "balanced")],
        [("affinity", "cookie"), ("affinity-canary-behavior", "sticky")],
        [("affinity", "cookie"), ("session-cookie-change-on-failure", "false")],
        [("affinity", "cookie"), ("session-cookie-conditional-samesite-none", "true")],
    ] {
        assert_eq!(of(&pairs).errors.len(), 1, "{pairs:?}");
    }
}

#[test]
fn ranges_that_cannot_be_read_keep_everybody_out() {
    for name in ["allowlist-source-range", "whitelist-source-range", "denylist-source-range"] {
        for value in ["", "shop", "10.0.0.0/33", "10.0.0.0/8,", "10.0.0.0/8 192.0.2.1", "::1/129"] {
            let read = of(&[(name, value)]);
            assert!(read.is_closed, "{name}: {value}");
            assert_eq!(read.errors.len(), 1, "{name}: {value}");
            let (kind, error) = &read.errors[0];
            assert_eq!((*kind, error.reason), (ConditionType::Accepted, INVALID), "{name}: {value}");
            assert!(
                error.message.contains(name) && error.message.ends_with("answers 500"),
                "{}",
                error.message
            );
        }
        let read = of(&[(name, "10.0.0.1/8, 192.0.2.7,2001:db8::/32")]);
        assert!(!read.is_closed && read.errors.is_empty() && read.sources.rules().is_some(), "{name}");
    }
    assert!(of(&[]).sources.rules().is_none());
}

#[test]
fn sizes_and_times_are_nginx_s() {
    for (text, bytes) in [("8m", 8 << 20), ("0", 0), ("1000", 1000), ("1k", 1024), ("2G", 2 << 30)] {
        assert_eq!(of(&[("proxy-body-size", text)]).body_bytes, Some(bytes), "{text}");
    }
    let idle = |pairs| of(pairs).idle.map(|idle| idle.as_secs());
    assert_eq!(idle(&[("proxy-read-timeout", "10")]), Some(10));
    assert_eq!(idle(&[("proxy-read-timeout", "10"), ("proxy-send-timeout", "30s")]), Some(30));
}

#[test]
fn a_rate_has_a_burst() {
    let rate = |pairs: &[(&str, &str)]| {
        of(pairs).rate.map(|rate| (rate.requests, rate.burst, rate.interval.as_secs()))
    };
    assert_eq!(rate(&[("limit-rps", "10")]), Some((10, 50, 1)));
    assert_eq!(rate(&[("limit-rpm", "10"), ("limit-burst-multiplier", "2")]), Some((10, 20, 60)));
    let both = of(&[("limit-rpm", "10"), ("limit-rps", "10")]);
    assert_eq!((both.rate.map(|rate| rate.interval.as_secs()), both.errors.len()), (Some(1), 1));
    for multiplier in ["0", "4294967295"] {
        let read = of(&[("limit-rps", "10"), ("limit-burst-multiplier", multiplier)]);
        assert_eq!((read.rate, read.errors.len()), (None, 1), "{multiplier}");
    }
}
