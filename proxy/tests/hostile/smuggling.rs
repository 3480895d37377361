//! Requests that two readers may take for different ones. Each has one expected answer: refused with a status and
//! a reason, before a byte reaches the upstream, or passed on in the one form that has one reading.

use pontoon_proxy::route::matching::PathMatcher;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::*;
use crate::recorder::{Message, OK, Recorded, recorder};

/// What must become of the bytes.
enum Expect {
    /// One answer with this status and reason; the upstream gets nothing. With `true`, the connection ends, as
    /// nobody knows where the next request would begin.
    Refused(u16, &'static str, bool),
    /// Exactly these requests reach the upstream: request line, host, body.
    Passed(&'static [(&'static str, &'static str, &'static str)]),
    /// Those, and then the connection ends with a refusal.
    PassedThenRefused(&'static [(&'static str, &'static str, &'static str)], u16, &'static str),
}

use Expect::{Passed, PassedThenRefused, Refused};

const MALFORMED: Expect = Refused(400, "malformed_request", true);
const BARE_LF: Expect = Refused(400, "bare_line_feed", true);
const BOTH: Expect = Refused(400, "length_and_chunked", true);
const CODING: Expect = Refused(501, "transfer_coding", false);
const HOST: Expect = Refused(400, "bad_host", false);
const PATH: Expect = Refused(400, "bad_path", false);

/// Sends the bytes and shuts nothing; gives what came back until the proxy closed or said no more.
async fn exchange(address: std::net::SocketAddr, bytes: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match tokio::time::timeout(std::time::Duration::from_millis(700), stream.read(&mut chunk)).await {
            Ok(Ok(0) | Err(_)) => return (String::from_utf8_lossy(&answer).into_owned(), true),
            Ok(Ok(length)) => answer.extend_from_slice(&chunk[..length]),
            Err(_) => return (String::from_utf8_lossy(&answer).into_owned(), false),
        }
    }
}

/// A proxy whose requests upstream are the same each time.
async fn proxy(upstream: std::net::SocketAddr) -> Proxy {
    let setup = Setup { http: Box::new(|http| http.generate_request_id = false), ..Setup::default() };
    Proxy::with(&[upstream], setup).await
}

/// No message that we send may be read in two ways, whatever came in.
fn assert_plain(message: &Message, context: &str) {
    assert_eq!(message.values("host").len(), 1, "{context}: {message:?}");
    let (length, coding) = (message.values("content-length"), message.values("transfer-encoding"));
    assert!(length.len() + coding.len() <= 1, "{context}: {message:?}");
    assert!(coding.iter().all(|coding| *coding == "chunked"), "{context}: {message:?}");
    let bare = message.head.replace("\r\n", "");
    assert!(!bare.contains(['\r', '\n', '\0']), "{context}: {message:?}");
    assert!(message.line().starts_with(|first: char| first.is_ascii_uppercase()), "{context}: {message:?}");
    assert!(message.line().ends_with(" HTTP/1.1"), "{context}: {message:?}");
}

fn assert_passed(recorded: &Recorded, expected: &[(&str, &str, &str)], context: &str) {
    let messages = recorded.messages();
    messages.iter().for_each(|message| assert_plain(message, context));
    let got: Vec<(&str, &str, String)> = messages
        .iter()
        .map(|message| {
            let line = message.line().trim_end_matches(" HTTP/1.1");
            (line, message.values("host")[0], String::from_utf8_lossy(&message.body).into_owned())
        })
        .collect();
    let expected: Vec<(&str, &str, String)> =
        expected.iter().map(|(line, host, body)| (*line, *host, (*body).to_owned())).collect();
    assert_eq!(got, expected, "{context}: the upstream got\n{}", recorded.text());
}

async fn check(name: &str, bytes: &[u8], expect: Expect) {
    let (upstream, recorded) = recorder(OK).await;
    let proxy = proxy(upstream).await;
    let (answer, closed) = exchange(proxy.address, bytes).await;
    let context = format!("{name}: {:?}\nanswer: {answer}", String::from_utf8_lossy(bytes));
    let refused = |status: u16, reason: &str| {
        let last = answer.rfind("HTTP/1.").map_or("", |at| &answer[at..]);
        assert!(last.get(8..).is_some_and(|rest| rest.starts_with(&format!(" {status} "))), "{context}");
        assert!(last.contains(&format!("x-pontoon-reason: {reason}\r\n")), "{context}");
    };
    match expect {
        Refused(status, reason, ends) => {
            refused(status, reason);
            assert_eq!(answer.matches("HTTP/1.").count(), 1, "{context}");
            assert!(closed || !ends, "{context}: still open");
            assert!(recorded.is_empty(), "{context}: the upstream got {}", recorded.text());
        }
        Passed(expected) => {
            assert_passed(&recorded, expected, &context);
            assert_eq!(answer.matches("HTTP/1.1 200 ").count(), expected.len(), "{context}");
            assert_eq!(answer.matches("HTTP/1.").count(), expected.len(), "{context}");
        }
        PassedThenRefused(expected, status, reason) => {
            refused(status, reason);
            assert_passed(&recorded, expected, &context);
            assert!(closed, "{context}: still open");
        }
    }
}

macro_rules! table {
    ($( $name:ident: [ $( $bytes:expr => $expect:expr ),+ $(,)? ] )+) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let cases: Vec<(Vec<u8>, Expect)> = vec![$( (Vec::from($bytes), $expect) ),+];
            let cases = cases.iter().map(|(bytes, expect)| check(stringify!($name), bytes, expect.copy()));
            futures_util::future::join_all(cases).await;
        }
    )+ };
}

impl Expect {
    fn copy(&self) -> Expect {
        match *self {
            Refused(status, reason, ends) => Refused(status, reason, ends),
            Passed(expected) => Passed(expected),
            PassedThenRefused(expected, status, reason) => PassedThenRefused(expected, status, reason),
        }
    }
}

/// A POST with these header lines beside `Host: a`.
fn post(lines: &str, body: &str) -> String {
    format!("POST /p HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked", body)
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

table! {
    cl_te: [
        post("Content-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\nG") => BOTH,
        post("Transfer-Encoding: chunked\r\nContent-Length: 6", "0\r\n\r\nG") => BOTH,
        post("Content-Length: 0\r\nTransfer-Encoding: chunked", &format!("0\r\n\r\n{SMUGGLED}")) => BOTH,
        post("content-length: 4\r\nTRANSFER-ENCODING: chunked", "0\r\n\r\n") => BOTH,
        post("Content-Length:\t4\r\nTransfer-Encoding:\tchunked", "0\r\n\r\n") => BOTH,
        post("Content-Length: 4\r\nTransfer-Encoding: identity", "abcd") => BOTH,
        // Behind a request that is whole: that one is answered, this one ends the connection.
        format!("{}{}", chunked("3\r\nabc\r\n0\r\n\r\n"), post("Content-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\nG"))
            => PassedThenRefused(&[("POST /p", "a", "abc")], 400, "length_and_chunked"),
    ]
    te_disguised: [
        post("Transfer-Encoding: xchunked", "0\r\n\r\n") => MALFORMED,
        post("Transfer-Encoding: chunked\x0b", "0\r\n\r\n") => MALFORMED,
        post("Transfer-Encoding: chunked, identity", "0\r\n\r\n") => MALFORMED,
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n") => MALFORMED,
        post("Transfer-Encoding:", "0\r\n\r\n") => MALFORMED,
        post("Transfer-Encoding: identity", "abcd") => MALFORMED,
        post("Transfer-Encoding : chunked", "0\r\n\r\n") => MALFORMED,
        post(" Transfer-Encoding: chunked", "0\r\n\r\n") => MALFORMED,
        post("Transfer-Encoding\t: chunked", "0\r\n\r\n") => MALFORMED,
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n") => CODING,
        post("Transfer-Encoding: gzip, chunked", "0\r\n\r\n") => CODING,
        post("Transfer-Encoding: chunked, chunked", "0\r\n\r\n") => CODING,
        post("Transfer-Encoding: \"chunked\"", "0\r\n\r\n") => MALFORMED,
        // White space around a value, and its case, mean nothing.
        post("Transfer-Encoding: \t chunked \t", "3\r\nabc\r\n0\r\n\r\n") => Passed(&[("POST /p", "a", "abc")]),
        post("Transfer-Encoding: CHUNKED", "3\r\nabc\r\n0\r\n\r\n") => Passed(&[("POST /p", "a", "abc")]),
        post("Transfer_Encoding: chunked\r\nContent-Length: 3", "abc") => Refused(400, "header_underscore", false),
        // HTTP/1.0 has no transfer coding.
        "POST /p HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" => MALFORMED,
    ]
    cl_disguised: [
        post("Content-Length: 3\r\nContent-Length: 4", "abcd") => MALFORMED,
        post("Content-Length: 3, 4", "abcd") => MALFORMED,
        post("Content-Length: +3", "abc") => MALFORMED,
        post("Content-Length: -1", "abc") => MALFORMED,
        post("Content-Length: 0x3", "abc") => MALFORMED,
        post("Content-Length: 3 3", "abc") => MALFORMED,
        post("Content-Length: 3.0", "abc") => MALFORMED,
        post("Content-Length:", "abc") => MALFORMED,
        post("Content-Length: 18446744073709551616", "abc") => MALFORMED,
        post("Content-Length : 3", "abc") => MALFORMED,
        post("Content-Length: 3\r\nContent-Length: 3", "abc") => Passed(&[("POST /p", "a", "abc")]),
        post("Content-Length: 003", "abc") => Passed(&[("POST /p", "a", "abc")]),
        // A body where none is usual is still a body, never the next request.
        format!("GET /g HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len())
            => Passed(&[("GET /g", "a", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")]),
    ]
    line_ends: [
        "GET / HTTP/1.1\nHost: a\n\n" => BARE_LF,
        "GET / HTTP/1.1\r\nHost: a\n\r\n" => BARE_LF,
        "GET / HTTP/1.1\r\nHost: a\r\n\n" => BARE_LF,
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n" => BARE_LF,
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\rZ: z\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n" => MALFORMED,
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /", "a", "")]),
        format!("{}{}", chunked("0\r\n\r\n"), "GET / HTTP/1.1\nHost: a\r\n\r\n")
            => PassedThenRefused(&[("POST /p", "a", "")], 400, "bare_line_feed"),
    ]
    folds_and_controls: [
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\tTransfer-Encoding: chunked\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.1\r\nHost: a\r\nX\0Y: 1\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.1\r\nHost: a\r\nX Y: 1\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n" => MALFORMED,
        "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n" => MALFORMED,
        "GET /a\rb HTTP/1.1\r\nHost: a\r\n\r\n" => MALFORMED,
        "GE\0T / HTTP/1.1\r\nHost: a\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n" => MALFORMED,
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n" => MALFORMED,
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n" => MALFORMED,
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n" => MALFORMED,
        "GET /\r\n\r\n" => MALFORMED,
    ]
    chunks: [
        chunked("5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n") => Passed(&[("POST /p", "a", "hello")]),
        chunked("5 \r\nhello\r\n0\r\n\r\n") => Passed(&[("POST /p", "a", "hello")]),
        chunked("00005\r\nhello\r\n0\r\n\r\n") => Passed(&[("POST /p", "a", "hello")]),
        // Who counts digits and who counts value read different sizes here.
        format!("{}{}", chunked("00000000000000005\r\nhello\r\n0\r\n\r\n"), post("Content-Length: 4\r\nTransfer-Encoding: chunked", "0\r\n\r\n"))
            => MALFORMED,
        chunked(&format!("A\r\n0123456789\r\n0\r\nX-Late: 1\r\n\r\n{SMUGGLED}"))
            => Passed(&[("POST /p", "a", "0123456789"), ("GET /smuggled", "a", "")]),
    ]
    host: [
        "GET / HTTP/1.1\r\n\r\n" => HOST,
        "GET / HTTP/1.0\r\n\r\n" => HOST,
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" => HOST,
        "GET / HTTP/1.1\r\nHost: a\r\nhOST: a\r\n\r\n" => HOST,
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n" => HOST,
        "GET / HTTP/1.1\r\nHost: .\r\n\r\n" => Passed(&[("GET /", ".", "")]),
        "GET / HTTP/1.1\r\nHost: a.\r\n\r\n" => Passed(&[("GET /", "a", "")]),
        "GET http://a.:80/ HTTP/1.1\r\nHost: b\r\n\r\n" => Passed(&[("GET /", "a:80", "")]),
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n" => HOST,
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n" => HOST,
        "GET / HTTP/1.1\r\nHost: a#b\r\n\r\n" => HOST,
        "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n" => HOST,
        "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n" => HOST,
        "GET / HTTP/1.1\r\nHost:\r\n\r\n" => HOST,
        "GET http://b/x HTTP/1.1\r\n\r\n" => HOST,
        "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n" => HOST,
        // The absolute form wins, and the upstream sees only what won.
        "GET http://b/x?y HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /x?y", "b", "")]),
        "GET http://b HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /", "b", "")]),
    ]
    request_target: [
        // The forms of RFC 9112, 3.2, each with the methods that it is not for: HAProxy's h1_request_target_validation.
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "GET admin HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "GET a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n" => PATH,
        "OPTIONS admin HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "OPTIONS */x HTTP/1.1\r\nHost: a\r\n\r\n" => MALFORMED,
        "OPTIONS *?x HTTP/1.1\r\nHost: a\r\n\r\n" => MALFORMED,
        // It asks the server as a whole, which here is none of those behind.
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "OPTIONS /x HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("OPTIONS /x", "a", "")]),
        "CONNECT b HTTP/1.1\r\nHost: b\r\n\r\n" => Refused(405, "connect_refused", false),
        "CONNECT * HTTP/1.1\r\nHost: b\r\n\r\n" => Refused(405, "connect_refused", false),
        "CONNECT /admin HTTP/1.1\r\nHost: b\r\n\r\n" => Refused(405, "connect_refused", false),
        "CONNECT http://b/ HTTP/1.1\r\nHost: b\r\n\r\n" => Refused(405, "connect_refused", false),
        "GET #x HTTP/1.1\r\nHost: a\r\n\r\n" => MALFORMED,
        "GET http://b?x HTTP/1.1\r\nHost: b\r\n\r\n" => Passed(&[("GET /?x", "b", "")]),
        "GET http://b#x HTTP/1.1\r\nHost: b\r\n\r\n" => Passed(&[("GET /", "b", "")]),
        "GET http://b#@c/ HTTP/1.1\r\nHost: b\r\n\r\n" => Passed(&[("GET /", "b", "")]),
        "GET http://b\\@c/ HTTP/1.1\r\nHost: b\r\n\r\n" => MALFORMED,
        "GET http:///x HTTP/1.1\r\nHost: b\r\n\r\n" => MALFORMED,
        "GET http: HTTP/1.1\r\nHost: b\r\n\r\n" => PATH,
        "GET //b/x HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET //b/x", "a", "")]),
        "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n" => Refused(405, "connect_refused", false),
        // A fragment is nobody's but the client's: it is neither matched nor sent on.
        "GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /x", "a", "")]),
        "GET /x?q#/../admin HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /x?q", "a", "")]),
    ]
    path_normalise_once: [
        "GET /public/../admin HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /admin", "a", "")]),
        "GET /public/%2e%2e/admin HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /admin", "a", "")]),
        "GET /public/.%2E/admin?x=/../y HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /admin?x=/../y", "a", "")]),
        "GET /public\\..\\admin HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /admin", "a", "")]),
        "GET /%61dmin HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /admin", "a", "")]),
        "GET /api../admin HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /api../admin", "a", "")]),
        "GET /%252e%252e/admin HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /%252e%252e/admin", "a", "")]),
        "GET /a//b HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /a//b", "a", "")]),
        "GET /admin;x=y HTTP/1.1\r\nHost: a\r\n\r\n" => Passed(&[("GET /admin;x=y", "a", "")]),
        "GET /public/..;/admin HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "GET /public/..%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "GET /public%5c..%5cadmin HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "GET /../admin HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "GET /a%00 HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "GET /a%0d%0aX:%20y HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "GET /a%zz HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
        "GET /a% HTTP/1.1\r\nHost: a\r\n\r\n" => PATH,
    ]
    header_limits: [
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(101)) => Refused(431, "headers_too_large", true),
        format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(61 * 1024)) => Refused(431, "headers_too_large", true),
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(17 * 1024)) => Refused(414, "uri_too_long", false),
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(66 * 1024)) => Refused(431, "headers_too_large", true),
    ]
    pipelining: [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\n"
            => Passed(&[("GET /", "a", ""), ("GET /2", "b", "")]),
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\n"
            => Passed(&[("GET /", "a", "")]),
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n"
            => PassedThenRefused(&[("GET /", "a", "")], 400, "malformed_request"),
    ]
}

/// What a rewrite leaves is as normal as what was matched: `/api../admin` without its `/api` is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn path_normalise_once_more_after_a_rewrite() {
    let (upstream, recorded) = recorder(OK).await;
    let setup = Setup {
        forward: Box::new(|forward| forward.prefix_rewrite = Some("/public/".into())),
        route: Box::new(|route| route.matcher.path = PathMatcher::Prefix("/api".into())),
        ..Setup::default()
    };
    let proxy = Proxy::with(&[upstream], setup).await;
    for path in ["/api../admin", "/api%2e%2e/admin", "/api..;/admin", "/api..", "/api."] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let (answer, _) = exchange(proxy.address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("bad_path"), "{path}: {answer}");
    }
    assert!(recorded.messages().is_empty(), "{}", recorded.text());
    let (answer, _) = exchange(proxy.address, b"GET /api/..x/y HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(recorded.text().starts_with("GET /public/..x/y HTTP/1.1"), "{}", recorded.text());
}

/// Chunks that are malformed end the connection; a piece of them never becomes a request, here or upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunk_size_abuse() {
    let bodies = [
        "fffffffffffffffff\r\n",
        "10000000000000000\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";x\r\nhello\r\n0\r\n\r\n",
        "5;x\ny\r\nhello\r\n0\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\n X: y\r\n\r\n",
    ];
    let cases = bodies.iter().map(async |body| {
        let (upstream, recorded) = recorder(OK).await;
        let proxy = proxy(upstream).await;
        let bytes = format!("{}{SMUGGLED}", chunked(body));
        let (answer, closed) = exchange(proxy.address, bytes.as_bytes()).await;
        assert!(closed, "{body:?}: still open after {answer}");
        assert!(!answer.contains(" 200 ") && !answer.contains("client_gone"), "{body:?}: {answer}");
        assert!(!recorded.text().contains("smuggled"), "{body:?}: {}", recorded.text());
    });
    futures_util::future::join_all(cases).await;
}

/// Extensions without end: the connection ends at hyper's 16 KiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunk_extension_flood() {
    let (upstream, _) = recorder(OK).await;
    let proxy = proxy(upstream).await;
    let body = format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(40);
    let (answer, closed) = exchange(proxy.address, chunked(&body).as_bytes()).await;
    assert!(closed && !answer.contains(" 200 "), "{answer}");
}

/// What the access log and the metrics say of bytes that never became a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_head_is_counted_and_logged() {
    use pontoon_proxy::config::listener::{AccessLog, AccessLogFormat};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let log = AccessLog { path: path.to_str().unwrap().into(), format: AccessLogFormat::Json };
    let (upstream, _) = recorder(OK).await;
    let setup = Setup { http: Box::new(move |http| http.access_log = vec![log]), ..Setup::default() };
    let proxy = Proxy::with(&[upstream], setup).await;
    exchange(proxy.address, b"GET / HTTP/1.1\nHost: a\n\n").await;
    exchange(proxy.address, b"nonsense\r\n\r\n").await;
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    until("two lines", || lines().lines().count() == 2).await;
    for reason in ["bare_line_feed", "malformed_request"] {
        let line = lines().lines().find(|line| line.contains(reason)).map(str::to_owned).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&value["status"], &value["method"], &value["flags"]),
            (&400.into(), &"-".into(), &"DPE".into())
        );
        assert!(proxy.metrics().contains(&format!("reason=\"{reason}\"")), "{}", proxy.metrics());
    }
}

/// An upstream's answer that looks like hyper's own refusal is not kept back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstreams_400_is_passed_on() {
    let (upstream, _) = recorder(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let proxy = proxy(upstream).await;
    for head in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.0\r\nHost: a\r\n\r\n"] {
        let (answer, _) = exchange(proxy.address, head.as_bytes()).await;
        assert!(answer.contains(" 400 Bad Request\r\n") && !answer.contains("x-pontoon-reason"), "{answer}");
    }
}

/// Names that a client lists in `Connection` go, but never those that we add ourselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hop_by_hop_abuse() {
    let (upstream, recorded) = recorder(OK).await;
    let proxy = proxy(upstream).await;
    let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, x-forwarded-for, X-Forwarded-Proto, x-real, host\r\n\
                X-Forwarded-For: 6.6.6.6\r\nX-Real: 1\r\nX-Forwarded-Prefix: /admin\r\n\r\n";
    exchange(proxy.address, head.as_bytes()).await;
    let messages = recorded.messages();
    let [message] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(message.values("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(message.values("x-forwarded-proto"), ["http"]);
    assert_eq!(message.values("host"), ["a"]);
    assert!(message.values("x-real").is_empty() && message.values("x-forwarded-prefix").is_empty());
}

/// Answers that two readers may cut differently: 502, and the connection is not used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn response_framing() {
    let answers: [&[u8]; 5] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n folded: x\r\ncontent-length: 2\r\n\r\nok",
        b"nonsense\r\n\r\n",
    ];
    let cases = answers.into_iter().map(async |answer| {
        let (upstream, _) = recorder(answer).await;
        let proxy = proxy(upstream).await;
        let (got, _) = exchange(proxy.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 502 "), "{}: {got}", String::from_utf8_lossy(answer));
        assert!(got.contains("x-pontoon-reason: upstream_protocol\r\n"), "{got}");
    });
    futures_util::future::join_all(cases).await;
}

/// Interim answers are passed over, but not without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answer_storm() {
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    for (storm, expected) in [(100, "HTTP/1.1 200 "), (20_000, "HTTP/1.1 502 ")] {
        let (upstream, _) = recorder((interim.repeat(storm) + last).leak().as_bytes()).await;
        let proxy = proxy(upstream).await;
        // The second finds a connection that was used, with what had been read on it forgotten.
        for _ in 0..2 {
            let (got, _) = exchange(proxy.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert!(got.starts_with(expected), "{storm}: {got}");
            assert_eq!(got.contains("x-pontoon-reason: upstream_protocol\r\n"), storm > 100, "{got}");
        }
    }
}

/// Nothing is granted that was not asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_to_another_protocol() {
    let (upstream, _) =
        recorder(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n").await;
    let proxy = proxy(upstream).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let (got, _) = exchange(proxy.address, request.as_bytes()).await;
    assert!(got.starts_with("HTTP/1.1 502 ") && got.contains("upstream_protocol"), "{got}");
}

/// Bytes behind an answer belong to no request: the next one gets a connection of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn response_splitting_by_extra_bytes() {
    let (upstream, recorded) = recorder(
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
    )
    .await;
    let proxy = proxy(upstream).await;
    for _ in 0..3 {
        let (got, _) = exchange(proxy.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(got.ends_with("\r\n\r\nok"), "{got}");
    }
    assert_eq!(recorded.connections(), 3);
}
