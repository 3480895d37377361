//! Adds a sidecar to a pod. One function from pod to pod, used by `pontoon inject` on files and by the webhook on
//! what the API server shows it, so both give the same. It works on JSON and not on types: what a newer Kubernetes
//! has in a pod stays as it is.

mod application;
mod containers;
mod image;
mod options;
pub mod review;
mod warnings;
pub mod workload;

use serde_json::{Value, json};

pub use options::{Interception, InvalidAnnotation};

use options::Options;

use crate::infrastructure::provision::PullPolicy;

/// On a namespace or a pod: `enabled` or `disabled`. The pod's counts.
pub const LABEL: &str = "pontoon.dev/inject";
/// On a pod that has been given a sidecar: the version that did it.
pub const INJECTED: &str = "pontoon.dev/injected";
/// On the mirror of a static pod, by its kubelet.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The sidecar.
pub const SIDECAR: &str = "pontoon-proxy";
/// What puts the rules of interception in force.
pub const INTERCEPT: &str = "pontoon-intercept";

/// What is the same for every pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The image of `pontoon-proxy`.
    pub image: String,
    /// When a node fetches it; none: as Kubernetes has it by the image's tag.
    pub pull_policy: Option<PullPolicy>,
    /// The control plane as pods reach it, `http://HOST:PORT`.
    pub xds_server: String,
    /// For pods that say nothing.
    pub interception: Interception,
}

/// What has become of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has a sidecar. What in it has no effect, or another than is meant, for people.
    Injected(Vec<String>),
    /// It is as it was.
    Left(Left),
}

/// Why a pod is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Left {
    /// Its label says so.
    #[error("not injected: its label pontoon.dev/inject is disabled")]
    Disabled,
    /// It has one.
    #[error("not injected: it has a container pontoon-proxy already")]
    Present,
    /// It is none.
    #[error("not injected: it has no spec of a pod")]
    NoPod,
    /// Interception in a pod of the host's network would take the host's connections.
    #[error("not injected: it is on the host's network, which all pods of the node share")]
    HostNetwork,
    /// There is a pod in it, and it is not known what becomes of that.
    #[error(
        "not injected: of kinds with pods in them Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, \
         ReplicationController, Job, CronJob and List are known"
    )]
    UnknownKind,
    /// What it shows runs as a file on its node says, whatever becomes of it here.
    #[error("not injected: it is the mirror of a static pod, which its node runs as its file says")]
    Mirror,
    /// The sidecar is a Linux program.
    #[error("not injected: it is for Windows nodes")]
    Windows,
}

/// Gives a pod, or a pod template, its sidecar.
///
/// # Errors
/// When one of the annotations that tune it cannot be used; the pod is then as it was.
pub fn inject(pod: &mut Value, settings: &Settings) -> Result<Outcome, InvalidAnnotation> {
    if let Some(left) = left(pod) {
        return Ok(Outcome::Left(left));
    }
    let options = Options::of(pod, settings)?;
    let warnings = warnings::of(pod, &options);
    let mut first = containers::before(settings, &options);
    containers::share(&mut first, &pod["spec"]["resources"]);
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return Ok(Outcome::Left(Left::NoPod));
    };
    application::adapt(spec, &options);
    if let Some(own) = spec.get_mut("initContainers").and_then(Value::as_array_mut) {
        first.append(own);
    }
    spec.insert("initContainers".to_owned(), Value::Array(first));
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if volumes.is_null() {
        *volumes = json!([]);
    }
    // What is no list is the API server's to refuse.
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(containers::volume());
    }
    set(pod, &["metadata", "annotations", INJECTED], json!(env!("CARGO_PKG_VERSION")));
    Ok(Outcome::Injected(warnings))
}

fn left(pod: &Value) -> Option<Left> {
    let spec = &pod["spec"];
    if pod["metadata"]["labels"][LABEL] == "disabled" {
        return Some(Left::Disabled);
    }
    let named = |list: &str| spec[list].as_array().into_iter().flatten().any(|one| one["name"] == SIDECAR);
    if named("initContainers") || named("containers") {
        return Some(Left::Present);
    }
    if !pod["metadata"]["annotations"][MIRROR].is_null() {
        return Some(Left::Mirror);
    }
    if spec["os"]["name"] == "windows" || spec["nodeSelector"]["kubernetes.io/os"] == "windows" {
        return Some(Left::Windows);
    }
    (spec["hostNetwork"] == true).then_some(Left::HostNetwork)
}

/// Sets a field that may be missing with all above it. Where one of those is something else than a map, nothing is
/// set: the API server has the word about that.
fn set(object: &mut Value, path: &[&str], value: Value) {
    let Some((name, deeper)) = path.split_first() else {
        *object = value;
        return;
    };
    if object.is_null() {
        *object = json!({});
    }
    if let Some(fields) = object.as_object_mut() {
        set(fields.entry(*name).or_insert(Value::Null), deeper, value);
    }
}
