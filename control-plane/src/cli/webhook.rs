//! `pontoon webhook`: what the API server asks about pods and about our objects. It runs in a cluster, beside `pontoon serve` and without
//! it.

use std::net::SocketAddr;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::CliError;
use super::inject::SettingsArgs;
use super::serve::LogArgs;
use crate::webhook::{self, Names, Options};

#[derive(Debug, Args)]
pub(super) struct WebhookArgs {
    /// Where the API server calls.
    #[arg(long, env = "PONTOON_WEBHOOK_LISTEN", value_name = "ADDR:PORT", default_value = "[::]:9443")]
    listen: SocketAddr,
    /// The namespace that it runs in.
    #[arg(long, env = "PONTOON_NAMESPACE", value_name = "NAME", default_value = "pontoon-system")]
    namespace: String,
    /// The Service by which the API server reaches it.
    #[arg(long, env = "PONTOON_WEBHOOK_SERVICE", value_name = "NAME", default_value = "pontoon-webhook")]
    service: String,
    /// The Secret that its certificate is kept in; made where it is missing.
    #[arg(long, env = "PONTOON_WEBHOOK_SECRET", value_name = "NAME", default_value = "pontoon-webhook")]
    secret: String,
    /// The MutatingWebhookConfiguration and the ValidatingWebhookConfiguration that are told whom to believe.
    #[arg(
        long,
        env = "PONTOON_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "pontoon-webhook"
    )]
    configuration: String,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    log: LogArgs,
}

pub(super) async fn run(args: WebhookArgs) -> Result<(), CliError> {
    args.log.start()?;
    let no_signals = |error: std::io::Error| CliError::Other(format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
    });
    let WebhookArgs { listen, namespace, service, secret, configuration, settings, .. } = args;
    let names = Names { namespace, service, secret, configuration };
    let options = Options { listen, names, settings: settings.settings() };
    webhook::run(options, stop).await.map_err(|error| CliError::Other(error.to_string()))
}
