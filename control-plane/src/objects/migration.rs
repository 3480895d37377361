//! `Migration`: one service on its way from a legacy pool to a target pool.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::Duration;
use super::pool::{EurekaSource, ServiceSource};
pub use crate::migration::stage::Stage;

/// All of a weight: weights count hundredths of a percent.
pub const WHOLE: u16 = 10_000;

/// One service that moves from `legacy` to `target`.
///
/// The object says what the two sides are and how users are told apart. Which stage and weight are in force
/// is the control plane's state, changed by `pontoon migration set`; `stage` and `weight` here are where a new
/// migration starts, and a later change of them here acts as that command does.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "pontoon.dev", version = "v1alpha1", kind = "Migration", plural = "migrations", namespaced)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase")]
pub struct MigrationSpec {
    /// The service's name as routes name it (`backendRefs` of kind `Service`).
    pub service: String,
    /// Serves now, and can take everything back at any time.
    pub legacy: Side,
    /// Is to serve.
    pub target: Side,
    /// What tells users apart, so that each stays on one side; needed for stage `split`. A request without it
    /// goes to either side at random, by the weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// Requests that match any of these go to `target` from stage `canary` on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub canary: Vec<CanaryMatch>,
    /// The stage that a new migration starts in. Default: `observe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// The weight that a new migration starts with, in hundredths of a percent. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub weight: Option<u16>,
}

/// One side of a migration. Exactly one of the three is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("oneOf" = [{"required": ["eureka"]}, {"required": ["pool"]}, {"required": ["service"]}]))]
pub struct Side {
    /// The instances of a Eureka application; with a `selector` where both sides register under one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eureka: Option<EurekaSource>,
    /// The name of a `Pool` in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// A Kubernetes Service of the same namespace, port by port and pod by pod. Known in Kubernetes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSource>,
}

/// What tells users apart. Exactly one of the two is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("oneOf" = [{"required": ["header"]}, {"required": ["cookie"]}]))]
pub struct Key {
    /// A request header that names the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// A cookie that names the user or the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<KeyCookie>,
}

/// A cookie as the key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyCookie {
    /// The cookie's name.
    pub name: String,
    /// With a `ttl`, the proxy makes the cookie where it is missing and lets it live this long (`0s`: until
    /// the browser closes). Without one, only a cookie that the application sets is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
}

/// Chosen users. Exactly one of the two is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("oneOf" = [{"required": ["header"]}, {"required": ["cookie"]}]))]
pub struct CanaryMatch {
    /// By a request header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderMatch>,
    /// By a cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<CookieMatch>,
}

/// A header and what it must be. Exactly one of `value` and `regex` is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("oneOf" = [{"required": ["value"]}, {"required": ["regex"]}]))]
pub struct HeaderMatch {
    /// The header's name; compared without case.
    pub name: String,
    /// The whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// A regular expression (RE2 syntax) that the whole value matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// A cookie and the value it must have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CookieMatch {
    /// The cookie's name.
    pub name: String,
    /// The whole value.
    pub value: String,
}
