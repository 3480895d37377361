//! Which routes hang on which listeners, of whatever kind they are.

use std::collections::BTreeMap;

use super::INVALID;
use super::gateway::Gateways;
use super::hostname::Hostname;
use super::listener::{Parsed, Protocol, Served};
use super::mesh;
use super::reference::{GATEWAY_GROUP, Parent};
use crate::objects::problem::{FieldError, did_you_mean};
use crate::objects::{Kind, ObjectName, ObjectRef, Objects};

/// A route, as far as it matters where it hangs.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) route: ObjectRef,
    pub(super) parents: Vec<Parent>,
    pub(super) hostnames: Vec<Hostname>,
}

/// A route on a listener.
#[derive(Debug, Clone)]
pub(super) struct Attachment {
    pub(super) route: ObjectRef,
    /// Into [`Parsed::listeners`].
    pub(super) listener: usize,
    /// The hosts that listener and route have in common.
    pub(super) hostnames: Vec<Hostname>,
}

impl Attachment {
    /// Whether its listener ends TLS and passes on what is in it.
    pub(super) fn ends_tls(&self, gateway: &Parsed) -> bool {
        let served = gateway.listeners.get(self.listener);
        served.is_some_and(|served| served.protocol == Protocol::TlsTerminate)
    }
}

/// By gateway.
pub(super) type Attachments = BTreeMap<ObjectName, Vec<Attachment>>;

/// What became of one parent of a route.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) parent: Parent,
    /// Whether it is a gateway of ours or a Service, so that it is ours to say something.
    pub(super) is_ours: bool,
    /// It hangs on a listener that ends TLS and passes on what is in it.
    pub(super) ends_tls: bool,
    pub(super) result: Result<(), FieldError>,
}

/// The hosts that a route is for, and what is no hostname.
pub(super) fn hostnames(written: &[String]) -> (Vec<Hostname>, Vec<FieldError>) {
    if written.is_empty() {
        return (vec![Hostname::Any], Vec::new());
    }
    let (mut hostnames, mut errors) = (Vec::new(), Vec::new());
    for (index, text) in written.iter().enumerate() {
        match Hostname::parse(Some(text)) {
            Ok(hostname) => hostnames.push(hostname),
            Err(message) => {
                errors.push(FieldError::new(format!("spec.hostnames[{index}]"), INVALID, message));
            }
        }
    }
    (hostnames, errors)
}

/// Finds the listeners of a route's parents, and the ports of those that are Services.
pub(super) fn attach(
    objects: &Objects,
    gateways: &Gateways,
    candidate: &Candidate,
    attachments: &mut Attachments,
    of_services: &mut mesh::Attached,
) -> Vec<Outcome> {
    let numbered = candidate.parents.iter().enumerate();
    let outcomes = numbered.map(|(index, parent)| {
        let field = format!("spec.parentRefs[{index}]");
        if mesh::is_service(parent) {
            let result = mesh::attach(objects, &candidate.route, parent, &field, of_services);
            let is_ours = mesh::is_ours(objects, &candidate.route);
            return Outcome { parent: parent.clone(), is_ours, ends_tls: false, result };
        }
        let found = gateway_of(objects, gateways, &candidate.route.name, parent, &field);
        let is_ours = found.is_ok();
        let mut ends_tls = false;
        let result = found.and_then(|(name, gateway, set)| {
            let found = on_gateway(objects, candidate, parent, (&name, gateway, set.as_ref()), &field)?;
            ends_tls = found.iter().any(|attachment| attachment.ends_tls(gateway));
            attachments.entry(name).or_default().extend(found);
            Ok(())
        });
        Outcome { parent: parent.clone(), is_ours, ends_tls, result }
    });
    outcomes.collect()
}

/// The gateway that a parent is, or that it belongs to as a set of listeners.
fn gateway_of<'g>(
    objects: &Objects,
    gateways: &'g Gateways,
    route: &ObjectName,
    parent: &Parent,
    field: &str,
) -> Result<(ObjectName, &'g Parsed, Option<ObjectRef>), FieldError> {
    let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    let name = ObjectName::new(namespace, parent.name.as_str());
    let no_parent = |message: String| FieldError::new(format!("{field}.name"), "NoMatchingParent", message);
    match (group, kind) {
        (GATEWAY_GROUP, "Gateway") => match gateways.get(&name) {
            Some(gateway) => Ok((name, gateway, None)),
            None if objects.gateways.contains_key(&name) => {
                Err(no_parent(format!("Gateway {name} is of another class")))
            }
            None => {
                // What there is in other namespaces is not told.
                let is_own = name.namespace == route.namespace;
                let known = objects.gateways.keys().filter(|k| is_own && k.namespace == name.namespace);
                let hint = did_you_mean(&parent.name, known.map(|k| &*k.name))
                    .map_or(String::new(), |meant| format!("; did you mean {meant}?"));
                Err(no_parent(format!("there is no Gateway {name}{hint}")))
            }
        },
        (GATEWAY_GROUP, "ListenerSet") => {
            let owner = gateways.iter().find(|(_, parsed)| parsed.sets.contains_key(&name));
            let (gateway, parsed) = owner
                .ok_or_else(|| no_parent(format!("there is no ListenerSet {name} of a gateway of ours")))?;
            Ok((gateway.clone(), parsed, Some(ObjectRef { kind: Kind::ListenerSet, name })))
        }
        _ => {
            let message = format!(
                "a parent of kind {kind} in group {group:?} is not supported; expected a Gateway, a ListenerSet, or a Service \
                 of group \"\""
            );
            Err(FieldError::new(format!("{field}.kind"), "InvalidKind", message))
        }
    }
}

fn on_gateway(
    objects: &Objects,
    candidate: &Candidate,
    parent: &Parent,
    (name, gateway, set): (&ObjectName, &Parsed, Option<&ObjectRef>),
    field: &str,
) -> Result<Vec<Attachment>, FieldError> {
    let own = ObjectRef { kind: Kind::Gateway, name: name.clone() };
    let owner = set.unwrap_or(&own);
    let of_owner = || {
        let all = gateway.listeners.iter().enumerate();
        all.filter(|(_, served)| served.parent == *owner && served.is_accepted())
    };
    let wanted = |served: &Served| {
        parent.section_name.as_deref().is_none_or(|section| section == served.name)
            && parent.port.is_none_or(|port| port == i32::from(served.port))
    };
    let Candidate { route, hostnames, .. } = candidate;
    let allowed = |served: &Served| served.allows(objects, route.kind, &route.name.namespace);
    let matching = of_owner().filter(|(_, served)| wanted(served)).collect::<Vec<_>>();
    if matching.is_empty() {
        // Of those that it may not hang on it is not told.
        let names = of_owner().filter(|(_, served)| allowed(served));
        let names: Vec<_> = names.map(|(_, served)| format!("{}:{}", served.name, served.port)).collect();
        let hint = match names.is_empty() {
            true => String::new(),
            false => format!("; it serves {}", names.join(", ")),
        };
        let message = format!("{owner} serves no listener with that sectionName and port{hint}");
        return Err(FieldError::new(field, "NoMatchingParent", message));
    }
    if !matching.iter().any(|(_, served)| allowed(served)) {
        let message = match matching.iter().any(|(_, served)| served.kinds.contains(&route.kind)) {
            true => format!("the listeners of {owner} allow no routes of namespace {}", route.name.namespace),
            false => format!("the listeners of {owner} allow no {}", route.kind),
        };
        return Err(FieldError::new(field, "NotAllowedByListeners", message));
    }
    let found = matching
        .into_iter()
        .filter(|(_, served)| allowed(served))
        .filter_map(|(listener, served)| {
            let common = hostnames.iter().filter_map(|hostname| served.hostname.intersection(hostname));
            let hostnames = common.collect::<Vec<_>>();
            (!hostnames.is_empty()).then(|| Attachment { route: route.clone(), listener, hostnames })
        })
        .collect::<Vec<_>>();
    if found.is_empty() {
        let message = format!("no hostname of the route is one of a listener of {owner}");
        return Err(FieldError::new("spec.hostnames", "NoMatchingListenerHostname", message));
    }
    Ok(found)
}
