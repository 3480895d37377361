//! Starting a peer: one process with one thread for traffic, ended by pid.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;
use tokio::signal::unix::SignalKind;
use tokio::time::Instant;

use crate::configuration::{self, Front, Scenario};
use crate::measure::Load;

/// Of a JVM on a busy machine; whoever ends early is seen at once.
const START_TIMEOUT: Duration = Duration::from_secs(180);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a JVM. HotSpot's last compiler takes up what has run some ten thousand times.
const WARM_REQUESTS: u64 = 30_000;
const WARM_SECONDS: u32 = 5;
const WARM_ROUNDS: u32 = 24;
const POLL: Duration = Duration::from_millis(20);

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Name {
    /// `pontoon-proxy`.
    Pontoon,
    /// HAProxy of the distribution.
    Haproxy,
    /// nginx of the distribution.
    Nginx,
    /// Envoy.
    Envoy,
    /// A proxy on Pingora, of `load-tests/pingora`.
    Pingora,
    /// Caddy.
    Caddy,
    /// Spring Cloud Gateway, of `e2e/spring/modern/gateway`.
    SpringCloudGateway,
    /// Zuul, of `e2e/spring/legacy/zuul`.
    Zuul,
}

impl Name {
    /// All but ourselves.
    pub(crate) const OTHERS: [Name; 7] = [
        Name::Haproxy,
        Name::Nginx,
        Name::Envoy,
        Name::Pingora,
        Name::Caddy,
        Name::SpringCloudGateway,
        Name::Zuul,
    ];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Name::Pontoon => "Pontoon",
            Name::Haproxy => "HAProxy",
            Name::Nginx => "nginx",
            Name::Envoy => "Envoy",
            Name::Pingora => "Pingora",
            Name::Caddy => "Caddy",
            Name::SpringCloudGateway => "Spring Cloud Gateway",
            Name::Zuul => "Zuul",
        }
    }

    pub(crate) fn is_on_jvm(self) -> bool {
        matches!(self, Name::SpringCloudGateway | Name::Zuul)
    }
}

/// Where things are.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) folder: PathBuf,
    pub(crate) proxy: PathBuf,
    pub(crate) envoy: PathBuf,
    pub(crate) pontoon: PathBuf,
    pub(crate) pingora: PathBuf,
    pub(crate) caddy: PathBuf,
    /// Where the Spring applications are, if a peer or a phase needs them.
    pub(crate) spring: Option<PathBuf>,
    /// Runs the xDS server for our proxy.
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) quick: bool,
    /// The processor that proxies are on, where there is more than one.
    pub(crate) last: Option<usize>,
}

/// Keeps this process off the last processor, and its children but for the proxies; gives that processor.
pub(crate) fn leave_one() -> anyhow::Result<Option<usize>> {
    let mut ours = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| ours.is_set(*cpu));
    let Some(last) = last.filter(|_| ours.count() > 1) else { return Ok(None) };
    ours.unset(last);
    sched_setaffinity(None, &ours)?;
    Ok(Some(last))
}

/// A running process that listens.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    pub(crate) port: u16,
}

/// What this process has started and not ended yet.
static STARTED: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn started() -> MutexGuard<'static, Vec<Pid>> {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn id(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// It does nothing, and hears nothing, until it is told to go on. Its connections stay.
    pub(crate) fn halt(&self) -> anyhow::Result<()> {
        // Not while all are being ended: it would not hear of it.
        let _ending = started();
        self.signal(Signal::STOP)
    }

    pub(crate) fn go_on(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = id(&self.child).context("a process without a number")?;
        kill_process(pid, signal).with_context(|| format!("{signal:?} to process {}", self.pid()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        stop(&mut self.child, STOP_TIMEOUT);
    }
}

/// Ends a process of ours: asked first, killed where it does not follow.
pub(crate) fn stop(child: &mut Child, limit: Duration) {
    if let Some(pid) = id(child).filter(|_| matches!(child.try_wait(), Ok(None))) {
        end(pid);
    }
    let deadline = Instant::now() + limit;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        pause(POLL);
    }
    let _ended = child.kill();
    let _ended = child.wait();
    started().retain(|pid| Some(*pid) != id(child));
}

/// Asks a process to end, and lets it go on if it is halted. It may have ended by itself.
fn end(pid: Pid) {
    for signal in [Signal::TERM, Signal::CONT] {
        let _ended = kill_process(pid, signal);
    }
}

/// Ends this process when it is asked to, with what it has started: those that are halted hear nothing themselves.
pub(crate) async fn end_when_asked() -> anyhow::Result<()> {
    let mut terminated = tokio::signal::unix::signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminated.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    let all = started();
    all.iter().copied().for_each(end);
    std::process::exit(1)
}

impl Bench {
    /// The fixed answer behind every proxy.
    pub(crate) fn upstream(&self, front: Front) -> anyhow::Result<Running> {
        let port = free_port()?;
        for size in [64 * 1_024, 10 * 1_024 * 1_024] {
            self.write(&format!("body-{size}"), "x".repeat(size))?;
        }
        self.start_upstream("upstream", configuration::upstream(&self.folder, front, port), port)
    }

    /// A second one, whose answers of 1 KiB are made of this letter.
    pub(crate) fn marked_upstream(&self, mark: char) -> anyhow::Result<Running> {
        let port = free_port()?;
        let text = configuration::marked_upstream(&self.folder, Front::Http, port, mark);
        self.start_upstream("upstream-marked", text, port)
    }

    fn start_upstream(&self, name: &str, configuration: String, port: u16) -> anyhow::Result<Running> {
        let file = self.write(&format!("{name}.conf"), configuration)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file).arg("-e").arg(self.folder.join(format!("{name}.err")));
        self.start(name, command, port)
    }

    /// One of this program's own servers behind every proxy.
    pub(crate) fn own_upstream(&self, name: &str) -> anyhow::Result<Running> {
        let port = free_port()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args([name, &port.to_string()]);
        self.start(name, command, port)
    }

    /// One proxy in front of it.
    pub(crate) fn proxy(&self, name: Name, scenario: &Scenario, upstream: u16) -> anyhow::Result<Running> {
        let port = free_port()?;
        let command = match name {
            Name::Pontoon => self.ours(self.runtime.block_on(configuration::ours(scenario, port, upstream))?),
            Name::Haproxy => {
                self.write("haproxy.map", configuration::haproxy_map(scenario))?;
                let text = configuration::haproxy(&self.folder, scenario, port, upstream);
                let file = self.write("haproxy.cfg", &text)?;
                let mut command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(file);
                command
            }
            Name::Nginx => {
                let file =
                    self.write("nginx.conf", configuration::nginx(&self.folder, scenario, port, upstream))?;
                let mut command = Command::new("nginx");
                command.arg("-c").arg(file).arg("-e").arg(self.folder.join("nginx.err"));
                command
            }
            Name::Envoy => {
                self.envoy(&self.write("envoy.yaml", configuration::envoy(scenario, port, upstream))?)
            }
            Name::Pingora => {
                let mut command = Command::new(&self.pingora);
                command.args([scenario.mode(), &scenario.routes.to_string()]);
                command.args([port.to_string(), upstream.to_string()]);
                if let Some(pair) = &scenario.pair {
                    command.args([&pair.certificate, &pair.key]);
                }
                command
            }
            Name::Caddy => {
                let file = self.write("Caddyfile", configuration::caddy(scenario, port, upstream))?;
                let mut command = Command::new(&self.caddy);
                command.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
                // What it stores goes nowhere else, and one thread runs Go code.
                command.env("HOME", &self.folder).env("GOMAXPROCS", "1");
                command
            }
            Name::SpringCloudGateway | Name::Zuul => {
                let (file, text) = match name {
                    Name::Zuul => ("zuul.yml", configuration::zuul(scenario, upstream)),
                    _ => ("gateway.yml", configuration::spring_cloud_gateway(scenario, upstream)),
                };
                configuration::spring(name, self.spring()?, port, &self.write(file, text)?)
            }
        };
        self.start_proxy(name.text(), command, port)
    }

    /// Our proxy, with the configuration of this xDS server.
    pub(crate) fn ours(&self, server: SocketAddr) -> Command {
        let mut command = Command::new(&self.proxy);
        command.args(["--workers", "1", "--admin", "127.0.0.1:0", "--drain-seconds", "1"]);
        // Of ten thousand idle ones it would else close those above nine tenths of half the open files.
        command.args(["--max-connections", "12000"]);
        command.args(["--xds-server", &format!("http://{server}")]);
        command
    }

    /// Envoy, with this bootstrap.
    pub(crate) fn envoy(&self, file: &Path) -> Command {
        let mut command = Command::new(&self.envoy);
        command.args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "warn", "-c"]).arg(file);
        command
    }

    pub(crate) fn spring(&self) -> anyhow::Result<&Path> {
        self.spring.as_deref().context("PONTOON_E2E_SPRING is not set")
    }

    /// A proxy has the last processor to itself; the load and what stands behind are on the others.
    fn spawn_pinned(&self, command: &mut Command) -> anyhow::Result<Child> {
        let before = sched_getaffinity(None)?;
        if let Some(last) = self.last {
            let mut one = CpuSet::new();
            one.set(last);
            sched_setaffinity(None, &one)?;
        }
        let child = command.spawn();
        sched_setaffinity(None, &before)?;
        Ok(child?)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// What stands behind the proxies.
    fn start(&self, name: &str, command: Command, port: u16) -> anyhow::Result<Running> {
        self.start_on(name, command, port, false)
    }

    /// A proxy, on the processor that is theirs.
    pub(crate) fn start_proxy(&self, name: &str, command: Command, port: u16) -> anyhow::Result<Running> {
        self.start_on(name, command, port, true)
    }

    fn start_on(
        &self,
        name: &str,
        mut command: Command,
        port: u16,
        is_proxy: bool,
    ) -> anyhow::Result<Running> {
        let log = self.folder.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let path = std::env::var("PATH").unwrap_or_default();
        command
            // Debian keeps nginx and HAProxy where a user's PATH may not look.
            .env("PATH", format!("{path}:/usr/sbin"))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let child = if is_proxy { self.spawn_pinned(&mut command) } else { Ok(command.spawn()?) };
        let child = child.with_context(|| format!("cannot start {name}"))?;
        started().extend(id(&child));
        let mut running = Running { child, port };
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = running.child.try_wait()? {
                bail!("{name} ended early ({status}); see {}", log.display());
            }
            if Instant::now() > deadline {
                bail!("{name} does not listen after {START_TIMEOUT:?}; see {}", log.display());
            }
            pause(POLL);
        }
        // Or somebody else has the port.
        if let Some(status) = running.child.try_wait()? {
            bail!("{name} ended early ({status}); see {}", log.display());
        }
        Ok(running)
    }
}

/// Loads a proxy before it is measured. A JVM compiles what it has seen often, in a thread of its own: it is loaded until
/// it has seen enough, and a request costs hardly less than in the round before.
pub(crate) fn warm(
    name: Name,
    cpu_time: impl Fn() -> anyhow::Result<Duration>,
    load: impl Fn(u32) -> anyhow::Result<Load>,
) -> anyhow::Result<()> {
    if !name.is_on_jvm() {
        load(1)?;
        return Ok(());
    }
    let (mut seen, mut last, mut steady) = (0, f64::MAX, 0);
    for _ in 0..WARM_ROUNDS {
        let before = cpu_time()?;
        let requests = load(WARM_SECONDS)?.requests;
        let each = cpu_time()?.saturating_sub(before).as_secs_f64() / requests.max(1) as f64;
        seen += requests;
        steady = if each > last * 0.95 { steady + 1 } else { 0 };
        // One round alone may have been slow for another reason.
        if seen >= WARM_REQUESTS && steady >= 2 {
            break;
        }
        last = each;
    }
    Ok(())
}

/// Below the range from which the kernel takes outgoing ports.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let start = 20_000 + (std::process::id() % 10_000) as u16;
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    for _ in 0..2_000 {
        let offset = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let port = start + offset % 2_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port from {start} on")
}

/// A benchmark has nothing else to do meanwhile.
#[allow(clippy::disallowed_methods, reason = "no async code runs on this thread")]
pub(crate) fn pause(length: Duration) {
    std::thread::sleep(length);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of nothing: for what needs a bench and starts none of its programs.
    pub(crate) fn bench() -> Bench {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let none = PathBuf::new;
        Bench {
            folder: none(),
            proxy: none(),
            envoy: none(),
            pontoon: none(),
            pingora: none(),
            caddy: none(),
            spring: None,
            runtime: runtime.handle().clone(),
            quick: false,
            last: None,
        }
    }

    /// A process that does nothing by itself.
    pub(crate) fn sleeping() -> Running {
        Running { child: Command::new("sleep").arg("600").spawn().unwrap(), port: 0 }
    }

    /// Whether a process comes to be halted, or to be not.
    pub(crate) fn becomes_halted(pid: u32, wanted: bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            if stat.rsplit_once(") ").unwrap().1.starts_with('T') == wanted {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            pause(POLL);
        }
    }

    #[test]
    fn what_is_halted_ends_at_once() {
        let proxy = sleeping();
        proxy.halt().unwrap();
        assert!(becomes_halted(proxy.pid(), true));
        let began = Instant::now();
        drop(proxy);
        assert!(began.elapsed() < STOP_TIMEOUT / 2);
    }
}
