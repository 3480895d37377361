//! What one request costs, in instructions and allocations: figures that do not depend on how busy the machine is, so
//! that a test can hold them. Valgrind counts. Only a release build says anything, so that in any other there is
//! nothing here: `cargo test --release -p pontoon-proxy --test cost`, which `cargo xtask test` runs too.
//!
//! `UPDATE=1` writes the new figures. A commit that raises them says why. `KEEP=FILE` keeps what valgrind wrote, as
//! `FILE.http1` and so on, for `callgrind_annotate`.
#![cfg(not(debug_assertions))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // clippy.toml exempts #[test] functions, not their helpers

#[path = "../request_path/fixture.rs"]
#[allow(dead_code, reason = "shared with the request path's tests")]
mod fixture;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use pontoon_proxy::route::matching::{PathMatcher, RouteMatcher};
use pontoon_proxy::route::{Action, Route, RouteTable, VirtualHost};
use serde::{Deserialize, Serialize};

use fixture::*;

/// Says that a process is the one that is counted: what it is asked, and where its upstream is.
const COUNTED: &str = "PONTOON_TEST_COST";
/// Requests of two runs: what they differ by is what so many requests cost, without the start and the end.
const RUNS: [u64; 2] = [500, 2_500];
const ROUTES: usize = 100;
/// In hundredths.
const TOLERANCE: u64 = 3;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// Of one request, and in a hundred of them: some allocations serve several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Cost {
    instructions: u64,
    allocations_in_100: u64,
}

/// What is asked, one after the other on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Asked {
    /// GETs over HTTP/1.1, on both sides.
    Http1,
    /// GETs over HTTP/2, on both sides.
    Http2,
    /// Calls with a message each way.
    Grpc,
}

impl Asked {
    const ALL: [Asked; 3] = [Asked::Http1, Asked::Http2, Asked::Grpc];

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn http(self) -> Http {
        if self == Asked::Http1 { Http::One } else { Http::Two }
    }
}

#[test]
fn a_request_costs_what_it_did() {
    if let Ok(counts) = std::env::var(COUNTED) {
        let (asked, upstream) = counts.split_once(' ').unwrap();
        let asked = Asked::ALL.into_iter().find(|one| one.name() == asked).unwrap();
        return counted(asked, upstream.parse().unwrap());
    }
    let now: BTreeMap<Asked, Cost> = Asked::ALL.into_iter().map(|asked| (asked, cost(asked))).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cost/kept.json");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&now).unwrap() + "\n").unwrap();
    }
    let kept: BTreeMap<Asked, Cost> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    println!("{now:?}; kept: {kept:?}");
    for (asked, now) in now {
        let kept = kept[&asked];
        for (what, now, kept) in [
            ("instructions", now.instructions, kept.instructions),
            ("allocations in a hundred", now.allocations_in_100, kept.allocations_in_100),
        ] {
            let asked = asked.name();
            assert!(
                now * 100 <= kept * (100 + TOLERANCE),
                "{asked}: a request takes {now} {what}, and took {kept}; if that has a reason, say it, and run with UPDATE=1"
            );
            assert!(
                now * 100 >= kept * (100 - TOLERANCE),
                "{asked}: a request takes {now} {what} only, and took {kept}: run with UPDATE=1, so that it stays so"
            );
        }
    }
}

fn cost(asked: Asked) -> Cost {
    let [less, more] = RUNS.map(|requests| run(asked, requests));
    let requests = RUNS[1] - RUNS[0];
    let each = |less: u64, more: u64| (more - less + requests / 2) / requests;
    Cost {
        instructions: each(less.instructions, more.instructions),
        allocations_in_100: each(100 * less.allocations_in_100, 100 * more.allocations_in_100),
    }
}

/// One run of a counted process.
fn run(asked: Asked, requests: u64) -> Cost {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // It ends when it is dropped.
    let other = runtime.block_on(Upstream::answering(Http::Two, move |_| said(asked)));
    let upstream = if asked == Asked::Http1 { upstream() } else { other.address };
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--combine-dumps=yes"])
        .arg(format!("--callgrind-out-file={}", file.path().display()))
        .arg(std::env::current_exe().unwrap())
        .args(["a_request_costs_what_it_did", "--exact", "--nocapture"])
        .env(COUNTED, format!("{} {upstream}", asked.name()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("valgrind is installed");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines.by_ref().find_map(|line| Some(line.unwrap().split_once("listens on ")?.1.to_owned()));
    let address = address.expect("the proxy listens").parse().unwrap();
    match asked {
        Asked::Http1 => ask(address, requests),
        Asked::Http2 | Asked::Grpc => runtime.block_on(call(asked, address, requests)),
    }
    drop(child.stdin.take());
    lines.for_each(drop);
    assert!(child.wait().unwrap().success());
    if let Ok(kept) = std::env::var("KEEP") {
        std::fs::copy(file.path(), format!("{kept}.{}", asked.name())).unwrap();
    }
    read(file.path())
}

/// The process that is counted: a proxy of one worker and a hundred routes, until its input ends.
fn counted(asked: Asked, upstream: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let protocol = asked.http().upstream();
        let setup = Setup { protocol, http: Box::new(many_routes), ..Setup::default() };
        let proxy = Proxy::with(&[upstream], setup).await;
        println!("listens on {}", proxy.address);
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
        proxy.drain().await;
    });
}

/// An upstream's answer over HTTP/2.
fn said(asked: Asked) -> Response<Body> {
    let message = full(vec![0; 1024]);
    match asked {
        Asked::Grpc => {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from(0))]);
            let body = message.with_trailers(std::future::ready(Some(Ok(trailers)))).boxed_unsync();
            Response::builder().header("content-type", "application/grpc").body(body).unwrap()
        }
        _ => Response::new(message),
    }
}

/// As [`ask`], over HTTP/2.
async fn call(asked: Asked, address: SocketAddr, requests: u64) {
    let mut client = Client::connect(address, Http::Two).await;
    let path = format!("/route-{}/item?page=2", ROUTES / 2);
    for _ in 0..requests {
        let request = Request::builder().uri(&path).header("user-agent", "cost/1").header("te", "trailers");
        let request = match asked {
            Asked::Grpc => {
                request.method("POST").header("content-type", "application/grpc").body(full(vec![0; 1024]))
            }
            _ => request.body(empty()),
        };
        let answer = client.send(request.unwrap()).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 1024);
    }
}

/// Puts the fixture's route, under other prefixes, before and after the one that the requests take.
fn many_routes(http: &mut pontoon_proxy::config::listener::HttpSettings) {
    let table = http.routes.table.load_full().unwrap();
    let Action::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("it forwards") };
    let pontoon_proxy::route::Targets::One(cluster) = &forward.targets else { panic!("to one cluster") };
    let route = |number: usize| Route {
        name: format!("route-{number}").into(),
        matcher: RouteMatcher {
            path: PathMatcher::Prefix(format!("/route-{number}/").into()),
            headers: Box::default(),
            query: Box::default(),
            fraction: None,
        },
        action: Action::Forward(pontoon_proxy::route::Forward {
            targets: pontoon_proxy::route::Targets::One(Arc::clone(cluster)),
            hash: Box::default(),
            timeout: forward.timeout,
            idle_timeout: None,
            longest_stream: None,
            retry: forward.retry.clone(),
            prefix_rewrite: None,
            regex_rewrite: None,
            host_rewrite: None,
            connect: false,
            max_body_bytes: Default::default(),
            sessions: Default::default(),
            mirrors: Box::default(),
            high_priority: false,
        }),
        request_headers: Box::default(),
        response_headers: Box::default(),
        cors: Default::default(),
        rbac: Default::default(),
        rate_limits: Default::default(),
        authz: Default::default(),
    };
    let host = VirtualHost::new("all".into(), (0..ROUTES).map(route).collect());
    let table = RouteTable::new("r".into(), "1".into(), true, vec![(vec!["*".to_owned()], host)]).unwrap();
    http.routes.table.store(Some(Arc::new(table)));
}

/// Answers each request on each connection, whatever it is; GETs come without a body.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut head = Vec::new();
    let mut part = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut part) {
        head.extend_from_slice(&part[..length]);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            if stream.write_all(ANSWER).is_err() {
                return;
            }
        }
    }
}

/// One request after the other over one connection.
fn ask(address: SocketAddr, requests: u64) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "GET /route-{}/item?page=2 HTTP/1.1\r\nhost: shop.test\r\nuser-agent: cost/1\r\naccept: */*\r\n\
         accept-encoding: gzip\r\ncookie: session=0123456789abcdef\r\n\r\n",
        ROUTES / 2
    );
    let mut part = [0; 4096];
    for number in 0..requests {
        stream.write_all(request.as_bytes()).unwrap();
        let mut have = Vec::new();
        while !have.ends_with(b"hello") {
            let length = stream.read(&mut part).unwrap();
            assert!(length > 0, "closed at request {number}");
            have.extend_from_slice(&part[..length]);
        }
        assert!(have.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&have));
    }
}

/// What callgrind wrote: all instructions, and how often the allocator was called. A name is written out once, with
/// a number that then stands for it.
fn read(file: &Path) -> Cost {
    const ALLOCATORS: [&str; 5] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"];
    let text = std::fs::read_to_string(file).unwrap();
    let mut names: HashMap<&str, &str> = HashMap::new();
    let (mut callee, mut cost) = ("", Cost { instructions: 0, allocations_in_100: 0 });
    for line in text.lines() {
        if let Some(total) = line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")) {
            cost.instructions = cost.instructions.max(total.trim().parse().unwrap());
        } else if let Some(name) = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn=")) {
            let (number, name) = name.split_once(' ').unwrap_or((name, ""));
            if !name.is_empty() {
                names.insert(number, name);
            }
            callee = number;
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let name = names.get(callee).copied().unwrap_or_default();
            if ALLOCATORS.contains(&name) {
                cost.allocations_in_100 += calls.split_whitespace().next().unwrap().parse::<u64>().unwrap();
            }
        }
    }
    assert!(cost.instructions > 0, "{} says nothing", PathBuf::from(file).display());
    cost
}
