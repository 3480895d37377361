//! SIGHUP with a bootstrap of Envoy's: its static resources are taken up under load, and nobody notices but by the answers.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::running::{PATIENCE, Running, Stop, cluster, hello, listener, until};
use crate::tls::{Certificate, connect, get};
use crate::upstream::Upstream;

const CLIENTS: usize = 4;

struct Process {
    running: Running,
    file: PathBuf,
    said: Mutex<String>,
    _folder: tempfile::TempDir,
}

impl Process {
    fn start(bootstrap: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("envoy.yaml");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let running = Running::start(|command| {
            command.args(["--workers", "2", "--config"]).arg(&file);
        });
        running.until_ready();
        Self { running, file, said: Mutex::default(), _folder: folder }
    }

    /// Has it read this, and waits until it has and says so.
    fn reads(&self, text: &str, says: &str) {
        const ENDS: [&str; 2] = ["the file is read again", "nothing has changed"];
        self.said.lock().unwrap().clear();
        std::fs::write(&self.file, text).unwrap();
        self.running.signal(Signal::HUP);
        until(says, || {
            let mut said = self.said.lock().unwrap();
            *said += &self.running.said();
            said.contains(says) && ENDS.iter().any(|end| said.contains(end))
        });
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }
}

fn to(cluster: &str) -> Value {
    json!({"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "30s"}})
}

fn bootstrap(listeners: &[&Value], clusters: &[&Value]) -> Value {
    json!({"node": {"id": "a", "cluster": "b"}, "static_resources": {"listeners": listeners, "clusters": clusters}})
}

fn open(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The first answer on a connection of its own; `None`: it cannot be had.
fn first(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    get(&mut stream, "/").ok().filter(|(status, _)| *status == 200).map(|(_, body)| body)
}

/// Asks on one connection until it is told to stop: each answer is an upstream's.
fn asks(address: SocketAddr, answers: &AtomicUsize, stop: &AtomicBool) {
    let mut stream = open(address);
    while !stop.load(Ordering::Relaxed) {
        let (status, body) = get(&mut stream, "/").expect("the connection stays");
        assert!(status == 200 && ["one", "two"].contains(&&*body), "{status} {body}");
        answers.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn sighup_takes_up_static_resources_under_load() {
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    let edge = listener("edge", &to("shop"));
    let shop = cluster("shop", &[one.address]);
    let process = Process::start(&bootstrap(&[&edge], &[&shop]));
    let address = process.running.listener("edge");
    let (answers, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..CLIENTS {
            scope.spawn(|| asks(address, &answers, &stop));
        }
        let more = |what: &str| {
            let (before, enough) = (answers.load(Ordering::Relaxed), 20 * CLIENTS);
            until(what, || answers.load(Ordering::Relaxed) > before + enough);
        };
        more("load");
        // Another endpoint.
        let moved = cluster("shop", &[two.address]);
        let text = bootstrap(&[&edge], &[&moved]).to_string();
        process.reads(&text, "changed=[\"CDS \\\"shop\\\"\"] removed=[]");
        until("the other endpoint answers", || first(address).as_deref() == Some("two"));
        more("load on another endpoint");
        // One more listener with a cluster of its own, and another route in the one that is there.
        let other = listener("other", &to("own"));
        let own = cluster("own", &[one.address]);
        let away = listener("edge", &to("own"));
        let both = bootstrap(&[&away, &other], &[&moved, &own]).to_string();
        process.reads(&both, "the file is read again");
        until("the other listener listens", || {
            process.running.ask("/listeners").unwrap().contains("other::")
        });
        let of_other = process.running.listener("other");
        until("both lead elsewhere", || {
            [address, of_other].iter().all(|address| first(*address).as_deref() == Some("one"))
        });
        // The same again changes nothing.
        process.reads(&both, "changed=[] removed=[]");
        // What cannot be used changes nothing either: the field is named, the last good state goes on.
        let wrong = bootstrap(&[&listener("edge", &to("nowhere"))], &[&moved]).to_string();
        process.reads(&wrong, "nothing has changed");
        let said = process.said();
        assert!(said.contains("envoy.yaml:1:") && said.contains("route.cluster: is \"nowhere\""), "{said}");
        process.reads(&both[..both.len() / 2], "nothing has changed");
        process.reads("log: info\n", "settings of Pontoon's own, and had a bootstrap of Envoy's");
        for address in [address, of_other] {
            assert_eq!(first(address).as_deref(), Some("one"));
        }
        // What takes another process is told.
        let mut elsewhere = bootstrap(&[&away], &[&moved, &own]);
        elsewhere["node"]["id"] = "other".into();
        process.reads(&elsewhere.to_string(), "the file is read again");
        assert!(process.said().contains("fields=\"node.id\""), "{}", process.said());
        // And one listener less.
        until("the other listener is gone", || TcpStream::connect(of_other).is_err());
        more("load after all");
    });
    assert!(answers.load(Ordering::Relaxed) > 0);
}

#[test]
fn sighup_takes_up_another_certificate_and_address_without_a_reset() {
    let (first, second) = (Certificate::new(), Certificate::new());
    let with = |certificate: &Certificate| {
        let mut edge = listener("edge", &hello());
        edge["filter_chains"][0]["transport_socket"] = certificate.transport_socket.clone();
        edge
    };
    let process = Process::start(&bootstrap(&[&with(&first)], &[]));
    let address = process.running.listener("edge");
    let mut held = connect(address, &first.client("http/1.1"));
    assert_eq!(get(&mut held, "/").unwrap().0, 200);
    process.reads(&bootstrap(&[&with(&second)], &[]).to_string(), "the file is read again");
    let mut new = connect(address, &second.client("http/1.1"));
    assert_eq!(get(&mut new, "/").unwrap().0, 200);
    // Its client knows the first certificate alone.
    assert_eq!(get(&mut held, "/").unwrap().0, 200);
    let mut moved = with(&second);
    moved["address"]["socket_address"]["address"] = "127.0.0.2".into();
    process.reads(&bootstrap(&[&moved], &[]).to_string(), "the file is read again");
    until("it listens elsewhere", || process.running.listener("edge").ip().to_string() == "127.0.0.2");
    let mut new = connect(process.running.listener("edge"), &second.client("http/1.1"));
    assert_eq!(get(&mut new, "/").unwrap().0, 200);
    until("it listens there no more", || TcpStream::connect(address).is_err());
}
