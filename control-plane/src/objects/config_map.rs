//! `ConfigMap` of core/v1, as far as TLS needs it (the certificates of authorities, under `ca.crt`), and
//! the parameters of infrastructure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::infrastructure::parameters;

/// What the Gateway API calls it.
pub const CA: &str = "ca.crt";

/// Whether anything here reads what is under such a key.
pub(super) fn is_read(key: &str) -> bool {
    key == CA || parameters::is_key(key)
}

/// A set of texts.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMap {
    /// Name, namespace, labels, annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Texts by name.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
    /// In base64. Not read.
    #[serde(default)]
    pub binary_data: BTreeMap<String, String>,
    /// Of no meaning here.
    #[serde(default)]
    pub immutable: Option<bool>,
}
