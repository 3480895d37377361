//! Three hosts on one network, each a network namespace of this machine with an IPv4 and an IPv6 address. They go
//! with their owner; what a killed run left behind is removed by the next.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd as _;

const PREFIX: &str = "pontoon-e2e-";

/// The network and its hosts.
pub(super) struct Network {
    switch: String,
    pub(super) a: Host,
    pub(super) b: Host,
    pub(super) c: Host,
}

/// One host.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

impl Network {
    pub(super) fn make() -> anyhow::Result<Network> {
        remove_strays()?;
        let name = |suffix: &str| format!("{PREFIX}{}-{suffix}", std::process::id());
        let host = |suffix: &str, number: u8| Host {
            name: name(suffix),
            v4: Ipv4Addr::new(10, 77, 0, number),
            v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()),
        };
        // Removes what there is of it however this ends.
        let network = Network { switch: name("switch"), a: host("a", 1), b: host("b", 2), c: host("c", 3) };
        let switch = network.switch.as_str();
        ip(&format!("netns add {switch}"))?;
        ip(&format!("-n {switch} link add br0 type bridge"))?;
        ip(&format!("-n {switch} link set br0 up"))?;
        for Host { name, v4, v6 } in network.hosts() {
            let port = &name[name.len() - 1..];
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("link add port-{port} netns {switch} type veth peer name eth0 netns {name}"))?;
            ip(&format!("-n {switch} link set port-{port} master br0 up"))?;
            ip(&format!("-n {name} addr add {v4}/24 dev eth0"))?;
            ip(&format!("-n {name} addr add {v6}/64 dev eth0 nodad"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            // There is nobody, but a virtual address needs some way to begin with.
            ip(&format!("-n {name} -4 route add default via 10.77.0.254"))?;
            ip(&format!("-n {name} -6 route add default via fd77::fe"))?;
        }
        Ok(network)
    }

    /// What the hosts are connected by, as one of them.
    pub(super) fn switch(&self) -> Host {
        let v4 = Ipv4Addr::new(10, 77, 0, 100);
        Host { name: self.switch.clone(), v4, v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 100) }
    }

    fn hosts(&self) -> [&Host; 3] {
        [&self.a, &self.b, &self.c]
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.hosts().map(|host| &host.name).into_iter().chain([&self.switch]) {
            // It may not have been made.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

impl Host {
    /// Both addresses with a port.
    pub(super) fn at(&self, port: u16) -> [SocketAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)].map(|ip| SocketAddr::new(ip, port))
    }

    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// What a command prints that must end with 0.
    pub(super) fn run(
        &self,
        program: impl AsRef<std::ffi::OsStr>,
        arguments: &str,
    ) -> anyhow::Result<String> {
        output(self.command(program).args(arguments.split_whitespace()))
    }

    /// Does something on this host, on a thread of its own.
    pub(super) async fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let path = PathBuf::from("/run/netns").join(&self.name);
        let (done, result) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let enter = || {
                let namespace = std::fs::File::open(&path)?;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                anyhow::Ok(())
            };
            // Whoever asked may have given up.
            let _ = done.send(enter().context("cannot enter the host").and_then(|()| work()));
        });
        result.await.context("the thread on the host panicked")?
    }
}

fn ip(arguments: &str) -> anyhow::Result<String> {
    output(Command::new("ip").args(arguments.split_whitespace()))
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command.output().with_context(|| format!("{shown}: cannot start"))?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Namespaces of runs that are no more.
fn remove_strays() -> anyhow::Result<()> {
    for line in ip("netns list")?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let Some(process) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else {
            continue;
        };
        if !PathBuf::from("/proc").join(process).exists() {
            ip(&format!("netns del {name}"))?;
        }
    }
    Ok(())
}
