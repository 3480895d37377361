//! The cluster's programs, built from Go modules whose versions `e2e/kubernetes/*/go.mod` says, with the images that
//! every cluster has from the start. They are kept in the cache folder under a stamp of their sources: about nine
//! minutes on two cores the first time, nothing after that.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::image::{self, Image};
use crate::step::Steps;
use crate::tools::{self, Fnv, Tools, on_path};

/// Debian's: package and program.
const APT: [(&str, &str); 8] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("nftables", "nft"),
    ("iptables", "iptables"),
    ("iproute2", "ip"),
    ("conntrack", "conntrack"),
    ("curl", "curl"),
];

/// The program, the module below `e2e/kubernetes` and the package in it.
const GO: [(&str, &str, &str); 14] = [
    ("pause", "programs", "./pause"),
    ("hello", "programs", "./hello"),
    // In place of the suite's, whose source is not published with it.
    ("echo-advanced", "programs", "./echo-advanced"),
    ("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    ("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    ("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
    ("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
    ("coredns", "coredns", "."),
    ("echo-basic", "conformance", "sigs.k8s.io/gateway-api/conformance/echo-basic"),
    ("conformance.test", "conformance", "."),
    // Not a program: the folder below is copied.
    ("gateway-api", "conformance", "sigs.k8s.io/gateway-api"),
];

/// Of the hosts' own, in the image `toolbox`.
const TOOLBOX: [&str; 7] = ["sh", "cat", "sleep", "ls", "curl", "ip", "nft"];

/// Where the programs are.
#[derive(Debug)]
pub(crate) struct Programs {
    sources: PathBuf,
    kubernetes: String,
    /// All of them, with `images/` and the custom resources of the Gateway API in `gateway-api/`.
    pub(crate) folder: PathBuf,
}

impl Programs {
    pub(crate) fn new(workspace: &Path, tools: &Tools) -> anyhow::Result<Programs> {
        let sources = workspace.join("e2e/kubernetes");
        let go_mod = std::fs::read_to_string(sources.join("kubernetes/go.mod"))?;
        let version = go_mod.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
        let version = version.and_then(|rest| rest.split_whitespace().next());
        let kubernetes = version.context("kubernetes/go.mod does not name k8s.io/kubernetes")?.to_owned();
        let folder = tools.folder(&format!("kubernetes-{kubernetes}"));
        Ok(Programs { sources, kubernetes, folder })
    }

    /// Builds what has changed.
    pub(crate) fn build(&self, steps: &Steps, tools: &Tools) -> anyhow::Result<()> {
        tools.kubernetes(steps, &APT)?;
        let mut stamp = Fnv::default();
        let modules: BTreeSet<&str> = GO.iter().map(|(_, module, _)| *module).collect();
        for module in modules {
            tools::stamp(&self.sources.join(module), &mut stamp)?;
        }
        // The images are made by these.
        for source in [include_str!("build.rs"), include_str!("image.rs")] {
            stamp.write(source.as_bytes());
        }
        let stamp = format!("{:016x}", stamp.value());
        let complete = self.folder.join("complete");
        if std::fs::read_to_string(&complete).is_ok_and(|of| of == stamp) {
            return Ok(());
        }
        if !on_path("go") {
            bail!("go is not on PATH: Kubernetes is built with Go 1.26 or newer");
        }
        std::fs::create_dir_all(&self.folder)?;
        for (name, module, package) in GO {
            match name {
                "gateway-api" => self.custom_resources(&self.module(module, package)?)?,
                "conformance.test" => self.go(steps, name, module, &["test", "-c"], package)?,
                _ => self.go(steps, name, module, &["build"], package)?,
            }
        }
        self.write_images()?;
        std::fs::write(&complete, stamp)?;
        Ok(())
    }

    fn go(
        &self,
        steps: &Steps,
        name: &str,
        module: &str,
        what: &[&str],
        package: &str,
    ) -> anyhow::Result<()> {
        let minor = self.kubernetes.split('.').nth(1).unwrap_or_default();
        let of = "k8s.io/component-base/version";
        // Without it they say that they are v0.0.0.
        let version = format!(
            "-s -w -X {of}.gitVersion=v{} -X {of}.gitMajor=1 -X {of}.gitMinor={minor}",
            self.kubernetes
        );
        let mut command = Command::new("go");
        command.current_dir(self.sources.join(module));
        command.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly -buildvcs=false");
        // It says which package it is at: a step that says nothing is taken for one that hangs.
        command.args(what).args(["-v", "-trimpath", "-ldflags", &version, "-o"]);
        command.arg(self.folder.join(name)).arg(package);
        steps.run(&format!("build {name}"), &mut command).map(drop)
    }

    /// Where Go keeps a module's source.
    fn module(&self, of: &str, name: &str) -> anyhow::Result<PathBuf> {
        let mut command = Command::new("go");
        command.current_dir(self.sources.join(of)).args(["list", "-m", "-f", "{{.Dir}}", name]);
        let output = command.output().context("go does not start")?;
        if !output.status.success() {
            bail!("go list -m {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
    }

    /// Those of the release that the conformance suite is of.
    fn custom_resources(&self, gateway_api: &Path) -> anyhow::Result<()> {
        for channel in ["standard", "experimental"] {
            let from = gateway_api.join("config/crd").join(channel);
            let to = self.folder.join("gateway-api").join(channel);
            std::fs::create_dir_all(&to)?;
            for entry in
                std::fs::read_dir(&from).with_context(|| format!("cannot read {}", from.display()))?
            {
                let path = entry?.path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                if name.ends_with(".yaml") && name.contains("gateway.networking.k8s.io_")
                    || name.contains("gateway.networking.x-k8s.io_")
                {
                    // The module cache is read-only; a copy need not be.
                    std::fs::write(to.join(name), std::fs::read(&path)?)?;
                }
            }
        }
        Ok(())
    }

    /// The images that a cluster loads when it starts.
    pub(crate) fn images(&self) -> anyhow::Result<Vec<PathBuf>> {
        let folder = self.folder.join("images");
        let entries = std::fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut paths: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|is| is == "tar")).collect();
        paths.sort();
        Ok(paths)
    }

    fn write_images(&self) -> anyhow::Result<()> {
        let folder = self.folder.join("images");
        std::fs::create_dir_all(&folder)?;
        let write = |file: &str, image: Image| image::write(&image, &folder.join(format!("{file}.tar")));
        let one = |name: &str, program: &str| {
            Image::new(name)
                .entry(&format!("/{program}"))
                .file(self.folder.join(program), &format!("/{program}"))
        };
        write("pause", one("registry.k8s.io/pause:3.10", "pause"))?;
        write("hello", one("pontoon.test/hello:1", "hello"))?;
        write("coredns", one("pontoon.test/coredns:1", "coredns"))?;
        let mut toolbox = Image::new("pontoon.test/toolbox:1");
        for tool in TOOLBOX {
            let program = tools::find(tool).with_context(|| format!("{tool} is not on PATH"))?;
            toolbox = toolbox.file(program, &format!("/bin/{tool}"));
        }
        write("toolbox", toolbox.with_libraries()?)?;
        // The suite's own names, as its manifests have them: they cannot go out of step.
        let suite = self.module("conformance", "sigs.k8s.io/gateway-api/conformance")?;
        let mut names = Vec::new();
        names_of_images(&suite, &mut names)?;
        names.sort();
        names.dedup();
        for (number, name) in names.iter().enumerate() {
            let path = name.rsplit_once(':').map_or(name.as_str(), |(path, _)| path);
            let program = path.rsplit('/').next().unwrap_or(path);
            let path = self.folder.join(program);
            if !path.is_file() {
                continue;
            }
            let image = one(name, program);
            // The suite runs it by this name, too.
            let image = if program == "echo-advanced" { image.file(path, "/usr/bin/client") } else { image };
            write(&format!("conformance-{number}"), image)?;
        }
        Ok(())
    }
}

/// Every image that a YAML file below names.
fn names_of_images(folder: &Path, names: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            names_of_images(&path, names)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path)?;
            let images =
                text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image:"));
            names.extend(images.map(|name| name.trim().trim_matches('"').to_owned()));
        }
    }
    Ok(())
}
