//! Equivalent configurations of all peers for a scenario: what the front listener takes, what goes to the one upstream,
//! how many routes there are. One thread for traffic, keep-alive to the upstream, no access log.

mod caddy;
mod discovery;
mod envoy;
mod haproxy;
mod nginx;
mod ours;
mod shown;
mod spring;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

pub(crate) use self::caddy::proxy as caddy;
pub(crate) use self::discovery::Discovery;
pub(crate) use self::envoy::{dynamic as envoy_dynamic, proxy as envoy};
pub(crate) use self::haproxy::{changing as haproxy_changing, map as haproxy_map, proxy as haproxy};
pub(crate) use self::nginx::{marked_upstream, proxy as nginx, upstream};
pub(crate) use self::ours::serve as ours;
pub(crate) use self::shown::shown;
pub(crate) use self::spring::{spring, spring_cloud_gateway, zuul};

/// Connections to the upstream that a peer may keep, where it has a limit: more than any load needs.
pub(crate) const POOL: usize = 2_048;

/// What passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    /// HTTP/1.1 on both sides.
    Http,
    /// HTTP/2 with prior knowledge on both sides.
    H2c,
    /// TLS that ends at the proxy, HTTP/1.1 behind it.
    Tls,
    /// Bytes.
    Tcp,
}

/// How a peer is to be set up.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) front: Front,
    /// Prefix routes. The load takes one from the middle.
    pub(crate) routes: usize,
    /// PEM files, where TLS ends.
    pub(crate) pair: Option<Pair>,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Both in one file, as HAProxy wants them.
    pub(crate) both: PathBuf,
}

impl Scenario {
    /// A hundred routes.
    pub(crate) fn of(front: Front) -> Scenario {
        Scenario { front, routes: 100, pair: None }
    }

    /// The name of what passes through.
    pub(crate) fn mode(&self) -> &'static str {
        match self.front {
            Front::Http => "http",
            Front::H2c => "h2c",
            Front::Tls => "tls",
            Front::Tcp => "tcp",
        }
    }

    /// The path that the load asks for.
    pub(crate) fn path(&self) -> String {
        self.path_to(1_024)
    }

    /// The path of an answer of so many bytes.
    pub(crate) fn path_to(&self, body: usize) -> String {
        format!("/route-{}/{body}", self.routes / 2)
    }
}

fn routes(scenario: &Scenario, line: impl Fn(usize) -> String) -> String {
    (0..scenario.routes).fold(String::new(), |mut all, i| {
        let _ = writeln!(all, "{}", line(i));
        all
    })
}

impl Pair {
    /// A new one for `localhost`, with a P-256 key as most have.
    pub(crate) fn generate(folder: &Path) -> anyhow::Result<Pair> {
        let key = rcgen::KeyPair::generate()?;
        let names = vec![String::from("localhost"), String::from("127.0.0.1")];
        let certificate = rcgen::CertificateParams::new(names)?.self_signed(&key)?;
        let pair = Pair {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
            both: folder.join("both.pem"),
        };
        std::fs::write(&pair.certificate, certificate.pem())?;
        std::fs::write(&pair.key, key.serialize_pem())?;
        std::fs::write(&pair.both, certificate.pem() + &key.serialize_pem())?;
        Ok(pair)
    }
}
