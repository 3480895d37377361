//! Clients of the admin port that do harm: the port has few places, and whoever asks whether the proxy lives needs one.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use socket2::{Domain, Socket, Type};

use serde_json::json;

use crate::running::{PATIENCE, Running, cluster, program};

/// Connections to the port at once (docs/reference/limits.md).
const PLACES: usize = 64;

fn start() -> Running {
    Running::start(|command| {
        // Nobody is there.
        command.args(["--workers", "1", "--xds-server", "http://127.0.0.1:1", "--health", "127.0.0.1:0"]);
    })
}

fn connect(running: &Running) -> TcpStream {
    let stream = TcpStream::connect(running.admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What is answered until the end, be that a reset.
fn answer(mut stream: TcpStream) -> Vec<u8> {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        all.extend_from_slice(&chunk[..length]);
    }
    all
}

#[test]
fn a_head_has_a_bound() {
    let running = start();
    for (length, status) in [(8, "200"), (20, "431")] {
        let mut stream = connect(&running);
        let filler = "x".repeat(length * 1024);
        let head = format!("GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\nfiller: {filler}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
        let answer = String::from_utf8(answer(stream)).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{length} KiB: {answer}");
    }
}

/// CVE-2025-8671, with fewer streams than h2 lets pass by itself.
#[test]
fn made_you_reset() {
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }
    let running = start();
    let mut stream = connect(&running);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([frame(4, 0, 0, &[]), frame(4, 1, 0, &[])].concat());
    // POST, http and / of HPACK's static table, and an authority.
    let head = [0x83, 0x86, 0x84, 0x01, 0x01, b'a'];
    for stream in (1..300).step_by(2) {
        bytes.extend(frame(1, 4, stream, &head));
        // More than a window can hold.
        bytes.extend(frame(8, 0, stream, &i32::MAX.to_be_bytes()));
    }
    let _ = stream.write_all(&bytes);
    let mut left = &answer(stream)[..];
    let mut code = None;
    while let Some((head, rest)) = left.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        if head[3] == 7 {
            code = Some(payload[7]);
        }
        left = rest;
    }
    // ENHANCE_YOUR_CALM.
    assert_eq!(code, Some(11));
    assert!(running.ask("/live").is_some());
}

/// Clients that ask for more than they read have all places, and lose them.
#[test]
fn who_does_not_read_holds_no_place_for_ever() {
    let running = start();
    let questions = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n".repeat(500);
    let stuck: Vec<Socket> = (0..PLACES)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            // As little as can be, so that a few answers are more than there is room for on the way.
            socket.set_recv_buffer_size(1).unwrap();
            socket.set_tcp_mss(536).unwrap();
            socket.connect(&running.admin.into()).unwrap();
            (&socket).write_all(&questions).unwrap();
            socket
        })
        .collect();
    assert!(running.ask("/live").is_some(), "a place becomes free");
    drop(stuck);
}

/// By `--mode validate`, and by the running proxy.
#[test]
fn what_is_ignored_unlike_in_envoy_is_warned_of() {
    let mut far = cluster("far", &[([127, 0, 0, 1], 1).into()]);
    far["per_connection_buffer_limit_bytes"] = json!(32_768);
    let bootstrap = json!({"node": {"id": "a", "cluster": "b"}, "static_resources": {"clusters": [far]},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {"a": 1}}]}});
    let of_cluster = "CDS far: envoy.config.cluster.v3.Cluster.per_connection_buffer_limit_bytes is ignored, unlike in Envoy";
    let of_bootstrap = "envoy.config.bootstrap.v3.Bootstrap.layered_runtime is ignored, unlike in Envoy";

    let mut validate = std::process::Command::new(program());
    validate.env_clear().args(["--mode", "validate", "--config-yaml", &bootstrap.to_string()]);
    let output = validate.output().unwrap();
    let warned = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{warned}");
    for of in [of_cluster, of_bootstrap] {
        assert!(warned.contains(&format!("warning: {of}")), "{of:?} is not in {warned}");
    }

    let running = Running::start(|command| {
        command.args(["--workers", "1", "--config-yaml", &bootstrap.to_string()]);
    });
    running.until_ready();
    let ready = running.ask("/ready?verbose").unwrap();
    assert!(ready.contains(&format!("warning: {of_cluster}")), "{ready}");
}
