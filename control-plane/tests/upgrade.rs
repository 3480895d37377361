//! One proxy takes over from another under load: no connection is refused or reset, and a new process that fails
//! leaves the old one serving. Real processes, raw connections, every request counted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rig::{PATIENCE, PONTOON, Served};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixDatagram};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

#[path = "upgrade/protocols.rs"]
mod protocols;
#[path = "rig/served.rs"]
mod rig;

async fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return port;
        }
    }
}

/// Answers every request of every connection with two bytes; one that asks for another protocol gets its bytes back.
/// Counts the requests.
async fn upstream() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::<AtomicU64>::default();
    let count = requests.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let count = count.clone();
            tokio::spawn(async move {
                while let Ok(head) = head(&mut stream).await {
                    if head.is_empty() {
                        return;
                    }
                    if String::from_utf8_lossy(&head).to_ascii_lowercase().contains("upgrade: websocket") {
                        return protocols::echo(stream).await;
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, requests)
}

/// A head up to its empty line, without what a body may add; empty at an end between two.
async fn head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) if head.is_empty() => return Ok(head),
            Err(error) => return Err(error),
        }
    }
    Ok(head)
}

#[derive(Debug, Clone, Copy)]
enum Protocol {
    Http1,
    Http2,
    WebSocket,
}

/// Connections that send one request after another, and connect again when they are told to close.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Result<(), String>>>,
}

impl Load {
    fn start(address: SocketAddr, connections: usize) -> Load {
        Load::by(Protocol::Http1, address, connections)
    }

    fn by(protocol: Protocol, address: SocketAddr, connections: usize) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..connections)
            .map(|_| {
                let (stop, done) = (stop.clone(), done.clone());
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        match protocol {
                            Protocol::Http1 => connection(address, &stop, &done).await?,
                            Protocol::Http2 => protocols::http2(address, &stop, &done).await?,
                            Protocol::WebSocket => protocols::websocket(address, &stop, &done).await?,
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        Load { stop, done, tasks }
    }

    /// Waits for so many more answers.
    async fn answered(&self, more: u64) {
        let until = self.done.load(Ordering::Relaxed) + more;
        let waiting = async {
            while self.done.load(Ordering::Relaxed) < until {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the load stands still");
    }

    async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for task in self.tasks {
            failed.extend(task.await.unwrap().err());
        }
        assert!(failed.is_empty(), "{} connections failed, the first: {}", failed.len(), failed[0]);
        self.done.load(Ordering::Relaxed)
    }
}

async fn connection(address: SocketAddr, stop: &AtomicBool, done: &AtomicU64) -> Result<(), String> {
    let say = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let mut stream = TcpStream::connect(address).await.map_err(say("connect"))?;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await.map_err(say("send"))?;
        let head = head(&mut stream).await.map_err(say("receive"))?;
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        if !text.starts_with("http/1.1 200") {
            return Err(format!("answered {text:?}"));
        }
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.map_err(say("body"))?;
        done.fetch_add(1, Ordering::Relaxed);
        if text.contains("connection: close") {
            return Ok(());
        }
    }
    Ok(())
}

struct Chain {
    /// `None`: it is gone.
    served: Option<Served>,
    xds: String,
    dir: PathBuf,
    gateway: SocketAddr,
    admin: u16,
    health: SocketAddr,
    socket: PathBuf,
    /// That came to the upstream.
    requests: Arc<AtomicU64>,
}

impl Chain {
    async fn start() -> Chain {
        let (gateway, admin) = (free_port().await, free_port().await);
        let health = ([127, 0, 0, 1], free_port().await).into();
        let (upstream, requests) = upstream().await;
        let served = Served::start(&format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: edge }}
spec:
  gatewayClassName: pontoon
  addresses: [{{ type: IPAddress, value: 127.0.0.1 }}]
  listeners: [{{ name: http, port: {gateway}, protocol: HTTP }}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: shop }}
spec:
  parentRefs: [{{ name: edge }}]
  rules: [{{ backendRefs: [{{ group: pontoon.dev, kind: Pool, name: shop }}] }}]
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: {{ name: shop }}
spec: {{ endpoints: [{{ address: {}, port: {} }}] }}
",
            upstream.ip(),
            upstream.port()
        ))
        .await;
        let (xds, dir) = (served.xds.clone(), served.dir.path().to_owned());
        let (gateway, socket) = (([127, 0, 0, 1], gateway).into(), dir.join("upgrade.sock"));
        Chain { served: Some(served), xds, dir, gateway, admin, health, socket, requests }
    }

    fn proxy(&self, cluster: &str, workers: usize) -> Child {
        self.command(Command::new(PONTOON), cluster, workers).spawn().unwrap()
    }

    fn command(&self, mut program: Command, cluster: &str, workers: usize) -> Command {
        program
            .args(["proxy", "--cluster", cluster, "--workers", &workers.to_string(), "--drain-seconds", "10"])
            .args(["--admin", &format!("127.0.0.1:{}", self.admin)])
            .args(["--health", &self.health.to_string()])
            // A thousand requests at once are a second of work for one worker of a debug build on a busy machine, and what
            // is asked here is not how it sheds load.
            .args(["--max-lag-ms", "60000"])
            .args(["--xds-server", &format!("http://{}", self.xds)])
            .arg("--upgrade-socket")
            .arg(&self.socket)
            .env_clear()
            .env("PONTOON_LOG", "warn")
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        program
    }

    async fn is_ready(&self) -> bool {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap();
        let url = format!("http://127.0.0.1:{}/ready", self.admin);
        client.get(url).send().await.is_ok_and(|answer| answer.status() == 200)
    }

    async fn until_ready(&self) {
        let ready = async {
            while !self.is_ready().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("never ready");
    }
}

/// Asks the health port whether it is ready, one time after another, until it is told to stop; gives how often.
async fn probe(address: SocketAddr, stop: Arc<AtomicBool>) -> Result<u64, String> {
    let mut asked = 0;
    while !stop.load(Ordering::Relaxed) {
        let answer = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"GET /ready HTTP/1.1\r\nhost: probe\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.map(|_| answer)
        };
        match answer.await {
            Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => asked += 1,
            Ok(answer) => return Err(format!("after {asked} times: {answer}")),
            Err(error) => return Err(format!("after {asked} times: {error}")),
        }
    }
    Ok(asked)
}

async fn ended(mut child: Child) {
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it never ends").unwrap();
    assert!(status.success(), "{status}");
}

/// Three generations, of which the workers change in number.
async fn through_upgrades(connections: usize) {
    let chain = Chain::start().await;
    let mut old = chain.proxy("default/edge", 2);
    chain.until_ready().await;
    let load = Load::start(chain.gateway, connections);
    let probes = tokio::spawn(probe(chain.health, load.stop.clone()));
    load.answered(connections as u64 * 5).await;
    for workers in [3, 1, 2] {
        let new = chain.proxy("default/edge", workers);
        ended(std::mem::replace(&mut old, new)).await;
        chain.until_ready().await;
        load.answered(connections as u64 * 5).await;
    }
    let answered = load.finish().await;
    let probed = probes.await.unwrap().expect("it is ready all along");
    println!(
        "{connections} connections, 3 upgrades: {answered} answered, 0 refused, 0 reset, 0 failed; ready {probed} times"
    );
    drop(old);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_64_connections_is_lost() {
    through_upgrades(64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_1000_connections_is_lost() {
    through_upgrades(1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_that_fails_leaves_the_old_one_serving() {
    let chain = Chain::start().await;
    let mut old = chain.proxy("default/edge", 2);
    chain.until_ready().await;
    let load = Load::start(chain.gateway, 16);
    load.answered(50).await;
    // One that is never ready: nobody publishes its view. And one that is killed.
    let mut waiting = chain.proxy("default/no-such-gateway", 2);
    load.answered(200).await;
    waiting.kill().await.unwrap();
    load.answered(200).await;
    assert!(chain.is_ready().await && old.try_wait().unwrap().is_none());
    // After it, one that works.
    let new = chain.proxy("default/edge", 2);
    ended(old).await;
    load.answered(200).await;
    load.finish().await;
    drop(new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_starts_the_program_anew_in_its_place() {
    let chain = Chain::start().await;
    let old = chain.proxy("default/edge", 2);
    chain.until_ready().await;
    let load = Load::start(chain.gateway, 64);
    load.answered(200).await;
    signal("USR2", old.id().unwrap()).await;
    ended(old).await;
    load.answered(200).await;
    load.finish().await;
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&chain.socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    quit(&chain, &chain.socket).await;
}

/// What a process tells systemd, as far as these words are in it.
async fn told(notified: &UnixDatagram, words: &[&str]) {
    let mut buffer = [0; 1024];
    let heard = async {
        loop {
            let length = notified.recv(&mut buffer).await.unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if words.iter().all(|word| text.contains(word)) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("systemd never hears {words:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_hears_who_is_ready_and_passes_its_sockets() {
    let chain = Chain::start().await;
    let path = chain.dir.join("notify.sock");
    let notified = UnixDatagram::bind(&path).unwrap();
    // The listener's socket is passed as the third descriptor, which is where systemd's begin.
    let socket = std::net::TcpListener::bind(chain.gateway).unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "exec 3<&0; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"", PONTOON]);
    let mut command = chain.command(shell, "default/edge", 2);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(socket)));
    let notifying = |command: &mut Command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").spawn().unwrap()
    };
    // Without the passed socket the address would be in use: it is open in no other way.
    let old = notifying(&mut command);
    drop(command);
    told(&notified, &[&format!("MAINPID={}", old.id().unwrap()), "READY=1"]).await;
    told(&notified, &["WATCHDOG=1"]).await;
    let load = Load::start(chain.gateway, 16);
    load.answered(100).await;

    let mut new = notifying(&mut chain.command(Command::new(PONTOON), "default/edge", 2));
    told(&notified, &[&format!("MAINPID={}", new.id().unwrap()), "READY=1"]).await;
    ended(old).await;
    load.answered(100).await;
    load.finish().await;
    signal("HUP", new.id().unwrap()).await;
    told(&notified, &["RELOADING=1", "MONOTONIC_USEC="]).await;
    signal("TERM", new.id().unwrap()).await;
    told(&notified, &["STOPPING=1"]).await;
    let status = tokio::time::timeout(PATIENCE, new.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

async fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args(["-s", name, &pid.to_string()]).status().await.unwrap();
    assert!(sent.success());
}

/// The successor is not our child: it is told to end by its admin port.
async fn quit(chain: &Chain, socket: &Path) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://127.0.0.1:{}/drain", chain.admin);
    let gone = async {
        while socket.exists() {
            // Once it ends there is nobody to ask.
            let _ = client.post(&url).send().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the successor never ends");
}
