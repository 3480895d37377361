//! SIGHUP: what is logged and who is asked by DNS follow the file, whatever else the file says by then.

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::process::Signal;

use crate::running::{PATIENCE, Running, until};

/// A process that has read its file, and what it tells systemd.
struct Process {
    running: Running,
    told: UnixDatagram,
    file: std::path::PathBuf,
}

impl Process {
    fn start(folder: &Path, settings: &str, environment: &[(&str, &str)]) -> Self {
        let (file, socket) = (folder.join("proxy.yaml"), folder.join("notify"));
        let told = UnixDatagram::bind(&socket).unwrap();
        told.set_read_timeout(Some(PATIENCE)).unwrap();
        std::fs::write(&file, settings).unwrap();
        let running = Running::start(|command| {
            command.arg("--config").arg(&file).env("NOTIFY_SOCKET", &socket);
            // Nobody is there: it is never ready, and says READY after each reload alone.
            command.args(["--workers", "1", "--xds-server", "http://127.0.0.1:1"]);
            command.envs(environment.iter().copied());
        });
        // It listens to signals by then.
        until("it lives", || running.ask("/live").is_some());
        Self { running, told, file }
    }

    /// Has it read this, and waits until it has.
    fn reloads(&self, settings: &str) {
        std::fs::write(&self.file, settings).unwrap();
        self.running.signal(Signal::HUP);
        let mut said = String::new();
        while !(said.contains("RELOADING=1") && said.contains("READY=1")) {
            let mut part = [0; 1024];
            let length = self.told.recv(&mut part).expect("systemd is told of a reload");
            said += &String::from_utf8_lossy(&part[..length]);
        }
    }

    fn says(&self, what: &str) {
        let mut all = String::new();
        until(what, || {
            all += &self.running.said();
            all.contains(what)
        });
    }

    /// Does what is worth a line to those alone who want to know everything.
    fn provoke(&self) {
        let mut stream = TcpStream::connect(self.running.admin).unwrap();
        stream.write_all(b"\0\r\n\r\n").unwrap();
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
    }
}

const DETAIL: &str = "an admin connection ended early";

#[test]
fn sighup_reads_the_log_again() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), "log: info\n", &[]);
    process.reloads("log: pontoon_proxy=debug\n");
    process.says("log=\"pontoon_proxy=debug\"");
    process.provoke();
    process.says(DETAIL);
    // A file that cannot be used changes nothing.
    process.reloads("log: error\nworkers: many\n");
    process.says("nothing has changed");
    let (_, ready) = process.running.answer("/ready?verbose").unwrap();
    assert!(ready.contains("\nfile refused: ") && ready.contains("workers"), "{ready}");
    process.provoke();
    process.says(DETAIL);
    // What else it says takes an upgrade, also where it could not be had with the flags of this process.
    process.reloads("log: error\nadmin: 0.0.0.0:15000\nworkers: 7\n");
    process.running.said();
    process.provoke();
    process.reloads("log: info\n");
    let mut since = String::new();
    until("it logs again", || {
        since += &process.running.said();
        since.contains("log=\"info\"")
    });
    assert!(!since.contains(DETAIL), "{since}");
    // Without a word on it, the default.
    process.reloads("workers: 1\n");
    process.says("log=\"info\"");
    let (_, ready) = process.running.answer("/ready?verbose").unwrap();
    assert!(ready.contains("\nfile read again: ") && !ready.contains("file refused"), "{ready}");
}

/// The file's resolvers, for questions to come.
fn asking(upstream: &str) -> String {
    format!("dns: {{addresses: ['127.0.0.1:0'], upstreams: ['{upstream}'], search: []}}\n")
}

#[test]
fn sighup_asks_the_resolvers_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), &asking("192.0.2.1:53"), &[]);
    let asked = || process.running.ask("/dns").unwrap();
    assert!(asked().contains("upstream 192.0.2.1:53\n"), "{}", asked());
    process.reloads(&asking("192.0.2.2:53"));
    assert!(asked().contains("upstream 192.0.2.2:53\n") && !asked().contains("192.0.2.1"), "{}", asked());
    // What cannot be used changes nothing.
    process.reloads(&asking("nobody"));
    process.says("nothing has changed");
    assert!(asked().contains("upstream 192.0.2.2:53\n"), "{}", asked());
}

#[test]
fn sighup_leaves_the_resolvers_that_a_flag_says() {
    let folder = tempfile::tempdir().unwrap();
    let environment = [("PONTOON_PROXY_DNS_UPSTREAM", "192.0.2.3:53")];
    let process = Process::start(folder.path(), &asking("192.0.2.1:53"), &environment);
    process.reloads(&asking("192.0.2.2:53"));
    process.says("--dns-upstream's to say");
    let asked = process.running.ask("/dns").unwrap();
    assert!(asked.contains("upstream 192.0.2.3:53\n") && !asked.contains("192.0.2.2"), "{asked}");
}

/// As at the start, the environment goes before the file.
#[test]
fn sighup_leaves_what_the_environment_says() {
    let folder = tempfile::tempdir().unwrap();
    let environment = [("PONTOON_LOG", "pontoon_proxy=debug")];
    let process = Process::start(folder.path(), "log: error\n", &environment);
    process.reloads("log: error\n");
    process.says("PONTOON_LOG");
    process.provoke();
    process.says(DETAIL);
}
