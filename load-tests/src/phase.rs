//! The phases, one file each.

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
    /// Latency at a fixed rate.
    Open,
    /// Bytes through without HTTP.
    Tcp,
    /// TLS handshakes.
    Tls,
    /// HTTP/2 on both sides.
    H2,
    /// Memory at start and with idle connections.
    Idle,
    /// The same under TLS.
    IdleTls,
    /// From registration, stop and death of an instance until traffic follows; minutes long.
    Convergence,
}

impl Phase {
    pub(crate) const ALL: [Phase; 8] = [
        Phase::Http1,
        Phase::Open,
        Phase::H2,
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
            Phase::Http1 => "http1",
            Phase::Open => "open",
            Phase::Tcp => "tcp",
            Phase::Tls => "tls",
            Phase::H2 => "h2",
            Phase::Idle => "idle",
            Phase::IdleTls => "idle-tls",
            Phase::Convergence => "convergence",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Phase::Http1 => http1::TITLE,
            Phase::Open => open::TITLE,
            Phase::Tcp => tcp::TITLE,
            Phase::Tls => tls::TITLE,
            Phase::H2 => h2::TITLE,
            Phase::Idle => idle::TITLE,
            Phase::IdleTls => idle::TITLE_TLS,
            Phase::Convergence => convergence::TITLE,
        }
    }

    /// What a reader must know of the figures.
    pub(crate) fn note(self) -> &'static str {
        match self {
            Phase::Convergence => convergence::NOTE,
            _ => "",
        }
    }

    pub(crate) fn run(self, bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
        match self {
            Phase::Http1 => http1::run(bench, peers),
            Phase::Open => open::run(bench, peers),
            Phase::Tcp => tcp::run(bench, peers),
            Phase::Tls => tls::run(bench, peers),
            Phase::H2 => h2::run(bench, peers),
            Phase::Idle => idle::run(bench, peers, Front::Http),
            Phase::IdleTls => idle::run(bench, peers, Front::Tls),
            Phase::Convergence => convergence::run(bench),
        }
    }
}
