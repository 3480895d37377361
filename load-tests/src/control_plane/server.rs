//! The two control planes: started with the same world, asked what they use, and ended by pid.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::fleet::Role;
use super::world::{ENDPOINTS, World};
use crate::measure;
use crate::peer::{free_port, stop};

const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `pontoon serve`.
    Pontoon,
    /// The server in `load-tests/go-control-plane`.
    GoControlPlane,
}

impl Kind {
    pub(super) const ALL: [Kind; 2] = [Kind::Pontoon, Kind::GoControlPlane];

    pub(super) fn text(self) -> &'static str {
        match self {
            Kind::Pontoon => "Pontoon",
            Kind::GoControlPlane => "go-control-plane",
        }
    }
}

/// Where the programs are, and the folder of one world: its objects, and what Pontoon keeps.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) pontoon: PathBuf,
    pub(super) go_control_plane: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) world: World,
}

/// Where one server listens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) xds: SocketAddr,
    /// For registrations; the peer's for all changes.
    pub(super) changes: SocketAddr,
    pub(super) api: SocketAddr,
}

impl Addresses {
    pub(super) fn free() -> anyhow::Result<Addresses> {
        let free = || anyhow::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)));
        Ok(Addresses { xds: free()?, changes: free()?, api: free()? })
    }
}

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    log: PathBuf,
    pub(super) kind: Kind,
    pub(super) addresses: Addresses,
}

impl Site {
    pub(super) fn objects(&self) -> PathBuf {
        self.folder.join("objects")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Makes the folder anew, with the objects in it.
    pub(super) fn clear(&self) -> anyhow::Result<()> {
        let objects = self.objects();
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder)?;
        }
        std::fs::create_dir_all(&objects).with_context(|| format!("cannot make {}", objects.display()))?;
        self.world.write(&objects)
    }

    /// Starts a server; it may not listen yet.
    pub(super) fn start(&self, kind: Kind, role: Role, addresses: Addresses) -> anyhow::Result<Server> {
        let Addresses { xds, changes, api } = addresses;
        let mut command = match kind {
            Kind::Pontoon => {
                let mut command = Command::new(&self.pontoon);
                command.arg("serve").arg("--objects").arg(self.objects()).arg("--data").arg(self.data());
                command.args(["--log", "warn", "--xds-listen", &xds.to_string()]);
                command.args(["--eureka-listen", &changes.to_string(), "--api-listen", &api.to_string()]);
                command
            }
            Kind::GoControlPlane => {
                let mut command = Command::new(&self.go_control_plane);
                command.args(["--xds-listen", &xds.to_string(), "--http-listen", &changes.to_string()]);
                command.args(["--services", &self.world.services.to_string()]);
                command.args(["--registered", &self.world.registered().to_string()]);
                command.args(["--endpoints", &ENDPOINTS.to_string(), "--view", role.view()]);
                command
            }
        };
        let log = self.folder.join(format!("{}.log", kind.text()));
        let out = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {}", kind.text()))?;
        Ok(Server { child, log, kind, addresses })
    }
}

impl Server {
    /// Waits until it takes changes and serves xDS.
    pub(super) async fn is_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let http = reqwest::Client::builder().no_proxy().build()?;
        // Pontoon listens before it is ready; the peer has nothing to load.
        let ready = match self.kind {
            Kind::Pontoon => format!("http://{}/readyz", self.addresses.api),
            Kind::GoControlPlane => format!("http://{}/", self.addresses.changes),
        };
        let takes_any = self.kind == Kind::GoControlPlane;
        let answers = async || match http.get(&ready).send().await {
            Ok(answer) => takes_any || answer.status().is_success(),
            Err(_) => false,
        };
        while !answers().await || TcpStream::connect(self.addresses.xds).await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.ended(status));
            }
            if Instant::now() > deadline {
                bail!("{} is not ready after {START_TIMEOUT:?}", self.kind.text());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn ended(&self, status: ExitStatus) -> anyhow::Error {
        anyhow!("{} ended early ({status}); see {}", self.kind.text(), self.log.display())
    }

    /// Fails if it has ended.
    pub(super) fn is_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => Err(self.ended(status)),
            None => Ok(()),
        }
    }

    pub(super) fn cpu_time(&self) -> anyhow::Result<Duration> {
        measure::cpu_time(self.child.id())
    }

    /// In bytes: now, and at most so far.
    pub(super) fn resident(&self) -> anyhow::Result<(u64, u64)> {
        Ok((measure::resident(self.child.id())?, measure::peak_resident(self.child.id())?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        stop(&mut self.child, STOP_TIMEOUT);
    }
}

/// The API's token, once the server has made it.
pub(super) fn token(data: &Path) -> anyhow::Result<String> {
    let file = data.join("api-token");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let line = text.lines().next().context("the token file is empty")?;
    Ok(line.split_once(':').map_or(line, |(_, token)| token).to_owned())
}
