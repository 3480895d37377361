//! Messages that are read where they stand, a field or two of each, and those that are refused whole. The lists have no
//! check of their own; a test holds them against the descriptors, so that a new field does not go unseen.

use envoy_types::pb::envoy::config::core::v3::ConfigSource;

use super::differing::note;
use super::support::Message;

/// What every message here is short for.
const fn message(
    name: &'static str,
    read: &'static [&'static str],
    ignored: &'static [(&'static str, &'static str)],
    refused: &'static [&'static str],
) -> Message {
    Message { name, read, ignored, differs: &[], refused }
}

const NO_ZONES: &str = "it is for a proxy that has a cluster of its own (cluster_manager, which is refused)";
const BY_TYPE: &str = "the type says what it is";
const ANOTHER: &str = "the node is told as this proxy knows it";

const CONFIG_SOURCE: &str = "envoy.config.core.v3.ConfigSource";
const FETCH_TIMEOUT: (&str, &str) = (
    "initial_fetch_timeout",
    "15 s for secrets and for what routes name, but 5 s where there are no routes before",
);

/// Notes what is set in it without effect.
pub(super) fn note_config_source(message: &ConfigSource) {
    note(CONFIG_SOURCE, FETCH_TIMEOUT, &message.initial_fetch_timeout);
}

/// Read in place.
pub(super) const MESSAGES: &[Message] = &[
    message("envoy.config.cluster.v3.Cluster.EdsClusterConfig", &["eds_config", "service_name"], &[], &[]),
    Message {
        differs: &[FETCH_TIMEOUT],
        ..message(
            CONFIG_SOURCE,
            &["config_source_specifier"],
            &[
                ("authorities", "they are for names that begin with xdstp:"),
                ("resource_api_version", "there is only v3"),
            ],
            &[],
        )
    },
    message("envoy.config.core.v3.AggregatedConfigSource", &[], &[], &[]),
    message("envoy.type.v3.Percent", &["value"], &[], &[]),
    message("envoy.type.v3.HttpStatus", &["code"], &[], &[]),
    message("envoy.config.route.v3.RateLimit.Action.RemoteAddress", &[], &[], &[]),
    message(
        "envoy.config.core.v3.SelfConfigSource",
        &[],
        &[("transport_api_version", "there is only v3")],
        &[],
    ),
    message(
        "envoy.config.core.v3.DataSource",
        &["specifier"],
        &[("watched_directory", "files are always watched")],
        &[],
    ),
    message(
        "envoy.config.core.v3.Metadata",
        &["filter_metadata"],
        &[("typed_filter_metadata", "no filter here reads it")],
        &[],
    ),
    message(
        "envoy.config.core.v3.Node",
        &["id", "cluster"],
        &[
            ("metadata", ANOTHER),
            ("dynamic_parameters", ANOTHER),
            ("locality", ANOTHER),
            ("user_agent_name", ANOTHER),
            ("user_agent_version_type", ANOTHER),
            ("extensions", ANOTHER),
            ("client_features", ANOTHER),
            ("listening_addresses", ANOTHER),
        ],
        &[],
    ),
    message("envoy.config.core.v3.HealthStatusSet", &["statuses"], &[], &[]),
    message("envoy.config.core.v3.TransportSocket", &["config_type"], &[("name", BY_TYPE)], &[]),
    message("envoy.config.core.v3.TypedExtensionConfig", &["typed_config"], &[("name", BY_TYPE)], &[]),
    message("envoy.config.listener.v3.ApiListener", &["api_listener"], &[], &[]),
    message("envoy.config.listener.v3.Filter", &["config_type"], &[("name", BY_TYPE)], &[]),
    message("envoy.config.rbac.v3.Permission", &["rule"], &[], &[]),
    message("envoy.config.rbac.v3.Permission.Set", &["rules"], &[], &[]),
    message("envoy.config.rbac.v3.Principal", &["identifier"], &[], &[]),
    message("envoy.config.rbac.v3.Principal.Set", &["ids"], &[], &[]),
    message("envoy.config.route.v3.RouteAction.HashPolicy.Header", &["header_name"], &[], &["regex_rewrite"]),
    message(
        "envoy.config.route.v3.RouteAction.HashPolicy.Cookie",
        &["name", "ttl", "path"],
        &[],
        &["attributes"],
    ),
    message("envoy.config.route.v3.RouteAction.HashPolicy.ConnectionProperties", &["source_ip"], &[], &[]),
    message(
        "envoy.config.route.v3.RouteAction.UpgradeConfig",
        &["upgrade_type", "enabled", "connect_config"],
        &[],
        &[],
    ),
    message(
        "envoy.config.route.v3.RouteAction.UpgradeConfig.ConnectConfig",
        &[],
        &[],
        &["proxy_protocol_config", "allow_post"],
    ),
    message("envoy.config.route.v3.RouteMatch.ConnectMatcher", &[], &[], &[]),
    message(
        "envoy.config.route.v3.RetryPolicy.RetryHostPredicate",
        &["config_type"],
        &[("name", BY_TYPE)],
        &[],
    ),
    message(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster",
        &["clusters"],
        &[],
        &[],
    ),
    message("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", &["rbac"], &[], &[]),
    message("envoy.type.matcher.v3.ListStringMatcher", &["patterns"], &[], &[]),
    message("envoy.type.matcher.v3.PathMatcher", &["rule"], &[], &[]),
    message("envoy.type.v3.HashPolicy", &["policy_specifier"], &[], &[]),
    message("envoy.type.v3.HashPolicy.SourceIp", &[], &[], &[]),
    message(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        &["protocol_config"],
        &[],
        &[],
    ),
    message(
        "envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig",
        &[],
        &[("routing_enabled", NO_ZONES), ("min_cluster_size", NO_ZONES), ("fail_traffic_on_panic", NO_ZONES)],
        &[],
    ),
    message("envoy.type.v3.Int64Range", &["start", "end"], &[], &[]),
];

/// Refused whole: what they are in may say something else.
pub(super) const REFUSED: &[&str] = &[
    "envoy.config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig",
    "envoy.config.cluster.v3.Cluster.CustomClusterType",
    "envoy.config.core.v3.EnvoyInternalAddress",
    "envoy.config.overload.v3.ScaledTrigger",
    "envoy.config.core.v3.ExtensionConfigSource",
    "envoy.config.core.v3.Pipe",
    "envoy.config.core.v3.PathConfigSource",
    "envoy.config.core.v3.GrpcService.GoogleGrpc",
    "envoy.config.rbac.v3.Principal.Authenticated",
    "envoy.config.rbac.v3.SourcedMetadata",
    "envoy.config.route.v3.ClusterSpecifierPlugin",
    "envoy.config.route.v3.FilterAction",
    "envoy.config.route.v3.NonForwardingAction",
    "envoy.config.route.v3.RateLimit.Action.DestinationCluster",
    "envoy.config.route.v3.RateLimit.Action.DynamicMetaData",
    "envoy.config.route.v3.RateLimit.Action.GenericKey",
    "envoy.config.route.v3.RateLimit.Action.HeaderValueMatch",
    "envoy.config.route.v3.RateLimit.Action.MaskedRemoteAddress",
    "envoy.config.route.v3.RateLimit.Action.MetaData",
    "envoy.config.route.v3.RateLimit.Action.QueryParameterValueMatch",
    "envoy.config.route.v3.RateLimit.Action.QueryParameters",
    "envoy.config.route.v3.RateLimit.Action.RemoteAddressMatch",
    "envoy.config.route.v3.RateLimit.Action.RequestHeaders",
    "envoy.config.route.v3.RateLimit.Action.SourceCluster",
    "envoy.config.route.v3.RouteAction.HashPolicy.FilterState",
    "envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter",
    "envoy.type.v3.HashPolicy.FilterState",
    "envoy.extensions.filters.network.http_connection_manager.v3.ScopedRoutes",
    "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CertificateProvider",
    "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CertificateProviderInstance",
    "envoy.extensions.transport_sockets.tls.v3.GenericSecret",
    "envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
    "envoy.config.core.v3.Http3ProtocolOptions",
    "envoy.type.matcher.v3.FilterStateMatcher",
    "envoy.type.matcher.v3.MetadataMatcher",
    "envoy.type.matcher.v3.RegexMatchAndSubstitute",
    "envoy.type.v3.Int32Range",
    "xds.core.v3.TypedExtensionConfig",
];

#[cfg(test)]
mod tests;
