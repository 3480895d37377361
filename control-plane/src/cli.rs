//! The command line: `serve` runs the control plane, `webhook` what a cluster asks, everything else asks a running one through its API
//! (except `check`, `validate`, `crds`, `envoy-bootstrap`, `inject` and `openapi`, which need none). Exit codes are part of the interface.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod check;
pub mod client;
mod envoy_bootstrap;
mod explain;
mod inject;
mod inspect;
mod migration;
mod output;
mod serve;
mod webhook;

use crate::quickstart::sample::SampleArgs;
use crate::quickstart::{self, QuickstartArgs};
pub use client::{CliError, Client};
pub use output::Format;

/// For work that cannot be cancelled, when all else has ended.
const SHUTDOWN: std::time::Duration = std::time::Duration::from_secs(2);

/// Moves a Spring Cloud system onto Kubernetes one service at a time, both sides live.
///
/// Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 the control plane cannot be reached; 4 done, but
/// not in force in time.
#[derive(Debug, Parser)]
#[command(name = "pontoon", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, Subcommand)]
enum Program {
    #[command(flatten)]
    Command(Command),
    /// Run the data plane; `pontoon-proxy` is the same.
    #[command(hide = true)]
    Proxy(pontoon_proxy::cli::Cli),
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the control plane.
    Serve(serve::ServeArgs),
    /// Check whether a cluster can take Pontoon, or whether it works there.
    Check(check::CheckArgs),
    /// Check a folder of objects, or one file, without serving it.
    Validate(inspect::ValidateArgs),
    /// Print the CustomResourceDefinitions of our kinds, for `kubectl apply -f -`.
    Crds,
    /// Look at migrations and move them.
    #[command(subcommand, visible_alias = "migrations")]
    Migration(migration::MigrationCommand),
    /// The connected proxies, or one of them in full.
    Proxies(inspect::ProxiesArgs),
    /// Who changed what, when and why.
    Audit(inspect::AuditArgs),
    /// The objects being served, and files that are refused.
    Objects(inspect::PlainArgs),
    /// What is registered.
    Registry(inspect::PlainArgs),
    /// Print the bootstrap of an Envoy that is to serve a Gateway.
    EnvoyBootstrap(envoy_bootstrap::EnvoyBootstrapArgs),
    /// Add sidecars to the pods of a file of workloads, as the webhook does.
    Inject(inject::InjectArgs),
    /// Serve the webhook that adds sidecars to the pods of a cluster.
    Webhook(webhook::WebhookArgs),
    /// Print the API's OpenAPI document.
    Openapi,
    /// See the whole of it on this machine: one service moves under load.
    Quickstart(QuickstartArgs),
    /// Run one instance of the quickstart's service.
    #[command(hide = true)]
    Sample(SampleArgs),
}

/// How to reach a running control plane.
#[derive(Debug, Clone, Args)]
pub struct ApiArgs {
    /// The control plane's API.
    #[arg(long, env = "PONTOON_API", value_name = "URL", default_value = "http://127.0.0.1:8767")]
    pub api: String,
    /// The file with the API's token. Without it: `api-token` in the data folder.
    #[arg(long, env = "PONTOON_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The data folder of the control plane, for its token.
    #[arg(long, env = "PONTOON_DATA", value_name = "DIR", default_value = "data")]
    pub data: PathBuf,
    /// Who you are, for the audit log. Without it: your login name.
    #[arg(long, env = "PONTOON_ACTOR", value_name = "NAME")]
    pub actor: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let result = match Cli::parse().program {
        // It brings its own runtimes.
        Program::Proxy(cli) => pontoon_proxy::cli::main(cli).map_err(other),
        Program::Command(command) => run_command(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn run_command(command: Command) -> Result<(), CliError> {
    let mut builder = match command {
        Command::Serve(_) | Command::Webhook(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime =
        builder.enable_all().build().map_err(|error| CliError::Other(format!("cannot start: {error}")))?;
    let result = runtime.block_on(async {
        match command {
            Command::Serve(args) => serve::run(args).await,
            Command::Check(args) => check::run(args).await,
            Command::Validate(args) => inspect::validate(&args),
            Command::Crds => inspect::crds(),
            Command::EnvoyBootstrap(args) => envoy_bootstrap::run(&args),
            Command::Inject(args) => inject::run(&args),
            Command::Webhook(args) => webhook::run(args).await,
            Command::Openapi => inspect::openapi(),
            Command::Quickstart(args) => quickstart::run(args).await.map_err(other),
            Command::Sample(args) => quickstart::sample::run(args).await.map_err(other),
            Command::Migration(command) => migration::run(command).await,
            Command::Proxies(args) => inspect::proxies(args).await,
            Command::Audit(args) => inspect::audit(args).await,
            Command::Objects(args) => inspect::objects(args).await,
            Command::Registry(args) => inspect::registry(args).await,
        }
    });
    // A file system that hangs may hold a thread for ever; it does not hold the process.
    runtime.shutdown_timeout(SHUTDOWN);
    result
}

fn other(error: anyhow::Error) -> CliError {
    CliError::Other(format!("{error:#}"))
}

fn fail(error: &CliError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(error.exit_code())
}
