//! The server on go-control-plane, as tests see it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use pontoon_e2e::wait::{get, until};
use serde_json::{Value, json};

use super::PATIENCE;

/// Its places stay the same over a restart.
#[derive(Debug)]
pub(super) struct Server {
    program: PathBuf,
    folder: PathBuf,
    pub(super) xds: SocketAddr,
    http: SocketAddr,
    process: Option<Process>,
}

impl Server {
    pub(super) async fn start(program: &Path, folder: &Path) -> anyhow::Result<Server> {
        let local = || Ok::<_, anyhow::Error>(SocketAddr::from(([127, 0, 0, 1], ports::free()?)));
        let (program, folder) = (program.to_owned(), folder.to_owned());
        let mut server = Server { program, folder, xds: local()?, http: local()?, process: None };
        server.restart().await?;
        Ok(server)
    }

    /// Without what it was told to serve.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        self.kill()?;
        let mut command = Command::new(&self.program);
        command.arg(format!("-xds-listen={}", self.xds)).arg(format!("-http-listen={}", self.http));
        let mut process = Process::start("go-control-plane", command, &self.folder)?;
        until("go-control-plane to answer", PATIENCE, async || {
            if let Err(ended) = process.check_alive() {
                return Ok(Err(ended));
            }
            self.requests().await.map(|_| Ok(()))
        })
        .await??;
        self.process = Some(process);
        Ok(())
    }

    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// What a node should have from now on.
    pub(super) async fn publish(&self, node: &str, resources: &[Value]) -> anyhow::Result<()> {
        self.tell(reqwest::Method::PUT, &format!("snapshot/{node}"), &json!(resources)).await
    }

    /// Sends a response of one resource on every open stream; nobody looks at what it is.
    pub(super) async fn send(&self, ty: &str, resource: &str, value: &[u8]) -> anyhow::Result<()> {
        let value = STANDARD.encode(value);
        let sent = json!({"type": ty, "resource_type": resource, "name": "sent", "value": value});
        self.tell(reqwest::Method::POST, "send", &sent).await
    }

    /// The newest requests of all clients.
    pub(super) async fn requests(&self) -> anyhow::Result<Vec<Value>> {
        Ok(serde_json::from_str(&get(&format!("http://{}/requests", self.http)).await?)?)
    }

    async fn tell(&self, method: reqwest::Method, path: &str, body: &Value) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let answer = client.request(method, format!("http://{}/{path}", self.http)).json(body).send().await?;
        let status = answer.status();
        ensure!(status == 200, "{path} was answered {status}: {}", answer.text().await.unwrap_or_default());
        Ok(())
    }
}
