//! The program as a process, as it is shipped. Its ports are free ones: it says which.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// No single step of a test takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Names another program than the one that was built with the tests: the shipped one.
pub(crate) const PROGRAM: &str = "PONTOON_TEST_PROXY";

pub(crate) fn program() -> OsString {
    std::env::var_os(PROGRAM).unwrap_or(env!("CARGO_BIN_EXE_pontoon-proxy").into())
}

/// It ends with its owner.
pub(crate) struct Running {
    child: Child,
    pub(crate) admin: SocketAddr,
    /// What it says on standard error.
    said: Arc<Mutex<String>>,
}

impl Running {
    /// Starts it; its settings must let it log its start.
    pub(crate) fn start(settings: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(program());
        command.env_clear().args(["--admin", "127.0.0.1:0"]);
        settings(&mut command);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let said = Arc::<Mutex<String>>::default();
        let mut start = String::new();
        let admin = lines.by_ref().find_map(|line| {
            start += &(line.clone() + "\n");
            let (_, rest) = line.split_once(" admin=")?;
            Some(rest.split(' ').next()?.parse().unwrap())
        });
        let Some(admin) = admin else { panic!("it does not start: {start}") };
        let all = Arc::clone(&said);
        std::thread::spawn(move || lines.for_each(|line| *all.lock().unwrap() += &(line + "\n")));
        Self { child, admin, said }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the admin port answers; `None`: not with 200.
    pub(crate) fn ask(&self, path: &str) -> Option<String> {
        let (head, body) = self.answer(path)?;
        head.starts_with("HTTP/1.1 200 ").then_some(body)
    }

    /// The head and the body of an answer, whatever its status.
    pub(crate) fn answer(&self, path: &str) -> Option<(String, String)> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.to_owned(), body.to_owned()))
    }

    pub(crate) fn until_ready(&self) {
        until("it is ready", || self.ask("/ready").is_some());
    }

    /// Where a listener listens.
    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        let all = self.ask("/listeners").unwrap();
        let address = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("::"));
        address.unwrap_or_else(|| panic!("there is no {name}: {all}")).parse().unwrap()
    }

    /// The value of one series.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let all = self.ask("/metrics").unwrap();
        let value = all.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse::<f64>().unwrap() as u64)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// What it has said since the last call.
    pub(crate) fn said(&self) -> String {
        std::mem::take(&mut self.said.lock().unwrap())
    }

    /// Its open files, sockets among them.
    pub(crate) fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sets what it is told when it goes, so that a test that fails does not wait for its load for ever.
pub(crate) struct Stop<'s>(pub(crate) &'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = SystemTime::now();
    while !condition() {
        assert!(start.elapsed().unwrap_or_default() < PATIENCE, "never came: {what}");
        #[allow(clippy::disallowed_methods, reason = "between two looks at another process")]
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A listener of Envoy's on a free port, with this one route.
pub(crate) fn listener(name: &str, route: &Value) -> Value {
    let of = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let routes =
        json!({"name": name, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]});
    let manager = json!({
        "@type": of("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": name,
        "route_config": routes,
        "http_filters": [{"name": "router", "typed_config": {"@type": of("http.router.v3.Router")}}],
    });
    json!({
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    })
}

/// A route that answers `hello`.
pub(crate) fn hello() -> Value {
    json!({"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "hello"}}})
}

/// A cluster that has these endpoints.
pub(crate) fn cluster(name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoint = |address: &SocketAddr| {
        let address = json!({"address": address.ip().to_string(), "port_value": address.port()});
        json!({"endpoint": {"address": {"socket_address": address}}})
    };
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    let assignment = json!({"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]});
    json!({"name": name, "type": "STATIC", "load_assignment": assignment})
}
