//! A control plane as a process, for tests: the binary that ships.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unreachable_pub, reason = "it is a module of several test crates")]

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

pub const PONTOON: &str = env!("CARGO_BIN_EXE_pontoon");
/// A condition that does not hold by then never will.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A control plane in a process of its own.
pub struct Served {
    child: Child,
    pub api: String,
    pub eureka: String,
    pub xds: String,
    pub dir: tempfile::TempDir,
}

impl Served {
    pub async fn start(objects: &str) -> Served {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("objects")).unwrap();
        std::fs::write(dir.path().join("objects/shop.yaml"), objects).unwrap();
        Served::in_dir(dir).await
    }

    pub async fn in_dir(dir: tempfile::TempDir) -> Served {
        Served::at(dir, "127.0.0.1:0", "127.0.0.1:0").await
    }

    /// With Eureka and xDS at addresses of their own.
    pub async fn at(dir: tempfile::TempDir, eureka: &str, xds: &str) -> Served {
        Served::with(dir, &["--eureka-listen", eureka, "--xds-listen", xds]).await
    }

    /// With these arguments, which have to say where Eureka and xDS are.
    pub async fn with(dir: tempfile::TempDir, args: &[&str]) -> Served {
        let mut child = Command::new(PONTOON)
            .args(["serve", "--log-format", "json", "--api-listen", "127.0.0.1:0"])
            .args(args)
            .current_dir(dir.path())
            .env_clear()
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                let line: Value = serde_json::from_str(&line).unwrap();
                if line["fields"]["message"] == "ready" {
                    return line;
                }
            }
            panic!("the control plane ended before it was ready");
        };
        let ready = tokio::time::timeout(PATIENCE, ready).await.unwrap();
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let api = format!("http://{}", ready["fields"]["api"].as_str().unwrap());
        let xds = ready["fields"]["xds"].as_str().unwrap().to_owned();
        let eureka = ready["fields"]["eureka"].as_str().unwrap().to_owned();
        Served { child, api, eureka, xds, dir }
    }

    pub async fn run(&self, args: &[&str]) -> Output {
        let mut command = pontoon(self.dir.path());
        command.env("PONTOON_API", &self.api).env("USER", "jo").args(args).output().await.unwrap()
    }

    pub async fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["-o", "json"]].concat()).await;
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{args:?}: {output:?}"))
    }

    pub async fn stop(mut self) -> (std::process::ExitStatus, tempfile::TempDir) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").arg(pid).status().await.unwrap().success());
        (tokio::time::timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap(), self.dir)
    }
}

pub fn pontoon(dir: &Path) -> Command {
    let mut command = Command::new(PONTOON);
    command.current_dir(dir).env_clear();
    command
}

pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
