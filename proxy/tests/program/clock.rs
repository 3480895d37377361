//! A wall clock that jumps, an hour on and an hour back, under the program as it is: nothing that waits or is open
//! notices. The jump is made by a library that is loaded before the C library (`clock.c`).

use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::running::{PATIENCE, Running, cluster, hello, listener, until};
use crate::tls::{Certificate, connect, get};
use crate::upstream::Upstream;

const HOUR: i64 = 3_600;

/// Compiles the library.
fn library(folder: &Path) -> std::path::PathBuf {
    let built = folder.join("clock.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/program/clock.c");
    // Rust's linker is the same program.
    let status = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&built).arg(source).status();
    assert!(status.expect("cc is there").success());
    built
}

#[test]
fn chaos_of_a_clock_that_jumps() {
    let folder = tempfile::tempdir().unwrap();
    let (library, shift, log) =
        (library(folder.path()), folder.path().join("shift"), folder.path().join("access.log"));
    std::fs::write(&shift, 0_i64.to_ne_bytes()).unwrap();
    let clock = std::fs::OpenOptions::new().write(true).open(&shift).unwrap();
    let jump = |seconds: i64| clock.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();

    let upstream = Upstream::start("far");
    let certificate = Certificate::new();
    let mut edge =
        listener("edge", &json!({"match": {"prefix": "/"}, "route": {"cluster": "far", "timeout": "60s"}}));
    let file = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
    edge["filter_chains"][0]["filters"][0]["typed_config"]["access_log"] = json!([{"name": "file", "typed_config": {"@type": file, "path": log, "log_format": {"json_format": {"a": "b"}}}}]);
    let mut secure = listener("secure", &hello());
    secure["filter_chains"][0]["transport_socket"] = certificate.transport_socket.clone();
    let bootstrap = json!({"node": {"id": "a", "cluster": "b"}, "static_resources":
        {"listeners": [edge, secure], "clusters": [cluster("far", &[upstream.address])]}});
    let proxy = Running::start(|command| {
        command.args(["--workers", "1", "--config-yaml", &bootstrap.to_string()]);
        command.env("LD_PRELOAD", &library).env("PONTOON_TEST_CLOCK", &shift);
    });
    proxy.until_ready();
    let (edge, secure) = (proxy.listener("edge"), proxy.listener("secure"));
    let open = || {
        let stream = TcpStream::connect(edge).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let tls = certificate.client("http/1.1");
    let mut kept = (open(), connect(secure, &tls));
    let waiting = {
        let mut stream = open();
        std::thread::spawn(move || get(&mut stream, "/wait").unwrap())
    };
    until("it waits", || proxy.metric("pontoon_downstream_requests_active{listener=\"edge\"}") == 1);
    for (number, to) in [0, HOUR, -HOUR, 0].into_iter().enumerate() {
        jump(to);
        for _ in 0..20 {
            assert_eq!(get(&mut kept.0, &format!("/{number}")).unwrap(), (200, "far".into()));
            assert_eq!(get(&mut kept.1, "/").unwrap(), (200, "hello".into()));
        }
        assert_eq!(get(&mut open(), &format!("/{number}")).unwrap().0, 200);
        // With a ticket of before the jump, and with none.
        for client in [&tls, &certificate.client("http/1.1")] {
            assert_eq!(get(&mut connect(secure, client), "/").unwrap(), (200, "hello".into()));
        }
        assert!(!waiting.is_finished(), "what waits is cut off");
    }
    upstream.release();
    assert_eq!(waiting.join().unwrap().0, 200);

    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    until("all is in the log", || lines().len() == 4 * 21 + 1);
    let mut hours = std::collections::BTreeSet::new();
    for line in lines() {
        let took = line["duration_ms"].as_f64().unwrap();
        assert!((0.0..PATIENCE.as_secs_f64() * 1e3).contains(&took), "{line}");
        hours.insert(line["time"].as_str().unwrap()[..13].to_owned());
    }
    assert!(hours.len() >= 3, "the clock did not jump: {hours:?}");
}
