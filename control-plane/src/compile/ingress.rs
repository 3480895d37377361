//! `Ingress`es hang on a Gateway: that which their `IngressClass` names in `spec.parameters`. Their rules become rules of
//! `HTTPRoute`s on its HTTP and HTTPS listeners, and their certificates HTTPS listeners of their own on port 443. What
//! the Gateway API has no words for is added to the routes afterwards, in [`paths`].

mod affinity;
mod annotations;
mod auth;
mod paths;
mod rate;
mod sources;

use std::collections::BTreeMap;

use gateway_api::gateways::GatewayListeners;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, IngressBackend, IngressTLS};
use serde_json::json;

use self::annotations::{Annotations, Canary};
use self::paths::Host;
use super::attach::{Attachment, Attachments};
use super::backend::Splits;
use super::gateway::Gateways;
use super::hostname::Hostname;
use super::listener::{self, Aspect, Parsed, Protocol, Served};
use super::reference::GATEWAY_GROUP;
use super::standing::Standings;
use super::status::{ConditionType, Statuses};
use super::view::Routes;
use crate::objects::problem::FieldError;
use crate::objects::{DEFAULT_NAMESPACE, Ingress, IngressClass, Kind, ObjectName, ObjectRef, Objects};

/// The `spec.controller` of classes that are ours.
pub const INGRESS_CONTROLLER: &str = "pontoon.dev/ingress-controller";
/// Says of a class that it is that of Ingresses that name none.
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// How a class was named before there was a field for it.
const LEGACY_CLASS: &str = "kubernetes.io/ingress.class";
/// Where browsers look for it.
const HTTPS_PORT: u16 = 443;

/// An Ingress of a class of ours, and the Gateway that the class names.
struct Ours<'o> {
    name: &'o ObjectName,
    ingress: &'o Ingress,
    gateway: Result<ObjectName, FieldError>,
}

/// What a class of ours says: with a name of our own, that.
fn controller(objects: &Objects) -> &str {
    if objects.controller.is_default() { INGRESS_CONTROLLER } else { objects.controller.as_str() }
}

/// In the order in which they count: the older, then by name.
fn ours<'o>(objects: &'o Objects, gateways: &Gateways) -> Vec<Ours<'o>> {
    let all = objects.ingresses.iter().filter_map(|(name, ingress)| {
        let (class_name, class) = class_of(objects, ingress)?;
        let gateway = (class.spec.as_ref().and_then(|spec| spec.controller.as_deref())
            == Some(controller(objects)))
        .then(|| gateway_of(gateways, class_name, class))?;
        let gateway = gateway.and_then(|gateway| match gateways.get(&gateway) {
            Some(parsed) if admits(objects, parsed, &name.namespace) => Ok(gateway),
            _ => {
                let message =
                    format!("no HTTP listener of Gateway {gateway} allows routes of this namespace");
                Err(FieldError::new("spec.ingressClassName", "NotAllowedByListeners", message))
            }
        });
        Some(Ours { name, ingress, gateway })
    });
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|ours| (created(ours.ingress), ours.name));
    all
}

fn created(ingress: &Ingress) -> jiff::Timestamp {
    ingress.metadata.creation_timestamp.as_ref().map_or(jiff::Timestamp::MAX, |time| time.0)
}

/// The class that an Ingress names, or that of those that name none.
fn class_of<'o>(objects: &'o Objects, ingress: &Ingress) -> Option<(&'o ObjectName, &'o IngressClass)> {
    let annotation = |of: Option<&'_ BTreeMap<String, String>>, key: &str| of?.get(key).cloned();
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.clone());
    let named = named.or_else(|| annotation(ingress.metadata.annotations.as_ref(), LEGACY_CLASS));
    let is_meant = |name: &ObjectName, class: &IngressClass| match &named {
        Some(named) => *name.name == **named,
        None => annotation(class.metadata.annotations.as_ref(), IS_DEFAULT).as_deref() == Some("true"),
    };
    objects
        .ingress_classes
        .iter()
        .find(|(name, class)| is_meant(name, class))
        .map(|(name, class)| (name, &**class))
}

fn gateway_of(
    gateways: &Gateways,
    name: &ObjectName,
    class: &IngressClass,
) -> Result<ObjectName, FieldError> {
    let wrong = |message: String| {
        let message = format!("IngressClass {name}: {message}");
        Err(FieldError::new("spec.ingressClassName", "NoGateway", message))
    };
    let Some(parameters) = class.spec.as_ref().and_then(|spec| spec.parameters.as_ref()) else {
        return wrong(
            "spec.parameters has to name a Gateway (apiGroup, kind, scope, namespace, name)".to_owned(),
        );
    };
    let is_gateway = parameters.api_group.as_deref() == Some(GATEWAY_GROUP)
        && parameters.kind == "Gateway"
        && parameters.scope.as_deref() == Some("Namespace");
    let Some(namespace) = parameters.namespace.as_deref().filter(|_| is_gateway) else {
        return wrong(format!(
            "expected a Gateway of group {GATEWAY_GROUP}, scope Namespace, in spec.parameters"
        ));
    };
    let gateway = ObjectName::new(namespace, parameters.name.as_str());
    match gateways.contains_key(&gateway) {
        true => Ok(gateway),
        false => wrong(format!("there is no Gateway {gateway} of ours")),
    }
}

fn is_http(served: &Served) -> bool {
    served.is_accepted() && matches!(served.protocol, Protocol::Http | Protocol::Https)
}

/// To which of a Gateway's listeners hosts belong where no Ingress has a certificate for them.
#[derive(Default)]
struct Owners {
    /// Its own HTTP and HTTPS listeners, whatever their ports.
    own: BTreeMap<Hostname, Vec<usize>>,
    /// Those that are on the port of Ingresses' listeners, its sets' and those that speak something else among them.
    on_port: BTreeMap<Hostname, usize>,
}

impl Owners {
    fn of(parsed: &Parsed) -> Self {
        let mut owners = Self::default();
        let others = parsed.listeners.iter().enumerate();
        for (index, served) in others.filter(|(_, served)| served.parent.kind != Kind::Ingress) {
            if served.parent.kind == Kind::Gateway && is_http(served) {
                owners.own.entry(served.hostname.clone()).or_default().push(index);
            }
            if served.port == HTTPS_PORT && served.is_accepted() {
                owners.on_port.entry(served.hostname.clone()).or_insert(index);
            }
        }
        owners
    }

    /// The listener on the port of Ingresses' that a host belongs to.
    fn on_port(&self, host: &Hostname) -> Option<usize> {
        host.covering().find_map(|host| self.on_port.get(&host).copied())
    }

    /// Whether Ingresses of a namespace may have a host on an Ingress's listener, which says nothing of it itself: the
    /// most specific of the Gateway's own listeners for the host has to let them in, whatever its port, and so has the
    /// one that the host belongs to on this port.
    fn lets_in(&self, objects: &Objects, parsed: &Parsed, host: &Hostname, namespace: &str) -> bool {
        let allows = |index: usize| {
            let served = parsed.listeners.get(index).filter(|served| is_http(served));
            served.is_some_and(|served| served.allows(objects, Kind::HttpRoute, namespace))
        };
        let own = host.covering().find_map(|host| self.own.get(&host));
        own.is_some_and(|own| own.iter().any(|index| allows(*index))) && self.on_port(host).is_none_or(allows)
    }
}

fn not_let_in(field: String, host: &str) -> FieldError {
    let message =
        format!("{host} belongs to no listener of the Gateway that allows routes of this namespace");
    FieldError::new(field, "NotAllowedByListeners", message)
}

/// Whether a listener that is the Gateway's own lets routes of a namespace in: an Ingress is let in as they are.
fn admits(objects: &Objects, parsed: &Parsed, namespace: &str) -> bool {
    let own = parsed.listeners.iter().filter(|served| served.parent.kind == Kind::Gateway && is_http(served));
    own.into_iter().any(|served| served.allows(objects, Kind::HttpRoute, namespace))
}

/// Adds an HTTPS listener for each host that an Ingress has a certificate for. Of several Ingresses for one host the
/// first has its certificate shown.
pub(super) fn add_listeners(objects: &Objects, gateways: &mut Gateways) {
    let mut owners: BTreeMap<ObjectName, Owners> = BTreeMap::new();
    for Ours { name, ingress, gateway } in ours(objects, gateways) {
        let Ok(gateway) = gateway else { continue };
        let Some(parsed) = gateways.get_mut(&gateway) else { continue };
        let owners = owners.entry(gateway).or_insert_with(|| Owners::of(parsed));
        let parent = ObjectRef { kind: Kind::Ingress, name: name.clone() };
        for (index, tls) in tls_of(ingress).enumerate() {
            // Without one it is the certificate of the Gateway's own listener.
            let Some(secret) = tls.secret_name.as_deref().filter(|secret| !secret.is_empty()) else {
                continue;
            };
            for host in hosts_of(ingress, tls) {
                let hostname = Hostname::parse(Some(&host));
                let same = |served: &Served| {
                    served.parent.kind == Kind::Ingress
                        && hostname.as_ref().is_ok_and(|hostname| *hostname == served.hostname)
                        && served
                            .certificates
                            .iter()
                            .any(|c| *c.secret.namespace == *name.namespace && *c.secret.name == *secret)
                };
                if parsed.listeners.iter().any(same) {
                    continue;
                }
                let listener = serde_json::from_value::<GatewayListeners>(json!({
                    "name": format!("https-{host}"),
                    "port": HTTPS_PORT,
                    "protocol": "HTTPS",
                    "hostname": host,
                    "tls": { "certificateRefs": [{ "name": secret }] },
                    // Who may is asked of the Gateway's own.
                    "allowedRoutes": { "namespaces": { "from": "All" } },
                }));
                let Ok(listener) = listener else { continue };
                let field = format!("spec.tls[{index}]");
                let mut served = listener::read(&listener, &parent, field.clone(), &parsed.listeners);
                for certificate in &mut served.certificates {
                    certificate.field = format!("{field}.secretName");
                }
                // Who has the host is the Gateway's to say.
                if served.is_accepted() && !owners.lets_in(objects, parsed, &served.hostname, &name.namespace)
                {
                    let error = not_let_in(field, &format!("host {host}"));
                    served.faults.push((Aspect::Accepted, error));
                }
                parsed.listeners.push(served);
            }
        }
    }
}

/// A host with a certificate by an Ingress has a listener of its own, and what hung on the Gateway's for that host hangs
/// on both.
fn share(gateways: &Gateways, owners: &BTreeMap<&ObjectName, Owners>, attachments: &mut Attachments) {
    for (name, owners) in owners {
        let (Some(parsed), Some(hung)) = (gateways.get(*name), attachments.get_mut(*name)) else { continue };
        let own = parsed
            .listeners
            .iter()
            .enumerate()
            .filter(|(_, served)| served.parent.kind == Kind::Ingress && served.is_accepted());
        let mut more = Vec::new();
        for (listener, served) in own {
            let Some(covering) = owners.on_port(&served.hostname) else { continue };
            let routes = hung.iter().filter(|attachment| {
                attachment.listener == covering && attachment.route.kind != Kind::Ingress
            });
            more.extend(routes.filter_map(|attachment| {
                let common =
                    attachment.hostnames.iter().filter_map(|host| served.hostname.intersection(host));
                let hostnames: Vec<_> = common.collect();
                let route = attachment.route.clone();
                (!hostnames.is_empty()).then_some(Attachment { route, listener, hostnames })
            }));
        }
        hung.extend(more);
    }
}

fn tls_of(ingress: &Ingress) -> impl Iterator<Item = &IngressTLS> {
    ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten())
}

/// The hosts that a certificate is for: those that it names, or else those of the rules.
fn hosts_of(ingress: &Ingress, tls: &IngressTLS) -> Vec<String> {
    let rules = ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten());
    match tls.hosts.as_deref() {
        Some(hosts) if !hosts.is_empty() => hosts.to_vec(),
        _ => rules.filter_map(|rule| rule.host.clone()).collect(),
    }
}

/// What decides which path of which Ingress a canary's path is one of.
type PathKey = (ObjectName, std::sync::Arc<str>, Option<String>, Option<String>, String);

/// The canaries by what they are canaries of.
struct Canaries<'o>(BTreeMap<PathKey, (&'o ObjectName, Canary, &'o IngressBackend, bool)>);

impl<'o> Canaries<'o> {
    fn key(
        gateway: &ObjectName,
        name: &ObjectName,
        host: Option<&String>,
        path: &HTTPIngressPath,
    ) -> PathKey {
        (gateway.clone(), name.namespace.clone(), host.cloned(), path.path.clone(), path.path_type.clone())
    }

    fn add(&mut self, gateway: &ObjectName, name: &'o ObjectName, ingress: &'o Ingress, canary: &Canary) {
        for rule in ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten()) {
            for path in rule.http.iter().flat_map(|http| &http.paths) {
                let key = Self::key(gateway, name, rule.host.as_ref(), path);
                self.0.entry(key).or_insert((name, canary.clone(), &path.backend, false));
            }
        }
    }

    /// The canary of a path; the first that asks has it.
    fn of(&mut self, key: &PathKey) -> Option<(Canary, &'o IngressBackend)> {
        let (_, canary, backend, used) = self.0.get_mut(key)?;
        *used = true;
        Some((canary.clone(), backend))
    }
}

/// Compiles all Ingresses of classes of ours and hangs them on their Gateways.
pub(super) fn hang(
    objects: &Objects,
    splits: &Splits,
    gateways: &Gateways,
    (statuses, standings): (&mut Statuses, &mut Standings),
    (routes, attachments): (&mut Routes, &mut Attachments),
) {
    let has_own = |parsed: &Parsed| parsed.listeners.iter().any(|served| served.parent.kind == Kind::Ingress);
    let owners = gateways.iter().filter(|(_, parsed)| has_own(parsed));
    let owners: BTreeMap<_, _> = owners.map(|(name, parsed)| (name, Owners::of(parsed))).collect();
    share(gateways, &owners, attachments);
    let mut served = Vec::new();
    let mut canaries = Canaries(BTreeMap::new());
    for Ours { name, ingress, gateway } in ours(objects, gateways) {
        let object = ObjectRef { kind: Kind::Ingress, name: name.clone() };
        standings.ingresses.insert(name.clone(), gateway.as_ref().ok().cloned());
        let gateway = match gateway {
            Ok(gateway) => gateway,
            Err(error) => {
                statuses.refuse(&object, ConditionType::Accepted, error);
                continue;
            }
        };
        let annotations = annotations::read(ingress);
        for (kind, error) in &annotations.errors {
            statuses.refuse(&object, *kind, error.clone());
        }
        match &annotations.canary {
            _ if annotations.is_lost_canary => {}
            Some(_) if annotations.is_closed => {}
            Some(canary) => canaries.add(&gateway, name, ingress, canary),
            None => served.push((name, ingress, gateway, annotations)),
        }
    }
    for (name, ingress, gateway, annotations) in &served {
        let Some(parsed) = gateways.get(gateway) else { continue };
        let owners = owners.get(gateway);
        let mut hanging = Hanging { objects, splits, owners, statuses, routes, attachments };
        hanging.ingress((name, ingress), (gateway, parsed), annotations, &mut canaries);
    }
    for (name, _, _, used) in canaries.0.into_values() {
        if !used {
            let message = "a path of this canary is that of no Ingress of its namespace and class with the same host, \
                           path and path type";
            let object = ObjectRef { kind: Kind::Ingress, name: name.clone() };
            let error = FieldError::new("spec.rules", "NoMainIngress", message);
            statuses.refuse(&object, ConditionType::Effective, error);
        }
    }
    for (name, class) in &objects.ingress_classes {
        let of = class.spec.as_ref().and_then(|spec| spec.controller.as_deref());
        let is_ours = of == Some(controller(objects));
        if let Some(Err(error)) = is_ours.then(|| gateway_of(gateways, name, class)) {
            let object = ObjectRef { kind: Kind::IngressClass, name: name.clone() };
            let error = FieldError { field: "spec.parameters".to_owned(), ..error };
            statuses.refuse(&object, ConditionType::ResolvedRefs, error);
        }
    }
    for name in objects.ingresses.keys().filter(|name| !standings.ingresses.contains_key(*name)) {
        let message =
            format!("not served here: its IngressClass is not one of controller {}", controller(objects));
        let error = FieldError::new("spec.ingressClassName", "OtherClass", message);
        let object = ObjectRef { kind: Kind::Ingress, name: name.clone() };
        statuses.refuse(&object, ConditionType::Effective, error);
    }
}

struct Hanging<'h> {
    objects: &'h Objects,
    splits: &'h Splits,
    /// Of the Gateway, where it has listeners of Ingresses.
    owners: Option<&'h Owners>,
    statuses: &'h mut Statuses,
    routes: &'h mut Routes,
    attachments: &'h mut Attachments,
}

impl Hanging<'_> {
    fn ingress(
        &mut self,
        (name, ingress): (&ObjectName, &Ingress),
        (gateway, parsed): (&ObjectName, &Parsed),
        annotations: &Annotations,
        canaries: &mut Canaries<'_>,
    ) {
        let Some(spec) = &ingress.spec else { return };
        let object = ObjectRef { kind: Kind::Ingress, name: name.clone() };
        let secure: Vec<String> = tls_of(ingress).flat_map(|tls| hosts_of(ingress, tls)).collect();
        let rules = spec.rules.as_deref().unwrap_or_default();
        // What no rule has goes to the default backend; without rules that is everything.
        let has_rest = rules.iter().any(|rule| rule.host.is_none());
        let rest = rules.is_empty() || spec.default_backend.is_some() && !has_rest;
        let numbered = rules.iter().map(Some).chain(rest.then_some(None)).enumerate();
        for (index, rule) in numbered {
            let written = rule.and_then(|rule| rule.host.as_ref());
            let mut hostnames = vec![Hostname::parse(written.map(String::as_str))];
            hostnames.extend(annotations.aliases.iter().map(|alias| Hostname::parse(Some(alias))));
            let hostnames = match hostnames.into_iter().collect::<Result<Vec<_>, _>>() {
                Ok(hostnames) => hostnames,
                Err(message) => {
                    let field = format!("spec.rules[{index}].host");
                    let error = FieldError::new(field, super::INVALID, message);
                    self.statuses.refuse(&object, ConditionType::Accepted, error);
                    continue;
                }
            };
            let mut host = Host::new(name, created(ingress), annotations, written);
            for (number, path) in
                rule.into_iter().flat_map(|rule| &rule.http).flat_map(|http| &http.paths).enumerate()
            {
                let canary = canaries.of(&Canaries::key(gateway, name, written, path));
                host.path(path, &format!("spec.rules[{index}].http.paths[{number}]"), canary);
            }
            if let Some(backend) = &spec.default_backend {
                host.default_backend(backend);
            }
            let is_secure = written.is_some_and(|host| secure.iter().any(|secure| covers(secure, host)));
            let redirects = annotations.force_https || is_secure && !annotations.keep_http;
            let (mut attached, mut is_kept_out) = (false, false);
            for (protocol, suffix, redirects) in
                [(Protocol::Http, "", redirects), (Protocol::Https, ":tls", false)]
            {
                let route = ObjectName::new(name.namespace.clone(), format!("{}:{index}{suffix}", name.name));
                let route = ObjectRef { kind: Kind::Ingress, name: route };
                let is_tls = protocol == Protocol::Https;
                let mut compiled = host.compile(self.objects, self.splits, &route.name, redirects, is_tls);
                for (kind, error) in std::mem::take(&mut compiled.errors) {
                    self.statuses.refuse(&object, kind, error);
                }
                let on = parsed.listeners.iter().enumerate().filter(|(_, served)| {
                    is_http(served)
                        && served.protocol == protocol
                        && match served.parent.kind {
                            // Asked for each host below.
                            Kind::Ingress => true,
                            Kind::Gateway => served.allows(self.objects, Kind::HttpRoute, &name.namespace),
                            _ => false,
                        }
                });
                let mut found = Vec::new();
                for (listener, served) in on {
                    let common =
                        hostnames.iter().filter_map(|hostname| served.hostname.intersection(hostname));
                    let may_have = |host: &Hostname| {
                        served.parent.kind != Kind::Ingress
                            || self.owners.is_some_and(|owners| {
                                owners.lets_in(self.objects, parsed, host, &name.namespace)
                            })
                    };
                    let (hostnames, others): (Vec<_>, Vec<_>) = common.partition(may_have);
                    is_kept_out |= !others.is_empty();
                    if !hostnames.is_empty() {
                        found.push(Attachment { route: route.clone(), listener, hostnames });
                    }
                }
                attached |= !found.is_empty();
                self.attachments.entry(gateway.clone()).or_default().extend(found);
                self.routes.requests.insert(route, std::sync::Arc::new(compiled));
            }
            if !attached {
                let field = format!("spec.rules[{index}].host");
                let error = if !is_kept_out {
                    let message = format!("the host is none of a listener of Gateway {gateway}");
                    FieldError::new(field, "NoMatchingListenerHostname", message)
                } else {
                    not_let_in(field, "the host")
                };
                self.statuses.refuse(&object, ConditionType::Accepted, error);
            }
        }
    }
}

/// Whether a host of a certificate is that of a rule.
fn covers(certificate: &str, host: &str) -> bool {
    match certificate.strip_prefix("*.") {
        _ if certificate.eq_ignore_ascii_case(host) => true,
        Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => false,
    }
}

/// The namespace of a backend is the Ingress's own.
fn namespace_of(name: &ObjectName) -> &str {
    if name.namespace.is_empty() { DEFAULT_NAMESPACE } else { &name.namespace }
}

#[cfg(test)]
mod tests;
