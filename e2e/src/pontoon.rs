//! Pontoon itself as processes: the control plane, a gateway, and the command line as an operator types it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::process::Process;
use crate::wait::{get, until};
use crate::{ports, wait};

/// For a debug build on a busy machine.
const START: Duration = Duration::from_secs(60);

/// The control plane's places: they stay the same over a restart.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    program: PathBuf,
    folder: PathBuf,
    /// A kubeconfig and a namespace: the objects are there.
    kubernetes: Option<(PathBuf, String)>,
    /// The image that Gateways are given pods of.
    gateways: Option<String>,
    /// Whose classes are its own, where it is not the usual one.
    controller: Option<String>,
    /// A registry that is told what this one's clients do.
    peer: Option<String>,
    /// The Eureka side.
    pub eureka: SocketAddr,
    /// The HTTP API.
    pub api: SocketAddr,
    /// xDS.
    pub xds: SocketAddr,
}

impl ControlPlane {
    /// Takes ports and writes the objects. `folder` gets `objects/`, `data/` and the log.
    ///
    /// # Errors
    /// When there is no port or the folder cannot be written.
    pub fn prepare(program: &Path, folder: &Path, objects: &str) -> anyhow::Result<ControlPlane> {
        std::fs::create_dir_all(folder.join("objects"))?;
        std::fs::write(folder.join("objects/objects.yaml"), objects)?;
        let local = || Ok::<_, anyhow::Error>(SocketAddr::from(([127, 0, 0, 1], ports::free()?)));
        Ok(ControlPlane {
            program: program.to_owned(),
            folder: folder.to_owned(),
            kubernetes: None,
            gateways: None,
            controller: None,
            peer: None,
            eureka: local()?,
            api: local()?,
            xds: local()?,
        })
    }

    /// The same with the objects of a cluster, and its Lease in a namespace there.
    pub fn on_kubernetes(self, kubeconfig: &Path, namespace: &str) -> ControlPlane {
        ControlPlane { kubernetes: Some((kubeconfig.to_owned(), namespace.to_owned())), ..self }
    }

    /// The same, and Gateways are given pods of this image.
    pub fn with_gateways(self, image: &str) -> ControlPlane {
        ControlPlane { gateways: Some(image.to_owned()), ..self }
    }

    /// The same with a `controllerName` of its own.
    pub fn called(self, name: &str) -> ControlPlane {
        ControlPlane { controller: Some(name.to_owned()), ..self }
    }

    /// The same, and the Eureka server at this URL is a peer.
    pub fn peer_of(self, url: &str) -> ControlPlane {
        ControlPlane { peer: Some(url.to_owned()), ..self }
    }

    /// Starts it, and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub async fn start(&self) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.program);
        command.arg("serve").args(["--data", "data"]).current_dir(&self.folder);
        match &self.kubernetes {
            Some((kubeconfig, namespace)) => {
                command.args(["--kubernetes", "--namespace", namespace]).env("KUBECONFIG", kubeconfig);
            }
            None => drop(command.args(["--objects", "objects"])),
        }
        if let Some(image) = &self.gateways {
            let server = format!("http://{}", self.xds);
            command.args(["--gateway-image", image, "--gateway-xds-server", &server]);
        }
        command.args(self.controller.iter().map(|name| format!("--controller-name={name}")));
        command.arg(format!("--eureka-listen={}", self.eureka));
        command.args(self.peer.iter().map(|peer| format!("--eureka-peer={peer}")));
        command.arg(format!("--api-listen={}", self.api));
        command.arg(format!("--xds-listen={}", self.xds));
        let mut process = Process::start("pontoon", command, &self.folder)?;
        let url = format!("http://{}/readyz", self.api);
        until("the control plane to be ready", START, async || {
            if let Err(ended) = process.check_alive() {
                return Ok(Err(ended));
            }
            get(&url).await.map(|_| Ok(()))
        })
        .await??;
        Ok(process)
    }

    /// Runs a command against its API and gives what it prints.
    ///
    /// # Errors
    /// When the command does not end with 0.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = tokio::process::Command::new(&self.program)
            .args(arguments)
            .current_dir(&self.folder)
            .env("PONTOON_API", format!("http://{}", self.api))
            .env("PONTOON_DATA", self.folder.join("data"))
            .env("PONTOON_ACTOR", "e2e")
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "pontoon {} ended with {}: {said}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }

    /// What it prints as JSON.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub async fn json(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let said = self.run(&[arguments, &["-o", "json"]].concat()).await?;
        serde_json::from_str(&said)
            .with_context(|| format!("pontoon {}: not JSON: {said}", arguments.join(" ")))
    }
}

/// A proxy that serves a Gateway.
#[derive(Debug)]
pub struct Gateway {
    /// The process.
    pub process: Process,
    /// Its admin port.
    pub admin: SocketAddr,
}

impl Gateway {
    /// Starts one for a `NAMESPACE/NAME`, and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub async fn start(
        program: &Path,
        folder: &Path,
        cluster: &str,
        xds: SocketAddr,
        workers: usize,
    ) -> anyhow::Result<Gateway> {
        let admin = SocketAddr::from(([127, 0, 0, 1], ports::free()?));
        let mut command = Command::new(program);
        command.arg(format!("--cluster={cluster}")).arg(format!("--xds-server=http://{xds}"));
        command.arg(format!("--admin={admin}")).arg(format!("--workers={workers}"));
        command.arg("--node-id=e2e-gateway");
        let mut process = Process::start("pontoon-proxy", command, folder)?;
        let url = format!("http://{admin}/ready");
        until("the gateway to be ready", START, async || {
            if let Err(ended) = process.check_alive() {
                return Ok(Err(ended));
            }
            wait::get(&url).await.map(|_| Ok(()))
        })
        .await??;
        Ok(Gateway { process, admin })
    }
}
