//! What refers to what, in one form for all kinds: a route's parents, a rule's backends, and which references into
//! another namespace are granted there.

use gateway_api::experimental::{httproutes, tcproutes};
use gateway_api::{grpcroutes, tlsroutes};
use serde::Serialize;

use crate::objects::problem::FieldError;
use crate::objects::{Kind, ObjectName, Objects, ReferenceGrant, in_namespace};

/// The group of the Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// A route's parent, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// Absent: the Gateway API's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Absent: `Gateway`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Absent: the route's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The parent's name.
    pub name: String,
    /// A listener by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Listeners by port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// Where a rule sends requests to, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backend<'o> {
    pub(super) group: Option<&'o str>,
    pub(super) kind: Option<&'o str>,
    pub(super) namespace: Option<&'o str>,
    pub(super) name: &'o str,
    pub(super) port: Option<i32>,
    pub(super) weight: Option<i32>,
}

macro_rules! parents {
    ($($written:ty),*) => {$(
        impl From<&$written> for Parent {
            fn from(written: &$written) -> Self {
                Parent {
                    group: written.group.clone(),
                    kind: written.kind.clone(),
                    namespace: written.namespace.clone(),
                    name: written.name.clone(),
                    section_name: written.section_name.clone(),
                    port: written.port,
                }
            }
        }
    )*};
}

parents!(
    httproutes::HttpRouteParentRefs,
    grpcroutes::GrpcRouteParentRefs,
    tlsroutes::TlsRouteParentRefs,
    tcproutes::TcpRouteParentRefs
);

macro_rules! backends {
    (|$of:ident| $weight:expr; $($written:ty),*) => {$(
        impl<'o> From<&'o $written> for Backend<'o> {
            fn from($of: &'o $written) -> Self {
                Backend {
                    group: $of.group.as_deref(),
                    kind: $of.kind.as_deref(),
                    namespace: $of.namespace.as_deref(),
                    name: &$of.name,
                    port: $of.port,
                    weight: $weight,
                }
            }
        }
    )*};
}

backends!(
    |written| written.weight;
    httproutes::HttpRouteRulesBackendRefs,
    grpcroutes::GrpcRouteRulesBackendRefs,
    tlsroutes::TlsRouteRulesBackendRefs,
    tcproutes::TcpRouteRulesBackendRefs
);

// What mirrors name has no weight.
backends!(
    |written| None;
    httproutes::HttpRouteRulesFiltersRequestMirrorBackendRef,
    grpcroutes::GrpcRouteRulesFiltersRequestMirrorBackendRef
);

/// Whether an object of `kind` in `namespace` may refer to another: in its own namespace always, elsewhere where a
/// `ReferenceGrant` there says so.
///
/// # Errors
/// `RefNotPermitted`, of the field `{field}.namespace`.
pub(super) fn permitted(
    objects: &Objects,
    (kind, namespace): (Kind, &str),
    (group, target_kind, target): (&str, &str, &ObjectName),
    field: &str,
) -> Result<(), FieldError> {
    let from_group = kind.api_version().split_once('/').map_or("", |(group, _)| group);
    let is_granted = |grant: &ReferenceGrant| {
        let from = grant.spec.from.iter().any(|from| {
            from.group == from_group && from.kind == kind.as_str() && from.namespace == namespace
        });
        from && grant.spec.to.iter().any(|to| {
            let named = to.name.as_deref().is_none_or(|name| name.is_empty() || name == &*target.name);
            to.group == group && to.kind == target_kind && named
        })
    };
    let mut grants = in_namespace(&objects.grants, &target.namespace);
    if *target.namespace == *namespace || grants.any(|(_, grant)| is_granted(grant)) {
        return Ok(());
    }
    let a = if kind == Kind::Ingress { "an" } else { "a" };
    let message = format!(
        "{target_kind} {target} is in another namespace, and no ReferenceGrant there lets {a} {kind} of {namespace} \
         refer to it"
    );
    Err(FieldError::new(format!("{field}.namespace"), "RefNotPermitted", message))
}

/// What is to be said where a field refers to what is in force as it was, if it is refused as it is now.
pub(super) fn outdated(objects: &Objects, kind: Kind, name: &ObjectName, field: &str) -> Option<FieldError> {
    let why = objects.why_refused(kind, name)?;
    let message =
        format!("{kind} {name} cannot be used as it is now ({why}); the last good version is served");
    Some(FieldError::new(field, "Outdated", message))
}
