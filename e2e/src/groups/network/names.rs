//! The system's own resolver asks a sidecar for names of the mesh, and what is sent to the addresses comes to their services.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use pontoon_e2e::wait::until;

use super::hosts::Host;
use super::traffic::{get, greet};
use super::{GREETER, HTTP, Lab, NOBODY, RESOLVER, START};

const SETTINGS: &str = "outbound: {address: '[::]:15001', intercepted: true, unknown: UNKNOWN}
dns: {addresses: ['127.0.0.1:15053', '[::1]:15053'], upstreams: [], search: [default.svc.cluster.local]}";

/// What `ip netns exec` puts in the place of `/etc/resolv.conf`.
pub(super) struct ResolvConf(PathBuf);

impl ResolvConf {
    pub(super) fn of(host: &Host, text: &str) -> anyhow::Result<Self> {
        let folder = PathBuf::from("/etc/netns").join(&host.name);
        std::fs::create_dir_all(&folder)?;
        let conf = Self(folder);
        std::fs::write(conf.0.join("resolv.conf"), text)?;
        Ok(conf)
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        // It goes with the host's name in any case.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Lab {
    pub(super) async fn names(&self) -> anyhow::Result<String> {
        let (a, b, c) = (&self.network.a, &self.network.b, &self.network.c);
        let mail = format!(
            "apiVersion: pontoon.dev/v1alpha1\nkind: Pool\nmetadata:\n  name: mail\nspec:\n  endpoints:\n  - {{address: {}, port: {GREETER}}}\n",
            b.v4
        );
        std::fs::write(self.folder.join("objects/mail.yaml"), mail)?;
        let conf = format!("nameserver {}\nsearch default.svc.cluster.local\noptions ndots:5\n", c.v4);
        let _conf = ResolvConf::of(a, &conf)?;
        for policy in ["pass", "refuse"] {
            let settings = SETTINGS.replace("UNKNOWN", policy);
            let sidecar = self.sidecar(a, &settings).await?;
            self.intercept(a, &format!("up --no-inbound --dns-port {RESOLVER}"))?;
            let (orders, mail) = (self.resolved(a, "orders").await?, self.resolved(a, "MAIL").await?);
            let whole = self.resolved(a, "orders.default.svc.cluster.local").await?;
            ensure!(orders == whole && orders != mail, "{orders:?}, {whole:?}, {mail:?}");
            self.leads(a, &orders, &mail).await.with_context(|| policy.to_owned())?;

            // One that has heard of no name, while the application still has its address.
            drop(sidecar);
            let _another = self.sidecar(a, &settings).await?;
            self.leads(a, &orders, &mail).await.with_context(|| format!("{policy}, after a restart"))?;
            let nobodys = SocketAddr::new("240.255.255.254".parse()?, HTTP);
            let answer = get(a, nobodys, "example.net", NOBODY).await?;
            ensure!(answer.status == 503 && answer.body.starts_with("unknown_name"), "{answer:?}");
            self.intercept(a, "down")?;
        }
        Ok(String::new())
    }

    /// Where both services are, HTTP and another protocol.
    async fn leads(&self, from: &Host, orders: &[IpAddr; 2], mail: &[IpAddr; 2]) -> anyhow::Result<()> {
        let b = self.network.b.v4.to_string();
        for (orders, mail) in orders.iter().zip(mail) {
            let to = SocketAddr::new(*orders, HTTP);
            for host in ["orders".to_owned(), to.to_string(), "an.alias.example".to_owned()] {
                let answer = get(from, to, &host, NOBODY).await.with_context(|| format!("{host} at {to}"))?;
                ensure!(answer.status == 200 && answer.local == b, "{host} at {to}: {answer:?}");
            }
            // Whatever port: the service's own counts.
            greet(from, SocketAddr::new(*mail, 25)).await.with_context(|| format!("mail at {mail}"))?;
        }
        Ok(())
    }

    /// What the C library's `getaddrinfo` says.
    async fn resolved(&self, host: &Host, name: &str) -> anyhow::Result<[IpAddr; 2]> {
        until(&format!("{name} to be known"), START, async || {
            let found = host.run("getent", &format!("ahosts {name}"))?;
            let stream = found.lines().filter(|line| line.contains("STREAM"));
            let mut all = stream.filter_map(|line| line.split_whitespace().next()?.parse().ok());
            let mut all: Vec<IpAddr> = all.by_ref().collect();
            all.sort_unstable();
            match all[..] {
                [v4 @ IpAddr::V4(_), v6 @ IpAddr::V6(_)] => Ok([v4, v6]),
                _ => bail!("{found:?}"),
            }
        })
        .await
    }
}
