//! More than there is room for: connections, open files, memory, bodies. What is refused is refused at once and has
//! a reason; what was let in is served.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use http::Request;
use pontoon_proxy::config::listener::HttpSettings;
use pontoon_proxy::overload::{Admission, Limits, Pressure};
use pontoon_proxy::worker::Options;

use crate::apart::{self, Apart};
use crate::fixture::*;
use crate::recorder::{OK, recorder};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A proxy of two workers with these limits.
async fn limited(upstream: SocketAddr, limits: Limits, of_listener: usize) -> Proxy {
    let options = Options { workers: 2, admission: Admission::new(limits), ..Setup::default().options };
    let http = move |http: &mut HttpSettings| http.max_connections = of_listener;
    Proxy::with(&[upstream], Setup { options, http: Box::new(http), ..Setup::default() }).await
}

/// Opens connections and sends a request on each, and the first byte of another; gives those that were answered, kept
/// open, and not idle.
async fn open(address: SocketAddr, count: usize) -> Vec<tokio::net::TcpStream> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut answered = Vec::new();
    for _ in 0..count {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // A connection that was refused may be gone by now.
        let _ = stream.write_all(GET).await;
        let mut answer = [0; 12];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer))
            .await
            .expect("an answer or an end");
        if read.is_ok() && answer.starts_with(b"HTTP/1.1 200") {
            stream.write_all(b"G").await.unwrap();
            answered.push(stream);
        }
    }
    answered
}

/// Clients that hold connections and ask for nothing do not keep others out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_make_room() {
    for http in [Http::One, Http::Two] {
        let (upstream, _) = recorder(OK).await;
        let admission = Admission::new(Limits { connections: 4, ..Limits::default() });
        let options = Options { workers: 1, admission, ..Setup::default().options };
        let proxy = Proxy::with(&[upstream], Setup { options, ..Setup::default() }).await;
        let mut idle = Vec::new();
        for _ in 0..4 {
            let mut client = Client::connect(proxy.address, http).await;
            assert_eq!(client.get("/").await.status(), 200);
            idle.push(client);
        }
        let closed = r#"pontoon_idle_connections_closed_total{listener="edge"}"#;
        let open_now = r#"pontoon_downstream_connections{listener="edge"}"#;
        // Not idle at once, so the first attempts may be refused; the one that ends another comes before its room.
        let served = async {
            while open(proxy.address, 1).await.is_empty() {
                until("room", || proxy.metric(closed) == 0 || proxy.metric(open_now) < 4).await;
            }
        };
        tokio::time::timeout(PATIENCE, served).await.expect("room");
        assert!(proxy.metric(closed) >= 1, "{}", proxy.metrics());
        assert_eq!(idle.pop().unwrap().get("/").await.status(), 200, "the last is not the first to go");
    }
}

/// Nor do those that have never said a word, which are not closed for it either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_make_room() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (upstream, _) = recorder(OK).await;
    let admission = Admission::new(Limits { connections: 4, ..Limits::default() });
    let options = Options { workers: 1, admission, ..Setup::default().options };
    let http = |http: &mut HttpSettings| http.timeouts.request_headers = Duration::from_millis(50);
    let proxy = Proxy::with(&[upstream], Setup { options, http: Box::new(http), ..Setup::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(tokio::net::TcpStream::connect(proxy.address).await.unwrap());
    }
    let idle = r#"pontoon_idle_connections_closed_total{listener="edge"}"#;
    let open_now = r#"pontoon_downstream_connections{listener="edge"}"#;
    // One may have made room by then.
    let accepted = r#"pontoon_downstream_connections_total{listener="edge"}"#;
    until("all are taken", || proxy.metric(accepted) == 4).await;
    let served = async {
        while open(proxy.address, 1).await.is_empty() {
            until("room", || proxy.metric(idle) == 0 || proxy.metric(open_now) < 4).await;
        }
    };
    tokio::time::timeout(PATIENCE, served).await.expect("room");
    assert!(proxy.metric(idle) >= 1, "{}", proxy.metrics());
    let mut last = silent.pop().unwrap();
    last.write_all(GET).await.unwrap();
    let mut answer = [0; 12];
    last.read_exact(&mut answer).await.expect("the last is not the first to go");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections() {
    let cases = [
        (Limits { connections: 5, ..Limits::default() }, 0, "connection_limit"),
        (Limits { connections_per_source: 5, ..Limits::default() }, 0, "source_connection_limit"),
        (Limits::default(), 5, "listener_connection_limit"),
    ];
    for (limits, of_listener, reason) in cases {
        let (upstream, _) = recorder(OK).await;
        let proxy = limited(upstream, limits, of_listener).await;
        let held = open(proxy.address, 8).await;
        assert_eq!(held.len(), 5, "{reason}");
        let refused = format!(
            r#"pontoon_downstream_requests_total{{listener="edge",class="none",flag="-",reason="{reason}"}}"#
        );
        assert_eq!(proxy.metric(&refused), 3, "{}", proxy.metrics());
        drop(held);
        let open_now = r#"pontoon_downstream_connections{listener="edge"}"#;
        until("the connections end", || proxy.metric(open_now) == 0).await;
        assert_eq!(open(proxy.address, 1).await.len(), 1, "{reason}: there is room again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_memory() {
    let (upstream, recorded) = recorder(OK).await;
    let admission = Admission::new(Limits { memory: 1000, ..Limits::default() });
    let options = Options { admission: admission.clone(), ..Setup::default().options };
    let proxy = Proxy::with(&[upstream], Setup { options, ..Setup::default() }).await;
    let mut early = Client::connect(proxy.address, Http::Two).await;
    assert_eq!(early.get("/").await.status(), 200);

    assert_eq!(admission.observe(900), Some(Pressure::NoKeepAlive));
    let (answer, closed) = raw(proxy.address, GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && closed, "{answer}");

    admission.observe(960);
    let before = recorded.messages().len();
    let refused = early.get("/").await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(refused.headers()["x-pontoon-reason"], "overload");
    let (answer, closed) = raw(proxy.address, GET).await;
    assert!(answer.is_empty() && closed, "{answer}");
    assert_eq!(recorded.messages().len(), before);
    assert!(proxy.metrics().contains(r#"flag="OM",reason="overload"} "#), "{}", proxy.metrics());
    assert_eq!(proxy.metric("pontoon_overload_pressure"), 2);

    admission.observe(100);
    assert_eq!(early.get("/").await.status(), 200);
}

/// Every tick of a worker's clock is later than it may be here. That it passes is the decision's own test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_queue() {
    let (upstream, _) = recorder(OK).await;
    let lag = Duration::from_nanos(2);
    let options = Options {
        admission: Admission::new(Limits { lag, ..Limits::default() }),
        ..Setup::default().options
    };
    let proxy = Proxy::with(&[upstream], Setup { options, ..Setup::default() }).await;
    let mut early = Client::connect(proxy.address, Http::Two).await;
    let refused = async {
        loop {
            let answer = early.get("/").await;
            if answer.status() == 503 {
                return answer;
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.expect("requests are refused");
    assert_eq!(refused.headers()["x-pontoon-reason"], "overload_queue");
    assert_eq!(refused.headers()["retry-after"], "1");
    let (answer, closed) = raw(proxy.address, GET).await;
    assert!(answer.is_empty() && closed, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn body() {
    for (listener, route, sent, expected) in [
        (10, None, 11, 413),
        (10, None, 10, 200),
        (10, Some(20), 15, 200),
        (0, Some(5), 6, 413),
        (10, Some(0), 50, 200),
    ] {
        let upstream = Upstream::echo(Http::One).await;
        let setup = Setup {
            http: Box::new(move |http| http.limits.max_body_bytes = listener),
            forward: Box::new(move |forward| {
                let said = route.map(|limit| ("envoy.filters.http.buffer".into(), Some(limit)));
                forward.max_body_bytes = said.into_iter().collect();
            }),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        for http in [Http::One, Http::Two] {
            let mut client = Client::connect(proxy.address, http).await;
            let response = client.send(Request::post("/").body(full("x".repeat(sent))).unwrap()).await;
            assert_eq!(response.status(), expected, "{listener} {route:?} {sent}");
        }
        // Chunks, whose sum nobody says beforehand.
        let chunks = "1\r\nx\r\n".repeat(sent);
        let bytes =
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
        let (answer, _) = raw(proxy.address, bytes.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{answer}");
    }
}

/// Open files that run out, in a process of its own: accepting pauses instead of spinning, and goes on by itself.
#[test]
fn emfile_on_accept_does_not_spin() {
    if apart::serves() {
        return few_files();
    }
    let proxy = Apart::start("limits::emfile_on_accept_does_not_spin");
    let address = proxy.address;
    let mut held: Vec<TcpStream> = (0..150).map(|_| TcpStream::connect(address).unwrap()).collect();
    held.iter_mut().for_each(|stream| stream.write_all(b"GET ").unwrap());
    let (before, at) = (proxy.cpu_ticks(), std::time::SystemTime::now());
    #[allow(clippy::disallowed_methods, reason = "the time is what is measured over")]
    std::thread::sleep(Duration::from_secs(2));
    let (busy, took) = (proxy.cpu_ticks() - before, at.elapsed().unwrap());
    // A hundred ticks a second: a loop that spins takes all of them, and a debug build's start some.
    assert!(busy < took.as_millis() as u64 / 10 / 4, "{busy} ticks in {took:?}");

    drop(held);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(GET).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
    let failures = proxy.end().iter().find_map(|line| line.split_once("failures ")?.1.parse::<u64>().ok());
    // Twenty a second and worker, for three seconds or so.
    assert!(failures.is_some_and(|failures| (1..200).contains(&failures)), "{failures:?}");
}

fn few_files() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // Answers by itself, as it must not need a file for an upstream.
        let route = |route: &mut pontoon_proxy::route::Route| {
            route.action = pontoon_proxy::route::Action::Direct {
                status: http::StatusCode::NOT_FOUND,
                body: bytes::Bytes::new(),
            };
        };
        let proxy = Proxy::with(&[], Setup { route: Box::new(route), ..Setup::default() }).await;
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: Some(64) }).unwrap();
        apart::serve(&proxy).await;
        println!("failures {}", proxy.metric(r#"pontoon_accept_failures_total{listener="edge"}"#));
    });
}

/// A process that is short of memory from the start: it takes nothing new, and its admin port says so. The program as it
/// is shipped.
#[test]
fn overload_heap_leaves_the_admin_port() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (listener, admin) = (free(), free());
    let bootstrap = format!(
        r#"
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }}
static_resources:
  listeners:
  - name: edge
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          route_config:
            name: r
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200 }} }}]
          http_filters:
          - name: router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
"#,
        admin.port(),
        listener.port()
    );
    let mut child = Command::new(env!("CARGO_BIN_EXE_pontoon-proxy"))
        .args(["--max-memory-mib", "1", "--workers", "1", "--config-yaml", &bootstrap])
        .env_clear()
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ask = |address: SocketAddr, path: &str| -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let deadline = std::time::SystemTime::now() + PATIENCE;
    let until = |what: &str, condition: &dyn Fn() -> bool| {
        while !condition() {
            assert!(std::time::SystemTime::now() < deadline, "never came: {what}");
            std::thread::yield_now();
        }
    };
    until("pressure", &|| {
        ask(admin, "/metrics").is_ok_and(|text| text.contains("\npontoon_overload_pressure 2\n"))
    });
    for _ in 0..20 {
        // Closed at once, or with a reset.
        assert!(ask(listener, "/").map_or(true, |answer| answer.is_empty()));
        assert!(ask(admin, "/live").unwrap().starts_with("HTTP/1.1 200 "));
        let ready = ask(admin, "/ready?verbose").unwrap();
        assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains("OVERLOADED\n"), "{ready}");
        assert!(ready.contains("of 1 MiB are used, nothing new is taken"), "{ready}");
    }
    let metrics = ask(admin, "/metrics").unwrap();
    assert!(metrics.contains(r#"flag="OM",reason="overload"} "#), "{metrics}");
    child.kill().unwrap();
    child.wait().unwrap();
}
