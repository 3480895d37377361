//! The node: namespaces that everything of the cluster is in, containerd, kubelet, kube-proxy and DNS. In a cluster
//! without a node there is only an object, so that pods are scheduled and get EndpointSlices.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::process;
use super::{Cluster, cgroup, check, wait_until};

pub(super) const NAME: &str = "node1";
/// Where the node, and what runs beside its pods, is reached from them.
pub(super) const ADDRESS: &str = "10.89.0.2";
pub(super) const SERVICES: &str = "10.96.0.0/16";
/// Process 1 of the namespaces: with it the kernel ends all the rest.
pub(super) const INIT: &str = "node";

/// Written into the state folder with `@STATE@` and `@CGROUP@` filled in.
const FILES: [(&str, &str); 6] = [
    ("containerd.toml", include_str!("../../../e2e/kubernetes/node/containerd.toml")),
    ("kubelet.yaml", include_str!("../../../e2e/kubernetes/node/kubelet.yaml")),
    ("kube-proxy.yaml", include_str!("../../../e2e/kubernetes/node/kube-proxy.yaml")),
    ("cni/10-pods.conflist", include_str!("../../../e2e/kubernetes/node/pods.conflist")),
    ("coredns.yaml", include_str!("../../../e2e/kubernetes/node/coredns.yaml")),
    // Nobody is there: a pod that asks for a name of the world outside is told so by a timeout.
    ("resolv.conf", "nameserver 10.89.0.2\n"),
];

/// Makes the namespaces and prepares them. From then on the cluster's programs start inside.
pub(super) fn enter_new_namespaces(cluster: &Cluster) -> anyhow::Result<()> {
    let state = cluster.state.display().to_string();
    for (name, text) in FILES {
        let path = cluster.state.join(name);
        std::fs::create_dir_all(path.parent().context("no folder")?)?;
        std::fs::write(path, text.replace("@STATE@", &state).replace("@CGROUP@", &cgroup(&cluster.state)))?;
    }
    let mut command = Command::new("setsid");
    command.args("unshare --mount --net --uts --ipc --pid --fork --kill-child --mount-proc --".split(' '));
    let pause = cluster.programs.folder.join("pause");
    process::start(
        &cluster.state,
        INIT,
        {
            command.arg(&pause);
            command
        },
        "pause",
        &[],
    )?;
    let script = cluster.state.join("prepare.sh");
    std::fs::write(&script, include_str!("../../../e2e/kubernetes/node/prepare.sh"))?;
    let mut prepare = cluster.command("bash")?;
    check(prepare.arg(&script).env("STATE", &state).status()?, "preparing the node's namespaces")?;
    for hierarchy in hierarchies() {
        let group = hierarchy.join(cgroup(&cluster.state));
        std::fs::create_dir_all(&group)?;
        // A group of version 1 has no processors until it is told.
        for file in ["cpuset.mems", "cpuset.cpus"] {
            if hierarchy.join(file).exists() {
                std::fs::write(group.join(file), std::fs::read(hierarchy.join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Starts the node's programs, and waits until it and the DNS are ready.
pub(super) fn start(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.until("containerd", "ctr", &["version"])?;
    cluster.load(&cluster.programs.images()?)?;
    let start = |program: &str, arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        cluster.start(program, program, &arguments)
    };
    let (address, name) = (format!("--node-ip={ADDRESS}"), format!("--hostname-override={NAME}"));
    start("kubelet", &["--config=kubelet.yaml", "--kubeconfig=kubelet.conf", &address, &name])?;
    start("kube-proxy", &["--config=kube-proxy.yaml", &name])?;
    cluster.apply(&cluster.state.join("coredns.yaml"))?;
    let node = format!("node/{NAME}");
    cluster.until("the node", "kubectl", &["wait", "--for=condition=Ready", &node, "--timeout=1s"])?;
    let dns = ["wait", "-n", "kube-system", "--for=condition=Available", "deploy/coredns", "--timeout=1s"];
    cluster.until("DNS", "kubectl", &dns)
}

/// A node that is only an object.
pub(super) fn pretend(cluster: &Cluster) -> anyhow::Result<()> {
    let file = cluster.state.join("node.yaml");
    let labels = format!("labels: {{kubernetes.io/hostname: {NAME}}}");
    std::fs::write(&file, format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {NAME}\n  {labels}\n"))?;
    cluster.apply(&file)?;
    let room = r#"{"cpu": "64", "memory": "256Gi", "pods": "1000"}"#;
    let ready = r#"[{"type": "Ready", "status": "True", "reason": "NoKubelet"}]"#;
    let status =
        format!(r#"{{"status": {{"capacity": {room}, "allocatable": {room}, "conditions": {ready}}}}}"#);
    let patch = ["patch", "node", NAME, "--subresource=status", "--type=merge", "-p", &status];
    cluster.output("kubectl", &patch).map(drop)
}

/// Those of the pods, which outlive them.
pub(super) fn remove_cgroups(cluster: &Cluster) -> anyhow::Result<()> {
    for hierarchy in hierarchies() {
        let group = hierarchy.join(cgroup(&cluster.state));
        // A group is empty a moment after its last process has ended.
        wait_until("the pods' control groups to be empty", || {
            if !group.exists() {
                return Ok(None);
            }
            Ok(remove_tree(&group).err().map(|error| format!("{}: {error}", group.display())))
        })?;
    }
    Ok(())
}

/// Groups are folders whose files cannot be removed.
fn remove_tree(group: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

/// Where control groups are: each hierarchy of version 1, or the one of version 2.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root];
    }
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    folders.filter(|folder| folder.join("cgroup.procs").exists()).collect()
}
