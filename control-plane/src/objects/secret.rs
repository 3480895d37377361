//! `Secret` of core/v1, as far as listeners need it: a certificate and its key (type `kubernetes.io/tls`). Its contents
//! are shown nowhere, not even where they are wrong.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use pontoon_proxy::tls::material::{Identity, Source};
use serde::Deserialize;

use super::problem::FieldError;

/// The type that listeners can use.
pub const TLS: &str = "kubernetes.io/tls";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Texts by name that nobody shows.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Hidden(BTreeMap<String, String>);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A secret.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Name, namespace, labels, annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it holds; `Opaque` where nothing is said.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// In base64.
    #[serde(default)]
    pub data: Hidden,
    /// As they are. Goes before `data`.
    #[serde(default)]
    pub string_data: Hidden,
    /// Of no meaning here.
    #[serde(default)]
    pub immutable: Option<bool>,
}

/// A certificate and its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, then intermediates.
    pub certificate: Vec<u8>,
    /// The private key.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

impl Secret {
    /// Whether it is of the type that listeners can use.
    pub fn is_tls(&self) -> bool {
        self.kind.as_deref() == Some(TLS)
    }

    /// The certificate and its key.
    ///
    /// # Errors
    /// When one is missing, or the two cannot be used together.
    pub fn pair(&self) -> Result<Pair, FieldError> {
        let pair = Pair { certificate: self.value(CERTIFICATE)?, key: self.value(KEY)? };
        let inline = |bytes: &[u8]| Source::Inline(bytes.into());
        let identity = Identity { chain: inline(&pair.certificate), key: inline(&pair.key), secret: None };
        match identity.load() {
            Ok(_) => Ok(pair),
            Err(unusable) => Err(FieldError::new("data", "invalid_value", unusable.to_string())),
        }
    }

    fn value(&self, name: &str) -> Result<Vec<u8>, FieldError> {
        if let Some(text) = self.string_data.0.get(name) {
            return Ok(text.clone().into_bytes());
        }
        let missing = || FieldError::new("data", "missing_field", format!("{name} is missing"));
        let text = self.data.0.get(name).ok_or_else(missing)?;
        let folded: String = text.split_whitespace().collect();
        STANDARD.decode(folded).map_err(|error| {
            FieldError::new("data", "invalid_value", format!("{name} is not base64: {error}"))
        })
    }
}

/// What is wrong with a secret by itself.
pub(super) fn check(secret: &Secret) -> Vec<FieldError> {
    if secret.is_tls() { secret.pair().err().into_iter().collect() } else { Vec::new() }
}
