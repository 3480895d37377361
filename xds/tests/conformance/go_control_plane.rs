//! The same suite against go-control-plane. Where that does otherwise, the case is listed with the reason, and must
//! still fail, unless it fails by chance: the day it passes, the entry goes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cases;
mod peer;
mod suite;
mod world;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pontoon_xds::Variant;
use pontoon_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use pontoon_xds::pb::google::protobuf::Any;
use prost::Message;

use peer::On;
use world::{Failed, Target};

/// How surely a deviation is seen.
#[derive(Clone, Copy, PartialEq)]
enum Seen {
    Always,
    /// Its server takes what is ready in any order: what it meant to answer is dropped when the next request is there.
    ByChance,
}

/// Case, variant, how surely and as what the case ends, and the reason; over ADS and over streams for one type alike.
const DEVIATIONS: [(&str, Variant, Seen, &str, &str); 5] = [
    (
        "a_star_means_all",
        Variant::Sotw,
        Seen::Always,
        "{}",
        "its snapshot cache takes the star for a name, and answers with none",
    ),
    (
        "a_name_that_does_not_exist_is_answered",
        Variant::Delta,
        Seen::Always,
        "no response within 1s",
        "only what was sent before is said to be removed, so a client waits for a name that does not exist",
    ),
    (
        "a_name_that_is_subscribed_twice_is_sent_again",
        Variant::Delta,
        Seen::Always,
        "no response within 1s",
        "a name that is subscribed already is passed over, also where the client has lost it",
    ),
    (
        "the_next_response_waits_for_the_answer",
        Variant::Delta,
        Seen::Always,
        "a response came that nothing calls for",
        "each change is sent at once, which the protocol allows",
    ),
    (
        "a_refused_version_is_not_sent_again",
        Variant::Sotw,
        Seen::ByChance,
        "it was sent again",
        "a refusal says an older version than the snapshot's, and is answered at once with what was refused",
    ),
];
/// For what should come.
const PATIENCE: Duration = Duration::from_secs(20);
/// For what is not expected to come.
const IMPATIENCE: Duration = Duration::from_secs(1);
const NODE: &str = "conformance";

async fn check(case: &str, on: On, run: impl AsyncFn(&Target, On) -> Result<(), Failed>) {
    let server = Server::start();
    let deviation = DEVIATIONS.iter().find(|(of, variant, ..)| *of == case && *variant == on.variant);
    let patience = if deviation.is_some() { IMPATIENCE } else { PATIENCE };
    let http = server.http;
    let publish = move |resources: Vec<Any>| {
        put(http, &resources);
        Box::pin(std::future::ready(())) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    };
    let node = NODE.to_owned();
    let target = Target { address: server.xds, node, patience, publish: Box::new(publish) };
    match (run(&target, on).await, deviation) {
        (Ok(()), None | Some((_, _, Seen::ByChance, ..))) => {}
        (Err(failed), Some((.., seen, reason))) if failed.ends_with(seen) => {
            println!("it deviates: {reason}: {failed}");
        }
        (Err(failed), Some((.., seen, _))) => {
            panic!("{case} {on:?}: it deviates, but not with {seen:?}: {failed}");
        }
        (Ok(()), Some((.., reason))) => panic!("it no longer deviates: {reason}"),
        (Err(failed), None) => panic!("{case} {on:?}: {failed}"),
    }
}

struct Server {
    xds: SocketAddr,
    http: SocketAddr,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> Server {
        let Ok(program) = std::env::var("PONTOON_E2E_GO_CONTROL_PLANE") else {
            panic!("PONTOON_E2E_GO_CONTROL_PLANE names no server: run `cargo xtask e2e xds`");
        };
        let mut command = Command::new(program);
        // What it says of where it listens is read.
        let flags = ["-ads=false", "-xds-listen=127.0.0.1:0", "-http-listen=127.0.0.1:0"];
        command.args(flags).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        let mut output = child.stdout.take().unwrap();
        let mut byte = [0];
        while said.lines().count() < 2 || !said.ends_with('\n') {
            assert_eq!(output.read(&mut byte).unwrap(), 1, "it ended having said {said:?}");
            said.push(byte[0].into());
        }
        let at = |kind: &str| said.lines().find_map(|line| line.strip_prefix(kind)?.parse().ok()).unwrap();
        Server { xds: at("xds "), http: at("http "), child }
    }
}

/// Makes this all that the node has; gives when it has been taken.
fn put(http: SocketAddr, resources: &[Any]) {
    let body = DiscoveryResponse { resources: resources.to_vec(), ..Default::default() }.encode_to_vec();
    let mut stream = TcpStream::connect(http).unwrap();
    let head = format!(
        "PUT /snapshot/{NODE} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
         Content-Type: application/x-protobuf\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

suite::suite!(crate::check);
