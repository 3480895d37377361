//! The listeners of a `Gateway` and of its `ListenerSet`s, as they are written: which are served, which routes may
//! hang on them, and what is wrong with the others. What they become is `chain`'s matter.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gateway_api::gateways::{
    GatewayAddresses, GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as AllowedFrom,
    GatewayListenersTls, GatewayListenersTlsMode,
};

use super::INVALID;
use super::hostname::Hostname;
use super::reference::GATEWAY_GROUP;
use super::selector::Selector;
use crate::objects::problem::FieldError;
use crate::objects::secret::Pair;
use crate::objects::{DEFAULT_NAMESPACE, Gateway, Kind, ObjectName, ObjectRef, Objects};

/// The class that is ours without a `GatewayClass` that says so.
pub const GATEWAY_CLASS: &str = "pontoon";

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1 and HTTP/2 without TLS.
    Http,
    /// Both behind TLS, which is terminated.
    Https,
    /// Anything behind TLS, which is terminated.
    TlsTerminate,
    /// Anything behind TLS, which is the endpoint's to terminate.
    TlsPassthrough,
    /// Anything.
    Tcp,
}

impl Protocol {
    /// What routes may hang on such a listener.
    pub(super) fn kinds(self) -> &'static [Kind] {
        match self {
            Protocol::Http | Protocol::Https => &[Kind::HttpRoute, Kind::GrpcRoute],
            Protocol::TlsTerminate | Protocol::TlsPassthrough => &[Kind::TlsRoute],
            Protocol::Tcp => &[Kind::TcpRoute],
        }
    }

    /// Listeners of one port have to agree on this: how connections are told apart.
    fn told_apart_by(self) -> u8 {
        match self {
            Protocol::Http => 0,
            Protocol::Https | Protocol::TlsTerminate | Protocol::TlsPassthrough => 1,
            Protocol::Tcp => 2,
        }
    }

    /// Whether connections are one listener's alone, by the name that the client asks for.
    pub(super) fn is_tls(self) -> bool {
        self.told_apart_by() == 1
    }
}

/// The aspects of a listener that may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Aspect {
    /// It is not served.
    Accepted,
    /// It refers to what is not there; it is not served where that is what it needs.
    ResolvedRefs,
}

/// A listener, be it served or not.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Served {
    /// The `Gateway` or `ListenerSet` that it is written in, and where there.
    pub(super) parent: ObjectRef,
    pub(super) field: String,
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) hostname: Hostname,
    from: From,
    /// The kinds of routes that may hang on it, of those that can.
    pub(super) kinds: Vec<Kind>,
    /// The certificates with which TLS is terminated.
    pub(super) certificates: Vec<Certificate>,
    /// What clients' certificates are checked by.
    pub(super) clients: Option<ClientTrust>,
    /// Another of the same object is in its way, so that neither is served. Those of other objects do not get what is
    /// not decided there.
    is_contested: bool,
    pub(super) faults: Vec<(Aspect, FieldError)>,
    /// Served, but of an earlier version than there is of what it refers to.
    pub(super) outdated: Vec<FieldError>,
}

/// How clients' certificates are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientTrust {
    /// The authorities' certificates, as PEM.
    pub(super) authorities: String,
    /// A connection with another certificate, or without one, goes on.
    pub(super) insecure: bool,
}

/// Of which namespaces routes may be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    All,
    Same,
    Selector(Selector),
}

/// A certificate that a listener refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    /// The secret, and where it is referred to.
    pub(super) secret: ObjectName,
    pub(super) field: String,
    /// Once it is found.
    pub(super) pair: Option<Pair>,
}

impl Served {
    /// Whether routes may hang on it.
    pub(super) fn is_accepted(&self) -> bool {
        self.faults.iter().all(|(aspect, _)| *aspect != Aspect::Accepted)
    }

    /// Whether connections are taken.
    pub(super) fn is_programmed(&self) -> bool {
        self.is_accepted() && self.certificates.iter().all(|certificate| certificate.pair.is_some())
    }

    /// Notes what is wrong; `name` is of a field of the listener.
    pub(super) fn fault(&mut self, aspect: Aspect, name: &str, reason: &'static str, message: String) {
        let field = if name.is_empty() { self.field.clone() } else { format!("{}.{name}", self.field) };
        self.faults.push((aspect, FieldError::new(field, reason, message)));
    }

    /// Whether routes of this kind in this namespace may hang on it.
    pub(super) fn allows(&self, objects: &Objects, kind: Kind, namespace: &str) -> bool {
        let from = match &self.from {
            From::All => true,
            From::Same => *self.parent.name.namespace == *namespace,
            From::Selector(selector) => selector.matches(objects, namespace),
        };
        from && self.kinds.contains(&kind)
    }
}

/// What a `Gateway` asks for.
#[derive(Debug, Clone, Default)]
pub(super) struct Parsed {
    /// Where its sockets listen.
    pub(super) ip: Option<IpAddr>,
    /// All of them, those that are not served too.
    pub(super) listeners: Vec<Served>,
    /// The sets of listeners that name it, and why it does not take one.
    pub(super) sets: BTreeMap<ObjectName, Result<(), FieldError>>,
    /// What its proxies show to endpoints that ask for a certificate.
    pub(super) backend_certificate: Option<Certificate>,
    /// Why it is not served at all.
    pub(super) errors: Vec<FieldError>,
    /// Why what it runs in is not made anew. The pods that it has go on, and serve what it says.
    pub(super) not_made: Vec<FieldError>,
    /// What it refers to as a whole and is not there.
    pub(super) unresolved: Vec<FieldError>,
    /// As [`Served::outdated`].
    pub(super) outdated: Vec<FieldError>,
}

impl Parsed {
    /// Why it is not accepted.
    pub(super) fn refusals(&self) -> impl Iterator<Item = &FieldError> {
        self.errors.iter().chain(&self.not_made)
    }
}

/// Reads a gateway of our class. Its proxies in pods of their own listen on every address that they have; elsewhere on
/// those that it says.
pub(super) fn parse(gateway: &Gateway, in_pods: bool) -> Parsed {
    let mut parsed = Parsed::default();
    let spec = &gateway.spec;
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    let parent = ObjectRef { kind: Kind::Gateway, name: ObjectName::new(namespace, name) };
    let addresses = spec.addresses.as_deref().unwrap_or_default();
    let is_address = |address: &GatewayAddresses| {
        let value = address.value.as_deref().filter(|value| !value.is_empty());
        address.r#type.as_deref().unwrap_or("IPAddress") == "IPAddress"
            && value.is_none_or(|value| value.parse::<IpAddr>().is_ok())
    };
    parsed.ip = match addresses {
        // Theirs are the Service's, which may have both families.
        _ if in_pods => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        [] => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        [only] => {
            let kind = only.r#type.as_deref().unwrap_or("IPAddress");
            match only.value.as_deref().filter(|value| !value.is_empty()) {
                None => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                Some(value) => value.parse().ok(),
            }
            .filter(|_| kind == "IPAddress")
        }
        _ => None,
    };
    let unsupported = |message: &str| FieldError::new("spec.addresses", "UnsupportedAddress", message);
    if in_pods && !addresses.iter().all(is_address) {
        parsed.not_made.push(unsupported("expected addresses of type IPAddress, for the Service"));
    }
    if parsed.ip.is_none() {
        let message =
            "expected one address of type IPAddress to listen on; without any, every address is used";
        parsed.errors.push(unsupported(message));
    }
    for (index, listener) in spec.listeners.iter().enumerate() {
        let field = format!("spec.listeners[{index}]");
        let read = read(listener, &parent, field, &parsed.listeners);
        parsed.listeners.push(read);
    }
    contest(&mut parsed.listeners);
    parsed
}

/// Refuses those of one object that are in conflict with each other: among them the API has no winner.
pub(super) fn contest(listeners: &mut [Served]) {
    let mut ports: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for (index, served) in listeners.iter().enumerate().filter(|(_, served)| served.is_accepted()) {
        ports.entry(served.port).or_default().push(index);
    }
    let mut contested: Vec<(usize, usize, bool)> = Vec::new();
    for indices in ports.values().filter(|indices| indices.len() > 1) {
        let mut apart: BTreeMap<u8, usize> = BTreeMap::new();
        let mut same: BTreeMap<&Hostname, Vec<usize>> = BTreeMap::new();
        for (index, served) in indices.iter().filter_map(|index| Some((*index, listeners.get(*index)?))) {
            apart.entry(served.protocol.told_apart_by()).or_insert(index);
            // Nothing tells connections apart there.
            let host = if served.protocol == Protocol::Tcp { &Hostname::Any } else { &served.hostname };
            same.entry(host).or_default().push(index);
        }
        for (index, served) in indices.iter().filter_map(|index| Some((*index, listeners.get(*index)?))) {
            let own = served.protocol.told_apart_by();
            contested
                .extend(apart.iter().find(|(by, _)| **by != own).map(|(_, other)| (index, *other, true)));
        }
        if apart.len() == 1 {
            for rivals in same.values() {
                let [first, second, ..] = rivals.as_slice() else { continue };
                let of = |index: &usize| (*index, if index == first { *second } else { *first }, false);
                contested.extend(rivals.iter().map(of));
            }
        }
    }
    for (index, other, is_protocol) in contested {
        let other = listeners.get(other).map_or_else(String::new, |other| other.name.clone());
        let Some(served) = listeners.get_mut(index) else { continue };
        served.is_contested = true;
        let (name, reason, what) = match is_protocol {
            true => ("protocol", "ProtocolConflict", "port and another protocol"),
            false => ("hostname", "HostnameConflict", "port and hostname"),
        };
        let message = format!("listener {other} has the same {what}; none of them is served");
        served.fault(Aspect::Accepted, name, reason, message);
    }
}

/// Reads one listener; `before` are those that go before it where two are in conflict. For those of the same object see
/// [`contest`].
pub(super) fn read(
    written: &GatewayListeners,
    parent: &ObjectRef,
    field: String,
    before: &[Served],
) -> Served {
    let mut served = blank(&written.name, parent, field);
    if let Err((name, reason, message)) = read_into(&mut served, written, before) {
        served.fault(Aspect::Accepted, name, reason, message);
    }
    served
}

/// One that cannot be read at all, so that it says so.
pub(super) fn unread(name: &str, parent: &ObjectRef, field: String, message: String) -> Served {
    let mut served = blank(name, parent, field);
    served.fault(Aspect::Accepted, "", INVALID, message);
    served
}

fn blank(name: &str, parent: &ObjectRef, field: String) -> Served {
    Served {
        parent: parent.clone(),
        field,
        name: name.to_owned(),
        port: 0,
        protocol: Protocol::Http,
        hostname: Hostname::Any,
        from: From::Same,
        kinds: Vec::new(),
        certificates: Vec::new(),
        clients: None,
        is_contested: false,
        faults: Vec::new(),
        outdated: Vec::new(),
    }
}

type Wrong = (&'static str, &'static str, String);

fn read_into(served: &mut Served, written: &GatewayListeners, before: &[Served]) -> Result<(), Wrong> {
    served.protocol = protocol(written)?;
    kinds(served, written);
    let port = u16::try_from(written.port).ok().filter(|port| *port != 0);
    served.port = port.ok_or_else(|| ("port", INVALID, "expected a port, 1 to 65535".to_owned()))?;
    served.hostname =
        Hostname::parse(written.hostname.as_deref()).map_err(|message| ("hostname", INVALID, message))?;
    let mut namesakes = before.iter().filter(|other| other.parent == served.parent);
    if written.name.is_empty() || namesakes.any(|other| other.name == written.name) {
        return Err(("name", INVALID, "each listener of a gateway needs a name of its own".to_owned()));
    }
    served.from = from(written)?;
    if let Some(tls) = written.tls.as_ref().filter(|_| served.protocol != Protocol::TlsPassthrough) {
        certificates(served, tls)?;
    }
    // A listener that is not accepted for another reason is in nobody's way. Of Ingresses the first has the host, be
    // they one or two.
    let goes_first = |other: &Served| other.parent != served.parent || served.parent.kind == Kind::Ingress;
    let rivals = || {
        before.iter().filter(|other| {
            other.port == served.port && (other.is_accepted() || other.is_contested) && goes_first(other)
        })
    };
    let apart = served.protocol.told_apart_by();
    if let Some(other) = rivals().find(|other| other.protocol.told_apart_by() != apart) {
        let message = format!("{} has the same port and another protocol", called(other, served));
        return Err(("protocol", "ProtocolConflict", message));
    }
    let same = |other: &&Served| served.protocol == Protocol::Tcp || other.hostname == served.hostname;
    if let Some(other) = rivals().find(same) {
        let message =
            format!("{} has the same port and hostname; it goes before this one", called(other, served));
        return Err(("hostname", "HostnameConflict", message));
    }
    Ok(())
}

fn called(other: &Served, served: &Served) -> String {
    match other.parent == served.parent {
        true => format!("listener {}", other.name),
        false => format!("listener {} of {}", other.name, other.parent),
    }
}

fn protocol(written: &GatewayListeners) -> Result<Protocol, Wrong> {
    let mode =
        written.tls.as_ref().map(|tls| tls.mode.as_ref().unwrap_or(&GatewayListenersTlsMode::Terminate));
    match (written.protocol.as_str(), mode) {
        ("HTTP", None) => Ok(Protocol::Http),
        ("TCP", None) => Ok(Protocol::Tcp),
        ("HTTP" | "TCP", Some(_)) => {
            Err(("tls", INVALID, format!("a listener of protocol {} has no TLS", written.protocol)))
        }
        ("HTTPS" | "TLS", None) => {
            Err(("tls", INVALID, format!("a listener of protocol {} needs tls", written.protocol)))
        }
        ("HTTPS", Some(GatewayListenersTlsMode::Terminate)) => Ok(Protocol::Https),
        ("HTTPS", Some(GatewayListenersTlsMode::Passthrough)) => {
            Err(("tls.mode", INVALID, "Passthrough is for protocol TLS".to_owned()))
        }
        ("TLS", Some(GatewayListenersTlsMode::Terminate)) => Ok(Protocol::TlsTerminate),
        ("TLS", Some(GatewayListenersTlsMode::Passthrough)) => Ok(Protocol::TlsPassthrough),
        _ => {
            let message = "expected HTTP, HTTPS, TLS or TCP; other protocols are not supported".to_owned();
            Err(("protocol", "UnsupportedProtocol", message))
        }
    }
}

fn kinds(served: &mut Served, written: &GatewayListeners) {
    let allowed = written.allowed_routes.as_ref().and_then(|allowed| allowed.kinds.as_deref());
    let possible = served.protocol.kinds();
    let allowed = allowed.unwrap_or_default();
    if allowed.is_empty() {
        served.kinds = possible.to_vec();
        return;
    }
    for (index, kind) in allowed.iter().enumerate() {
        let group = kind.group.as_deref().unwrap_or(GATEWAY_GROUP);
        match possible.iter().find(|possible| possible.as_str() == kind.kind && group == GATEWAY_GROUP) {
            Some(kind) => served.kinds.push(*kind),
            None => {
                let names = possible.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(" or ");
                let message = format!("expected {names} on a listener of protocol {}", written.protocol);
                let name = format!("allowedRoutes.kinds[{index}]");
                served.fault(Aspect::ResolvedRefs, &name, "InvalidRouteKinds", message);
            }
        }
    }
}

fn from(written: &GatewayListeners) -> Result<From, Wrong> {
    let namespaces = written.allowed_routes.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
    let selector = || {
        let selector = namespaces.and_then(|namespaces| namespaces.selector.as_ref());
        let message = "from: Selector needs a selector".to_owned();
        let selector = selector.ok_or(("allowedRoutes.namespaces.selector", INVALID, message))?;
        let selector = Selector::try_from(selector);
        selector.map_err(|message| ("allowedRoutes.namespaces.selector", INVALID, message))
    };
    match namespaces.and_then(|namespaces| namespaces.from.as_ref()) {
        None | Some(AllowedFrom::Same) => Ok(From::Same),
        Some(AllowedFrom::All) => Ok(From::All),
        Some(AllowedFrom::Selector) => selector().map(From::Selector),
    }
}

/// The secrets that a listener's TLS refers to.
fn certificates(served: &mut Served, tls: &GatewayListenersTls) -> Result<(), Wrong> {
    if tls.options.as_ref().is_some_and(|options| !options.is_empty()) {
        return Err(("tls.options", "UnsupportedValue", "there are no options here".to_owned()));
    }
    let refs = tls.certificate_refs.as_deref().unwrap_or_default();
    if refs.is_empty() {
        let message = "a listener that terminates TLS needs a certificate".to_owned();
        return Err(("tls.certificateRefs", INVALID, message));
    }
    for (index, reference) in refs.iter().enumerate() {
        let name = format!("tls.certificateRefs[{index}]");
        let (group, kind) = (reference.group.as_deref(), reference.kind.as_deref());
        if !group.unwrap_or_default().is_empty() || kind.is_some_and(|kind| kind != "Secret") {
            let at = format!("{name}.kind");
            served.fault(Aspect::ResolvedRefs, &at, "InvalidCertificateRef", "expected a Secret".to_owned());
        }
        let namespace = reference.namespace.as_deref().unwrap_or(&served.parent.name.namespace);
        let secret = ObjectName::new(namespace, reference.name.as_str());
        let field = format!("{}.{name}", served.field);
        served.certificates.push(Certificate { secret, field, pair: None });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::standing;

    #[test]
    fn one_that_cannot_be_read_is_there_and_says_why() {
        let set = ObjectRef { kind: Kind::ListenerSet, name: ObjectName::new("default", "set") };
        let served = unread("web", &set, "spec.listeners[0]".to_owned(), "no such mode".to_owned());
        assert!(!served.is_accepted());
        let said = standing::listener(&served, 0, None);
        let accepted = said.conditions.iter().find(|said| said.kind == "Accepted").expect("a condition");
        assert_eq!((said.name.as_str(), accepted.status), ("web", false));
        assert_eq!(accepted.message, "spec.listeners[0]: no such mode");
    }
}
