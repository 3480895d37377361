//! The Kubernetes API server as a place that objects and endpoints come from, and where statuses and the state of
//! migrations are kept. What thinks does no I/O: [`mirror`] says what of a watch is believed, [`election`] who
//! leads; here and in [`watch`] is what feeds them.

pub mod crds;
pub mod election;
pub mod events;
pub mod gateways;
pub mod handover;
pub mod lease;
pub mod mirror;
pub mod pods;
pub mod report;
pub mod role;
pub mod roster;
pub mod status;
pub mod watch;

use std::time::Duration;

use kube::{Client, Config};

/// To connect to the API server. It is near, or it is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer to a single request. Watches end by themselves well before ([`watch::LIFETIME_SECONDS`]).
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor a pod's service account.
    #[error("no Kubernetes cluster is known: {0}; set KUBECONFIG, or run in a pod with a service account")]
    Config(#[from] kube::config::InferConfigError),
    /// The configuration cannot be used.
    #[error("the Kubernetes cluster's configuration cannot be used: {0}")]
    Client(#[from] kube::Error),
}

/// A client of the cluster that `KUBECONFIG`, `~/.kube/config` or the pod that this runs in says, and the namespace
/// there. It connects on use: the API server need not be up.
///
/// # Errors
/// When no cluster is said, or what is said cannot be used.
pub async fn connect() -> Result<(Client, String), ConnectError> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    let namespace = config.default_namespace.clone();
    Ok((Client::try_from(config)?, namespace))
}
