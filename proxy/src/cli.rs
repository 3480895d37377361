//! The command line: the proxy itself, and what is done beside it.

use clap::{Parser, Subcommand};

use crate::bootstrap::{Args, Bootstrap};
use crate::intercept;

/// What `pontoon-proxy` is told.
#[derive(Debug, Clone, Parser)]
#[command(name = "pontoon-proxy", version, about = "The data plane of Pontoon, configured by xDS alone")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Args,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Bring an application's connections to the sidecar without the application's knowing.
    #[command(subcommand)]
    Intercept(intercept::Command),
}

/// Runs the proxy to its end, or does what the sub-command says.
///
/// # Errors
/// When a setting cannot be used, or what is asked for cannot be had.
pub fn main(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Some(Command::Intercept(command)) => Ok(intercept::run(command)?),
        None => crate::run(Bootstrap::from_args(cli.args)?, crate::start_logging()),
    }
}
