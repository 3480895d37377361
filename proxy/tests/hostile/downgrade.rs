//! HTTP/2 requests that would mean something else as HTTP/1.1: what is not plain is refused, and nothing of it
//! reaches an HTTP/1.1 upstream.

use crate::fixture::*;
use crate::frames::*;
use crate::recorder::{OK, recorder};

/// What must become of the stream.
#[derive(Debug, Clone, Copy)]
enum Expect {
    /// Reset as malformed (RFC 9113, 8.1.1).
    Malformed,
    /// Answered with this status.
    Refused(u16),
    /// Passed on with this request line, host and body.
    Passed(&'static str, &'static str, &'static str),
    /// What is no field at all ends the whole connection: h2 cannot tell where it would go on, and says so with
    /// PROTOCOL_ERROR also where RFC 7541 has COMPRESSION_ERROR.
    NoField,
}

use Expect::{Malformed, NoField, Passed, Refused};

type Fields<'a> = &'a [(&'a [u8], &'a [u8])];

/// `GET http://a/` with these fields behind the pseudo-headers.
fn with(fields: Fields<'_>) -> Vec<u8> {
    let mut block = request("GET", "/");
    block.extend(fields.iter().flat_map(|(name, value)| literal(name, value)));
    block
}

/// Exactly these fields.
fn only(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(name.as_bytes(), value.as_bytes())).collect()
}

async fn check(name: &str, block: &[u8], body: Option<&[u8]>, expect: Expect) {
    let (upstream, recorded) = recorder(OK).await;
    let proxy = Proxy::start(&[upstream]).await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    let flags = END_HEADERS | if body.is_none() { END_STREAM } else { 0 };
    let mut bytes = frame(HEADERS, flags, 1, block);
    if let Some(body) = body {
        bytes.extend(frame(DATA, END_STREAM, 1, body));
    }
    client.send(&bytes).await;
    let outcome = client.outcome(1).await;
    let context =
        format!("{name}: {:?}: {outcome:?}, upstream {:?}", String::from_utf8_lossy(block), recorded.text());
    match expect {
        Malformed => {
            assert_eq!(outcome, Outcome::Reset(PROTOCOL_ERROR), "{context}");
            // A request whose body contradicts its length may have begun upstream; it never ends there.
            assert!(recorded.text().is_empty() || body.is_some(), "{context}");
        }
        Refused(status) => {
            assert_eq!(outcome, Outcome::Status(status), "{context}");
            assert!(recorded.is_empty(), "{context}");
        }
        NoField => {
            assert_eq!(outcome, Outcome::GoAway(PROTOCOL_ERROR), "{context}");
            assert!(recorded.is_empty(), "{context}");
        }
        Passed(line, host, sent) => {
            assert_eq!(outcome, Outcome::Status(200), "{context}");
            let messages = recorded.messages();
            let [message] = &messages[..] else { panic!("{context}") };
            assert_eq!(message.line(), format!("{line} HTTP/1.1"), "{context}");
            assert_eq!(message.values("host"), [host], "{context}");
            assert_eq!(message.body, sent.as_bytes(), "{context}");
            for gone in ["te", "connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection"]
            {
                let values = message.values(gone);
                assert!(
                    values.is_empty() || gone == "te" || values == ["te"] || values == ["chunked"],
                    "{context}"
                );
            }
        }
    }
}

macro_rules! table {
    ($( $name:ident: [ $( $block:expr => $expect:expr ),+ $(,)? ] )+) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let cases: Vec<(Vec<u8>, Expect)> = vec![$( (Vec::from($block), $expect) ),+];
            let cases = cases.iter().map(|(block, expect)| check(stringify!($name), block, None, *expect));
            futures_util::future::join_all(cases).await;
        }
    )+ };
}

table! {
    line_ends_and_nul: [
        with(&[(b"x", b"a\r\nevil: 1")]) => NoField,
        with(&[(b"x", b"a\nevil: 1")]) => NoField,
        with(&[(b"x", b"a\rb")]) => NoField,
        with(&[(b"x", b"a\0b")]) => NoField,
        with(&[(b"x\r\nevil", b"1")]) => NoField,
        with(&[(b"x: 1\r\nevil", b"1")]) => NoField,
        with(&[(b"x\0", b"1")]) => NoField,
        with(&[(b"x y", b"1")]) => NoField,
        with(&[(b"x:y", b"1")]) => NoField,
        with(&[(b"", b"1")]) => NoField,
        with(&[(b"X-Upper", b"1")]) => NoField,
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/\r\nevil: 1")]) => Malformed,
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/ HTTP/1.1\r\nevil: 1")]) => Malformed,
        only(&[(":method", "GET / HTTP/1.1\r\nevil: 1\r\n"), (":scheme", "http"), (":authority", "a"), (":path", "/")]) => NoField,
        only(&[(":method", "G\0T"), (":scheme", "http"), (":authority", "a"), (":path", "/")]) => NoField,
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a\r\nevil: 1"), (":path", "/")]) => Malformed,
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/a b")]) => Malformed,
    ]
    pseudo_headers: [
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a")]) => Malformed,
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "")]) => Malformed,
        only(&[(":scheme", "http"), (":authority", "a"), (":path", "/")]) => Malformed,
        only(&[(":method", "GET"), (":authority", "a"), (":path", "/")]) => Malformed,
        only(&[(":method", "GET"), (":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")]) => Malformed,
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/"), (":path", "/b")]) => Malformed,
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/"), (":status", "200")]) => Malformed,
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/"), (":odd", "1")]) => NoField,
        only(&[("x", "1"), (":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")]) => Malformed,
        only(&[(":method", "GET"), (":scheme", "http"), (":path", "/")]) => Refused(400),
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "admin")]) => Malformed,
        only(&[(":method", "GET"), (":scheme", "http"), (":authority", "u@a"), (":path", "/")]) => Refused(400),
    ]
    white_space_around_values: [
        with(&[(b"x-role", b" admin")]) => Refused(400),
        with(&[(b"x-role", b"admin ")]) => Refused(400),
        with(&[(b"x-role", b"\tadmin")]) => Refused(400),
        with(&[(b"content-length", b" 0")]) => Malformed,
        with(&[(b"x-role", b"an admin"), (b"x-empty", b"")]) => Passed("GET /", "a", ""),
    ]
    schemes: [
        only(&[(":method", "GET"), (":scheme", "ftp"), (":authority", "a"), (":path", "/")]) => Refused(400),
        only(&[(":method", "GET"), (":scheme", "file"), (":authority", "a"), (":path", "/etc/passwd")]) => Refused(400),
        only(&[(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")]) => Passed("GET /", "a", ""),
    ]
    authority_and_host: [
        with(&[(b"host", b"a")]) => Passed("GET /", "a", ""),
        with(&[(b"host", b"b")]) => Refused(400),
        with(&[(b"host", b"a"), (b"host", b"a")]) => Refused(400),
        only(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "b")]) => Passed("GET /", "b", ""),
    ]
    connection_specific: [
        with(&[(b"connection", b"close")]) => Malformed,
        with(&[(b"keep-alive", b"5")]) => Malformed,
        with(&[(b"proxy-connection", b"close")]) => Malformed,
        with(&[(b"transfer-encoding", b"chunked")]) => Malformed,
        with(&[(b"upgrade", b"websocket")]) => Malformed,
        with(&[(b"te", b"gzip")]) => Malformed,
        with(&[(b"te", b"trailers")]) => Passed("GET /", "a", ""),
        with(&[(b"x_y", b"1")]) => Refused(400),
    ]
    paths: [
        request("GET", "/public/../admin") => Passed("GET /admin", "a", ""),
        request("GET", "/public/..;/admin") => Refused(400),
        request("GET", "/%00") => Refused(400),
        request("GET", "*") => Refused(400),
        request("OPTIONS", "*") => Refused(400),
        request("OPTIONS", "*/x") => Malformed,
        request("GET", "?x") => Refused(400),
        // Nothing but a fragment, which is nobody's but the client's.
        request("GET", "#x") => Passed("GET /", "a", ""),
        request("GET", "/x#y") => Passed("GET /x", "a", ""),
    ]
    cookie_crumbs: [
        with(&[(b"cookie", b"a=1"), (b"cookie", b"b=2")]) => Passed("GET /", "a", ""),
        with(&vec![(&b"cookie"[..], &b"a=1"[..]); 101]) => Refused(431),
    ]
    hpack: [
        // An index beyond both tables; a size beyond what was allowed; a string without its end.
        [0xff, 0x80, 0x80, 0x01] => NoField,
        [0x3f, 0xe1, 0xff, 0x03] => NoField,
        [0x00, 0x7f, 0x80] => NoField,
        // A Huffman string that ends in more than seven bits of padding.
        [0x82, 0x86, 0x84, 0x41, 0x82, 0xff, 0xff] => NoField,
    ]
}

/// A length that the frames contradict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_length_and_data() {
    let of = |fields: Fields<'_>| {
        let mut block = request("POST", "/p");
        block.extend(fields.iter().flat_map(|(name, value)| literal(name, value)));
        block
    };
    check("short", &of(&[(b"content-length", b"5")]), Some(b"abc"), Malformed).await;
    check("long", &of(&[(b"content-length", b"2")]), Some(b"abc"), Malformed).await;
    check("sign", &of(&[(b"content-length", b"+3")]), Some(b"abc"), Malformed).await;
    check("two", &of(&[(b"content-length", b"3"), (b"content-length", b"4")]), Some(b"abc"), Malformed).await;
    check("none", &of(&[]), Some(b"abc"), Passed("POST /p", "a", "abc")).await;
    check("right", &of(&[(b"content-length", b"3")]), Some(b"abc"), Passed("POST /p", "a", "abc")).await;
}

/// Lengths of one number reach the upstream as one, written as everybody reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lengths_that_agree_become_one() {
    for lengths in [&["3", "3"][..], &["3", "03"], &["003"]] {
        let (upstream, recorded) = recorder(OK).await;
        let proxy = Proxy::start(&[upstream]).await;
        let mut client = Raw::connect(proxy.address, &[]).await;
        let mut block = request("POST", "/p");
        block.extend(lengths.iter().flat_map(|length| literal(b"content-length", length.as_bytes())));
        let mut bytes = frame(HEADERS, END_HEADERS, 1, &block);
        bytes.extend(frame(DATA, END_STREAM, 1, b"abc"));
        client.send(&bytes).await;
        assert_eq!(client.outcome(1).await, Outcome::Status(200), "{lengths:?}");
        let messages = recorded.messages();
        assert_eq!((messages[0].values("content-length"), &messages[0].body[..]), (vec!["3"], &b"abc"[..]));
    }
}

/// The same of an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answers_lengths_that_agree_become_one() {
    for length in ["2, 2", "02"] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nok");
        let (upstream, _recorded) = recorder(Box::leak(answer.into_boxed_str()).as_bytes()).await;
        let proxy = Proxy::start(&[upstream]).await;
        let mut client = Client::connect(proxy.address, Http::One).await;
        let response = client.get("/").await;
        let lengths: Vec<_> = response.headers().get_all("content-length").iter().collect();
        assert_eq!(lengths, ["2"], "{length}");
    }
}

/// A trailer whose value differs by who trims it: the request ends before the upstream has all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn white_space_around_a_trailers_value() {
    let (upstream, recorded) = recorder(OK).await;
    let proxy = Proxy::start(&[upstream]).await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &request("POST", "/p"));
    bytes.extend(frame(DATA, 0, 1, b"abc"));
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &only(&[("x-late", " 1")])));
    client.send(&bytes).await;
    assert_eq!(client.outcome(1).await, Outcome::Status(400));
    assert!(!recorded.text().contains("x-late"), "{}", recorded.text());
}

/// Trailers that frame, route or address a message do not become a head's fields upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers() {
    let (upstream, recorded) = recorder(OK).await;
    let proxy = Proxy::start(&[upstream]).await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &request("POST", "/p"));
    bytes.extend(frame(DATA, 0, 1, b"abc"));
    let trailers = only(&[("content-length", "9"), ("host", "evil"), ("x-late", "1")]);
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers));
    client.send(&bytes).await;
    assert_eq!(client.outcome(1).await, Outcome::Status(200));
    let messages = recorded.messages();
    assert_eq!(messages.len(), 1);
    assert_eq!((messages[0].values("host"), &messages[0].body[..]), (vec!["a"], &b"abc"[..]));
    assert!(!recorded.text().contains("evil"), "{}", recorded.text());
}
