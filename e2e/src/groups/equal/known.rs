//! What is not the same, how, and why. Also in docs/reference/same-as-envoy.md.

/// One case that differs.
pub(super) struct Known {
    pub(super) case: &'static str,
    /// What [`super::wire::Exchange::differences`] says, and nothing else.
    pub(super) how: &'static [&'static str],
    pub(super) why: &'static str,
}

pub(super) const KNOWN: &[Known] = &[
    Known {
        case: "bare: GET /b/../a",
        how: &["-\"from b\"", "+\"from a\"", "-> b: GET /b/../a HTTP/1.1", "+> a: GET /a HTTP/1.1"],
        why: "paths are normalised unless normalize_path is false",
    },
    Known {
        case: "bare: GET /a/./x",
        how: &["-> a: GET /a/./x HTTP/1.1", "+> a: GET /a/x HTTP/1.1"],
        why: "paths are normalised unless normalize_path is false",
    },
    Known {
        case: "bare: GET /a/%2e%2e/b",
        how: &["-\"from a\"", "+\"from b\"", "-> a: GET /a/%2e%2e/b HTTP/1.1", "+> b: GET /b HTTP/1.1"],
        why: "paths are normalised unless normalize_path is false",
    },
    Known {
        case: "bare: GET /a | X_User: 1",
        how: &[
            "-200",
            "-set-cookie: a=1",
            "-set-cookie: b=2",
            "-x-drop: 1",
            "-x-twice: 1",
            "-x-twice: 2",
            "-x-upstream: yes",
            "+400",
            "-> a: GET /a HTTP/1.1",
            "-> host: bare.test",
            "-> x-forwarded-proto: http",
            "-> x-request-id: ...",
            "-> x-table: t",
            "-> x_user: 1",
            "-> ",
        ],
        why: "header names with an underscore are refused where nothing, or ALLOW, is said",
    },
    Known {
        case: "methods: OPTIONS /",
        how: &["-> content-length: 0"],
        why: "no content-length is added to a request without a body",
    },
    Known {
        case: "normal: GET /../a/x",
        how: &[
            "-200",
            "-set-cookie: a=1",
            "-set-cookie: b=2",
            "-x-drop: 1",
            "-x-twice: 1",
            "-x-twice: 2",
            "-x-upstream: yes",
            "+400",
            "-> a: GET /a/x HTTP/1.1",
            "-> host: normal.test",
            "-> x-forwarded-proto: http",
            "-> x-request-id: ...",
            "-> x-table: t",
            "-> ",
        ],
        why: "what leads out of the root, or hides a slash, is refused",
    },
    Known {
        case: "normal: GET /a/..%2fb",
        how: &[
            "-200",
            "-set-cookie: a=1",
            "-set-cookie: b=2",
            "-x-drop: 1",
            "-x-twice: 1",
            "-x-twice: 2",
            "-x-upstream: yes",
            "+400",
            "-> a: GET /a/..%2fb HTTP/1.1",
            "-> host: normal.test",
            "-> x-forwarded-proto: http",
            "-> x-request-id: ...",
            "-> x-table: t",
            "-> ",
        ],
        why: "what leads out of the root, or hides a slash, is refused",
    },
    Known {
        case: "headers: POST /post | = x",
        how: &["-connection: close"],
        why: "a connection is kept where its request was read to the end",
    },
    Known {
        case: "rewrites: GET /strip/a",
        how: &["-> a: GET //a HTTP/1.1", "+> a: GET /a HTTP/1.1"],
        why: "no two slashes are made by a rewrite that ends with one",
    },
    Known {
        case: "redirects: POST /other | = x",
        how: &["-connection: close"],
        why: "a connection is kept where its request was read to the end",
    },
    Known {
        case: "redirects: POST /temp | = x",
        how: &["-connection: close"],
        why: "a connection is kept where its request was read to the end",
    },
    Known {
        case: "redirects: HEAD /https",
        how: &["-transfer-encoding: chunked"],
        why: "no transfer-encoding is said where there is no body",
    },
    Known {
        case: "direct: POST /text | = x",
        how: &["-connection: close"],
        why: "a connection is kept where its request was read to the end",
    },
    Known {
        case: "failures: GET /close | x-do: close",
        how: &[
            "-503",
            "+502",
            "+> a: GET /close HTTP/1.1",
            "+> host: failures.test",
            "+> x-do: close",
            "+> x-forwarded-proto: http",
            "+> x-request-id: ...",
            "+> x-table: t",
            "+> ",
        ],
        why: "the endpoint may have done what was asked: 502, as clients repeat a 503; and a safe request is tried once more",
    },
    Known {
        case: "failures: GET /again | x-do: close",
        how: &["-503", "+502"],
        why: "the endpoint may have done what was asked: 502, as clients repeat a 503; and a safe request is tried once more",
    },
    Known {
        case: "domains: GET / | Host: exact.test.",
        how: &[
            "-404",
            "-content-length: 0",
            "-\"\"",
            "+200",
            "+content-length: 6",
            "+content-type: text/plain",
            "+\"suffix\"",
        ],
        why: "a host's trailing dot is the root's, and no part of the name",
    },
    Known {
        case: "hops: GET / | TE: trailers",
        how: &["+> connection: te"],
        why: "te is a hop's, so connection names it",
    },
    Known {
        case: "hops: GET / | Cookie: a=1 | Cookie: b=2",
        how: &["-> cookie: a=1", "-> cookie: b=2", "+> cookie: a=1; b=2"],
        why: "cookies are joined, as HTTP/2 wants it",
    },
    Known {
        case: "hops: GET / | Upgrade: websocket | Connection: upgrade",
        how: &[
            "-403",
            "-connection: close",
            "-content-length: 0",
            "-\"\"",
            "+200",
            "+content-length: 6",
            "+set-cookie: a=1",
            "+set-cookie: b=2",
            "+x-drop: 1",
            "+x-twice: 1",
            "+x-twice: 2",
            "+x-upstream: yes",
            "+\"from a\"",
            "+> a: GET / HTTP/1.1",
            "+> host: hops.test",
            "+> x-forwarded-proto: http",
            "+> x-request-id: ...",
            "+> x-table: t",
            "+> ",
        ],
        why: "an upgrade that is not allowed is left out of the request",
    },
    Known {
        case: "hops: GET / | Expect: 200-ok",
        how: &["-> expect: 200-ok"],
        why: "an expectation that is not known is not sent on",
    },
    Known {
        case: "hops: POST / | Expect: 200-ok | = hello",
        how: &["-> expect: 200-ok"],
        why: "an expectation that is not known is not sent on",
    },
    Known {
        case: "repeated: POST /named | x-do: 503 | = x",
        how: &[
            "-> a: POST /named HTTP/1.1",
            "-> content-length: 1",
            "-> host: repeated.test",
            "-> x-do: 503",
            "-> x-forwarded-proto: http",
            "-> x-request-id: ...",
            "-> x-table: t",
            "-> ",
            "-> x",
            "-> a: POST /named HTTP/1.1",
            "-> content-length: 1",
            "-> host: repeated.test",
            "-> x-do: 503",
            "-> x-forwarded-proto: http",
            "-> x-request-id: ...",
            "-> x-table: t",
            "-> ",
            "-> x",
        ],
        why: "a request with a body is not sent again once its bytes may have gone out: it is not held back for that",
    },
    Known {
        case: "repeated: GET /5xx | x-do: close",
        how: &["-503", "+502"],
        why: "the endpoint may have done what was asked: 502, as clients repeat a 503; and a safe request is tried once more",
    },
    Known {
        case: "repeated: GET /reset | x-do: close",
        how: &["-503", "+502"],
        why: "the endpoint may have done what was asked: 502, as clients repeat a 503; and a safe request is tried once more",
    },
    Known {
        case: "mirrors: GET /all",
        how: &["-> x-envoy-internal: true", "-> x-forwarded-for: ..."],
        why: "a copy says no more than its original of where it came from",
    },
    Known {
        case: "mirrors: POST /all | = hello",
        how: &["-> x-envoy-internal: true", "-> x-forwarded-for: ..."],
        why: "a copy says no more than its original of where it came from",
    },
    Known {
        case: "mirrors: GET /as-it-is",
        how: &["-> x-envoy-internal: true", "-> x-forwarded-for: ..."],
        why: "a copy says no more than its original of where it came from",
    },
    Known {
        case: "filters: GET /asked?a=b | Authorization: Basic eA== | Cookie: c=d | x-in: 1 | x-in: 2 | x-secret: s",
        how: &["-> x-envoy-expected-rq-timeout-ms: 1000", "-> x-envoy-internal: true"],
        why: "no x-envoy- header is added",
    },
    Known {
        case: "filters: GET /asked | x-twice: 0 | x-drop: 0",
        how: &["-> x-envoy-expected-rq-timeout-ms: 1000", "-> x-envoy-internal: true"],
        why: "no x-envoy- header is added",
    },
    Known {
        case: "filters: POST /asked | = hello",
        how: &["-> x-envoy-expected-rq-timeout-ms: 1000", "-> x-envoy-internal: true"],
        why: "no x-envoy- header is added",
    },
    Known {
        case: "filters: GET /asked | x-do: 401",
        how: &[
            "-x-envoy-upstream-service-time: ...",
            "-> x-envoy-expected-rq-timeout-ms: 1000",
            "-> x-envoy-internal: true",
        ],
        why: "no x-envoy- header is added",
    },
    Known {
        case: "filters: GET /asked | x-do: 204",
        how: &[
            "-x-envoy-upstream-service-time: ...",
            "-> x-envoy-expected-rq-timeout-ms: 1000",
            "-> x-envoy-internal: true",
        ],
        why: "no x-envoy- header is added",
    },
    Known {
        case: "filters: GET /asked | x-do: 500",
        how: &["-> x-envoy-expected-rq-timeout-ms: 1000", "-> x-envoy-internal: true"],
        why: "no x-envoy- header is added",
    },
    Known {
        case: "filters: GET /asked | x-do: slow",
        how: &["-> x-envoy-expected-rq-timeout-ms: 1000", "-> x-envoy-internal: true"],
        why: "no x-envoy- header is added",
    },
    Known {
        case: "cors: OPTIONS /own | Origin: https://shop.test | Access-Control-Request-Method: PUT | Content-Length: 0",
        how: &["+vary: origin"],
        why: "what depends on the page that asks says so, for caches",
    },
    Known {
        case: "cors: OPTIONS /own | Origin: https://a.shop.test | Access-Control-Request-Method: DELETE | Access-Control-Request-Headers: x-c | Content-Length: 0",
        how: &["+vary: origin"],
        why: "what depends on the page that asks says so, for caches",
    },
    Known {
        case: "cors: OPTIONS /own | Origin: https://shop.test | Content-Length: 0",
        how: &["+vary: origin"],
        why: "what depends on the page that asks says so, for caches",
    },
    Known {
        case: "cors: GET /own | Origin: https://shop.test",
        how: &["+vary: origin"],
        why: "what depends on the page that asks says so, for caches",
    },
    Known {
        case: "cors: OPTIONS /bare | Origin: https://x.test | Access-Control-Request-Method: PUT | Content-Length: 0",
        how: &["+vary: origin"],
        why: "what depends on the page that asks says so, for caches",
    },
    Known {
        case: "cors: GET /bare | Origin: https://x.test",
        how: &["+vary: origin"],
        why: "what depends on the page that asks says so, for caches",
    },
    Known {
        case: "filters: OPTIONS /cors | Origin: https://shop.test | Access-Control-Request-Method: PUT | Content-Length: 0",
        how: &["+vary: origin"],
        why: "what depends on the page that asks says so, for caches",
    },
    Known {
        case: "filters: GET /cors | Origin: https://shop.test",
        how: &["+vary: origin"],
        why: "what depends on the page that asks says so, for caches",
    },
    Known {
        case: "filters: GET /cors | Origin: https://shop.test | x-bad: 1",
        how: &["+vary: origin"],
        why: "what depends on the page that asks says so, for caches",
    },
    Known {
        case: "methods: GET / HTTP/1.0",
        how: &["-connection: close"],
        why: "an answer over HTTP/1.0 ends its connection without a word about it",
    },
    Known {
        case: "plain: GET /",
        how: &["-x-envoy-upstream-service-time: ...", "-> x-envoy-expected-rq-timeout-ms: 15000"],
        why: "no x-envoy- header is added",
    },
    Known {
        case: "plain: POST / | = hello",
        how: &["-x-envoy-upstream-service-time: ...", "-> x-envoy-expected-rq-timeout-ms: 15000"],
        why: "no x-envoy- header is added",
    },
    Known {
        case: "plain: GET / | x-do: 503",
        how: &["-x-envoy-upstream-service-time: ...", "-> x-envoy-expected-rq-timeout-ms: 15000"],
        why: "no x-envoy- header is added",
    },
    Known {
        case: "odd: GET /a^b",
        how: &["-> a: GET /a%5Eb HTTP/1.1", "+> a: GET /a^b HTTP/1.1"],
        why: "characters that a URI does not have, and clients send, are passed as they are; Envoy escapes them where it normalises",
    },
    Known {
        case: "odd: GET /a`b",
        how: &[
            "-200",
            "-date: ...",
            "-set-cookie: a=1",
            "-set-cookie: b=2",
            "-x-drop: 1",
            "-x-twice: 1",
            "-x-twice: 2",
            "-x-upstream: yes",
            "+400",
            "-> a: GET /a%60b HTTP/1.1",
            "-> host: odd.test",
            "-> x-forwarded-proto: http",
            "-> x-request-id: ...",
            "-> x-table: t",
            "-> ",
        ],
        why: "what no URI has, and clients do not send, is refused",
    },
    Known {
        case: "odd: GET /a<b>",
        how: &[
            "-200",
            "-date: ...",
            "-set-cookie: a=1",
            "-set-cookie: b=2",
            "-x-drop: 1",
            "-x-twice: 1",
            "-x-twice: 2",
            "-x-upstream: yes",
            "+400",
            "-> a: GET /a%3Cb%3E HTTP/1.1",
            "-> host: odd.test",
            "-> x-forwarded-proto: http",
            "-> x-request-id: ...",
            "-> x-table: t",
            "-> ",
        ],
        why: "what no URI has, and clients do not send, is refused",
    },
    Known {
        case: "odd: GET /a\"b",
        how: &["-> a: GET /a%22b HTTP/1.1", "+> a: GET /a\"b HTTP/1.1"],
        why: "characters that a URI does not have, and clients send, are passed as they are; Envoy escapes them where it normalises",
    },
    Known {
        case: "odd: GET /a{b}",
        how: &["-> a: GET /a%7Bb%7D HTTP/1.1", "+> a: GET /a{b} HTTP/1.1"],
        why: "characters that a URI does not have, and clients send, are passed as they are; Envoy escapes them where it normalises",
    },
    Known {
        case: "odd: GET /a|b",
        how: &["-> a: GET /a%7Cb HTTP/1.1", "+> a: GET /a|b HTTP/1.1"],
        why: "characters that a URI does not have, and clients send, are passed as they are; Envoy escapes them where it normalises",
    },
    Known {
        case: "odd: GET /%zz",
        how: &[
            "-200",
            "-set-cookie: a=1",
            "-set-cookie: b=2",
            "-x-drop: 1",
            "-x-twice: 1",
            "-x-twice: 2",
            "-x-upstream: yes",
            "+400",
            "-> a: GET /%zz HTTP/1.1",
            "-> host: odd.test",
            "-> x-forwarded-proto: http",
            "-> x-request-id: ...",
            "-> x-table: t",
            "-> ",
        ],
        why: "an escape in a path that is none is refused",
    },
    Known {
        case: "odd: GET /a#fragment",
        how: &[
            "-400",
            "-connection: close",
            "-content-length: 0",
            "-\"\"",
            "+200",
            "+content-length: 6",
            "+set-cookie: a=1",
            "+set-cookie: b=2",
            "+x-drop: 1",
            "+x-twice: 1",
            "+x-twice: 2",
            "+x-upstream: yes",
            "+\"from a\"",
            "+> a: GET /a HTTP/1.1",
            "+> host: odd.test",
            "+> x-forwarded-proto: http",
            "+> x-request-id: ...",
            "+> x-table: t",
            "+> ",
        ],
        why: "a fragment is the client’s own, and cut off",
    },
    Known {
        case: "odd: BREW /",
        how: &[
            "-400",
            "-connection: close",
            "-content-length: 11",
            "-content-type: text/plain",
            "-\"Bad Request\"",
            "+200",
            "+content-length: 6",
            "+set-cookie: a=1",
            "+set-cookie: b=2",
            "+x-drop: 1",
            "+x-twice: 1",
            "+x-twice: 2",
            "+x-upstream: yes",
            "+\"from a\"",
            "+> a: BREW / HTTP/1.1",
            "+> host: odd.test",
            "+> x-forwarded-proto: http",
            "+> x-request-id: ...",
            "+> x-table: t",
            "+> ",
        ],
        why: "any token is a method (RFC 9110, 9.1)",
    },
    Known {
        case: "odd: GET / | Proxy-Authorization: Basic eA==",
        how: &["-> proxy-authorization: Basic eA=="],
        why: "what is said to a proxy goes no further (RFC 9110, 11.7.2)",
    },
    Known {
        case: "odd: GET / | Content-Length: 0 | Content-Length: 0",
        how: &[
            "-400",
            "-connection: close",
            "-content-length: 11",
            "-content-type: text/plain",
            "-\"Bad Request\"",
            "+200",
            "+content-length: 6",
            "+set-cookie: a=1",
            "+set-cookie: b=2",
            "+x-drop: 1",
            "+x-twice: 1",
            "+x-twice: 2",
            "+x-upstream: yes",
            "+\"from a\"",
            "+> a: GET / HTTP/1.1",
            "+> content-length: 0",
            "+> host: odd.test",
            "+> x-forwarded-proto: http",
            "+> x-request-id: ...",
            "+> x-table: t",
            "+> ",
        ],
        why: "two lengths that are the same are one (RFC 9112, 6.3)",
    },
    Known {
        case: "odd: POST / | Content-Length: 5, 5 | = hello",
        how: &["-date: ..."],
        why: "what cannot be parsed is answered without a date",
    },
    Known {
        case: "odd: GET / | Host: odd.test | Host: odd.test",
        how: &["-404", "+400"],
        why: "a host that is none, and two that are the same, are refused (RFC 9112, 3.2)",
    },
    Known {
        case: "odd: GET / | Host: user@odd.test",
        how: &["-404", "+400"],
        why: "a host that is none, and two that are the same, are refused (RFC 9112, 3.2)",
    },
    Known {
        case: "odd: GET / | Host: odd.test:port",
        how: &["-404", "+400"],
        why: "a host that is none, and two that are the same, are refused (RFC 9112, 3.2)",
    },
    Known {
        case: "odd: GET / | Host: ",
        how: &["-404", "+400"],
        why: "a host that is none, and two that are the same, are refused (RFC 9112, 3.2)",
    },
    Known {
        case: "odd: GET / | X-Folded: a\r\n b",
        how: &[
            "-200",
            "-date: ...",
            "-set-cookie: a=1",
            "-set-cookie: b=2",
            "-x-drop: 1",
            "-x-twice: 1",
            "-x-twice: 2",
            "-x-upstream: yes",
            "+400",
            "-> a: GET / HTTP/1.1",
            "-> host: odd.test",
            "-> x-folded: a b",
            "-> x-forwarded-proto: http",
            "-> x-request-id: ...",
            "-> x-table: t",
            "-> ",
        ],
        why: "a header of several lines is refused (RFC 9112, 5.2)",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// In a cell of a table: a bar would end it, as a line's end would, and a grave accent what is between two.
    fn shown(case: &str) -> String {
        let case = case.replace(" | ", " ; ").replace('|', "\\|").replace("\r\n", "\\r\\n");
        if case.contains('`') { format!("`` {case} ``") } else { format!("`{case}`") }
    }

    /// By reason, in the order in which these first come.
    fn rows() -> String {
        let mut reasons: Vec<&str> = Vec::new();
        for known in KNOWN {
            if !reasons.contains(&known.why) {
                reasons.push(known.why);
            }
        }
        let row = |why: &&str| {
            let cases = KNOWN.iter().filter(|known| known.why == *why);
            let cases: Vec<String> = cases.map(|known| shown(known.case)).collect();
            format!("| {why} | {} |\n", cases.join(", "))
        };
        reasons.iter().map(row).collect()
    }

    #[test]
    fn the_reference_lists_what_differs() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/same-as-envoy.md");
        let page = std::fs::read_to_string(path).unwrap();
        let head = "| what | seen with |\n|---|---|\n";
        let (before, rest) = page.split_once(head).unwrap();
        let after = rest.get(rest.find("\n\n").map_or(0, |at| at + 1)..).unwrap();
        let after = if rest.starts_with('\n') { rest } else { after };
        let right = format!("{before}{head}{}{after}", rows());
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, &right).unwrap();
        } else {
            assert!(page == right, "docs/reference/same-as-envoy.md is old: run this test with UPDATE=1");
        }
    }

    #[test]
    fn each_says_what_differs() {
        for known in KNOWN {
            assert!(!known.how.is_empty(), "{}", known.case);
        }
    }
}
