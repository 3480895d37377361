//! Which gateways are ours, and with which listeners: their own and those of `ListenerSet`s, each with what it refers
//! to. What they say of themselves in their status is made here too.

use std::collections::BTreeMap;

use gateway_api::gateways::{GatewayAllowedListenersNamespacesFrom as AllowedFrom, GatewayListeners};

use super::INVALID;
use super::hostname::Hostname;
use super::ingress;
use super::listener::{self, Aspect, Certificate, GATEWAY_CLASS, Parsed, Served};
use super::reference::{self, GATEWAY_GROUP, permitted};
use super::selector::Selector;
use super::standing::{self, GatewayStanding, Said, Standings};
use super::status::{ConditionType, Statuses};
use super::trust;
use crate::infrastructure::parameters;
use crate::objects::problem::FieldError;
use crate::objects::secret::{Pair, TLS};
use crate::objects::{
    DEFAULT_NAMESPACE, Gateway, GatewayClass, Kind, ListenerSet, ObjectName, ObjectRef, Objects,
};

/// The gateways of our class.
pub(super) type Gateways = BTreeMap<ObjectName, Parsed>;

/// Whether a class is ours: because it says so, or because nobody says anything of it and it has our name.
pub fn is_ours(objects: &Objects, class: &str) -> bool {
    match objects.gateway_classes.get(&ObjectName::new("", class)) {
        Some(class) => objects.controller.is(&class.spec.controller_name),
        // That of those that are called as one is by default.
        None => class == GATEWAY_CLASS && objects.controller.is_default(),
    }
}

/// Whether a gateway is ours: its class is, or has gone, or cannot be read, since we said so. Who deletes a class, or makes
/// another of a newer kind, does not mean that what goes through its gateways now is to end.
fn is_our_gateway(objects: &Objects, name: &ObjectName, class: &str) -> bool {
    let was_ours = || objects.claimed.get(name).is_some_and(|at| **at == *class);
    is_ours(objects, class) || !objects.has_class(class) && was_ours()
}

/// Reads all gateways.
pub(super) fn parse_all(objects: &Objects, in_pods: bool, statuses: &mut Statuses) -> Gateways {
    classes(objects, statuses);
    let mut gateways = Gateways::new();
    for (name, gateway) in &objects.gateways {
        let object = ObjectRef { kind: Kind::Gateway, name: name.clone() };
        if !is_our_gateway(objects, name, &gateway.spec.gateway_class_name) {
            let message = format!(
                "not served here: gatewayClassName is neither {GATEWAY_CLASS} nor that of a GatewayClass of \
                 controller {}",
                objects.controller
            );
            let error = FieldError::new("spec.gatewayClassName", "OtherClass", message);
            statuses.refuse(&object, ConditionType::Effective, error);
            continue;
        }
        gateways.insert(name.clone(), listener::parse(gateway, in_pods));
    }
    add_sets(objects, &mut gateways, statuses);
    ingress::add_listeners(objects, &mut gateways);
    for (name, parsed) in &mut gateways {
        let object = ObjectRef { kind: Kind::Gateway, name: name.clone() };
        for served in &mut parsed.listeners {
            find_certificates(objects, served);
        }
        if let Some(gateway) = objects.gateways.get(name) {
            trust::clients(objects, gateway, parsed);
            backend_certificate(objects, gateway, parsed);
            infrastructure(objects, gateway, parsed);
        }
        for error in parsed.refusals() {
            statuses.refuse(&object, ConditionType::Accepted, error.clone());
        }
        for error in &parsed.unresolved {
            statuses.refuse(&object, ConditionType::ResolvedRefs, error.clone());
        }
        for hint in &parsed.outdated {
            statuses.refuse(&object, ConditionType::Effective, hint.clone());
        }
        for served in &parsed.listeners {
            for hint in &served.outdated {
                statuses.refuse(&served.parent, ConditionType::Effective, hint.clone());
            }
            for (aspect, error) in &served.faults {
                let kind = match aspect {
                    Aspect::Accepted => ConditionType::Accepted,
                    Aspect::ResolvedRefs => ConditionType::ResolvedRefs,
                };
                statuses.refuse(&served.parent, kind, error.clone());
            }
        }
    }
    gateways
}

/// Adds the listeners of sets to those of their gateways: older sets first, then by name, as the API orders them where
/// those of two are in conflict.
fn add_sets(objects: &Objects, gateways: &mut Gateways, statuses: &mut Statuses) {
    let mut sets: Vec<_> = objects.listener_sets.iter().collect();
    let created =
        |set: &ListenerSet| set.metadata.creation_timestamp.as_ref().map_or(jiff::Timestamp::MAX, |t| t.0);
    sets.sort_by(|(a, one), (b, other)| created(one).cmp(&created(other)).then_with(|| a.cmp(b)));
    for (name, set) in sets {
        let object = ObjectRef { kind: Kind::ListenerSet, name: name.clone() };
        let parent = parent_of(name, set);
        let Some(parsed) = gateways.get_mut(&parent) else {
            let message = format!("there is no Gateway {parent} of ours");
            let error = FieldError::new("spec.parentRef", "NoParent", message);
            statuses.refuse(&object, ConditionType::Effective, error);
            continue;
        };
        let gateway = objects.gateways.get(&parent);
        if !gateway.is_some_and(|gateway| allows_set(objects, gateway, &name.namespace)) {
            let message = format!("Gateway {parent} does not allow ListenerSets of this namespace");
            let error = FieldError::new("spec.parentRef", "NotAllowed", message);
            statuses.refuse(&object, ConditionType::Accepted, error.clone());
            parsed.sets.insert(name.clone(), Err(error));
            continue;
        }
        let first = parsed.listeners.len();
        for (index, listener) in set.spec.listeners.iter().enumerate() {
            let field = format!("spec.listeners[{index}]");
            // The two types are one in the API.
            let converted =
                serde_json::to_value(listener).and_then(serde_json::from_value::<GatewayListeners>);
            parsed.listeners.push(match converted {
                Ok(converted) => listener::read(&converted, &object, field, &parsed.listeners),
                Err(error) => listener::unread(&listener.name, &object, field, error.to_string()),
            });
        }
        listener::contest(parsed.listeners.get_mut(first..).unwrap_or_default());
        parsed.sets.insert(name.clone(), Ok(()));
    }
}

fn parent_of(name: &ObjectName, set: &ListenerSet) -> ObjectName {
    let parent = &set.spec.parent_ref;
    let group = parent.group.as_deref().unwrap_or(GATEWAY_GROUP);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    // No gateway has no name.
    let parent_name = if (group, kind) == (GATEWAY_GROUP, "Gateway") { parent.name.as_str() } else { "" };
    ObjectName::new(parent.namespace.as_deref().unwrap_or(&name.namespace), parent_name)
}

fn allows_set(objects: &Objects, gateway: &Gateway, namespace: &str) -> bool {
    let own = gateway.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let allowed = gateway.spec.allowed_listeners.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
    match allowed.and_then(|allowed| allowed.from.as_ref()) {
        None | Some(AllowedFrom::None) => false,
        Some(AllowedFrom::All) => true,
        Some(AllowedFrom::Same) => own == namespace,
        Some(AllowedFrom::Selector) => {
            let selector = allowed.and_then(|allowed| allowed.selector.as_ref()).map(Selector::try_from);
            selector.and_then(Result::ok).is_some_and(|selector| selector.matches(objects, namespace))
        }
    }
}

/// Looks up the secrets that a listener refers to. Without one of them it is not served.
fn find_certificates(objects: &Objects, served: &mut Served) {
    let mut certificates = std::mem::take(&mut served.certificates);
    for certificate in &mut certificates {
        // It is said already that what is named is no Secret; one of that name is not meant.
        let kind = format!("{}.kind", certificate.field);
        if served.faults.iter().any(|(_, error)| error.field == kind) {
            continue;
        }
        match pair(objects, &served.parent, certificate, "InvalidCertificateRef") {
            Ok(pair) => {
                certificate.pair = Some(pair);
                let Certificate { secret, field, .. } = certificate;
                served.outdated.extend(reference::outdated(objects, Kind::Secret, secret, field));
            }
            Err(error) => served.faults.push((Aspect::ResolvedRefs, error)),
        }
    }
    served.certificates = certificates;
}

/// The certificate and key of a secret that `parent` refers to.
fn pair(
    objects: &Objects,
    parent: &ObjectRef,
    certificate: &Certificate,
    reason: &'static str,
) -> Result<Pair, FieldError> {
    let Certificate { secret, field, .. } = certificate;
    permitted(objects, (parent.kind, &parent.name.namespace), ("", "Secret", secret), field)?;
    let found = match objects.secrets.get(secret) {
        None if objects.why_refused(Kind::Secret, secret).is_some() => {
            Err(objects.why_missing(Kind::Secret, secret))
        }
        // In a cluster no others are seen.
        None => Err(format!("there is no Secret {secret} of type {TLS}")),
        Some(secret) if !secret.is_tls() => Err(format!("expected a Secret of type {TLS}")),
        Some(secret) => secret.pair().map_err(|error| error.message),
    };
    found.map_err(|message| FieldError::new(field.clone(), reason, message))
}

/// The certificate that the gateway's proxies show to endpoints that ask for one.
fn backend_certificate(objects: &Objects, gateway: &Gateway, parsed: &mut Parsed) {
    const FIELD: &str = "spec.tls.backend.clientCertificateRef";
    let written = gateway.spec.tls.as_ref().and_then(|tls| tls.backend.as_ref());
    let Some(written) = written.and_then(|backend| backend.client_certificate_ref.as_ref()) else { return };
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let own_name = gateway.metadata.name.as_deref().unwrap_or_default();
    let own = ObjectRef { kind: Kind::Gateway, name: ObjectName::new(namespace, own_name) };
    let kind = written.kind.as_deref().unwrap_or("Secret");
    if !written.group.as_deref().unwrap_or_default().is_empty() || kind != "Secret" {
        let error = FieldError::new(FIELD, "InvalidClientCertificateRef", "expected a Secret");
        parsed.unresolved.push(error);
        return;
    }
    let secret = ObjectName::new(written.namespace.as_deref().unwrap_or(namespace), written.name.as_str());
    let mut certificate = Certificate { secret, field: FIELD.to_owned(), pair: None };
    match pair(objects, &own, &certificate, "InvalidClientCertificateRef") {
        Ok(pair) => {
            certificate.pair = Some(pair);
            parsed.outdated.extend(reference::outdated(objects, Kind::Secret, &certificate.secret, FIELD));
            parsed.backend_certificate = Some(certificate);
        }
        Err(error) => parsed.unresolved.push(error),
    }
}

/// What a gateway's proxies run in is made in a cluster only; whether that is said well is checked here.
fn infrastructure(objects: &Objects, gateway: &Gateway, parsed: &mut Parsed) {
    if let Err(message) = parameters::of_gateway(objects, gateway) {
        let error = FieldError::new("spec.infrastructure.parametersRef", "InvalidParameters", message);
        parsed.not_made.push(error);
    }
}

/// Says of our classes whose parameters cannot be used that they are not accepted.
fn classes(objects: &Objects, statuses: &mut Statuses) {
    let is_ours = |class: &GatewayClass| objects.controller.is(&class.spec.controller_name);
    let ours = objects.gateway_classes.iter().filter(|(_, class)| is_ours(class));
    for (name, class) in ours {
        if let Err(message) = parameters::of_class(objects, class) {
            let error = FieldError::new("spec.parametersRef", "InvalidParameters", message);
            let object = ObjectRef { kind: Kind::GatewayClass, name: name.clone() };
            statuses.refuse(&object, ConditionType::Accepted, error);
        }
    }
}

/// What no version could serve of a gateway's listeners.
pub(super) fn invalid(gateway: &Gateway) -> Vec<FieldError> {
    let parsed = listener::parse(gateway, false);
    let faults = parsed.listeners.into_iter().flat_map(|served| served.faults).map(|(_, error)| error);
    parsed.errors.into_iter().chain(faults).filter(|error| error.reason == INVALID).collect()
}

/// How many routes each listener of each gateway has that are accepted.
pub(super) type Attached = BTreeMap<(ObjectName, usize), usize>;

/// What gateways, their classes and sets of listeners say of themselves.
pub(super) fn stand(objects: &Objects, gateways: &Gateways, attached: &Attached, standings: &mut Standings) {
    for (name, class) in &objects.gateway_classes {
        if objects.controller.is(&class.spec.controller_name) {
            let said = match parameters::of_class(objects, class) {
                Ok(_) => Said::yes("Accepted", "Accepted"),
                Err(message) => {
                    let error = FieldError::new("spec.parametersRef", "InvalidParameters", message);
                    Said::no("Accepted", &error)
                }
            };
            standings.classes.insert(name.clone(), vec![said]);
        }
    }
    for (name, parsed) in gateways {
        stand_one(objects, (name, parsed), attached, standings);
    }
}

/// The same of one gateway.
pub(super) fn stand_one(
    objects: &Objects,
    (name, parsed): (&ObjectName, &Parsed),
    attached: &Attached,
    standings: &mut Standings,
) {
    let terminating = Terminating::of(parsed);
    let numbered = || parsed.listeners.iter().enumerate();
    let count = |index: usize| attached.get(&(name.clone(), index)).copied().unwrap_or_default();
    let listeners_of = |parent: &ObjectRef| {
        let own = numbered().filter(|(_, served)| served.parent == *parent);
        own.map(|(index, served)| standing::listener(served, count(index), terminating.overlapping(index)))
            .collect::<Vec<_>>()
    };
    let refused = parsed.refusals().next();
    if refused.is_none() {
        let accepted = parsed.listeners.iter().filter(|served| served.is_accepted());
        standings.ports.insert(name.clone(), accepted.map(|served| served.port).collect());
    }
    let own = ObjectRef { kind: Kind::Gateway, name: name.clone() };
    let mut conditions = standing::of_gateway(parsed.listeners.iter().filter(|served| served.parent == own));
    if let Some(error) = refused {
        conditions = vec![Said::no("Accepted", error), Said::no("Programmed", error)];
    }
    let gateway = objects.gateways.get(name);
    if let (Some(gateway), Some(said)) = (gateway, conditions.first_mut())
        && let class = &gateway.spec.gateway_class_name
        && !is_ours(objects, class)
        && said.message.is_empty()
    {
        said.message = format!(
            "there is no GatewayClass {class} any more: what is served goes on, in what it runs in now"
        );
    }
    if gateway.and_then(|gateway| gateway.spec.tls.as_ref()).is_some_and(|tls| tls.backend.is_some()) {
        conditions
            .push(Said::unless("ResolvedRefs", "ResolvedRefs", &parsed.unresolved).but(&parsed.outdated));
    }
    if parsed.listeners.iter().any(|s| s.clients.as_ref().is_some_and(|clients| clients.insecure)) {
        let mut said = Said::yes("InsecureFrontendValidationMode", "ConfigurationChanged");
        said.message = "clients without a valid certificate are let in".to_owned();
        conditions.push(said);
    }
    let sets = parsed.sets.keys().map(|set| ObjectRef { kind: Kind::ListenerSet, name: set.clone() });
    let is_accepted = |set: &ObjectRef| {
        parsed.listeners.iter().any(|served| served.parent == *set && served.is_programmed())
    };
    let standing = GatewayStanding {
        conditions,
        listeners: listeners_of(&own),
        attached_listener_sets: Some(sets.filter(is_accepted).count()),
    };
    standings.gateways.insert(name.clone(), standing);
    for (set, allowed) in &parsed.sets {
        let parent = ObjectRef { kind: Kind::ListenerSet, name: set.clone() };
        let conditions = match (refused, allowed) {
            (Some(_), _) => {
                let error =
                    FieldError::new("spec.parentRef", "ParentNotAccepted", "the gateway is not accepted");
                vec![Said::no("Accepted", &error), Said::no("Programmed", &error)]
            }
            (None, Err(error)) => vec![Said::no("Accepted", error), Said::no("Programmed", error)],
            (None, Ok(())) => {
                standing::of_set(parsed.listeners.iter().filter(|served| served.parent == parent))
            }
        };
        let listeners = listeners_of(&parent);
        let standing = GatewayStanding { conditions, listeners, attached_listener_sets: None };
        standings.listener_sets.insert(set.clone(), standing);
    }
}

/// The listeners that terminate TLS, by port and hostname.
struct Terminating<'p> {
    parsed: &'p Parsed,
    by_host: BTreeMap<(u16, &'p Hostname), usize>,
}

impl<'p> Terminating<'p> {
    fn of(parsed: &'p Parsed) -> Self {
        let mut by_host = BTreeMap::new();
        for (index, served) in parsed.listeners.iter().enumerate() {
            if !served.certificates.is_empty() && served.is_accepted() {
                by_host.entry((served.port, &served.hostname)).or_insert(index);
            }
        }
        Terminating { parsed, by_host }
    }

    /// Another one on the same port for some of the same hosts.
    fn overlapping(&self, index: usize) -> Option<&'p Served> {
        let served = self.parsed.listeners.get(index)?;
        let own = &served.hostname;
        self.by_host.get(&(served.port, own)).filter(|own| **own == index)?;
        let covering = own.covering().filter_map(|host| self.by_host.get(&(served.port, &host)).copied());
        let first = covering.filter(|other| *other != index).min();
        // A name is covered, and covers none.
        let covered = self.by_host.iter().filter(|((port, host), other)| {
            !matches!(own, Hostname::Exact(_)) && *port == served.port && **other != index && own.covers(host)
        });
        let first = covered.map(|(_, other)| *other).chain(first).min();
        self.parsed.listeners.get(first?)
    }
}
