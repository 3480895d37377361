//! A cluster as `cargo xtask` has started it. This process runs inside of its node's namespaces: it is at
//! [`NODE`] for the pods, and pods and Services are reached from it directly. Or a cluster of somebody else's, of which
//! only the API server is known to be reached; nothing stays there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::process::Process;
use crate::wait::until;

/// The node's address, where a pod reaches what runs beside the cluster.
pub const NODE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 89, 0, 2);
/// The image of `e2e/kubernetes/programs/hello`.
pub const HELLO: &str = "pontoon.test/hello:1";
/// The image of the modern `inventory` of `e2e/spring`. It runs Java.
pub const INVENTORY: &str = "pontoon.test/inventory:1";
/// The image of a shell and of curl.
pub const TOOLBOX: &str = "pontoon.test/toolbox:1";
/// For a pod, a condition, an end: on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// None: it is somebody else's.
    state: Option<PathBuf>,
    kubeconfig: PathBuf,
    programs: PathBuf,
    /// What was made in somebody else's that is in no namespace, as kubectl names it.
    made: Arc<Mutex<Vec<String>>>,
}

/// A namespace that goes with its owner.
#[derive(Debug)]
pub struct Namespace {
    /// What it is called.
    pub name: String,
    cluster: Cluster,
}

/// A program of the cluster's own.
#[derive(Debug, Deserialize)]
struct Running {
    inside: i32,
    command: Vec<String>,
}

impl Cluster {
    /// The one that `cargo xtask e2e kubernetes` says.
    ///
    /// # Errors
    /// When it says none.
    pub fn from_environment() -> anyhow::Result<Cluster> {
        let place = |variable| {
            std::env::var_os(variable).map(PathBuf::from).with_context(|| format!("{variable} is not set"))
        };
        let state = place("PONTOON_E2E_CLUSTER").ok();
        let kubeconfig = match &state {
            Some(state) => state.join("admin.conf"),
            None => place("KUBECONFIG")?,
        };
        Ok(Cluster { state, kubeconfig, programs: place("PONTOON_E2E_KUBERNETES")?, made: Arc::default() })
    }

    /// Whether anything may be done with it.
    pub fn is_ours(&self) -> bool {
        self.state.is_some()
    }

    /// The folder of a file that is made when the cluster's programs are built, as `gateway-api/standard`.
    pub fn built(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    /// Runs kubectl and gives what it prints.
    ///
    /// # Errors
    /// When it does not end with 0.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.kubectl_with(arguments, "").await
    }

    /// The same with something on its standard input.
    ///
    /// # Errors
    /// When it does not end with 0.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = Command::new("kubectl");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().context("kubectl does not start")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        let output = child.wait_with_output().await?;
        let shown = arguments.join(" ");
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {shown}: {}: {}", output.status, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies objects.
    ///
    /// # Errors
    /// When the API server does not take one of them.
    pub async fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        self.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], yaml).await.map(drop)
    }

    /// Objects as JSON: the arguments of `kubectl get`.
    ///
    /// # Errors
    /// When there are none of that name.
    pub async fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&[&["get", "-o", "json"], arguments].concat()).await?)?)
    }

    /// Waits for a condition of `kubectl wait --for`.
    ///
    /// # Errors
    /// When it does not come to hold.
    pub async fn wait_for(&self, condition: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let (condition, limit) = (format!("--for={condition}"), format!("--timeout={}s", PATIENCE.as_secs()));
        self.kubectl(&[&["wait", &condition, &limit], arguments].concat()).await.map(drop)
    }

    /// Makes the custom resources of the Gateway API known.
    ///
    /// # Errors
    /// When the API server does not take them.
    pub async fn install_gateway_api(&self, channel: &str) -> anyhow::Result<usize> {
        if self.is_ours() {
            // Where another channel was installed before, this one lets no other in.
            let policy = "validatingadmissionpolicybinding/safe-upgrades.gateway.networking.k8s.io";
            self.kubectl(&["delete", policy, "--ignore-not-found"]).await?;
        }
        let folder = self.built("gateway-api").join(channel);
        let path = folder.display().to_string();
        self.define(&["-f", &path], "").await
    }

    /// Makes custom resources known: how many. In a cluster of somebody else's those that are there stay as they are.
    ///
    /// # Errors
    /// When the API server does not take them, or somebody else's cluster has only some of them.
    pub async fn define(&self, from: &[&str], input: &str) -> anyhow::Result<usize> {
        let names = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
        let listing = [&["create", "--dry-run=client", "-o", "name"], from].concat();
        let all = match self.is_ours() {
            true => BTreeSet::new(),
            false => names(&self.kubectl_with(&listing, input).await?),
        };
        if !all.is_empty() {
            let known = names(&self.kubectl(&["get", "crd", "-o", "name"]).await?);
            let definitions = all.iter().filter(|name| name.starts_with("customresourcedefinition"));
            let (there, missing): (Vec<&String>, Vec<&String>) =
                definitions.partition(|name| known.contains(*name));
            if missing.is_empty() {
                return Ok(there.len());
            }
            ensure!(there.is_empty(), "the cluster has {there:?} and not {missing:?}: install these, too");
            self.note(all);
        }
        let apply = [&["apply", "--server-side", "--force-conflicts", "-o", "name"], from].concat();
        let applied = self.kubectl_with(&apply, input).await?;
        let crds: Vec<&str> =
            applied.lines().filter(|name| name.starts_with("customresourcedefinition")).collect();
        ensure!(!crds.is_empty(), "no custom resources in {from:?}");
        self.wait_for("condition=Established", &crds).await?;
        Ok(crds.len())
    }

    fn note(&self, made: impl IntoIterator<Item = String>) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).extend(made);
    }

    /// Makes what is in no namespace and not there.
    ///
    /// # Errors
    /// When it is there: it may be somebody's.
    pub async fn create(&self, yaml: &str) -> anyhow::Result<()> {
        let names = self.kubectl_with(&["create", "-o", "name", "-f", "-"], yaml).await?;
        self.note(names.lines().map(str::to_owned));
        Ok(())
    }

    /// Takes away what was made in no namespace, the last first, and waits until it has gone: how much.
    ///
    /// # Errors
    /// With what stays.
    pub async fn leave(&self) -> anyhow::Result<usize> {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        let mut failed = Vec::new();
        for name in made.iter().rev() {
            let delete = ["delete", name, "--ignore-not-found", "--timeout=120s"];
            if let Err(error) = self.kubectl(&delete).await {
                failed.push(format!("{error:#}"));
            }
        }
        ensure!(failed.is_empty(), "the cluster is not as it was: {}", failed.join("; "));
        Ok(made.len())
    }

    /// A new namespace.
    ///
    /// # Errors
    /// When it cannot be made. In a cluster of somebody else's it must not be there.
    pub async fn namespace(&self, name: &str, labels: &[&str]) -> anyhow::Result<Namespace> {
        if self.is_ours() {
            // One of an earlier run may be on its way out.
            self.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--timeout=120s"]).await?;
        }
        self.kubectl(&["create", "namespace", name]).await?;
        if !self.is_ours() {
            self.note([format!("namespace/{name}")]);
        }
        let namespace = Namespace { name: name.to_owned(), cluster: self.clone() };
        if !labels.is_empty() {
            self.kubectl(&[&["label", "namespace", name], labels].concat()).await?;
        }
        let account = ["get", "serviceaccount", "default", "-n", name];
        until("the namespace's service account", PATIENCE, async || self.kubectl(&account).await).await?;
        Ok(namespace)
    }

    /// Stops a program of the cluster (`apiserver`, `controllers`, `etcd`, `kubelet`, ...), at once.
    ///
    /// # Errors
    /// When it is not known or does not run.
    pub fn kill(&self, name: &str) -> anyhow::Result<()> {
        Self::signal(&self.running(name)?, Signal::KILL)
    }

    /// Stops its work without ending it: what talks to it gets no answer, until [`Cluster::resume`].
    ///
    /// # Errors
    /// When it is not known or does not run.
    pub fn suspend(&self, name: &str) -> anyhow::Result<()> {
        Self::signal(&self.running(name)?, Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it is not known or does not run.
    pub fn resume(&self, name: &str) -> anyhow::Result<()> {
        Self::signal(&self.running(name)?, Signal::CONT)
    }

    /// Starts one that was killed, as it was started before. Its owner keeps the process: it ends with that.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&self, name: &str, folder: &Path) -> anyhow::Result<Process> {
        let [program, arguments @ ..] = &self.running(name)?.command[..] else {
            anyhow::bail!("{name} was started by nothing");
        };
        let mut command = std::process::Command::new(program);
        command.args(arguments).current_dir(self.state()?);
        Process::start(name, command, folder)
    }

    fn state(&self) -> anyhow::Result<&Path> {
        self.state.as_deref().context("the programs of somebody else's cluster are not ours to stop")
    }

    fn running(&self, name: &str) -> anyhow::Result<Running> {
        let path = self.state()?.join("processes").join(format!("{name}.json"));
        let bytes = std::fs::read(&path).with_context(|| format!("no {}", path.display()))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn signal(running: &Running, signal: Signal) -> anyhow::Result<()> {
        // The namespace has few processes and a number is not soon used again.
        let pid = Pid::from_raw(running.inside).context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {:?}", running.command.first()))
    }
}

impl Namespace {
    /// kubectl for this namespace.
    ///
    /// # Errors
    /// When it does not end with 0.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(&[&["-n", &self.name], arguments].concat()).await
    }

    /// Applies objects to it.
    ///
    /// # Errors
    /// When the API server does not take one of them.
    pub async fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        let arguments = ["-n", &self.name, "apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.cluster.kubectl_with(&arguments, yaml).await.map(drop)
    }

    /// Its objects as JSON.
    ///
    /// # Errors
    /// When there are none of that name.
    pub async fn get(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        self.cluster.get(&[&["-n", &self.name], arguments].concat()).await
    }

    /// Waits for a condition of `kubectl wait --for`.
    ///
    /// # Errors
    /// When it does not come to hold: with what the namespace's events say.
    pub async fn wait_for(&self, condition: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let Err(error) = self.cluster.wait_for(condition, &[&["-n", &self.name], arguments].concat()).await
        else {
            return Ok(());
        };
        let events =
            self.kubectl(&["get", "events", "-o", "custom-columns=O:.involvedObject.name,M:.message"]);
        let events = events.await.unwrap_or_default();
        let lines: Vec<&str> = events.lines().collect();
        Err(error.context(lines[lines.len().saturating_sub(8)..].join("\n")))
    }

    /// Deletes the pod or whatever else, and waits until it has gone.
    ///
    /// # Errors
    /// When it does not go.
    pub async fn delete(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&[&["delete", &limit], arguments].concat()).await.map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mut command = std::process::Command::new("kubectl");
        command.args(["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"]);
        // A cluster that has gone has taken it along.
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
