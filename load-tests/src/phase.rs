//! The phases, one file each.

mod churn;
mod convergence;
mod h2;
mod http1;
mod idle;
mod open;
mod tcp;
mod tls;

use clap::ValueEnum;

use crate::configuration::Front;
use crate::peer::{Bench, Name};
use crate::report::Table;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Phase {
    /// CPU time per HTTP/1.1 request.
    Http1,
    /// The same with 1 to 10,000 routes.
    Routes,
    /// The same with answers up to 10 MiB.
    Bodies,
    /// The same through two proxies in a row.
    Pair,
    /// Latency at 2,000 requests/s.
    Open,
    /// Latency at 500 requests/s.
    #[value(name = "open-500")]
    OpenLow,
    /// Latency at 4,000 requests/s.
    #[value(name = "open-4000")]
    OpenHigh,
    /// Bytes through without HTTP.
    Tcp,
    /// TLS handshakes.
    Tls,
    /// Latency at that rate while endpoints change.
    Churn,
    /// HTTP/2 on both sides.
    H2,
    /// gRPC calls.
    Grpc,
    /// Memory at start and with idle connections.
    Idle,
    /// The same under TLS.
    IdleTls,
    /// From registration, stop and death of an instance until traffic follows; minutes long.
    Convergence,
}

impl Phase {
    pub(crate) const ALL: [Phase; 15] = [
        Phase::Http1,
        Phase::Routes,
        Phase::Bodies,
        Phase::Pair,
        Phase::OpenLow,
        Phase::Open,
        Phase::OpenHigh,
        Phase::Churn,
        Phase::H2,
        Phase::Grpc,
        Phase::Tcp,
        Phase::Tls,
        Phase::Idle,
        Phase::IdleTls,
        Phase::Convergence,
    ];
    /// Those that wait for no lease and no cache.
    pub(crate) const QUICK: [Phase; 6] =
        [Phase::Http1, Phase::Open, Phase::H2, Phase::Tcp, Phase::Tls, Phase::Idle];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Http1 => http1::CONNECTIONS.phase,
            Phase::Routes => http1::ROUTES.phase,
            Phase::Bodies => http1::BODIES.phase,
            Phase::Pair => http1::PAIR.phase,
            Phase::OpenLow => open::LOW.phase,
            Phase::Open => open::MIDDLE.phase,
            Phase::OpenHigh => open::HIGH.phase,
            Phase::Churn => "churn",
            Phase::Tcp => "tcp",
            Phase::Tls => "tls",
            Phase::H2 => h2::PLAIN.phase,
            Phase::Grpc => h2::GRPC.phase,
            Phase::Idle => "idle",
            Phase::IdleTls => "idle-tls",
            Phase::Convergence => "convergence",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Phase::Http1 => http1::CONNECTIONS.title,
            Phase::Routes => http1::ROUTES.title,
            Phase::Bodies => http1::BODIES.title,
            Phase::Pair => http1::PAIR.title,
            Phase::OpenLow => open::LOW.title,
            Phase::Open => open::MIDDLE.title,
            Phase::OpenHigh => open::HIGH.title,
            Phase::Churn => churn::TITLE,
            Phase::Tcp => tcp::TITLE,
            Phase::Tls => tls::TITLE,
            Phase::H2 => h2::PLAIN.title,
            Phase::Grpc => h2::GRPC.title,
            Phase::Idle => idle::TITLE,
            Phase::IdleTls => idle::TITLE_TLS,
            Phase::Convergence => convergence::TITLE,
        }
    }

    /// What a reader must know of the figures.
    pub(crate) fn note(self) -> &'static str {
        match self {
            Phase::OpenLow | Phase::Open | Phase::OpenHigh => open::NOTE,
            Phase::Churn => churn::NOTE,
            Phase::Convergence => convergence::NOTE,
            _ => "",
        }
    }

    /// Whether a peer can do this. Those on a JVM take part where HTTP/1.1 passes and there are not many loads, as each
    /// of them has to be warmed.
    pub(crate) fn takes(self, peer: Name) -> bool {
        let of_jvm = [Phase::Http1, Phase::Pair, Phase::OpenLow, Phase::Open, Phase::OpenHigh, Phase::Idle];
        match peer {
            Name::Pontoon | Name::Haproxy | Name::Envoy => true,
            Name::Nginx | Name::Pingora => self != Phase::Churn,
            Name::Caddy => !matches!(self, Phase::Churn | Phase::Tcp),
            Name::SpringCloudGateway | Name::Zuul => of_jvm.contains(&self),
        }
    }

    pub(crate) fn run(self, bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
        match self {
            Phase::Http1 => http1::run(bench, peers, &http1::CONNECTIONS),
            Phase::Routes => http1::run(bench, peers, &http1::ROUTES),
            Phase::Bodies => http1::run(bench, peers, &http1::BODIES),
            Phase::Pair => http1::run(bench, peers, &http1::PAIR),
            Phase::OpenLow => open::run(bench, peers, &open::LOW),
            Phase::Open => open::run(bench, peers, &open::MIDDLE),
            Phase::OpenHigh => open::run(bench, peers, &open::HIGH),
            Phase::Churn => churn::run(bench, peers),
            Phase::Tcp => tcp::run(bench, peers),
            Phase::Tls => tls::run(bench, peers),
            Phase::H2 => h2::run(bench, peers, &h2::PLAIN),
            Phase::Grpc => h2::run(bench, peers, &h2::GRPC),
            Phase::Idle => idle::run(bench, peers, Front::Http),
            Phase::IdleTls => idle::run(bench, peers, Front::Tls),
            Phase::Convergence => convergence::run(bench),
        }
    }
}
