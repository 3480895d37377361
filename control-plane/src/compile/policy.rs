//! `BackendTLSPolicy`: how the endpoints of a service are spoken to over TLS, and what is said of the policies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gateway_api::backendtlspolicies::BackendTlsPolicyValidationSubjectAltNamesType as NameType;

use super::INVALID;
use super::hostname::Hostname;
use super::standing::{AncestorStanding, Said, Standings, ancestor};
use super::status::{ConditionType, Statuses};
use super::trust::{self, Authority};
use crate::model::upstream::{EndpointName, Tls, Upstream};
use crate::objects::problem::FieldError;
use crate::objects::{BackendTlsPolicy, Kind, ObjectName, ObjectRef, Objects, in_namespace};

/// The endpoints expect TLS, and no policy says how it is spoken.
pub(super) const NO_POLICY: &str = "UnsupportedProtocol";

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) name: ObjectName,
}

impl Target {
    /// Of a kind that is a backend here.
    pub(super) fn new(kind: &str, name: ObjectName) -> Self {
        Self { group: group_of(kind).to_owned(), kind: kind.to_owned(), name }
    }
}

/// The group of a kind that is a backend here.
fn group_of(kind: &str) -> &'static str {
    if kind == "Service" { "" } else { "pontoon.dev" }
}

/// What a policy says, and what is wrong with it.
struct Read {
    /// `Err`: requests cannot be sent.
    tls: Result<Tls, FieldError>,
    unresolved: Vec<FieldError>,
}

/// The policy in force for a backend; `port` is as a reference has it.
pub(super) fn of_backend<'o>(
    objects: &'o Objects,
    (kind, name): (&str, &ObjectName),
    port: Option<u16>,
) -> Option<(&'o ObjectName, &'o Arc<BackendTlsPolicy>)> {
    // A policy may be for a port of a Service alone, which it calls by its name.
    let service = objects.services.get(name).filter(|_| kind == "Service");
    let section = service.and_then(|service| service.port(port).ok()).map(|port| &*port.name);
    let of = |wanted: Option<&str>| in_force(objects, (group_of(kind), kind), name, wanted);
    section.and_then(|section| of(Some(section))).or_else(|| of(None))
}

/// The `appProtocol` by which a backend's endpoints expect TLS.
fn expected_tls<'o>(
    objects: &'o Objects,
    (kind, name): (&str, &ObjectName),
    port: Option<u16>,
) -> Option<&'o str> {
    let (service, port) = if kind == "Pool" {
        let of = objects.pools.get(name)?.spec.service.as_ref()?;
        (ObjectName::new(name.namespace.clone(), of.name.as_str()), of.port)
    } else {
        (name.clone(), port)
    };
    let service = objects.services.get(&service).filter(|service| service.external_name.is_none())?;
    let protocol = service.port(port).ok()?.app_protocol.as_deref()?;
    matches!(protocol, "https" | "kubernetes.io/wss").then_some(protocol)
}

/// An upstream as the policy in force for its backend says, where there is one. Where the policy cannot be met nobody
/// is spoken to: not without what it asks for. Nor are those endpoints that expect TLS where no policy says whose
/// certificates count.
pub(super) fn apply(
    objects: &Objects,
    upstream: Upstream,
    target: (&str, &ObjectName),
    port: Option<u16>,
) -> Result<Upstream, FieldError> {
    let Some((name, policy)) = of_backend(objects, target, port) else {
        let Some(protocol) = expected_tls(objects, target, port) else { return Ok(upstream) };
        let message = format!(
            "{} {} is of appProtocol {protocol}: it needs a BackendTLSPolicy, which says whose certificates count",
            target.0, target.1
        );
        return Err(FieldError::new("", NO_POLICY, message));
    };
    let tls = read(objects, name, policy).tls.map_err(|error| {
        let message = format!(
            "{} {} is behind BackendTLSPolicy {name}, which cannot be met: {}: {}",
            target.0, target.1, error.field, error.message
        );
        FieldError::new("", "InvalidBackendTLSPolicy", message)
    })?;
    Ok(upstream.behind(tls))
}

fn targets<'p>(
    policy: &'p BackendTlsPolicy,
    name: &'p ObjectName,
) -> impl Iterator<Item = (Target, Option<&'p str>)> {
    policy.spec.target_refs.iter().map(|target| {
        let of = ObjectName::new(name.namespace.clone(), target.name.as_str());
        let of = Target { group: target.group.clone(), kind: target.kind.clone(), name: of };
        (of, target.section_name.as_deref())
    })
}

/// Of several policies for one backend (and port) the oldest counts, then the first by name.
fn in_force<'o>(
    objects: &'o Objects,
    (group, kind): (&str, &str),
    target: &ObjectName,
    section: Option<&str>,
) -> Option<(&'o ObjectName, &'o Arc<BackendTlsPolicy>)> {
    // What it is for is of its own namespace.
    let policies = in_namespace(&objects.backend_tls_policies, &target.namespace);
    let meant = policies.filter(|(_, policy)| {
        policy.spec.target_refs.iter().any(|of| {
            of.group == group
                && of.kind == kind
                && *of.name == *target.name
                && of.section_name.as_deref() == section
        })
    });
    meant.min_by_key(|(name, policy)| {
        (policy.metadata.creation_timestamp.as_ref().map_or(jiff::Timestamp::MAX, |time| time.0), *name)
    })
}

fn read(objects: &Objects, name: &ObjectName, policy: &BackendTlsPolicy) -> Read {
    const FIELD: &str = "spec.validation";
    let validation = &policy.spec.validation;
    let mut unresolved = Vec::new();
    let tls = (|| {
        let unsupported = |name: &str, message: &str| {
            FieldError::new(format!("{FIELD}.{name}"), "UnsupportedValue", message.to_owned())
        };
        if validation.well_known_ca_certificates.is_some() {
            let message = "name the authorities in caCertificateRefs; there are no well-known ones here";
            // The API's own reason for it.
            return Err(FieldError { reason: "Invalid", ..unsupported("wellKnownCACertificates", message) });
        }
        if policy.spec.options.as_ref().is_some_and(|options| !options.is_empty()) {
            return Err(FieldError::new("spec.options", "UnsupportedValue", "there are no options here"));
        }
        let Ok(Hostname::Exact(hostname)) = Hostname::parse(Some(&validation.hostname)) else {
            let message = "expected the endpoints' name, such as shop.example.com";
            return Err(FieldError::new(format!("{FIELD}.hostname"), INVALID, message));
        };
        let references = validation.ca_certificate_refs.iter().flatten().map(|reference| Authority {
            group: &reference.group,
            kind: &reference.kind,
            name: &reference.name,
            namespace: None,
        });
        let references: Vec<_> = references.collect();
        let from = (Kind::BackendTlsPolicy, &*name.namespace);
        let (authorities, errors) = trust::authorities(objects, from, &references, FIELD);
        unresolved = errors;
        let Some(authorities) = authorities else {
            let message = "endpoints' certificates cannot be checked, so nothing is sent to them";
            return Err(FieldError::new(
                format!("{FIELD}.caCertificateRefs"),
                "NoValidCACertificate",
                message,
            ));
        };
        let names = validation.subject_alt_names.iter().flatten().enumerate().map(|(index, of)| {
            let (name, field) = match of.r#type {
                NameType::Hostname => (of.hostname.clone().map(EndpointName::Dns), "hostname"),
                NameType::Uri => (of.uri.clone().map(EndpointName::Uri), "uri"),
            };
            name.ok_or_else(|| {
                let at = format!("{FIELD}.subjectAltNames[{index}].{field}");
                FieldError::new(at, INVALID, "is missing")
            })
        });
        let names = names.collect::<Result<Vec<_>, _>>()?;
        Ok(Tls { policy: name.to_string().into(), hostname, authorities: authorities.into(), names })
    })();
    Read { tls, unresolved }
}

/// Says of each policy how it stands with the gateways whose routes name its backends.
pub(super) fn stand(
    objects: &Objects,
    used_by: &BTreeMap<Target, BTreeSet<ObjectName>>,
    statuses: &mut Statuses,
    standings: &mut Standings,
) {
    for (name, policy) in &objects.backend_tls_policies {
        let object = ObjectRef { kind: Kind::BackendTlsPolicy, name: name.clone() };
        let Read { tls, unresolved } = read(objects, name, policy);
        let mut refused = tls.err();
        for (index, (Target { group, kind, name: target }, section)) in targets(policy, name).enumerate() {
            let field = format!("spec.targetRefs[{index}]");
            if !matches!((group.as_str(), kind.as_str()), ("", "Service") | ("pontoon.dev", "Pool")) {
                let message = "expected a Service, or a Pool of group pontoon.dev";
                refused.get_or_insert_with(|| FieldError::new(field.clone(), "TargetNotFound", message));
            }
            let first = in_force(objects, (&group, &kind), &target, section);
            if let Some((first, _)) = first.filter(|(first, _)| *first != name) {
                let message =
                    format!("BackendTLSPolicy {first} is for the same {kind}, and older; it is in force");
                refused.get_or_insert_with(|| FieldError::new(field, "Conflicted", message));
            }
        }
        if let Some(error) = &refused {
            statuses.refuse(&object, ConditionType::Accepted, error.clone());
        }
        for error in &unresolved {
            statuses.refuse(&object, ConditionType::ResolvedRefs, error.clone());
        }
        let gateways: BTreeSet<&ObjectName> =
            targets(policy, name).filter_map(|(target, _)| used_by.get(&target)).flatten().collect();
        let of = gateways.into_iter().map(|gateway| AncestorStanding {
            ancestor_ref: ancestor(gateway),
            conditions: vec![
                Said::unless("Accepted", "Accepted", &refused),
                Said::unless("ResolvedRefs", "ResolvedRefs", &unresolved),
            ],
        });
        let ancestors: Vec<_> = of.collect();
        if !ancestors.is_empty() {
            standings.policies.insert(name.clone(), ancestors);
        }
    }
}
