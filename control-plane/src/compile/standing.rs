//! What is said in the `status` of the Gateway API's objects, in the API's own words and form; but for times and
//! generations, which whoever writes it adds. What is wrong with fields of an object is in [`super::status`] too, in
//! one form for all kinds; a condition here sums it up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use serde::Serialize;
use serde::ser::Serializer;

use super::INVALID;
use super::listener::{Aspect, Served};
use super::reference::{GATEWAY_GROUP, Parent};
use crate::objects::problem::FieldError;
use crate::objects::{Kind, ObjectName, ObjectRef};

/// The features of the API that gateways have by what is compiled here, as a class's `supportedFeatures` names them:
/// in order.
pub const FEATURES: &[&str] = &[
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
];

/// Those that come of addresses, and of the pods that gateways are given.
pub const FEATURES_OF_PODS: &[&str] = &["GatewayInfrastructure", "GatewayStaticAddresses"];

/// Those of sidecars' requests to Services, as a mesh's `supportedFeatures` names them: in order.
pub const FEATURES_OF_MESH: &[&str] = &[
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// As `Accepted`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it is so.
    #[serde(serialize_with = "truth")]
    pub status: bool,
    /// One of the API's words, or one of ours.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

fn truth<S: Serializer>(status: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *status { "True" } else { "False" })
}

impl Said {
    /// It is so.
    pub(super) fn yes(kind: &'static str, reason: &'static str) -> Self {
        Said { kind, status: true, reason, message: String::new() }
    }

    /// It is not, because of an error.
    pub(super) fn no(kind: &'static str, error: &FieldError) -> Self {
        // What an API server would not have let in is, for the Gateway API, a value that is not supported.
        let reason = if error.reason == INVALID { "UnsupportedValue" } else { error.reason };
        Said { kind, status: false, reason, message: error.words() }
    }

    /// It is so unless there was an error; the first counts.
    pub(super) fn unless<'e>(
        kind: &'static str,
        reason: &'static str,
        errors: impl IntoIterator<Item = &'e FieldError>,
    ) -> Self {
        errors.into_iter().next().map_or_else(|| Said::yes(kind, reason), |error| Said::no(kind, error))
    }

    /// Where it is so, with a word on what is not as it is written all the same.
    pub(super) fn but(mut self, hints: &[FieldError]) -> Self {
        if self.status && self.message.is_empty() {
            self.message = hints.iter().map(FieldError::words).collect::<Vec<_>>().join("; ");
        }
        self
    }
}

/// The standing of all objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standings {
    /// Of the classes that are ours.
    pub classes: BTreeMap<ObjectName, Vec<Said>>,
    /// Of the gateways of these.
    pub gateways: BTreeMap<ObjectName, GatewayStanding>,
    /// The ports of those that are accepted, their sets' too.
    pub ports: BTreeMap<ObjectName, BTreeSet<u16>>,
    /// The gateway of each Ingress of a class of ours, where it has one.
    pub ingresses: BTreeMap<ObjectName, Option<ObjectName>>,
    /// Of the sets of listeners that belong to these.
    pub listener_sets: BTreeMap<ObjectName, GatewayStanding>,
    /// Of routes: by each parent that is ours, in the order in which they are written.
    pub routes: OrdMap<ObjectRef, Arc<Vec<ParentStanding>>>,
    /// Of policies: by each gateway of ours that they concern.
    pub policies: BTreeMap<ObjectName, Vec<AncestorStanding>>,
}

/// A `Gateway`'s or a `ListenerSet`'s.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStanding {
    /// `Accepted`, `Programmed` (as far as configuration goes; addresses and proxies are for others to say) and more.
    pub conditions: Vec<Said>,
    /// In the order in which they are written.
    pub listeners: Vec<ListenerStanding>,
    /// How many sets of listeners belong to it. `None`: it is a set itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attached_listener_sets: Option<usize>,
}

/// A listener's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStanding {
    /// Its name.
    pub name: String,
    /// What may hang on it.
    pub supported_kinds: Vec<RouteKind>,
    /// How many routes do that are accepted.
    pub attached_routes: usize,
    /// `Accepted`, `Conflicted`, `Programmed`, `ResolvedRefs`, and `OverlappingTLSConfig` where it is so.
    pub conditions: Vec<Said>,
}

/// A kind of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RouteKind {
    group: &'static str,
    kind: Kind,
}

/// What a parent says of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStanding {
    /// As the route names it.
    pub parent_ref: Parent,
    /// `Accepted` and `ResolvedRefs`; and `PartiallyInvalid` where it is so.
    pub conditions: Vec<Said>,
}

impl ParentStanding {
    /// Whether the route is accepted there.
    pub(super) fn is_accepted(&self) -> bool {
        self.conditions.iter().any(|said| said.kind == "Accepted" && said.status)
    }
}

/// What is said of a policy with respect to a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStanding {
    /// The gateway.
    pub ancestor_ref: Parent,
    /// `Accepted` and `ResolvedRefs`.
    pub conditions: Vec<Said>,
}

/// A gateway's name in a policy's status.
pub(super) fn ancestor(gateway: &ObjectName) -> Parent {
    Parent {
        group: Some(GATEWAY_GROUP.to_owned()),
        kind: Some(Kind::Gateway.as_str().to_owned()),
        namespace: Some(gateway.namespace.to_string()),
        name: gateway.name.to_string(),
        section_name: None,
        port: None,
    }
}

/// A listener's standing; `overlapping` is another whose hosts it shares.
pub(super) fn listener(served: &Served, attached: usize, overlapping: Option<&Served>) -> ListenerStanding {
    let of = |aspect: Aspect| {
        served.faults.iter().filter(move |(found, _)| *found == aspect).map(|(_, error)| error)
    };
    let refused = of(Aspect::Accepted).next();
    let conflict = refused.filter(|error| matches!(error.reason, "HostnameConflict" | "ProtocolConflict"));
    let mut conditions = vec![
        Said::unless("Accepted", "Accepted", of(Aspect::Accepted)),
        match conflict {
            Some(error) => Said { status: true, ..Said::no("Conflicted", error) },
            None => Said { status: false, ..Said::yes("Conflicted", "NoConflicts") },
        },
        match (conflict, served.is_programmed()) {
            (Some(error), _) => Said::no("Programmed", error),
            (None, true) => Said::yes("Programmed", "Programmed"),
            (None, false) => Said { status: false, ..Said::yes("Programmed", "Invalid") },
        },
        Said::unless("ResolvedRefs", "ResolvedRefs", of(Aspect::ResolvedRefs)).but(&served.outdated),
    ];
    if let Some(other) = overlapping {
        let message = format!(
            "listener {} has the same port and some of the same hosts; requests on a connection that is the other's are \
             answered 421",
            other.name
        );
        conditions.push(Said {
            kind: "OverlappingTLSConfig",
            status: true,
            reason: "OverlappingHostnames",
            message,
        });
    }
    ListenerStanding {
        name: served.name.clone(),
        supported_kinds: served
            .kinds
            .iter()
            .map(|kind| RouteKind { group: GATEWAY_GROUP, kind: *kind })
            .collect(),
        attached_routes: attached,
        conditions,
    }
}

/// The `Accepted` and `Programmed` of a gateway's own listeners. One without its certificate is accepted.
pub(super) fn of_gateway<'s>(listeners: impl Iterator<Item = &'s Served> + Clone) -> Vec<Said> {
    of_listeners(listeners, Served::is_accepted)
}

/// The same of a set's. To the API a set is good for nothing if none of its listeners can be served.
pub(super) fn of_set<'s>(listeners: impl Iterator<Item = &'s Served> + Clone) -> Vec<Said> {
    of_listeners(listeners, Served::is_programmed)
}

fn of_listeners<'s>(
    listeners: impl Iterator<Item = &'s Served> + Clone,
    is_valid: fn(&Served) -> bool,
) -> Vec<Said> {
    let accepted = listeners.clone().filter(|served| is_valid(served)).count();
    let all = listeners.clone().count();
    let names = listeners.clone().filter(|served| !is_valid(served)).map(|served| served.name.as_str());
    let refused = format!("not accepted: {}", names.collect::<Vec<_>>().join(", "));
    let programmed = listeners.clone().any(Served::is_programmed);
    vec![
        Said {
            kind: "Accepted",
            status: accepted > 0 || all == 0,
            reason: if accepted < all { "ListenersNotValid" } else { "Accepted" },
            message: if accepted < all { refused.clone() } else { String::new() },
        },
        match (programmed || all == 0, accepted) {
            (true, _) => Said::yes("Programmed", "Programmed"),
            (false, 0) => {
                Said { kind: "Programmed", status: false, reason: "ListenersNotValid", message: refused }
            }
            (false, _) => Said {
                message: "no listener can be served".to_owned(),
                status: false,
                ..Said::yes("Programmed", "Invalid")
            },
        },
    ]
}
