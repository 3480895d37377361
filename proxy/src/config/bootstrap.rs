//! Envoy's own bootstrap, `envoy.config.bootstrap.v3.Bootstrap`, as its YAML: who the process is, where its admin
//! port listens, its static resources, and the ADS server, if there is one. What it cannot do it refuses.

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::Bytes;
use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap::{DynamicResources, StaticResources};
use envoy_types::pb::envoy::config::bootstrap::v3::{Admin, Bootstrap};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::api_config_source::ApiType;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{ApiConfigSource, ConfigSource, GrpcService};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use pontoon_xds::messages::Coded as _;
use pontoon_xds::{Resource, ResourceType, json};
use prost::Name as _;

use super::lds::{host_and_port, socket_address};
use super::overload::{self, Overload};
use super::problem::{Problem, Under};
use super::support::{Message, support};
use crate::bootstrap::XdsVariant;

pub(super) const MESSAGES: &[Message] =
    &[BOOTSTRAP, ADMIN, STATIC_RESOURCES, DYNAMIC_RESOURCES, API_SOURCE, GRPC_SERVICE, ENVOY_GRPC];

support! {
    BOOTSTRAP, bootstrap: Bootstrap = "envoy.config.bootstrap.v3.Bootstrap";
    read: node, static_resources, dynamic_resources, admin, overload_manager;
    ignored:
        node_context_params => "it is for names that begin with xdstp:",
        flags_path => "there is no runtime",
        deferred_stat_options => "it only changes statistics",
        stats_config => "it only changes statistics",
        stats_flush => "it only changes statistics",
        stats_flush_interval => "it only changes statistics",
        stats_server_version_override => "it only changes statistics",
        grpc_async_client_manager_config => "the client of the control plane keeps one connection",
        stats_eviction => "it only changes statistics",
        enable_dispatcher_stats => "it only changes statistics",
        perf_tracing_file_path => "it is for Envoy's developers",
        memory_allocator_manager => "the allocator is another",
        inline_headers => "it only changes how headers are kept",
        enable_worker_cpu_affinity => "the kernel chooses a worker's processor",
        watchdog => "a worker that stands still is told to systemd (WatchdogSec)",
        watchdogs => "a worker that stands still is told to systemd (WatchdogSec)";
    differs:
        layered_runtime => "Envoy’s runtime can change what other fields say; here they count as they are";
    refused: cluster_manager, hds_config, stats_sinks, tracing, header_prefix, fatal_actions, config_sources, default_socket_interface, application_log_config, dns_resolution_config, typed_dns_resolver_config, bootstrap_extensions, default_config_source, certificate_provider_instances, default_regex_engine, xds_delegate_extension, xds_config_tracker_extension, listener_manager, use_tcp_for_dns_lookups;
}

support! {
    ADMIN, admin: Admin = "envoy.config.bootstrap.v3.Admin";
    read: address;
    ignored:
        profile_path => "there is no profiler to switch on",
        ignore_global_conn_limit => "the admin port is never limited";
    refused: access_log, access_log_path, socket_options, allow_paths;
}

support! {
    STATIC_RESOURCES, static_resources: StaticResources = "envoy.config.bootstrap.v3.Bootstrap.StaticResources";
    read: listeners, clusters, secrets;
    ignored:;
    refused: ;
}

support! {
    DYNAMIC_RESOURCES, dynamic_resources: DynamicResources = "envoy.config.bootstrap.v3.Bootstrap.DynamicResources";
    read: lds_config, cds_config, ads_config;
    ignored:;
    refused: lds_resources_locator, cds_resources_locator;
}

support! {
    API_SOURCE, api_source: ApiConfigSource = "envoy.config.core.v3.ApiConfigSource";
    read: api_type, grpc_services;
    ignored:
        transport_api_version => "there is only v3",
        refresh_delay => "it is for REST",
        request_timeout => "it is for REST",
        set_node_on_first_message_only => "the first message alone names the node";
    refused: cluster_names, rate_limit_settings, config_validators;
}

support! {
    GRPC_SERVICE, grpc_service: GrpcService = "envoy.config.core.v3.GrpcService";
    read: target_specifier;
    ignored:
        timeout => "a stream has no longest duration, and a connection an own one";
    refused: initial_metadata, retry_policy;
}

support! {
    ENVOY_GRPC, envoy_grpc: EnvoyGrpc = "envoy.config.core.v3.GrpcService.EnvoyGrpc";
    read: cluster_name;
    ignored:
        skip_envoy_headers => "no x-envoy headers are added";
    refused: authority, retry_policy, max_receive_message_length;
}

/// What a bootstrap says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Written {
    /// `node.id`, where it is given.
    pub node_id: Option<String>,
    /// `node.cluster`, where it is given.
    pub cluster: Option<String>,
    /// Where the admin port listens.
    pub admin: Option<SocketAddr>,
    /// The ADS server.
    pub ads: Option<Ads>,
    /// When load is shed.
    pub overload: Option<Overload>,
    /// The static resources, what is referred to before what refers to it.
    pub resources: Vec<(ResourceType, Resource)>,
    /// All of it as protobuf, to be shown.
    pub encoded: Bytes,
}

/// An ADS server.
#[derive(Debug, Clone, PartialEq)]
pub struct Ads {
    /// As a URI.
    pub server: String,
    /// Which variant of the protocol is spoken with it.
    pub variant: XdsVariant,
}

/// Reads a bootstrap that is JSON, or YAML read as such.
///
/// # Errors
/// When it is not a bootstrap, or says what this proxy does not support. The resources themselves are looked at by
/// the store.
pub fn read(value: serde_json::Value) -> Result<Written, Problem> {
    let url = Bootstrap::type_url();
    let bytes =
        json::from_json(&url, &value).and_then(|bytes| Ok(json::unfold(&url, &bytes)?.unwrap_or(bytes)));
    let bytes = bytes.map_err(|mistake| Problem::new(mistake.path, mistake.reason))?;
    let message = Bootstrap::decoded(&bytes)
        .map_err(|error| Problem::new("", format!("cannot be decoded: {error}")))?;
    bootstrap(&message)?;
    let statics = message.static_resources.unwrap_or_default();
    static_resources(&statics).under(|| "static_resources".into())?;
    distinct("clusters", statics.clusters.iter().map(|cluster| cluster.name.as_str()))
        .and_then(|()| distinct("listeners", statics.listeners.iter().map(|listener| listener.name.as_str())))
        .and_then(|()| distinct("secrets", statics.secrets.iter().map(|secret| secret.name.as_str())))
        .under(|| "static_resources".into())?;
    let ads = match &message.dynamic_resources {
        Some(dynamic) => ads(dynamic, &statics.clusters).under(|| "dynamic_resources".into())?,
        None => None,
    };
    let node = message.node.unwrap_or_default();
    let given = |text: String| (!text.is_empty()).then_some(text);
    Ok(Written {
        node_id: given(node.id),
        cluster: given(node.cluster),
        admin: message.admin.as_ref().map(admin_address).transpose().under(|| "admin".into())?.flatten(),
        ads,
        overload: message
            .overload_manager
            .as_ref()
            .map(overload::compile)
            .transpose()
            .under(|| "overload_manager".into())?,
        resources: resources(statics),
        encoded: bytes.into(),
    })
}

fn admin_address(message: &Admin) -> Result<Option<SocketAddr>, Problem> {
    admin(message)?;
    message.address.as_ref().map(socket_address).transpose().under(|| "address".into())
}

/// No two of a list may have one name.
fn distinct<'n>(list: &str, names: impl Iterator<Item = &'n str>) -> Result<(), Problem> {
    let mut earlier = HashMap::new();
    for (position, name) in names.enumerate().filter(|(_, name)| !name.is_empty()) {
        if let Some(first) = earlier.insert(name, position) {
            let reason = format!("is {name:?}, as is that of {list}[{first}]; names must differ");
            return Err(Problem::new(format!("{list}[{position}].name"), reason));
        }
    }
    Ok(())
}

fn resources(statics: StaticResources) -> Vec<(ResourceType, Resource)> {
    let mut all = Vec::new();
    all.extend(statics.secrets.iter().map(|secret| (ResourceType::Secret, Resource::encode(secret))));
    all.extend(statics.clusters.iter().map(|cluster| (ResourceType::Cluster, Resource::encode(cluster))));
    for (position, mut listener) in statics.listeners.into_iter().enumerate() {
        // Envoy too makes up a name where none is given.
        if listener.name.is_empty() {
            listener.name = format!("static_resources.listeners[{position}]");
        }
        all.push((ResourceType::Listener, Resource::encode(&listener)));
    }
    all
}

/// The address of the ADS server. Listeners and clusters come from it or from nowhere.
fn ads(message: &DynamicResources, clusters: &[Cluster]) -> Result<Option<Ads>, Problem> {
    dynamic_resources(message)?;
    for (field, source) in [("lds_config", &message.lds_config), ("cds_config", &message.cds_config)] {
        let is_ads = |source: &ConfigSource| {
            matches!(source.config_source_specifier, Some(ConfigSourceSpecifier::Ads(_)))
        };
        match source {
            Some(source) if is_ads(source) && message.ads_config.is_some() => {}
            Some(_) => return Err(Problem::new(field, "must be ads: {}, beside an ads_config")),
            None if message.ads_config.is_none() => {}
            None => return Err(Problem::new(field, "is missing; this proxy asks ADS for both, or for none")),
        }
    }
    let Some(source) = &message.ads_config else { return Ok(None) };
    server(source, clusters).under(|| "ads_config".into()).map(Some)
}

fn server(source: &ApiConfigSource, clusters: &[Cluster]) -> Result<Ads, Problem> {
    api_source(source)?;
    let variant = match source.api_type() {
        ApiType::DeltaGrpc => XdsVariant::Delta,
        ApiType::Grpc => XdsVariant::Sotw,
        other => {
            let reason = format!("is {}; this proxy speaks DELTA_GRPC and GRPC", other.as_str_name());
            return Err(Problem::new("api_type", reason));
        }
    };
    let [service] = source.grpc_services.as_slice() else {
        return Err(Problem::new("grpc_services", "must have one element"));
    };
    grpc_service(service).under(|| "grpc_services[0]".into())?;
    let Some(TargetSpecifier::EnvoyGrpc(envoy)) = &service.target_specifier else {
        return Err(Problem::new("grpc_services[0]", "must be envoy_grpc"));
    };
    envoy_grpc(envoy).under(|| "grpc_services[0].envoy_grpc".into())?;
    let name = &envoy.cluster_name;
    let at = "grpc_services[0].envoy_grpc.cluster_name";
    let cluster = clusters.iter().find(|cluster| cluster.name == *name);
    let cluster =
        cluster.ok_or_else(|| Problem::new(at, format!("is {name:?}, which is no static cluster")))?;
    if cluster.transport_socket.is_some() {
        let reason =
            format!("is {name:?}, which has a transport_socket; the ADS server is spoken to in plain text");
        return Err(Problem::new(at, reason));
    }
    let endpoints = cluster.load_assignment.iter().flat_map(|assignment| &assignment.endpoints);
    let address = endpoints.flat_map(|locality| &locality.lb_endpoints).find_map(|endpoint| {
        match endpoint.host_identifier.as_ref()? {
            HostIdentifier::Endpoint(endpoint) => endpoint.address.as_ref(),
            HostIdentifier::EndpointName(_) => None,
        }
    });
    let address = address.ok_or_else(|| Problem::new(at, format!("is {name:?}, which has no endpoint")))?;
    let (host, port) = host_and_port(address).under(|| at.into())?;
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    Ok(Ads { server: format!("http://{host}:{port}"), variant })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Store;

    fn ads_cluster() -> serde_json::Value {
        json!({"name": "xds", "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{
            "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 18000}}}}]}]}})
    }

    fn with_ads(api_type: &str) -> serde_json::Value {
        json!({
            "node": {"id": "a", "cluster": "b"},
            "static_resources": {"clusters": [ads_cluster()]},
            "dynamic_resources": {
                "ads_config": {"api_type": api_type, "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
                "lds_config": {"ads": {}}, "cds_config": {"ads": {}}},
        })
    }

    #[test]
    fn node_admin_and_the_ads_server_are_read() {
        let mut bootstrap = with_ads("DELTA_GRPC");
        bootstrap["admin"] =
            json!({"address": {"socketAddress": {"address": "127.0.0.1", "portValue": 9901}}});
        let written = read(bootstrap).unwrap();
        assert_eq!((written.node_id.as_deref(), written.cluster.as_deref()), (Some("a"), Some("b")));
        assert_eq!(written.admin, Some("127.0.0.1:9901".parse().unwrap()));
        let server = String::from("http://127.0.0.1:18000");
        assert_eq!(written.ads, Some(Ads { server, variant: XdsVariant::Delta }));
        assert_eq!(written.resources.len(), 1);
        assert_eq!(read(with_ads("GRPC")).unwrap().ads.unwrap().variant, XdsVariant::Sotw);
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_path() {
        let path = |value| read(value).unwrap_err().path;
        assert_eq!(path(with_ads("REST")), "dynamic_resources.ads_config.api_type");
        let mut named = with_ads("DELTA_GRPC");
        named["dynamic_resources"]["ads_config"]["grpc_services"][0]["initial_metadata"] =
            json!([{"key": "authorization", "value": "x"}]);
        assert_eq!(path(named), "dynamic_resources.ads_config.grpc_services[0].initial_metadata");
        let elsewhere = json!({"address": "127.0.0.1", "port_value": 1, "network_namespace_filepath": "/x"});
        let admin = json!({"admin": {"address": {"socket_address": elsewhere}}});
        assert_eq!(path(admin), "admin.address.socket_address.network_namespace_filepath");
        assert_eq!(path(json!({"header_prefix": "x-shop"})), "header_prefix");
        assert_eq!(path(json!({"admin": {"access_log_path": "/dev/null"}})), "admin.access_log_path");
        assert!(read(json!({"static_resource": {}})).unwrap_err().to_string().contains("static_resource"));
    }

    /// Whether a bootstrap can be used whose one listener has these HTTP filters before the router.
    fn with_listener(filters: &[serde_json::Value], route_config: serde_json::Value) -> Result<(), Problem> {
        let of = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
        let mut filters = filters.to_vec();
        filters.push(json!({"name": "router", "typed_config": {"@type": of("http.router.v3.Router")}}));
        let manager = json!({
            "@type": of("network.http_connection_manager.v3.HttpConnectionManager"), "stat_prefix": "l",
            "http_filters": filters, "route_config": route_config,
        });
        let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": 1}});
        let listener = json!({"name": "l", "address": address,
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]});
        let written = read(json!({"static_resources":
            {"listeners": [listener], "clusters": [{"name": "there", "type": "STATIC"}]}}))?;
        Store::fixed(written.resources, true, tokio::time::Instant::now()).map(drop)
    }

    fn routes(route: serde_json::Value) -> serde_json::Value {
        json!({"virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [route]}]})
    }

    fn with_filter(filter: serde_json::Value, of_route: serde_json::Value) -> Result<(), Problem> {
        let route = json!({"match": {"prefix": "/"}, "direct_response": {"status": 200},
            "typed_per_filter_config": of_route});
        with_listener(&[filter], routes(route))
    }

    #[test]
    fn a_static_route_to_a_cluster_that_does_not_exist_is_refused() {
        let to = |route: serde_json::Value| routes(json!({"match": {"prefix": "/"}, "route": route}));
        let refused = |route| with_listener(&[], to(route)).unwrap_err().to_string();
        assert_eq!(with_listener(&[], to(json!({"cluster": "there"}))), Ok(()));
        let at = "route_config.virtual_hosts[0].routes[0].route";
        let one = refused(json!({"cluster": "nowhere"}));
        assert!(one.contains(&format!("{at}.cluster: is \"nowhere\"")), "{one}");
        let arms = json!([{"name": "there", "weight": 1}, {"name": "nowhere", "weight": 0}]);
        let arm = refused(json!({"weighted_clusters": {"clusters": arms}}));
        assert!(arm.contains(&format!("{at}.weighted_clusters.clusters[1].name")), "{arm}");
        let mirrors = json!([{"cluster": "nowhere"}]);
        let mirror = refused(json!({"cluster": "there", "request_mirror_policies": mirrors}));
        assert!(mirror.contains(&format!("{at}.request_mirror_policies[0].cluster")), "{mirror}");
        let mut unchecked = to(json!({"cluster": "nowhere"}));
        unchecked["validate_clusters"] = false.into();
        assert_eq!(with_listener(&[], unchecked), Ok(()));
    }

    #[test]
    fn conditions_of_retries() {
        let of = |retry_on: &str| {
            let policy = json!({"retry_on": retry_on, "retriable_status_codes": [418]});
            let route = json!({"cluster": "there", "retry_policy": policy});
            with_listener(&[], routes(json!({"match": {"prefix": "/"}, "route": route})))
        };
        assert_eq!(of("5xx,reset, gateway-error,retriable-4xx,retriable-status-codes"), Ok(()));
        assert!(of("5xx,cancelled").unwrap_err().reason.contains("\"cancelled\""));
    }

    #[test]
    fn tries_may_be_told_to_go_elsewhere_which_they_do_anyway() {
        let of = |name: &str| {
            let config = json!({"@type": format!("type.googleapis.com/envoy.extensions.retry.host.{name}")});
            let policy =
                json!({"retry_on": "5xx", "retry_host_predicate": [{"name": "x", "typed_config": config}]});
            let route = json!({"cluster": "there", "retry_policy": policy});
            with_listener(&[], routes(json!({"match": {"prefix": "/"}, "route": route})))
        };
        assert_eq!(of("previous_hosts.v3.PreviousHostsPredicate"), Ok(()));
        let refused = of("omit_canary_hosts.v3.OmitCanaryHostsPredicate").unwrap_err();
        assert!(refused.path.ends_with("retry_policy.retry_host_predicate[0].typed_config"), "{refused}");
    }

    #[test]
    fn an_extension_of_a_type_that_is_not_known_is_refused_unless_it_is_optional() {
        let config = json!({"@type": "type.googleapis.com/shop.Unknown", "text": "x"});
        let filter =
            |is_optional| json!({"name": "shop", "is_optional": is_optional, "typed_config": config});
        let of_route = |is_optional| {
            let url = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
            json!({"shop": {"@type": url, "is_optional": is_optional, "config": config}})
        };
        assert_eq!(with_filter(filter(true), json!({})), Ok(()));
        assert_eq!(with_filter(filter(true), of_route(true)), Ok(()));
        let refused = with_filter(filter(false), json!({})).unwrap_err();
        assert!(refused.path.ends_with("http_filters[0].name"), "{refused}");
        let refused = with_filter(filter(true), of_route(false)).unwrap_err();
        assert!(refused.path.ends_with("typed_per_filter_config[shop].config"), "{refused}");
        assert!(refused.reason.contains("shop.Unknown"), "{refused}");
        let refused = with_filter(filter(true), json!({"shop": config})).unwrap_err();
        assert!(refused.reason.contains("shop.Unknown"), "{refused}");
    }

    #[test]
    fn a_name_that_is_there_twice_is_said_with_both_places() {
        let clusters = json!([{"name": "a"}, {"name": "b"}, {"name": "a"}]);
        let refused = read(json!({"static_resources": {"clusters": clusters}})).unwrap_err();
        assert_eq!(refused.path, "static_resources.clusters[2].name");
        assert!(refused.reason.contains("\"a\", as is that of clusters[0]"), "{refused}");
        assert!(read(json!({"static_resources": {"listeners": [{}, {}]}})).is_ok());
    }

    #[test]
    fn a_listener_without_a_name_gets_one() {
        let written = read(json!({"static_resources": {"listeners": [{}]}})).unwrap();
        assert_eq!(&*written.resources[0].1.name, "static_resources.listeners[0]");
    }

    #[test]
    fn what_is_refused_is_refused_wherever_it_stands() {
        let path = |cluster: serde_json::Value| {
            let written = read(json!({"static_resources": {"clusters": [cluster]}})).unwrap();
            Store::fixed(written.resources, true, tokio::time::Instant::now()).unwrap_err().path
        };
        let named = |endpoint: serde_json::Value, policy: serde_json::Value| {
            let mut whole =
                json!({"endpoint": {"address": {"socket_address": {"address": "shop", "port_value": 1}}}});
            whole.as_object_mut().unwrap().extend(endpoint.as_object().unwrap().clone());
            let mut assignment = json!({"cluster_name": "c", "endpoints": [{"lb_endpoints": [whole]}]});
            assignment.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
            path(json!({"name": "c", "type": "STRICT_DNS", "load_assignment": assignment}))
        };
        let at = "CDS \"c\".load_assignment.endpoints[0].lb_endpoints[0]";
        assert_eq!(
            named(json!({"load_balancing_weight": 2}), json!({})),
            format!("{at}.load_balancing_weight")
        );
        assert_eq!(named(json!({"health_status": "DRAINING"}), json!({})), format!("{at}.health_status"));
        let dropping = json!({"policy": {"drop_overloads": [{"category": "x"}]}});
        assert_eq!(named(json!({}), dropping), "CDS \"c\".load_assignment.policy.drop_overloads");

        let protocol = |explicit: serde_json::Value| {
            let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            let options =
                json!({"@type": format!("type.googleapis.com/{name}"), "explicit_http_config": explicit});
            path(json!({"name": "c", "typed_extension_protocol_options": {name: options}}))
        };
        let http1 = json!({"http_protocol_options": {"send_fully_qualified_url": true}});
        assert!(
            protocol(http1).ends_with("explicit_http_config.http_protocol_options.send_fully_qualified_url")
        );
        let http2 = json!({"http2_protocol_options": {"max_concurrent_streams": 1}});
        assert!(
            protocol(http2).ends_with("explicit_http_config.http2_protocol_options.max_concurrent_streams")
        );
    }
}
