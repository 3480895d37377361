//! The phases, one file each.

mod convergence;
mod http1;
mod idle;

use clap::ValueEnum;

use crate::peer::{Bench, Name};
use crate::report::Table;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Phase {
    /// CPU time per HTTP/1.1 request.
    Http1,
    /// Memory at start and with idle connections.
    Idle,
    /// From registration, stop and death of an instance until traffic follows; minutes long.
    Convergence,
}

impl Phase {
    pub(crate) const ALL: [Phase; 3] = [Phase::Http1, Phase::Idle, Phase::Convergence];
    /// Those that wait for no lease and no cache.
    pub(crate) const QUICK: [Phase; 2] = [Phase::Http1, Phase::Idle];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Http1 => "http1",
            Phase::Idle => "idle",
            Phase::Convergence => "convergence",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Phase::Http1 => http1::TITLE,
            Phase::Idle => idle::TITLE,
            Phase::Convergence => convergence::TITLE,
        }
    }

    /// What a reader must know of the figures.
    pub(crate) fn note(self) -> &'static str {
        match self {
            Phase::Http1 | Phase::Idle => "",
            Phase::Convergence => convergence::NOTE,
        }
    }

    pub(crate) fn run(self, bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
        match self {
            Phase::Http1 => http1::run(bench, peers),
            Phase::Idle => idle::run(bench, peers),
            Phase::Convergence => convergence::run(bench),
        }
    }
}
