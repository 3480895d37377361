//! What the program takes before anybody asks anything of it: its start, its memory then, and each connection that is
//! held and idle. Only a release build says anything, so that in any other there is nothing here:
//! `cargo test --release -p pontoon-proxy --test footprint`. `cargo xtask footprint` does it with what is shipped, by
//! `PONTOON_TEST_PROXY`; the bounds on size and on memory at the start are that one's.
#![cfg(not(debug_assertions))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // clippy.toml exempts #[test] functions, not their helpers

#[path = "../program/running.rs"]
#[allow(dead_code, reason = "shared with the program's tests")]
mod running;
#[path = "../program/tls.rs"]
mod tls;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use running::{PATIENCE, Running, hello, listener, until};
use tls::{Certificate, connect, get};

/// From exec to readiness, by the clock: of several, the least is what it takes where nothing else runs.
const START: Duration = Duration::from_millis(100);
const STARTS: usize = 5;
/// Of the shipped program.
const MEMORY_AT_START: u64 = 10 << 20;
const SIZE: u64 = 14 << 20;
/// Of one connection.
const IDLE_PLAIN: u64 = 4 << 10;
const IDLE_TLS: u64 = 24 << 10;
/// Of one over HTTP/2, which cannot be parked, h2's buffers are the most (docs/profiling.md).
const IDLE_H2: u64 = 32 << 10;
const IDLE_H2_TLS: u64 = 40 << 10;

/// Plain ones, for each of which there is less to see.
const PLAIN: usize = 5_000;
const SECURE: usize = 1_000;
/// Looks without a change, five milliseconds apart: connections are parked, and memory is given back, every half second.
const CALM: usize = 400;
/// That come and go before: code that runs for the first time, and the first pages of everything.
const BEFORE: usize = 100;

fn bootstrap(certificate: &Certificate) -> Value {
    let mut plain = listener("plain", &hello());
    let file = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
    plain["filter_chains"][0]["filters"][0]["typed_config"]["access_log"] =
        json!([{"name": "file", "typed_config": {"@type": file, "path": "/dev/null"}}]);
    let mut secure = listener("secure", &hello());
    secure["filter_chains"][0]["transport_socket"] = certificate.transport_socket.clone();
    json!({"node": {"id": "a", "cluster": "b"}, "static_resources": {"listeners": [plain, secure]}})
}

fn start(bootstrap: &Value) -> Running {
    let proxy = Running::start(|command| {
        command.args(["--workers", "1", "--max-connections", "0", "--config-yaml", &bootstrap.to_string()]);
    });
    proxy.until_ready();
    proxy
}

/// Of the memory in use, in bytes: all, and what is not of a file.
fn memory(proxy: &Running) -> (u64, u64) {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", proxy.pid())).unwrap();
    let field = |name: &str| -> u64 {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        value.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    (field("Rss:"), field("Anonymous:"))
}

/// The processor time of all threads, those that have ended too.
fn cpu(proxy: &Running) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = [11, 12].map(|at: usize| fields[at].parse::<u64>().unwrap()).iter().sum();
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_start_takes_a_tenth_of_a_second_and_ten_mebibytes() {
    let bootstrap = bootstrap(&Certificate::new());
    let mut seen: Vec<(Duration, Duration)> = Vec::new();
    for _ in 0..STARTS {
        let begun = SystemTime::now();
        let proxy = start(&bootstrap);
        seen.push((begun.elapsed().unwrap(), cpu(&proxy)));
    }
    // On a machine that does something else too.
    let (wall, cpu) =
        (seen.iter().map(|(wall, _)| wall).min().unwrap(), seen.iter().map(|(_, cpu)| cpu).min().unwrap());
    println!("figure: from exec to ready: {wall:?}, of the processor {cpu:?} (least of {STARTS})");
    assert!(*wall < START, "a start takes {wall:?}; less than {START:?} are allowed");

    let proxy = start(&bootstrap);
    let all = settled(|| memory(&proxy).0);
    println!(
        "figure: memory at the start: {} KiB, {} KiB of it in no file",
        all >> 10,
        memory(&proxy).1 >> 10
    );
    if let Some(path) = std::env::var_os(running::PROGRAM) {
        let size = std::fs::metadata(path).unwrap().len();
        println!("figure: size: {size} bytes");
        assert!(size < SIZE, "the program has {size} bytes; less than {SIZE} are allowed");
        assert!(all < MEMORY_AT_START, "{all} bytes at the start; less than {MEMORY_AT_START} are allowed");
    }
}

/// The least, when nothing more is given back.
fn settled(look: impl Fn() -> u64) -> u64 {
    let (mut least, mut calm) = (u64::MAX, 0);
    until("nothing more to be given back", || {
        let now = look();
        calm = if now < least { 0 } else { calm + 1 };
        least = least.min(now);
        calm >= CALM
    });
    least
}

/// What one of so many connections holds when it has fallen idle.
fn idle<C>(proxy: &Running, count: usize, bound: u64, open: impl Fn() -> C) -> u64 {
    drop((0..BEFORE).map(|_| open()).collect::<Vec<C>>());
    until("the first have gone", || {
        ["plain", "secure"].iter().all(|listener| {
            proxy.metric(&format!("pontoon_downstream_connections{{listener=\"{listener}\"}}")) == 0
        })
    });
    let before = settled(|| memory(proxy).0);
    let held: Vec<C> = (0..count).map(|_| open()).collect();
    let each = settled(|| memory(proxy).0.saturating_sub(before) / count as u64);
    drop(held);
    assert!(each <= bound, "an idle connection holds {each} bytes; {bound} are allowed");
    each
}

fn plain(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A request by hand over HTTP/2 (RFC 9113, RFC 7541): `GET http://a/` on stream 1, and its answer to the end.
fn get_h2(stream: &mut (impl Read + Write)) {
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    stream.write_all(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a").unwrap();
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).unwrap();
        let [a, b, c, kind, flags, ..] = header;
        stream.read_exact(&mut vec![0; u32::from_be_bytes([0, a, b, c]) as usize]).unwrap();
        match (kind, flags & 1) {
            // SETTINGS, to be acknowledged.
            (4, 0) => stream.write_all(b"\0\0\0\x04\x01\0\0\0\0").unwrap(),
            // The end of DATA or HEADERS.
            (0 | 1, 1) => return,
            _ => {}
        }
    }
}

#[test]
fn idle_connections_hold_next_to_nothing() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let certificate = Certificate::new();
    let bootstrap = bootstrap(&certificate);
    let (tls, tls_h2) = (certificate.client("http/1.1"), certificate.client("h2"));
    for (what, count, bound, secure, http2) in [
        ("HTTP/1.1", PLAIN, IDLE_PLAIN, false, false),
        ("HTTP/1.1 under TLS", SECURE, IDLE_TLS, true, false),
        ("HTTP/2", SECURE, IDLE_H2, false, true),
        ("HTTP/2 under TLS", SECURE, IDLE_H2_TLS, true, true),
    ] {
        // Memory once taken would stay for the next.
        let proxy = start(&bootstrap);
        let (plainly, securely) = (proxy.listener("plain"), proxy.listener("secure"));
        let each = match (secure, http2) {
            (false, false) => idle(&proxy, count, bound, || {
                let mut stream = plain(plainly);
                assert_eq!(get(&mut stream, "/").unwrap().0, 200);
                stream
            }),
            (true, false) => idle(&proxy, count, bound, || {
                let mut stream = connect(securely, &tls);
                assert_eq!(get(&mut stream, "/").unwrap().0, 200);
                stream
            }),
            (false, true) => idle(&proxy, count, bound, || {
                let mut stream = plain(plainly);
                get_h2(&mut stream);
                stream
            }),
            (true, true) => idle(&proxy, count, bound, || {
                let mut stream = connect(securely, &tls_h2);
                get_h2(&mut stream);
                stream
            }),
        };
        println!("figure: {what}: {each} bytes an idle connection, of {count}");
    }
}
