//! `cargo xtask cluster up|down|run`: Kubernetes on this machine without a container engine. etcd, the API server,
//! the controllers and the scheduler; with a node (containerd, kubelet, kube-proxy, CoreDNS) all of it inside
//! namespaces of its own, so that the machine's addresses, rules, mounts and sysctls stay as they are; `--control`
//! goes without the node. Programs are built once into the cache folder, all state is under `target/cluster/NAME`.

mod build;
mod control;
pub(crate) mod image;
mod keys;
mod node;
mod process;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use crate::step::Steps;
use crate::tools::Tools;

use build::Programs;

/// For a part of the cluster to be up, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// The API server's port. Each of the four behind it is one of the others'. A cluster with a node has ports of its
/// own, one without takes the first five free ones from here.
const PORT: u16 = 16_443;

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Start a cluster. One that is up is left alone.
    Up(Up),
    /// Stop it and remove all that it has written.
    Down(Which),
    /// Run a command against it, where its nodes, pods and Services are reachable.
    Run(Run),
}

/// Which one of several.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Clusters of different names are up side by side.
    #[arg(long, default_value = "main")]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    which: Which,
    /// Without a node: no pod ever runs, and the API server is on the machine's own loopback.
    #[arg(long)]
    control: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    which: Which,
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

/// What kind of cluster is up, in `cluster.json`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Facts {
    control: bool,
    port: u16,
}

/// A cluster that is up, or may come to be.
#[derive(Debug)]
pub(crate) struct Cluster {
    name: String,
    state: PathBuf,
    programs: Programs,
}

/// Does what the command says. False: a command inside the cluster failed.
pub(crate) fn run(task: &Task, workspace: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<bool> {
    match task {
        Task::Up(Up { which, control }) => {
            let cluster = Cluster::new(&which.name, workspace, tools)?;
            cluster.up(*control, steps, tools)?;
            println!("KUBECONFIG={}", cluster.state.join("admin.conf").display());
            println!("cargo xtask cluster run --name {} -- kubectl get pods -A", which.name);
        }
        Task::Down(which) => Cluster::new(&which.name, workspace, tools)?.down()?,
        Task::Run(Run { which, command }) => {
            let cluster = Cluster::new(&which.name, workspace, tools)?;
            let [program, arguments @ ..] = &command[..] else { bail!("no command") };
            return Ok(cluster.command(program)?.args(arguments).status()?.success());
        }
    }
    Ok(true)
}

/// The cluster of a group of tests or of a benchmark.
#[derive(Debug)]
pub(crate) struct ForGroup {
    cluster: Cluster,
    /// Somebody has started it, to run groups again and again: it stays.
    stays: bool,
}

impl ForGroup {
    const NAME: &str = "e2e";

    /// Starts it, unless it is up, and loads what was built for debugging.
    pub(crate) fn up(workspace: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<ForGroup> {
        let group = ForGroup::start(Self::NAME, workspace, steps, tools)?;
        group.cluster.load(&crate::images::write(workspace, &workspace.join("target/debug"))?)?;
        Ok(group)
    }

    /// Starts one of this name, unless it is up, without images of ours.
    pub(crate) fn start(
        name: &str,
        workspace: &Path,
        steps: &Steps,
        tools: &Tools,
    ) -> anyhow::Result<ForGroup> {
        let cluster = Cluster::new(name, workspace, tools)?;
        let stays = cluster.is_up()?;
        cluster.up(false, steps, tools)?;
        Ok(ForGroup { cluster, stays })
    }

    /// Loads further images.
    pub(crate) fn load(&self, images: &[PathBuf]) -> anyhow::Result<()> {
        self.cluster.load(images)
    }

    pub(crate) fn command(&self, program: &Path) -> anyhow::Result<Command> {
        self.cluster.command(&program.display().to_string())
    }

    pub(crate) fn down(self) -> anyhow::Result<()> {
        if self.stays { Ok(()) } else { self.cluster.down() }
    }
}

/// Builds what a cluster of our own runs, or what groups need on somebody's: a client, which is there as a rule, and the
/// custom resources.
pub(crate) fn prepare(own: bool, workspace: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<()> {
    let programs = Programs::new(workspace, tools)?;
    let has_kubectl = crate::tools::on_path("kubectl") || programs.folder.join("kubectl").is_file();
    if own || !has_kubectl || !programs.folder.join("gateway-api").is_dir() {
        programs.build(steps, tools)?;
    }
    Ok(())
}

/// A command against the cluster that KUBECONFIG says, which is somebody's.
pub(crate) fn existing(program: &Path, workspace: &Path, tools: &Tools) -> anyhow::Result<Command> {
    let kubeconfig = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
    let kubeconfig = kubeconfig.context("--cluster existing: KUBECONFIG does not say which")?;
    let kubeconfig = std::path::absolute(kubeconfig)?;
    if !kubeconfig.is_file() {
        bail!("KUBECONFIG is {}: expected one file", kubeconfig.display());
    }
    let programs = Programs::new(workspace, tools)?;
    let mut command = Command::new(program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The cluster's owner may have a kubectl that suits it.
    let folders = std::env::split_paths(&path).chain([programs.folder.clone()]);
    command.env("PATH", std::env::join_paths(folders)?).env("KUBECONFIG", kubeconfig);
    command.env_remove("PONTOON_E2E_CLUSTER").env("PONTOON_E2E_KUBERNETES", &programs.folder);
    Ok(command)
}

impl Cluster {
    pub(crate) fn new(name: &str, workspace: &Path, tools: &Tools) -> anyhow::Result<Cluster> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 40 || !name.chars().all(valid) {
            bail!("--name is {name:?}: expected up to 40 of a to z, 0 to 9 and -");
        }
        let state = workspace.join("target/cluster").join(name);
        Ok(Cluster { name: name.to_owned(), state, programs: Programs::new(workspace, tools)? })
    }

    /// Loads images into its node.
    pub(crate) fn load(&self, images: &[PathBuf]) -> anyhow::Result<()> {
        for image in images {
            self.output("ctr", &["images", "import", &image.display().to_string()])?;
        }
        Ok(())
    }

    fn is_up(&self) -> anyhow::Result<bool> {
        Ok(self.state.join("up").exists() && process::all_run(&self.state)?)
    }

    /// Starts it, with all that it needs. One that is up is left as it is; half of one is removed first.
    pub(crate) fn up(&self, control: bool, steps: &Steps, tools: &Tools) -> anyhow::Result<()> {
        self.programs.build(steps, tools)?;
        if let Ok(facts) = self.facts() {
            match (self.is_up()?, facts.control == control) {
                (true, true) => return Ok(()),
                (true, false) => bail!("{} is up as another kind of cluster; take it down first", self.name),
                (false, _) => self.down()?,
            }
        }
        let started = SystemTime::now();
        let port = if control { free_ports()? } else { PORT };
        let facts = Facts { control, port };
        std::fs::create_dir_all(&self.state)?;
        std::fs::write(self.state.join("cluster.json"), serde_json::to_vec(&facts)?)?;
        keys::make(&self.state, port)?;
        if !control {
            node::enter_new_namespaces(self)?;
        }
        control::start(self, facts)?;
        if control {
            node::pretend(self)?;
        } else {
            node::start(self)?;
        }
        std::fs::write(self.state.join("up"), "")?;
        println!("ok     cluster {} ({} s)", self.name, started.elapsed().unwrap_or_default().as_secs());
        Ok(())
    }

    /// Stops what `up` has started, and removes the state.
    pub(crate) fn down(&self) -> anyhow::Result<()> {
        process::stop_all(&self.state)?;
        node::remove_cgroups(self)?;
        match std::fs::remove_dir_all(&self.state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.state.display()))
            }
            _ => Ok(()),
        }
    }

    /// A command with the cluster's programs and its kubeconfig; in the namespaces of its node, if it has one.
    /// It ends with this process.
    pub(crate) fn command(&self, program: &str) -> anyhow::Result<Command> {
        if !self.state.join("cluster.json").exists() {
            bail!("no cluster {:?} is up: cargo xtask cluster up --name {}", self.name, self.name);
        }
        let mut prefix = self.enter(&std::env::current_dir()?)?;
        prefix.extend(["setpriv", "--pdeathsig", "TERM", "--"].map(str::to_owned));
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(program);
        self.with_environment(&mut command)?;
        Ok(command)
    }

    fn with_environment(&self, command: &mut Command) -> anyhow::Result<()> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [self.programs.folder.clone()].into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders.chain(["/usr/sbin".into(), "/sbin".into()]))?);
        command.env("KUBECONFIG", self.state.join("admin.conf"));
        command.env("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock");
        command.env("CONTAINERD_NAMESPACE", "k8s.io");
        command.env("PONTOON_E2E_CLUSTER", &self.state);
        command.env("PONTOON_E2E_KUBERNETES", &self.programs.folder);
        Ok(())
    }

    /// The words before a command that bring it to where the cluster is.
    fn enter(&self, folder: &Path) -> anyhow::Result<Vec<String>> {
        let Some(init) = process::Running::read(&self.state, node::INIT)? else { return Ok(Vec::new()) };
        let wdns = format!("--wdns={}", folder.display());
        let words = ["nsenter", "-t", &init.pid.to_string(), "-m", "-n", "-u", "-i", "-p", &wdns, "--"];
        Ok(words.map(str::to_owned).to_vec())
    }

    /// Starts one of its programs, in the state folder.
    fn start(&self, name: &str, program: &str, arguments: &[String]) -> anyhow::Result<()> {
        let mut command = Command::new("setsid");
        command.args(self.enter(&self.state)?).arg(program).args(arguments).current_dir(&self.state);
        self.with_environment(&mut command)?;
        process::start(&self.state, name, command, program, arguments)
    }

    /// What a command prints that must end with 0.
    fn output(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command(program)?.args(arguments).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("{program} {}: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until such a command ends with 0. A part of the cluster that ends meanwhile ends the waiting.
    fn until(&self, what: &str, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        wait_until(what, || match self.output(program, arguments) {
            Ok(_) => Ok(None),
            Err(error) => process::check_all(&self.state).map(|()| Some(format!("{error:#}"))),
        })
    }

    fn apply(&self, file: &Path) -> anyhow::Result<()> {
        self.output("kubectl", &["apply", "-f", &file.display().to_string()]).map(drop)
    }

    fn facts(&self) -> anyhow::Result<Facts> {
        Ok(serde_json::from_slice(&std::fs::read(self.state.join("cluster.json"))?)?)
    }
}

/// Asks until nothing is missing any more.
fn wait_until(what: &str, mut missing: impl FnMut() -> anyhow::Result<Option<String>>) -> anyhow::Result<()> {
    let started = SystemTime::now();
    while let Some(why) = missing()? {
        if started.elapsed().unwrap_or_default() > PATIENCE {
            bail!("waited {} s for {what}: {why}", PATIENCE.as_secs());
        }
        #[allow(clippy::disallowed_methods, reason = "between two looks at a condition")]
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The first of five ports in a row that nobody listens on.
fn free_ports() -> anyhow::Result<u16> {
    (PORT..32_000)
        .step_by(10)
        .find(|first| (*first..first + 5).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()))
        .context("no five free ports in a row from 16443 on")
}

/// A cluster's name as the kernel takes it for a control group.
fn cgroup(state: &Path) -> String {
    let mut stamp = crate::tools::Fnv::default();
    stamp.write(state.as_os_str().as_encoded_bytes());
    format!("pontoon-cluster-{:08x}", stamp.value() & 0xffff_ffff)
}

/// Ends the work with an error where a command did not end well.
fn check(status: ExitStatus, what: &str) -> anyhow::Result<()> {
    if !status.success() {
        bail!("{what} ended with {status}");
    }
    Ok(())
}
