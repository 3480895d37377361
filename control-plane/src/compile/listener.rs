//! A `Gateway`'s listeners: which are served, on which socket, and for which hosts and routes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::envoy::config::core::v3::{Http2ProtocolOptions, HttpProtocolOptions};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::util::pack_any;
use gateway_api::gateways::{
    GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as AllowedFrom, GatewayListenersTls,
    GatewayListenersTlsCertificateRefs, GatewayListenersTlsMode,
};

use super::INVALID;
use super::hostname::Hostname;
use super::log_format;
use super::tls;
use super::wire;
use crate::objects::problem::FieldError;
use crate::objects::secret::Pair;
use crate::objects::{DEFAULT_NAMESPACE, Gateway, ObjectName};

/// The class that is ours without a `GatewayClass` that says so.
pub const GATEWAY_CLASS: &str = "pontoon";
/// The `controllerName` of classes that are ours.
pub const CONTROLLER: &str = "pontoon.dev/gateway-controller";

/// A keep-alive connection without a request is closed after this.
const IDLE: std::time::Duration = std::time::Duration::from_secs(3600);
/// A request without a byte either way is ended after this.
const STREAM_IDLE: std::time::Duration = std::time::Duration::from_secs(300);
/// HTTP/2 streams of one connection, as Envoy advises for the edge.
const MAX_STREAMS: u32 = 100;
/// For all headers of a request: bounds a client that sends them byte by byte.
const REQUEST_HEADERS: std::time::Duration = std::time::Duration::from_secs(10);

/// A listener that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) hostname: Hostname,
    /// Whether routes of other namespaces may hang on it.
    pub(super) all_namespaces: bool,
    /// Whether `HTTPRoute`s may.
    pub(super) http_routes: bool,
    /// The certificates with which TLS is terminated. Empty: it is not.
    pub(super) certificates: Vec<Certificate>,
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

/// What a `Gateway` asks for.
#[derive(Debug, Clone, Default)]
pub(super) struct Parsed {
    /// Where its sockets listen.
    pub(super) ip: Option<IpAddr>,
    pub(super) listeners: Vec<Served>,
    pub(super) errors: Vec<FieldError>,
}

/// Reads a gateway of our class. A listener that cannot be served is left out; the others are.
pub(super) fn parse(gateway: &Gateway) -> Parsed {
    let mut parsed = Parsed::default();
    let spec = &gateway.spec;
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    parsed.ip = match spec.addresses.as_deref().unwrap_or_default() {
        [] => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        [only] => {
            let ip = only.value.as_deref().and_then(|value| value.parse().ok());
            let kind = only.r#type.as_deref().unwrap_or("IPAddress");
            ip.filter(|_| kind == "IPAddress")
        }
        _ => None,
    };
    if parsed.ip.is_none() {
        let message =
            "expected one address of type IPAddress to listen on; without any, every address is used";
        parsed.errors.push(FieldError::new("spec.addresses", "UnsupportedAddress", message));
        return parsed;
    }
    let unsupported = [
        (spec.tls.is_some(), "spec.tls", "clients' certificates are not supported by this version"),
        (
            spec.allowed_listeners.is_some(),
            "spec.allowedListeners",
            "ListenerSets are not supported by this version",
        ),
        (
            spec.infrastructure.is_some(),
            "spec.infrastructure",
            "there is no infrastructure to make here; run pontoon-proxy yourself",
        ),
    ];
    for (_, field, message) in unsupported.into_iter().filter(|(set, ..)| *set) {
        parsed.errors.push(FieldError::new(field, "UnsupportedValue", message));
    }
    for (index, listener) in spec.listeners.iter().enumerate() {
        let field = format!("spec.listeners[{index}]");
        match listener_of(listener, namespace, &parsed.listeners, &field) {
            Ok(served) => parsed.listeners.push(served),
            Err(error) => parsed.errors.push(error),
        }
    }
    parsed
}

fn listener_of(
    written: &GatewayListeners,
    namespace: &str,
    before: &[Served],
    field: &str,
) -> Result<Served, FieldError> {
    let wrong = |name: &str, reason: &'static str, message: String| {
        Err(FieldError::new(format!("{field}.{name}"), reason, message))
    };
    let certificates = match (written.protocol.as_str(), &written.tls) {
        ("HTTP", None) => Vec::new(),
        ("HTTP", Some(_)) => return wrong("tls", INVALID, "a listener of protocol HTTP has no TLS".into()),
        ("HTTPS", Some(tls)) => certificates(tls, namespace, field)?,
        ("HTTPS", None) => {
            return wrong("tls", INVALID, "a listener of protocol HTTPS needs certificateRefs".into());
        }
        _ => {
            let message = "expected HTTP or HTTPS; other protocols are not supported by this version";
            return wrong("protocol", "UnsupportedProtocol", message.into());
        }
    };
    let Some(port) = u16::try_from(written.port).ok().filter(|port| *port != 0) else {
        return wrong("port", INVALID, "expected a port, 1 to 65535".into());
    };
    let hostname = match Hostname::parse(written.hostname.as_deref()) {
        Ok(hostname) => hostname,
        Err(message) => return wrong("hostname", INVALID, message),
    };
    if written.name.is_empty() || before.iter().any(|other| other.name == written.name) {
        return wrong("name", INVALID, "each listener of a gateway needs a name of its own".into());
    }
    if let Some(other) = before.iter().find(|other| other.port == port && other.hostname == hostname) {
        let message =
            format!("listener {} has the same port and hostname; it is the one that is served", other.name);
        return wrong("hostname", "HostnameConflict", message);
    }
    let conflict =
        |other: &&Served| other.port == port && other.certificates.is_empty() != certificates.is_empty();
    if let Some(other) = before.iter().find(conflict) {
        let message = format!("listener {} has the same port and another protocol", other.name);
        return wrong("protocol", "ProtocolConflict", message);
    }
    let allowed = written.allowed_routes.as_ref();
    let from = allowed.and_then(|allowed| allowed.namespaces.as_ref()).and_then(|n| n.from.as_ref());
    let all_namespaces = match from {
        None | Some(AllowedFrom::Same) => false,
        Some(AllowedFrom::All) => true,
        Some(AllowedFrom::Selector) => {
            let message = "namespaces have no labels here; expected Same or All".to_owned();
            return wrong("allowedRoutes.namespaces.from", "UnsupportedValue", message);
        }
    };
    let kinds = allowed.and_then(|allowed| allowed.kinds.as_deref()).unwrap_or_default();
    let http = |group: Option<&str>, kind: &str| {
        kind == "HTTPRoute" && group.is_none_or(|group| group == "gateway.networking.k8s.io")
    };
    let http_routes = kinds.is_empty() || kinds.iter().any(|kind| http(kind.group.as_deref(), &kind.kind));
    if !http_routes {
        return wrong("allowedRoutes.kinds", "InvalidRouteKinds", "only HTTPRoute is supported".into());
    }
    Ok(Served { name: written.name.clone(), port, hostname, all_namespaces, http_routes, certificates })
}

/// The secrets that a listener's TLS refers to.
fn certificates(
    tls: &GatewayListenersTls,
    namespace: &str,
    field: &str,
) -> Result<Vec<Certificate>, FieldError> {
    let at = |name: &str| format!("{field}.tls.{name}");
    if matches!(tls.mode, Some(GatewayListenersTlsMode::Passthrough)) {
        let message = "Passthrough is for protocol TLS, which is not supported by this version";
        return Err(FieldError::new(at("mode"), "UnsupportedValue", message));
    }
    if tls.options.as_ref().is_some_and(|options| !options.is_empty()) {
        let message = "there are no options here";
        return Err(FieldError::new(at("options"), "UnsupportedValue", message));
    }
    let refs = tls.certificate_refs.as_deref().unwrap_or_default();
    if refs.is_empty() {
        let message = "a listener of protocol HTTPS needs a certificate";
        return Err(FieldError::new(at("certificateRefs"), INVALID, message));
    }
    let certificate = |(index, reference): (usize, &GatewayListenersTlsCertificateRefs)| {
        let field = at(&format!("certificateRefs[{index}]"));
        let (group, kind) = (reference.group.as_deref(), reference.kind.as_deref());
        if !group.unwrap_or_default().is_empty() || kind.is_some_and(|kind| kind != "Secret") {
            let message = "expected a Secret";
            return Err(FieldError::new(format!("{field}.kind"), "InvalidCertificateRef", message));
        }
        if reference.namespace.as_deref().is_some_and(|other| other != namespace) {
            let message = "a secret of another namespace may not be referred to";
            return Err(FieldError::new(format!("{field}.namespace"), "RefNotPermitted", message));
        }
        let secret = ObjectName::new(namespace, reference.name.as_str());
        Ok(Certificate { secret, field, pair: None })
    };
    refs.iter().enumerate().map(certificate).collect()
}

/// The socket and what is done with a connection on it. Its routes come by RDS, so that a change of routes leaves it
/// untouched. With certificates there is a filter chain for each of the listeners that share the socket, chosen by the
/// name that the client asks for; each is given with the name of its route configuration.
pub(super) fn listener(name: &str, address: SocketAddr, sharing: &[(&Served, String)]) -> Listener {
    let with_tls = sharing.iter().filter(|(served, _)| !served.certificates.is_empty());
    let mut filter_chains: Vec<FilterChain> =
        with_tls.map(|(served, routes)| tls::filter_chain(served, chain(name, routes))).collect();
    let listener_filters = if filter_chains.is_empty() { Vec::new() } else { vec![tls::inspector()] };
    if filter_chains.is_empty() {
        filter_chains.push(chain(name, name));
    }
    Listener {
        name: name.to_owned(),
        address: Some(wire::socket(address)),
        filter_chains,
        listener_filters,
        ..Listener::default()
    }
}

fn chain(listener: &str, routes: &str) -> FilterChain {
    let manager = HttpConnectionManager {
        stat_prefix: listener.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(wire::ads()),
            route_config_name: routes.to_owned(),
        })),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(Router::default()))),
            ..HttpFilter::default()
        }],
        access_log: vec![AccessLog {
            name: "envoy.access_loggers.file".to_owned(),
            config_type: Some(access_log::ConfigType::TypedConfig(log_format::json_to_stdout())),
            ..AccessLog::default()
        }],
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: Some(wire::duration(IDLE)),
            ..HttpProtocolOptions::default()
        }),
        http2_protocol_options: Some(Http2ProtocolOptions {
            allow_connect: true,
            max_concurrent_streams: wire::number(MAX_STREAMS),
            ..Http2ProtocolOptions::default()
        }),
        stream_idle_timeout: Some(wire::duration(STREAM_IDLE)),
        request_headers_timeout: Some(wire::duration(REQUEST_HEADERS)),
        use_remote_address: wire::yes(),
        normalize_path: wire::yes(),
        merge_slashes: true,
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        ..HttpConnectionManager::default()
    };
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack_any(manager))),
    };
    FilterChain { filters: vec![filter], ..FilterChain::default() }
}
