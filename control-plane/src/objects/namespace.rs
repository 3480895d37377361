//! `Namespace` of core/v1, as far as listeners need it: its labels.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The label that Kubernetes gives every namespace: its name.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Namespace {
    /// Name and labels.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Of no meaning here.
    #[serde(default)]
    pub spec: Unread,
}

/// What is there and not read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unread;

impl PartialEq for Unread {
    fn eq(&self, _other: &Unread) -> bool {
        true
    }
}

impl<'de> Deserialize<'de> for Unread {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Unread)
    }
}
