//! The phases, one file each.

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
}

impl Phase {
    pub(crate) const ALL: [Phase; 2] = [Phase::Http1, Phase::Idle];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Http1 => "http1",
            Phase::Idle => "idle",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Phase::Http1 => http1::TITLE,
            Phase::Idle => idle::TITLE,
        }
    }

    pub(crate) fn run(self, bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
        match self {
            Phase::Http1 => http1::run(bench, peers),
            Phase::Idle => idle::run(bench, peers),
        }
    }
}
