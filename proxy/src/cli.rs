//! The command line: the proxy itself, and what is done beside it.

use clap::{Parser, Subcommand};

use tokio::time::Instant;

use crate::bootstrap::{Args, Bootstrap, Purpose, placed};
use crate::config::Store;
use crate::config::differing::noting;
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
        None if cli.args.mode == Purpose::Validate => validate(cli.args),
        None => {
            let (bootstrap, differing) = noting(|| Bootstrap::from_args(cli.args));
            let (bootstrap, logging) = (bootstrap?, crate::start_logging());
            for differs in differing {
                tracing::warn!("in the bootstrap, {differs}");
            }
            crate::run(bootstrap, logging)
        }
    }
}

/// Says whether the configuration can be used, as Envoy says it, and warns of what is ignored unlike there. Nothing is
/// opened but the files that it names.
fn validate(args: Args) -> anyhow::Result<()> {
    let name = args.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let (bootstrap, differing) = noting(|| Bootstrap::from_args(args));
    let bootstrap = bootstrap?;
    let store = Store::fixed(bootstrap.resources, bootstrap.xds_server.is_none(), Instant::now())
        .map_err(|problem| anyhow::anyhow!(placed(bootstrap.file.as_deref(), &problem)))?;
    for warning in differing.iter().map(ToString::to_string).chain(store.differing()) {
        eprintln!("warning: {warning}");
    }
    println!("configuration '{name}' OK");
    Ok(())
}
