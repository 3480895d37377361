//! What the lists say is refused is refused: of each message, where it would stand in a bootstrap.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{MESSAGES, REFUSED};
use crate::config::Store;
use crate::config::bootstrap::read;
use crate::config::problem::Problem;

fn of(name: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.{name}")
}

/// A cluster with such fields.
fn cluster(fields: Value) -> Value {
    let mut cluster = json!({"name": "c", "type": "STATIC"});
    cluster.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"clusters": [cluster]})
}

/// A cluster whose endpoint has this address.
fn at(address: Value) -> Value {
    let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address}}]}]);
    cluster(json!({"load_assignment": {"cluster_name": "c", "endpoints": endpoints}}))
}

/// A cluster with such TLS.
fn tls(common: Value) -> Value {
    let context = json!({"@type": of("transport_sockets.tls.v3.UpstreamTlsContext"), "sni": "c",
        "common_tls_context": common});
    cluster(json!({"transport_socket": {"name": "tls", "typed_config": context}}))
}

/// A cluster that is spoken to so.
fn spoken(options: Value) -> Value {
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let mut options = options;
    options["@type"] = format!("type.googleapis.com/{name}").into();
    cluster(json!({"typed_extension_protocol_options": {name: options}}))
}

fn chain(filter: Value) -> Value {
    let address = json!({"socket_address": {"address": "127.0.0.1", "port_value": 1}});
    let listener = json!({"name": "l", "address": address, "filter_chains": [{"filters": [filter]}]});
    json!({"listeners": [listener], "clusters": [{"name": "c", "type": "STATIC"}]})
}

/// A listener whose manager has such fields.
fn manager(fields: Value) -> Value {
    let router = json!({"name": "router", "typed_config": {"@type": of("filters.http.router.v3.Router")}});
    let mut manager = json!({"stat_prefix": "l", "http_filters": [router],
        "@type": of("filters.network.http_connection_manager.v3.HttpConnectionManager")});
    manager.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    chain(json!({"name": "http", "typed_config": manager}))
}

/// A listener with this route.
fn route(fields: Value) -> Value {
    let mut route = json!({"match": {"prefix": "/"}});
    route.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let hosts = json!([{"name": "h", "domains": ["*"], "routes": [route]}]);
    manager(json!({"route_config": {"virtual_hosts": hosts}}))
}

/// A listener with a route to the cluster, with such fields.
fn to(fields: Value) -> Value {
    let mut action = json!({"cluster": "c"});
    action.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    route(json!({"route": action}))
}

/// A listener with a filter whose rules have such a permission and such a principal.
fn guarded(permission: Value, principal: Value) -> Value {
    let policy = json!({"permissions": [permission], "principals": [principal]});
    let rbac = json!({"@type": of("filters.http.rbac.v3.RBAC"), "rules": {"policies": {"p": policy}}});
    let router = json!({"name": "router", "typed_config": {"@type": of("filters.http.router.v3.Router")}});
    manager(json!({"http_filters": [{"name": "rbac", "typed_config": rbac}, router],
        "route_config": {"name": "r"}}))
}

/// A listener with a filter that limits requests by such a thing.
fn limited(by: Value) -> Value {
    let limit = json!({"@type": of("filters.http.local_ratelimit.v3.LocalRateLimit"), "stat_prefix": "x",
        "rate_limits": [{"actions": [by]}]});
    let router = json!({"name": "router", "typed_config": {"@type": of("filters.http.router.v3.Router")}});
    manager(json!({"http_filters": [{"name": "limit", "typed_config": limit}, router],
        "route_config": {"name": "r"}}))
}

fn hashed(policy: Value) -> Value {
    to(json!({"hash_policy": [policy]}))
}

fn tried(statics: Value) -> Result<(), Problem> {
    let written = read(json!({"static_resources": statics}))?;
    Store::fixed(written.resources, true, tokio::time::Instant::now()).map(drop)
}

/// Of a message, or of a field of one: something that has it, and where the refusal points.
fn cases() -> Vec<(&'static str, Value, &'static str)> {
    let template = json!({"pattern": {"regex": "a"}, "substitution": "b"});
    let ticket = json!({"keys": [{"inline_string": "k"}]});
    let any = || json!({"any": true});
    let metadata = json!({"filter": "f", "path": [{"key": "k"}], "value": {"present_match": true}});
    vec![
        (
            "envoy.config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig",
            cluster(json!({"common_lb_config": {"locality_weighted_lb_config": {}}})),
            "common_lb_config.locality_weighted_lb_config",
        ),
        (
            "envoy.config.cluster.v3.Cluster.CustomClusterType",
            json!({"clusters": [{"name": "c", "cluster_type": {"name": "x"}}]}),
            "cluster_type",
        ),
        (
            "envoy.config.core.v3.EnvoyInternalAddress",
            at(json!({"envoy_internal_address": {"server_listener_name": "l"}})),
            "endpoint.address",
        ),
        ("envoy.config.core.v3.Pipe", at(json!({"pipe": {"path": "/x"}})), "endpoint.address"),
        (
            "envoy.config.core.v3.ExtensionConfigSource",
            chain(
                json!({"name": "x", "config_discovery": {"config_source": {"ads": {}}, "type_urls": ["x"]}}),
            ),
            "filters[0]",
        ),
        (
            "envoy.config.core.v3.PathConfigSource",
            cluster(
                json!({"type": "EDS", "eds_cluster_config": {"eds_config": {"path_config_source": {"path": "/x"}}}}),
            ),
            "eds_cluster_config.eds_config",
        ),
        (
            "envoy.config.core.v3.PathConfigSource",
            tls(json!({"tls_certificate_sds_secret_configs":
                [{"name": "s", "sds_config": {"path_config_source": {"path": "/x"}}}]})),
            "sds_config",
        ),
        (
            "envoy.config.rbac.v3.Principal.Authenticated",
            guarded(any(), json!({"authenticated": {}})),
            "policies[p].principals[0].authenticated",
        ),
        (
            "envoy.config.rbac.v3.SourcedMetadata",
            guarded(json!({"sourced_metadata": {"metadata_matcher": metadata.clone()}}), any()),
            "policies[p].permissions[0].sourced_metadata",
        ),
        (
            "envoy.type.matcher.v3.FilterStateMatcher",
            guarded(any(), json!({"filter_state": {"key": "k", "string_match": {"exact": "x"}}})),
            "policies[p].principals[0].filter_state",
        ),
        (
            "envoy.type.matcher.v3.MetadataMatcher",
            guarded(json!({"metadata": metadata}), any()),
            "policies[p].permissions[0].metadata",
        ),
        (
            "envoy.type.v3.Int32Range",
            guarded(json!({"destination_port_range": {"start": 1, "end": 2}}), any()),
            "policies[p].permissions[0].destination_port_range",
        ),
        (
            "envoy.config.route.v3.ClusterSpecifierPlugin",
            route(json!({"route": {"inline_cluster_specifier_plugin": {"extension": {"name": "x"}}}})),
            "cluster_specifier",
        ),
        ("envoy.config.route.v3.FilterAction", route(json!({"filter_action": {}})), "action"),
        ("envoy.config.route.v3.NonForwardingAction", route(json!({"non_forwarding_action": {}})), "action"),
        (
            "envoy.config.route.v3.RateLimit.Action.DestinationCluster",
            limited(json!({"destination_cluster": {}})),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RateLimit.Action.DynamicMetaData",
            limited(
                json!({"dynamic_metadata": {"descriptor_key": "k", "metadata_key": {"key": "k", "path": [{"key": "p"}]}}}),
            ),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RateLimit.Action.GenericKey",
            limited(json!({"generic_key": {"descriptor_value": "v"}})),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RateLimit.Action.HeaderValueMatch",
            limited(
                json!({"header_value_match": {"descriptor_value": "v", "headers": [{"name": "x", "present_match": true}]}}),
            ),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RateLimit.Action.MaskedRemoteAddress",
            limited(json!({"masked_remote_address": {}})),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RateLimit.Action.MetaData",
            limited(
                json!({"metadata": {"descriptor_key": "k", "metadata_key": {"key": "k", "path": [{"key": "p"}]}}}),
            ),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RateLimit.Action.QueryParameterValueMatch",
            limited(
                json!({"query_parameter_value_match": {"descriptor_value": "v", "query_parameters": [{"name": "q", "present_match": true}]}}),
            ),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RateLimit.Action.QueryParameters",
            limited(json!({"query_parameters": {"query_parameter_name": "q", "descriptor_key": "k"}})),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RateLimit.Action.RemoteAddressMatch",
            limited(
                json!({"remote_address_match": {"descriptor_value": "v", "address_matcher": {"ranges": [{"address_prefix": "10.0.0.0"}]}}}),
            ),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RateLimit.Action.RequestHeaders",
            limited(json!({"request_headers": {"header_name": "x", "descriptor_key": "k"}})),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RateLimit.Action.SourceCluster",
            limited(json!({"source_cluster": {}})),
            "rate_limits[0].actions[0]",
        ),
        (
            "envoy.config.route.v3.RouteAction.HashPolicy.FilterState",
            hashed(json!({"filter_state": {"key": "k"}})),
            "hash_policy[0]",
        ),
        (
            "envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter",
            hashed(json!({"query_parameter": {"name": "q"}})),
            "hash_policy[0]",
        ),
        (
            "envoy.config.route.v3.RouteAction.HashPolicy.Header regex_rewrite",
            hashed(json!({"header": {"header_name": "x", "regex_rewrite": template.clone()}})),
            "hash_policy[0].header.regex_rewrite",
        ),
        (
            "envoy.config.route.v3.RouteAction.HashPolicy.Cookie attributes",
            hashed(json!({"cookie": {"name": "x", "attributes": [{"name": "a", "value": "b"}]}})),
            "hash_policy[0].cookie.attributes",
        ),
        (
            "envoy.config.route.v3.RouteAction.UpgradeConfig.ConnectConfig proxy_protocol_config",
            to(json!({"upgrade_configs":
                [{"upgrade_type": "CONNECT", "connect_config": {"proxy_protocol_config": {}}}]})),
            "upgrade_configs[0].connect_config",
        ),
        (
            "envoy.config.route.v3.RouteAction.UpgradeConfig.ConnectConfig allow_post",
            to(
                json!({"upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {"allow_post": true}}]}),
            ),
            "upgrade_configs[0].connect_config",
        ),
        (
            "envoy.type.v3.HashPolicy.FilterState",
            chain(
                json!({"name": "tcp", "typed_config": {"@type": of("filters.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": "t", "cluster": "c", "hash_policy": [{"filter_state": {"key": "k"}}]}}),
            ),
            "hash_policy[0]",
        ),
        (
            "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes",
            manager(json!({"scoped_routes": {"name": "s"}})),
            "scoped_routes",
        ),
        (
            "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CertificateProvider",
            tls(json!({"tls_certificate_certificate_provider": {"name": "p"}})),
            "tls_certificate_certificate_provider",
        ),
        (
            "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CertificateProviderInstance",
            tls(json!({"tls_certificate_certificate_provider_instance": {"instance_name": "p"}})),
            "tls_certificate_certificate_provider_instance",
        ),
        (
            "envoy.extensions.transport_sockets.tls.v3.GenericSecret",
            json!({"secrets": [{"name": "s", "generic_secret": {"secret": {"inline_string": "k"}}}]}),
            "generic_secret",
        ),
        (
            "envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys",
            json!({"secrets": [{"name": "s", "session_ticket_keys": ticket}]}),
            "session_ticket_keys",
        ),
        (
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig",
            spoken(json!({"auto_config": {}})),
            "upstream_protocol_options",
        ),
        (
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
            spoken(json!({"use_downstream_protocol_config": {}})),
            "upstream_protocol_options",
        ),
        (
            "envoy.config.core.v3.Http3ProtocolOptions",
            spoken(json!({"explicit_http_config": {"http3_protocol_options": {}}})),
            "explicit_http_config",
        ),
        (
            "envoy.type.matcher.v3.RegexMatchAndSubstitute",
            route(json!({"redirect": {"regex_rewrite": template}})),
            "redirect.path_rewrite_specifier",
        ),
        (
            "xds.core.v3.TypedExtensionConfig",
            route(json!({"match": {"prefix": "/", "headers": [{"name": "x", "string_match": {"custom": {
                "name": "x", "typed_config": {"@type": of("filters.http.router.v3.Router")}}}}]},
                "route": {"cluster": "c"}})),
            "string_match",
        ),
    ]
}

#[test]
fn what_is_listed_as_refused_is_refused() {
    let cases = cases();
    let wrong = cases.iter().filter_map(|(message, statics, place)| match tried(statics.clone()) {
        Ok(()) => Some(format!("{message} is taken")),
        Err(problem) => (!problem.path.contains(place)).then(|| format!("{message}: {problem}")),
    });
    assert_eq!(wrong.collect::<Vec<_>>(), [""; 0]);
    // Beside these, outside of static resources: who the control plane is, and when load is shed.
    let elsewhere = ["envoy.config.core.v3.GrpcService.GoogleGrpc", "envoy.config.overload.v3.ScaledTrigger"];
    let fields = MESSAGES
        .iter()
        .flat_map(|message| message.refused.iter().map(move |field| format!("{} {field}", message.name)));
    let listed: BTreeSet<String> = REFUSED.iter().map(|name| (*name).to_owned()).chain(fields).collect();
    let mut tested: BTreeSet<String> = cases.iter().map(|(message, ..)| (*message).to_owned()).collect();
    tested.extend(elsewhere.map(str::to_owned));
    assert_eq!(tested, listed);
}

/// What the cases are made of is taken where nothing of it is refused.
#[test]
fn the_rest_is_taken() {
    let guarded = guarded(json!({"any": true}), json!({"any": true}));
    for statics in [
        cluster(json!({})),
        to(json!({})),
        hashed(json!({"header": {"header_name": "x"}})),
        guarded,
        limited(json!({"remote_address": {}})),
    ] {
        assert_eq!(tried(statics), Ok(()));
    }
}

fn refused_at(statics: Value) -> Option<String> {
    tried(statics).err().map(|problem| problem.path)
}

#[test]
fn an_extension_told_by_its_fields_counts_as_what_it_is() {
    let told = |ty: String, fields: Value| json!({"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": ty, "value": fields});
    let router =
        || json!({"name": "router", "typed_config": told(of("filters.http.router.v3.Router"), json!({}))});
    let with =
        |filter: Value| manager(json!({"http_filters": [filter, router()], "route_config": {"name": "r"}}));
    let limited = |bytes: Value| {
        let fields = json!({"max_request_bytes": bytes});
        with(
            json!({"name": "x", "is_optional": true, "typed_config": told(of("filters.http.buffer.v3.Buffer"), fields)}),
        )
    };
    let unknown = || told("type.googleapis.com/shop.Unknown".into(), json!({"x": 1}));
    assert_eq!(refused_at(limited(json!(1024))), None);
    let wrong = refused_at(limited(json!("much"))).unwrap();
    assert!(wrong.ends_with(".http_filters[0].typed_config.max_request_bytes"), "{wrong}");
    assert_eq!(refused_at(with(json!({"name": "x", "is_optional": true, "typed_config": unknown()}))), None);
    let problem = tried(with(json!({"name": "x", "typed_config": unknown()}))).unwrap_err();
    assert!(problem.path.ends_with(".http_filters[0].name"), "{problem}");
}

#[test]
fn spans_are_for_a_tracer_that_is_known() {
    let traced = |ty: &str, fields: Value| {
        let mut config = fields;
        config["@type"] = ty.into();
        let provider = json!({"name": "x", "typed_config": config});
        manager(json!({"tracing": {"provider": provider}, "route_config": {"name": "r"}}))
    };
    let zipkin = json!({"collector_cluster": "c", "collector_endpoint": "/"});
    assert_eq!(refused_at(traced("type.googleapis.com/envoy.config.trace.v3.ZipkinConfig", zipkin)), None);
    let unknown = refused_at(traced("type.googleapis.com/shop.Tracer", json!({}))).unwrap();
    assert!(unknown.ends_with(".tracing.provider.typed_config"), "{unknown}");
}

#[test]
fn who_is_not_healthy_is_never_sent_to() {
    let panicking =
        |percent: f64| cluster(json!({"common_lb_config": {"healthy_panic_threshold": {"value": percent}}}));
    assert_eq!(refused_at(panicking(0.0)), None);
    assert_eq!(refused_at(panicking(50.0)).unwrap(), "CDS \"c\".common_lb_config.healthy_panic_threshold");
}
