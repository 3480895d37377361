//! Many requests at once on one connection: their answers come in their order, one at a time is worked on, and none
//! begins where another's body has not ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use http_body_util::BodyExt;
use pontoon_proxy::route::Action;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::fixture::*;
use crate::recorder::{OK, recorder};

const REQUESTS: usize = 100;

/// A hundred requests, every third with a body, sent as fast as they are taken. The upstream takes its time with the
/// first of them, so that it would answer the others first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_are_answered_in_order() {
    for back in [Http::One, Http::Two] {
        let (now, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (working, peak) = (Arc::clone(&now), Arc::clone(&most));
        let upstream = Upstream::serving(back, Default::default(), move |request| {
            let (now, most) = (Arc::clone(&working), Arc::clone(&peak));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await?.to_bytes();
                let number: usize = path[1..].parse().unwrap();
                for _ in 0..(REQUESTS - number) {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, Ordering::SeqCst);
                let said = format!("<{number}:{}>", body.len());
                Ok(Response::builder().header("x-number", number).body(full(said)).unwrap())
            }
        })
        .await;
        let setup = Setup { protocol: back.upstream(), ..Setup::default() };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let mut bytes = Vec::new();
        for number in 0..REQUESTS {
            let last = if number + 1 == REQUESTS { "Connection: close\r\n" } else { "" };
            let body = if number % 3 == 0 { "GET /99 HTTP/1.1\r\n" } else { "" };
            let head = format!(
                "POST /{number} HTTP/1.1\r\nHost: a\r\n{last}Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            bytes.extend(head.into_bytes());
        }
        stream.write_all(&bytes).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an end").unwrap();
        let got: Vec<&str> = answer.split(['<', '>']).skip(1).step_by(2).collect();
        let length = |number| if number % 3 == 0 { "GET /99 HTTP/1.1\r\n".len() } else { 0 };
        let expected: Vec<String> =
            (0..REQUESTS).map(|number| format!("{number}:{}", length(number))).collect();
        assert_eq!(got, expected, "{back:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 200 ").count(), REQUESTS);
        assert_eq!(most.load(Ordering::SeqCst), 1, "{back:?}: one in flight");
    }
}

/// All answers to these bytes, the last of which ask for the connection's end.
async fn answers(address: std::net::SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "never closed: {bytes:?}");
    String::from_utf8_lossy(&answer).into_owned()
}

const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// `Expect` in disguise: whatever is made of it, the body is the request's, and what follows is the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_disguised() {
    let lines = [
        "Expect: 100-continue",
        "Expect: 100-CONTINUE",
        "Expect: y 100-continue",
        "Expect:\t100-continue , x",
        "Expect: 100-continue\r\nExpect: 100-continue",
        "Expect: 200-ok",
        "Expect:",
    ];
    let cases = lines.iter().map(async |line| {
        for (length, body) in
            [("Content-Length: 3", "abc"), ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n")]
        {
            let (upstream, recorded) = recorder(OK).await;
            let proxy = Proxy::start(&[upstream]).await;
            let bytes = format!("POST /p HTTP/1.1\r\nHost: a\r\n{line}\r\n{length}\r\n\r\n{body}{NEXT}");
            let answer = answers(proxy.address, &bytes).await;
            let messages = recorded.messages();
            let got: Vec<_> = messages.iter().map(|message| (message.line(), &message.body[..])).collect();
            let expected = [("POST /p HTTP/1.1", &b"abc"[..]), ("GET /next HTTP/1.1", b"")];
            assert_eq!(got, expected, "{line:?} {length}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 2, "{line:?}: {answer}");
        }
    });
    futures_util::future::join_all(cases).await;
}

/// Trailers that frame, address or authenticate are left out, in HTTP/1.1 as in HTTP/2, and those without end are not
/// waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_chunks() {
    let forbidden = "Content-Length: 9\r\nTransfer-Encoding: chunked\r\nHost: evil\r\nAuthorization: evil\r\n\
                     X-Forwarded-For: evil\r\nX-Late: 1\r\n";
    let head = "POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n";
    let (upstream, recorded) = recorder(OK).await;
    let proxy = Proxy::start(&[upstream]).await;
    let answer = answers(proxy.address, &format!("{head}{forbidden}\r\n{NEXT}")).await;
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 2, "{answer}");
    let lines: Vec<String> = recorded.messages().iter().map(|message| message.line().to_owned()).collect();
    assert_eq!(lines, ["POST /p HTTP/1.1", "GET /next HTTP/1.1"]);
    assert!(
        !recorded.text().contains("evil") && !recorded.text().contains("Content-Length: 9"),
        "{}",
        recorded.text()
    );

    // More bytes, and more fields, than a head may have.
    for (line, times) in [(format!("X-Late: {}\r\n", "y".repeat(1_000)), 70), ("X: y\r\n".to_owned(), 101)] {
        let (upstream, recorded) = recorder(OK).await;
        let proxy = Proxy::start(&[upstream]).await;
        let answer = answers(proxy.address, &format!("{head}{}\r\n{NEXT}", line.repeat(times))).await;
        assert!(!answer.contains(" 200 "), "{answer}");
        assert!(!recorded.text().contains("/next"), "{}", recorded.text());
    }
}

/// What was asked before a head that cannot be read is answered, and in order: short refusals of the upstream's look like
/// hyper's own answer to such a head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_not_taken_for_the_answer_to_a_bad_head() {
    let upstream = Upstream::serving(Http::One, Default::default(), |request| async move {
        let status = if request.uri().path() == "/missing" { 404 } else { 200 };
        Ok(Response::builder().status(status).body(full(String::new())).unwrap())
    })
    .await;
    let proxy = Proxy::start(&[upstream.address]).await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let (missing, found) = (get("/missing"), get("/"));
    let both_lengths =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (bytes, expected) in [
        (format!("{missing}GARB AGE\r\n\r\n"), &["404", "400"][..]),
        (format!("{missing}{missing}{missing}GARB AGE\r\n\r\n"), &["404", "404", "404", "400"]),
        (format!("{missing}{found}{missing}GARB AGE\r\n\r\n"), &["404", "200", "404", "400"]),
        (format!("{missing}{both_lengths}"), &["404", "400"]),
        (format!("{missing}{missing}{NEXT}"), &["404", "404", "200"]),
    ] {
        let answer = answers(proxy.address, &bytes).await;
        assert_eq!(statuses(&answer), expected, "{bytes:?}: {answer}");
    }
}

/// The same where nothing is waited for: a refusal is not overtaken by what follows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_our_own_come_in_order() {
    let upstream = Upstream::echo(Http::One).await;
    let route = |route: &mut pontoon_proxy::route::Route| {
        route.action = Action::Direct { status: http::StatusCode::NOT_FOUND, body: Default::default() };
    };
    let setup = Setup { route: Box::new(route), ..Setup::default() };
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    // Its answer is a 200, with the status in another header.
    let grpc = "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
    let answer = answers(proxy.address, &format!("{plain}{grpc}{plain}{plain}{grpc}{NEXT}")).await;
    assert_eq!(statuses(&answer), ["404", "200", "404", "404", "200", "404"], "{answer}");
}

fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.split(' ').next()).collect()
}

/// What is said to a client that takes its time with an answer comes behind it, and the answer comes whole: to a request
/// whose body is not all there, before a head that cannot be read, and before a short refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_reach_who_reads_late() {
    const BODY: usize = 300_000;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let early = "POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc".to_owned();
    let unread = get("/big") + "GET /next HTTP/1.1\nHost: a\r\n\r\n";
    let refused = get("/big") + &get("/missing") + &get("/big") + NEXT;
    let cases = [(early, &[200][..]), (unread, &[200, 400]), (refused, &[200, 404, 200, 200])];
    let cases = cases.iter().map(async |(bytes, statuses)| {
        let upstream = Upstream::serving(Http::One, Default::default(), |request| async move {
            let (status, length) = match request.uri().path() {
                "/big" => (200, BODY),
                "/missing" => (404, 0),
                _ => (200, 0),
            };
            Ok(Response::builder().status(status).body(full("~".repeat(length))).unwrap())
        })
        .await;
        let proxy = Proxy::start(&[upstream.address]).await;
        // Small windows and segments, so that the kernel takes little.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket2::SockRef::from(&socket).set_tcp_mss(536).unwrap();
        let mut stream = socket.connect(proxy.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        // Longer than a connection takes to be parked.
        tokio::time::sleep(Duration::from_millis(1_600)).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        read.expect("an end").unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let got: Vec<u16> =
            answer.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect();
        assert_eq!(got, *statuses, "{bytes:?}");
        assert_eq!(answer.matches('~').count(), bytes.matches("/big").count() * BODY, "{bytes:?}");
    });
    futures_util::future::join_all(cases).await;
}

/// To a client of HTTP/1.0, whose answers end with the connection, one that broke off does not look complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_no_whole_one_over_http10() {
    for (end, is_whole) in [("0\r\n\r\n", true), ("", false)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let answer =
                    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n{end}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let proxy = Proxy::start(&[address]).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        assert_eq!(read.is_ok(), is_whole, "{end:?}: {}", String::from_utf8_lossy(&answer));
    }
}
