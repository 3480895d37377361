//! Which routes hang on which listeners, and what a gateway's proxies get of it: per socket one listener and
//! one route configuration, of virtual hosts that answer as the Gateway API's precedence says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use gateway_api::httproutes::HttpRouteParentRefs;

use super::INVALID;
use super::hostname::Hostname;
use super::listener::{self, CONTROLLER, GATEWAY_CLASS, Parsed, Served};
use super::route;
use super::status::{ConditionType, Statuses};
use super::tls;
use crate::objects::problem::{FieldError, did_you_mean};
use crate::objects::secret::TLS;
use crate::objects::{HttpRoute, Kind, ObjectName, ObjectRef, Objects};

/// The gateways of our class.
pub(super) type Gateways = BTreeMap<ObjectName, Parsed>;

/// A route on a listener.
#[derive(Debug, Clone)]
pub(super) struct Attachment {
    pub(super) route: ObjectName,
    /// Into [`Parsed::listeners`].
    pub(super) listener: usize,
    /// The hosts that listener and route have in common.
    pub(super) hostnames: Vec<Hostname>,
}

/// Reads all gateways.
pub(super) fn parse_all(objects: &Objects, statuses: &mut Statuses) -> Gateways {
    let mut gateways = Gateways::new();
    for (name, gateway) in &objects.gateways {
        let object = ObjectRef { kind: Kind::Gateway, name: name.clone() };
        if !is_ours(objects, &gateway.spec.gateway_class_name) {
            let message = format!(
                "not served here: gatewayClassName is neither {GATEWAY_CLASS} nor a GatewayClass of controllerName \
                 {CONTROLLER}"
            );
            let error = FieldError::new("spec.gatewayClassName", "OtherClass", message);
            statuses.refuse(&object, ConditionType::Effective, error);
            continue;
        }
        let mut parsed = listener::parse(gateway);
        for error in std::mem::take(&mut parsed.errors) {
            statuses.refuse(&object, ConditionType::Accepted, error);
        }
        find_certificates(objects, &object, &mut parsed, statuses);
        gateways.insert(name.clone(), parsed);
    }
    gateways
}

/// Whether a class is ours: its object says so, and where there is none its name.
pub fn is_ours(objects: &Objects, class: &str) -> bool {
    match objects.gateway_classes.get(&ObjectName::new("", class)) {
        Some(object) => object.spec.controller_name == CONTROLLER,
        None => class == GATEWAY_CLASS,
    }
}

/// Looks up the secrets that listeners refer to. A listener without its certificate is not served.
fn find_certificates(objects: &Objects, object: &ObjectRef, parsed: &mut Parsed, statuses: &mut Statuses) {
    parsed.listeners.retain_mut(|served| {
        let mut complete = true;
        for certificate in &mut served.certificates {
            let found = match objects.secrets.get(&certificate.secret) {
                None => Err(format!("there is no Secret {}", certificate.secret)),
                Some(secret) if !secret.is_tls() => Err(format!("expected a Secret of type {TLS}")),
                Some(secret) => secret.pair().map_err(|error| error.message),
            };
            match found {
                Ok(pair) => certificate.pair = Some(pair),
                Err(message) => {
                    let error = FieldError::new(certificate.field.clone(), "InvalidCertificateRef", message);
                    statuses.refuse(object, ConditionType::ResolvedRefs, error);
                    complete = false;
                }
            }
        }
        complete
    });
}

/// How many routes hang on each listener that is served.
pub(super) fn attached(
    gateways: &Gateways,
    attachments: &BTreeMap<ObjectName, Vec<Attachment>>,
) -> BTreeMap<(ObjectName, String), usize> {
    let mut routes: BTreeMap<(ObjectName, String), BTreeSet<&ObjectName>> = BTreeMap::new();
    for (gateway, attached) in attachments {
        let Some(parsed) = gateways.get(gateway) else { continue };
        for Attachment { route, listener, .. } in attached {
            if let Some(served) = parsed.listeners.get(*listener) {
                routes.entry((gateway.clone(), served.name.clone())).or_default().insert(route);
            }
        }
    }
    routes.into_iter().map(|(listener, routes)| (listener, routes.len())).collect()
}

/// Finds the listeners of a route's parents, by gateway.
pub(super) fn attach(
    objects: &Objects,
    gateways: &Gateways,
    name: &ObjectName,
    route: &HttpRoute,
    attachments: &mut BTreeMap<ObjectName, Vec<Attachment>>,
) -> Vec<(ConditionType, FieldError)> {
    let mut errors = Vec::new();
    let (hostnames, wrong) = hostnames(route);
    errors.extend(wrong.into_iter().map(|error| (ConditionType::Accepted, error)));
    let parents = route.spec.parent_refs.as_deref().unwrap_or_default();
    if parents.is_empty() {
        let message = "the route names no gateway, so nothing uses it";
        errors.push((ConditionType::Effective, FieldError::new("spec.parentRefs", "NoParent", message)));
    }
    for (index, parent) in parents.iter().enumerate() {
        let field = format!("spec.parentRefs[{index}]");
        match attach_one(objects, gateways, name, parent, &hostnames, &field) {
            Ok((gateway, found)) => attachments.entry(gateway).or_default().extend(found),
            Err(error) => errors.push((ConditionType::Accepted, error)),
        }
    }
    errors
}

/// The hosts that a route is for, and what is no hostname.
pub(super) fn hostnames(route: &HttpRoute) -> (Vec<Hostname>, Vec<FieldError>) {
    let written = route.spec.hostnames.as_deref().unwrap_or_default();
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

fn attach_one(
    objects: &Objects,
    gateways: &Gateways,
    route: &ObjectName,
    parent: &HttpRouteParentRefs,
    hostnames: &[Hostname],
    field: &str,
) -> Result<(ObjectName, Vec<Attachment>), FieldError> {
    let group = parent.group.as_deref().unwrap_or("gateway.networking.k8s.io");
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    if (group, kind) != ("gateway.networking.k8s.io", "Gateway") {
        let message =
            format!("a parent of kind {kind} in group {group:?} is not supported; expected a Gateway");
        return Err(FieldError::new(format!("{field}.kind"), "InvalidKind", message));
    }
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    let name = ObjectName::new(namespace, parent.name.as_str());
    let Some(gateway) = gateways.get(&name) else {
        let message = match objects.gateways.contains_key(&name) {
            true => format!("Gateway {name} is of another class"),
            false => {
                let known = objects.gateways.keys().filter(|k| k.namespace == name.namespace);
                let hint = did_you_mean(&parent.name, known.map(|k| &*k.name))
                    .map_or(String::new(), |meant| format!("; did you mean {meant}?"));
                format!("there is no Gateway {name}{hint}")
            }
        };
        return Err(FieldError::new(format!("{field}.name"), "NoMatchingParent", message));
    };
    let wanted = |served: &Served| {
        parent.section_name.as_deref().is_none_or(|section| section == served.name)
            && parent.port.is_none_or(|port| port == i32::from(served.port))
    };
    let matching =
        gateway.listeners.iter().enumerate().filter(|(_, served)| wanted(served)).collect::<Vec<_>>();
    if matching.is_empty() {
        let names = gateway.listeners.iter().map(|served| format!("{}:{}", served.name, served.port));
        let message = format!(
            "Gateway {name} serves no listener with that sectionName and port; it serves {}",
            names.collect::<Vec<_>>().join(", ")
        );
        return Err(FieldError::new(field, "NoMatchingParent", message));
    }
    let allowed =
        |served: &Served| served.http_routes && (served.all_namespaces || namespace == &*route.namespace);
    if !matching.iter().any(|(_, served)| allowed(served)) {
        let message = format!("the listeners of Gateway {name} allow routes of their own namespace only");
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
        let message = format!("no hostname of the route is one of a listener of Gateway {name}");
        return Err(FieldError::new("spec.hostnames", "NoMatchingListenerHostname", message));
    }
    Ok((name, found))
}

/// What a gateway's proxies get, but for clusters.
#[derive(Debug, Clone, Default)]
pub(super) struct Output {
    pub(super) listeners: Vec<Listener>,
    /// By name: listeners may share one.
    pub(super) secrets: BTreeMap<String, Secret>,
    pub(super) routes: Vec<RouteConfiguration>,
    /// By route configuration: the `HTTPRoute`s in it.
    pub(super) members: BTreeMap<String, BTreeSet<ObjectName>>,
}

/// Builds a gateway's listeners and route configurations.
pub(super) fn build(
    name: &ObjectName,
    parsed: &Parsed,
    attachments: &[Attachment],
    routes: &BTreeMap<ObjectName, route::Compiled>,
) -> Output {
    let mut output = Output::default();
    let Some(ip) = parsed.ip else { return output };
    let mut ports: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for (index, served) in parsed.listeners.iter().enumerate() {
        ports.entry(served.port).or_default().push(index);
    }
    for (port, indices) in ports {
        // Listeners of one port share its socket, under the name of the first.
        let sharing: Vec<(&Served, String)> = indices
            .iter()
            .filter_map(|index| parsed.listeners.get(*index))
            .map(|served| (served, format!("{name}/{}", served.name)))
            .collect();
        let Some((first, resource)) = sharing.first() else { continue };
        output.listeners.push(listener::listener(resource, SocketAddr::new(ip, port), &sharing));
        let certificates = sharing.iter().flat_map(|(served, _)| &served.certificates);
        let secrets = certificates.filter_map(tls::secret);
        output.secrets.extend(secrets.map(|secret| (secret.name.clone(), secret)));
        // In plain text they share the routes too; under TLS each connection is one listener's.
        let apart = !first.certificates.is_empty();
        for (index, (_, resource)) in indices.iter().zip(&sharing).take(if apart { sharing.len() } else { 1 })
        {
            let only = apart.then_some(*index);
            let on_port = attachments.iter().filter(|a| indices.contains(&a.listener)).collect::<Vec<_>>();
            let own = on_port.iter().filter(|attachment| only.is_none_or(|only| attachment.listener == only));
            output.members.insert(resource.clone(), own.map(|attachment| attachment.route.clone()).collect());
            output.routes.push(RouteConfiguration {
                name: resource.clone(),
                virtual_hosts: virtual_hosts(&parsed.listeners, &indices, only, &on_port, routes),
                ignore_port_in_host_matching: true,
                ..RouteConfiguration::default()
            });
        }
    }
    output
}

/// What answers a request for a host of another listener than that whose name the client gave under TLS: another
/// connection is the right one (RFC 9110, 15.5.20).
fn misdirected() -> Route {
    Route {
        name: "misdirected".to_owned(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::DirectResponse(DirectResponseAction {
            status: 421,
            ..DirectResponseAction::default()
        })),
        ..Route::default()
    }
}

/// One virtual host a hostname. A host belongs to the most specific listener that covers it, and to no other;
/// its routes are those of every hostname that covers it, the most specific hostname's first. Where `only` one of the
/// listeners is asked for, hosts of the others are misdirected.
fn virtual_hosts(
    listeners: &[Served],
    indices: &[usize],
    only: Option<usize>,
    attachments: &[&Attachment],
    routes: &BTreeMap<ObjectName, route::Compiled>,
) -> Vec<VirtualHost> {
    let own = || indices.iter().filter_map(|index| Some((*index, listeners.get(*index)?)));
    let mut hosts = own().map(|(_, served)| served.hostname.clone()).collect::<BTreeSet<_>>();
    hosts.extend(attachments.iter().flat_map(|attachment| attachment.hostnames.iter().cloned()));
    let mut by_specificity = hosts.into_iter().collect::<Vec<_>>();
    by_specificity.sort_by(|a, b| a.specificity().cmp(&b.specificity()).then_with(|| a.cmp(b)));

    let mut virtual_hosts = Vec::with_capacity(by_specificity.len());
    for host in &by_specificity {
        let owner = own()
            .filter(|(_, served)| served.hostname.covers(host))
            .min_by_key(|(_, served)| served.hostname.specificity())
            .map(|(index, _)| index);
        let mut included = BTreeSet::new();
        let mut ordered = Vec::new();
        for covering in by_specificity.iter().filter(|covering| covering.covers(host)) {
            let mut entries = attachments
                .iter()
                .filter(|a| Some(a.listener) == owner && a.hostnames.contains(covering))
                .filter(|a| included.insert(&a.route))
                .filter_map(|a| routes.get(&a.route))
                .flat_map(|compiled| &compiled.entries)
                .collect::<Vec<_>>();
            entries.sort_by(|a, b| a.order.cmp(&b.order));
            ordered.extend(entries.into_iter().flat_map(|entry| entry.routes.iter().cloned()));
        }
        if only.is_some() && owner != only {
            ordered = vec![misdirected()];
        }
        let domain = host.domain();
        virtual_hosts.push(VirtualHost {
            name: domain.clone(),
            domains: vec![domain],
            routes: ordered,
            ..VirtualHost::default()
        });
    }
    virtual_hosts
}
