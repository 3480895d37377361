//! Requests that mean different things to different readers, sent as raw bytes; what counts is what the
//! upstream got. The names are those of the attack table in the security notes.

use http::Response;

use crate::fixture::*;

/// What must become of the bytes.
enum Expect {
    /// Answered with this status, the connection closed, nothing sent on.
    Refused(u16),
    /// This many requests get through, each with an answer of 200.
    Passed(usize),
}

use Expect::{Passed, Refused};

async fn check(name: &str, bytes: &[u8], expect: Expect) {
    let upstream = Upstream::echo(Http::One).await;
    let proxy = Proxy::start(&[upstream.address]).await;
    let (answer, closed) = raw(proxy.address, bytes).await;
    match expect {
        Refused(status) => {
            let starts = |version| answer.starts_with(&format!("HTTP/{version} {status} "));
            assert!(starts("1.1") || starts("1.0"), "{name}: {answer}");
            assert_eq!(upstream.requests(), 0, "{name}: {:?}", upstream.seen.lock().unwrap());
            assert_eq!(answer.matches("HTTP/1.").count(), 1, "{name}: {answer}");
            let _ = closed;
        }
        Passed(count) => {
            assert_eq!(answer.matches("HTTP/1.1 200 ").count(), count, "{name}: {answer}");
            assert_eq!(upstream.requests(), count, "{name}: {:?}", upstream.seen.lock().unwrap());
        }
    }
}

macro_rules! cases {
    ($( $name:ident: [ $( $bytes:expr => $expect:expr ),+ $(,)? ] )+) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $( check(stringify!($name), AsRef::<[u8]>::as_ref(&$bytes), $expect).await; )+
        }
    )+ };
}

cases! {
    h1_te_not_last_chunked: [
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" => Refused(400),
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" => Refused(400),
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n" => Refused(400),
    ]
    h1_te_in_http10: [
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" => Refused(400),
    ]
    h1_cl_dup_diff: [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!" => Refused(400),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 6\r\n\r\nhello!" => Refused(400),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello" => Refused(400),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n" => Refused(400),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello" => Refused(400),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n" => Refused(400),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n" => Refused(400),
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello" => Passed(1),
    ]
    h1_header_syntax: [
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a\r\n: empty\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a\r\nX(y): 1\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_Proto: https\r\n\r\n" => Refused(400),
    ]
    h1_host: [
        "GET / HTTP/1.1\r\n\r\n" => Refused(400),
        "GET / HTTP/1.0\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n" => Refused(400),
        "GET / HTTP/1.1\r\nHost:\r\n\r\n" => Refused(400),
        "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n" => Refused(400),
        "GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(1),
        "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n" => Passed(1),
    ]
    h1_request_target: [
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n" => Refused(400),
        "GET admin HTTP/1.1\r\nHost: a\r\n\r\n" => Refused(400),
        "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n" => Refused(400),
        "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n" => Refused(400),
        "GET /../x HTTP/1.1\r\nHost: a\r\n\r\n" => Refused(400),
        "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n" => Refused(405),
    ]
    limits_headers: [
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(100)) => Refused(431),
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(61 * 1024)) => Refused(431),
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(17 * 1024)) => Refused(414),
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(90)) => Passed(1),
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(50 * 1024)) => Passed(1),
    ]
    h1_pipelining: [
        "GET /a HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100) => Passed(100),
    ]
    h1_chunk_size_abuse: [
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" => Passed(1),
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n" => Passed(1),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_chunks_that_are_malformed_never_become_a_request() {
    for body in [
        "fffffffffffffffff\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
    ] {
        let upstream = Upstream::echo(Http::One).await;
        let proxy = Proxy::start(&[upstream.address]).await;
        let bytes = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let (answer, closed) = raw(proxy.address, bytes.as_bytes()).await;
        assert!(closed, "{body:?}: {answer}");
        assert_eq!(upstream.requests(), 0, "{body:?}");
        assert!(!answer.contains(" 200 "), "{body:?}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_hop_by_hop() {
    let upstream = Upstream::answering(Http::One, |_| {
        let answer = Response::builder().header("connection", "x-private").header("x-private", "1");
        answer.header("keep-alive", "5").header("x-public", "1").body(full("ok")).unwrap()
    })
    .await;
    let proxy = Proxy::start(&[upstream.address]).await;
    let bytes = "GET / HTTP/1.1\r\nHost: shop\r\nConnection: x-auth, x-forwarded-for, host\r\nX-Auth: 1\r\n\
                 X-Forwarded-For: 1.1.1.1\r\nTE: gzip\r\nUpgrade: h2c\r\nProxy-Connection: x\r\nKeep-Alive: 1\r\n\r\n";
    let (answer, _) = raw(proxy.address, bytes.as_bytes()).await;
    assert!(
        answer.contains("x-public: 1") && !answer.contains("x-private") && !answer.contains("keep-alive"),
        "{answer}"
    );
    let seen = upstream.last();
    for gone in ["x-auth", "te", "upgrade", "proxy-connection", "keep-alive", "connection"] {
        assert!(!seen.headers.contains_key(gone), "{gone}: {seen:?}");
    }
    assert_eq!(seen.headers["host"], "shop");
    assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1", "ours is set after the hop's headers are gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_is_served_where_that_is_said() {
    let request = b"GET / HTTP/1.0\r\nHost: shop\r\n\r\n";
    for (accepted, status, reached) in [(true, " 200 ", 1), (false, " 426 ", 0)] {
        let upstream = Upstream::echo(Http::One).await;
        let setup = Setup { http: Box::new(move |http| http.http10 = accepted), ..Setup::default() };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let (answer, closed) = raw(proxy.address, request).await;
        assert!(answer.get(8..).is_some_and(|rest| rest.starts_with(status)) && closed, "{answer}");
        assert_eq!(upstream.requests(), reached);
    }
}

/// An answer before the request's body has been read: what is left of the body is no request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_undrained_body_reuse() {
    let upstream = Upstream::echo(Http::One).await;
    let proxy = Proxy::with(
        &[upstream.address],
        Setup { http: Box::new(|http| http.limits.max_body_bytes = 10), ..Setup::default() },
    )
    .await;
    let inner = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".repeat(5);
    let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}", inner.len() + 10);
    let (answer, closed) = raw(proxy.address, bytes.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && closed, "{answer}");
    assert_eq!(upstream.requests(), 0);
}

/// hyper reads more at once the more has come before, and an answer may be there before anybody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_on_a_kept_connection_are_whole() {
    let upstream = Upstream::answering(Http::One, |seen| {
        Response::new(full(vec![b'x'; seen.target[1..].parse().unwrap()]))
    })
    .await;
    let proxy = Proxy::start(&[upstream.address]).await;
    for front in [Http::One, Http::Two] {
        let mut client = Client::connect(proxy.address, front).await;
        for length in [1_000_000, 10, 150_000, 1_000_000, 200_000, 400_000, 600_000].repeat(5) {
            let response = client.get(&format!("/{length}")).await;
            assert_eq!((response.status().as_u16(), text(response).await.len()), (200, length), "{front:?}");
        }
    }
    assert!(upstream.connections.load(std::sync::atomic::Ordering::Relaxed) < upstream.requests());
}
