//! `envoy.config.route.v3.RouteConfiguration` to a table.

mod parts;

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, HeaderValue as HeaderMessage, HeaderValueOption, RoutingPriority, RuntimeFractionalPercent,
    data_source,
};
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RetryBackOff, RetryHostPredicate, retry_host_predicate,
};
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HashPolicy as HashPolicyMessage, HostRewriteSpecifier, MaxStreamDuration,
    RequestMirrorPolicy,
};
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::{ClusterWeight, RandomValueSpecifier};
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy, Route, RouteAction, RouteConfiguration, VirtualHost,
    WeightedCluster, route,
};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use http::header::HOST;
use http::{HeaderName, HeaderValue, StatusCode};
use pontoon_xds::json::type_of;

use super::filters::{self, OfRoute};
use super::hcm::duration;
use super::matching::{self, header_name};
use super::problem::{Problem, Under, each, filled};
use super::support::{Message, support};
use crate::route as compiled;
use crate::route::HeaderMutation;
use crate::upstream::cluster::Cluster;
pub(super) use parts::{Earlier, Parts};

pub(super) const MESSAGES: &[Message] = &[
    ROUTE_CONFIGURATION,
    VIRTUAL_HOST,
    ROUTE,
    ROUTE_ACTION,
    STREAM_DURATION,
    WEIGHTED_CLUSTER,
    CLUSTER_WEIGHT,
    RETRY_POLICY,
    BACK_OFF,
    MIRROR,
    FRACTION,
    PERCENT,
    SUBSTITUTE,
    REDIRECT,
    DIRECT_RESPONSE,
    HEADER_OPTION,
    HEADER,
    HASH_POLICY,
];

support! {
    ROUTE_CONFIGURATION, route_configuration: RouteConfiguration = "envoy.config.route.v3.RouteConfiguration";
    read: name, virtual_hosts, response_headers_to_add, response_headers_to_remove, request_headers_to_add, request_headers_to_remove, most_specific_header_mutations_wins, ignore_port_in_host_matching, validate_clusters, typed_per_filter_config;
    ignored:
        metadata => "no filter here reads it";
    differs:
        max_direct_response_body_size_bytes => "64 KiB";
    refused: vhds, internal_only_headers, cluster_specifier_plugins, request_mirror_policies, vhost_header, ignore_path_parameters_in_path_matching, route_specifiers;
}

support! {
    VIRTUAL_HOST, virtual_host: VirtualHost = "envoy.config.route.v3.VirtualHost";
    read: name, domains, routes, request_headers_to_add, request_headers_to_remove, response_headers_to_add, response_headers_to_remove, retry_policy, typed_per_filter_config;
    ignored:
        virtual_clusters => "it only names statistics",
        metadata => "no filter here reads it";
    refused: matcher, require_tls, rate_limits, cors, include_request_attempt_count, include_attempt_count_in_response, retry_policy_typed_config, hedge_policy, include_is_timeout_retry_header, request_mirror_policies, route_specifiers, per_request_buffer_limit_bytes, request_body_buffer_limit;
}

support! {
    ROUTE, route: Route = "envoy.config.route.v3.Route";
    read: name, r#match, request_headers_to_add, request_headers_to_remove, response_headers_to_add, response_headers_to_remove, action, typed_per_filter_config;
    ignored:
        metadata => "no filter here reads it",
        stat_prefix => "it only names statistics";
    differs:
        decorator => "spans are not reported",
        tracing => "spans are not reported";
    refused: route_specifiers, per_request_buffer_limit_bytes, request_body_buffer_limit;
}

support! {
    ROUTE_ACTION, route_action: RouteAction = "envoy.config.route.v3.RouteAction";
    read: priority, prefix_rewrite, regex_rewrite, timeout, idle_timeout, max_stream_duration, retry_policy, request_mirror_policies, hash_policy, cluster_specifier, host_rewrite_specifier, upgrade_configs;
    ignored:
        include_vh_rate_limits => "rate limits are refused",
        early_data_policy => "there is no early data",
        append_x_forwarded_host => "X-Forwarded-Host is always kept";
    refused: metadata_match, path_rewrite_policy, path_rewrite, retry_policy_typed_config, rate_limits, cors, max_grpc_timeout, grpc_timeout_offset, internal_redirect_policy, internal_redirect_action, max_internal_redirects, hedge_policy, cluster_not_found_response_code, flush_timeout;
}

support! {
    STREAM_DURATION, stream_duration: MaxStreamDuration = "envoy.config.route.v3.RouteAction.MaxStreamDuration";
    read: max_stream_duration;
    ignored:;
    refused: grpc_timeout_header_max, grpc_timeout_header_offset;
}

support! {
    WEIGHTED_CLUSTER, weighted_cluster: WeightedCluster = "envoy.config.route.v3.WeightedCluster";
    read: clusters, total_weight, random_value_specifier;
    ignored:
        runtime_key_prefix => "there is no runtime";
    refused: ;
}

support! {
    CLUSTER_WEIGHT, cluster_weight: ClusterWeight = "envoy.config.route.v3.WeightedCluster.ClusterWeight";
    read: name, weight, request_headers_to_add, request_headers_to_remove, response_headers_to_add, response_headers_to_remove;
    ignored:;
    refused: cluster_header, metadata_match, typed_per_filter_config, host_rewrite_specifier;
}

support! {
    RETRY_POLICY, retry_policy: RetryPolicy = "envoy.config.route.v3.RetryPolicy";
    read: retry_on, num_retries, per_try_timeout, retriable_status_codes, retry_back_off, retry_host_predicate;
    ignored:
        host_selection_retry_max_attempts => "another endpoint is always taken where there is one";
    refused: per_try_idle_timeout, retry_priority, retry_options_predicates, rate_limited_retry_back_off, retriable_headers, retriable_request_headers, refresh_cluster_on_retry;
}

support! {
    BACK_OFF, back_off: RetryBackOff = "envoy.config.route.v3.RetryPolicy.RetryBackOff";
    read: base_interval, max_interval;
    ignored:;
    refused: ;
}

support! {
    MIRROR, mirror_policy: RequestMirrorPolicy = "envoy.config.route.v3.RouteAction.RequestMirrorPolicy";
    read: cluster, runtime_fraction, disable_shadow_host_suffix_append;
    ignored:
        trace_sampled => "spans are not reported";
    refused: cluster_header, request_headers_mutations, host_rewrite_literal;
}

support! {
    FRACTION, fraction: RuntimeFractionalPercent = "envoy.config.core.v3.RuntimeFractionalPercent";
    read: default_value;
    ignored:
        runtime_key => "there is no runtime";
    refused: ;
}

support! {
    PERCENT, percent: FractionalPercent = "envoy.type.v3.FractionalPercent";
    read: numerator, denominator;
    ignored:;
    refused: ;
}

support! {
    SUBSTITUTE, substitute: RegexMatchAndSubstitute = "envoy.type.matcher.v3.RegexMatchAndSubstitute";
    read: pattern, substitution;
    ignored:;
    refused: ;
}

support! {
    REDIRECT, redirect: RedirectAction = "envoy.config.route.v3.RedirectAction";
    read: host_redirect, port_redirect, response_code, strip_query, scheme_rewrite_specifier, path_rewrite_specifier;
    ignored:;
    refused: ;
}

support! {
    DIRECT_RESPONSE, direct_response: DirectResponseAction = "envoy.config.route.v3.DirectResponseAction";
    read: status, body;
    ignored:;
    refused: body_format;
}

support! {
    HEADER_OPTION, header_option: HeaderValueOption = "envoy.config.core.v3.HeaderValueOption";
    read: header, append, append_action, keep_empty_value;
    ignored:;
    refused: ;
}

support! {
    HEADER, header: HeaderMessage = "envoy.config.core.v3.HeaderValue";
    read: key, value;
    ignored:;
    refused: raw_value;
}

support! {
    HASH_POLICY, hash_policy_fields: HashPolicyMessage = "envoy.config.route.v3.RouteAction.HashPolicy";
    read: terminal, policy_specifier;
    ignored:;
    refused: ;
}

/// Millionths of a whole.
const ALL: u32 = 1_000_000;
/// Envoy's default for a whole exchange.
const DEFAULT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);
/// A body of our own is held in memory for every route that has one.
const LARGEST_DIRECT_BODY: usize = 64 * 1024;

/// Envoy's extension of `envoy.retry_host_predicates.previous_hosts`.
const PREVIOUS_HOSTS: &str =
    "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";

/// Gives the handle of a cluster, made when it is first named; or says that there must be such a cluster already.
pub(super) type Clusters<'c> = dyn Fn(&str) -> Result<Arc<Cluster>, Problem> + 'c;

pub(super) fn compile(
    message: &RouteConfiguration,
    version: Arc<str>,
    clusters: &Clusters<'_>,
) -> Result<compiled::RouteTable, Problem> {
    route_configuration(message)?;
    let around = Around::of(message, clusters)?;
    let hosts = each("virtual_hosts", &message.virtual_hosts, |host| compile_host(host, &around))?;
    compiled::RouteTable::of(
        message.name.as_str().into(),
        version,
        message.ignore_port_in_host_matching,
        hosts.into_iter().map(Arc::new).collect(),
    )
    .map_err(|e| Problem::new("virtual_hosts.domains", e.to_string()))
}

/// What a route inherits.
struct Around<'c> {
    clusters: &'c Clusters<'c>,
    request: Vec<HeaderMutation>,
    response: Vec<HeaderMutation>,
    /// Otherwise (Envoy's default) the least specific changes come last and win.
    specific_last: bool,
    retry: Option<RetryPolicy>,
    filters: OfRoute,
}

impl<'c> Around<'c> {
    fn of(message: &RouteConfiguration, clusters: &'c Clusters<'c>) -> Result<Around<'c>, Problem> {
        Ok(Around {
            clusters,
            request: mutations(
                "request_headers",
                &message.request_headers_to_add,
                &message.request_headers_to_remove,
            )?,
            response: mutations(
                "response_headers",
                &message.response_headers_to_add,
                &message.response_headers_to_remove,
            )?,
            specific_last: message.most_specific_header_mutations_wins,
            retry: None,
            filters: filters::of_route(&message.typed_per_filter_config, &OfRoute::default(), clusters)?,
        })
    }

    fn combine(&self, outer: &[HeaderMutation], inner: Vec<HeaderMutation>) -> Vec<HeaderMutation> {
        if self.specific_last {
            outer.iter().cloned().chain(inner).collect()
        } else {
            inner.into_iter().chain(outer.iter().cloned()).collect()
        }
    }
}

fn compile_host(message: &VirtualHost, around: &Around<'_>) -> Result<compiled::VirtualHost, Problem> {
    virtual_host(message)?;
    filled("name", &message.name)?;
    if message.domains.is_empty() {
        return Err(Problem::new("domains", "is empty"));
    }
    let request =
        mutations("request_headers", &message.request_headers_to_add, &message.request_headers_to_remove)?;
    let response =
        mutations("response_headers", &message.response_headers_to_add, &message.response_headers_to_remove)?;
    let around = Around {
        clusters: around.clusters,
        request: around.combine(&around.request, request),
        response: around.combine(&around.response, response),
        specific_last: around.specific_last,
        retry: message.retry_policy.clone(),
        filters: filters::of_route(&message.typed_per_filter_config, &around.filters, around.clusters)?,
    };
    let mut routes = Vec::with_capacity(message.routes.len());
    for (position, message) in message.routes.iter().enumerate() {
        routes.push(compile_route(message, position, &around).under(|| format!("routes[{position}]"))?);
    }
    Ok(compiled::VirtualHost::new(message.name.as_str().into(), routes).with_domains(&message.domains))
}

fn compile_route(message: &Route, position: usize, around: &Around<'_>) -> Result<compiled::Route, Problem> {
    route(message)?;
    let matcher = message.r#match.as_ref().ok_or_else(|| Problem::new("match", "is missing"))?;
    let of_filters = filters::of_route(&message.typed_per_filter_config, &around.filters, around.clusters)?;
    let action = match &message.action {
        Some(route::Action::Route(action)) => {
            let mut forward = forward(action, around).under(|| "route".into())?;
            forward.max_body_bytes = of_filters.bodies();
            forward.sessions = of_filters.sessions();
            compiled::Action::Forward(forward)
        }
        Some(route::Action::Redirect(action)) => {
            compiled::Action::Redirect(compile_redirect(action).under(|| "redirect".into())?)
        }
        Some(route::Action::DirectResponse(action)) => direct(action).under(|| "direct_response".into())?,
        Some(_) => {
            return Err(Problem::new("action", "is not supported; give route, redirect or direct_response"));
        }
        None => return Err(Problem::new("action", "is missing")),
    };
    let request =
        mutations("request_headers", &message.request_headers_to_add, &message.request_headers_to_remove)?;
    let response =
        mutations("response_headers", &message.response_headers_to_add, &message.response_headers_to_remove)?;
    let name = if message.name.is_empty() { format!("#{position}") } else { message.name.clone() };
    Ok(compiled::Route {
        name: name.into(),
        matcher: matching::compile(matcher).under(|| "match".into())?,
        action,
        request_headers: around.combine(&around.request, request).into(),
        response_headers: around.combine(&around.response, response).into(),
        cors: of_filters.cors(),
        rbac: of_filters.rbac(),
        rate_limits: of_filters.rate_limits(),
        authz: of_filters.authz(),
    })
}

fn forward(message: &RouteAction, around: &Around<'_>) -> Result<compiled::Forward, Problem> {
    route_action(message)?;
    let targets = match &message.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            compiled::Targets::One((around.clusters)(name).under(|| "cluster".into())?)
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            targets(weighted, around.clusters).under(|| "weighted_clusters".into())?
        }
        Some(_) => return Err(Problem::new("cluster_specifier", "must be cluster or weighted_clusters")),
        None => {
            return Err(Problem::new("cluster_specifier", "is missing; give cluster or weighted_clusters"));
        }
    };
    let host_rewrite = match &message.host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            Some(Box::new(header_value("host_rewrite_literal", host)?))
        }
        Some(_) => return Err(Problem::new("host_rewrite_specifier", "must be host_rewrite_literal")),
    };
    Ok(compiled::Forward {
        targets,
        hash: each("hash_policy", &message.hash_policy, hash_policy)?.into(),
        timeout: match duration("timeout", message.timeout)? {
            None => Some(DEFAULT_TIMEOUT),
            Some(off) if off.is_zero() => None,
            some => some,
        },
        idle_timeout: duration("idle_timeout", message.idle_timeout)?,
        longest_stream: longest_stream(message.max_stream_duration.as_ref())
            .under(|| "max_stream_duration".into())?,
        retry: retry(message.retry_policy.as_ref().or(around.retry.as_ref()))
            .under(|| "retry_policy".into())?,
        prefix_rewrite: (!message.prefix_rewrite.is_empty()).then(|| message.prefix_rewrite.as_str().into()),
        regex_rewrite: regex_rewrite(message)?,
        host_rewrite,
        connect: connect(message)?,
        max_body_bytes: Default::default(),
        sessions: Default::default(),
        high_priority: message.priority() == RoutingPriority::High,
        mirrors: each("request_mirror_policies", &message.request_mirror_policies, |policy| {
            mirror(policy, around.clusters)
        })?
        .into(),
    })
}

fn longest_stream(message: Option<&MaxStreamDuration>) -> Result<Option<std::time::Duration>, Problem> {
    let Some(message) = message else { return Ok(None) };
    stream_duration(message)?;
    duration("max_stream_duration", message.max_stream_duration)
}

fn mirror(message: &RequestMirrorPolicy, clusters: &Clusters<'_>) -> Result<compiled::Mirror, Problem> {
    mirror_policy(message)?;
    if message.cluster.is_empty() {
        return Err(Problem::new("cluster", "is empty"));
    }
    let millionths = match &message.runtime_fraction {
        None => ALL,
        Some(of) => millionths(of).under(|| "runtime_fraction".into())?,
    };
    Ok(compiled::Mirror {
        cluster: clusters(&message.cluster).under(|| "cluster".into())?,
        millionths,
        shadow_host: !message.disable_shadow_host_suffix_append,
    })
}

/// A fraction in millionths.
pub(super) fn millionths(message: &RuntimeFractionalPercent) -> Result<u32, Problem> {
    fraction(message)?;
    let value = message.default_value.unwrap_or_default();
    percent(&value).under(|| "default_value".into())?;
    let factor = match value.denominator() {
        DenominatorType::Hundred => 10_000,
        DenominatorType::TenThousand => 100,
        DenominatorType::Million => 1,
    };
    Ok(value.numerator.saturating_mul(factor).min(ALL))
}

fn regex_rewrite(message: &RouteAction) -> Result<Option<Box<compiled::RegexRewrite>>, Problem> {
    let Some(rewrite) = &message.regex_rewrite else { return Ok(None) };
    if !message.prefix_rewrite.is_empty() {
        return Err(Problem::new("regex_rewrite", "does not go with prefix_rewrite"));
    }
    let read = || {
        substitute(rewrite)?;
        let pattern = rewrite.pattern.as_ref().ok_or_else(|| Problem::new("pattern", "is missing"))?;
        let pattern = matching::part(pattern).under(|| "pattern".into())?;
        let substitution = substitution(&rewrite.substitution, pattern.groups());
        let substitution = substitution.map_err(|reason| Problem::new("substitution", reason))?;
        Ok(Some(Box::new(compiled::RegexRewrite { pattern, substitution: substitution.into() })))
    };
    read().under(|| "regex_rewrite".into())
}

/// RE2's way to name groups (`\1`, and `\\` for a backslash) in this library's.
fn substitution(text: &str, groups: usize) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '$' => out.push_str("$$"),
            '\\' => match letters.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.to_digit(10).is_some_and(|digit| (digit as usize) < groups) => {
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                _ => {
                    return Err(format!(
                        "is {text:?}; behind a backslash goes a backslash or a group's number"
                    ));
                }
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

/// Whether the route ends CONNECT. Which upgrades pass is the listener's to say.
fn connect(message: &RouteAction) -> Result<bool, Problem> {
    let connects = each("upgrade_configs", &message.upgrade_configs, |config| {
        if !config.upgrade_type.eq_ignore_ascii_case("connect") {
            let reason = format!("is {:?}; this proxy supports CONNECT here", config.upgrade_type);
            return Err(Problem::new("upgrade_type", reason));
        }
        let Some(options) = &config.connect_config else {
            let reason = "is missing; this proxy does not send CONNECT on, it ends it";
            return Err(Problem::new("connect_config", reason));
        };
        if options.proxy_protocol_config.is_some() || options.allow_post {
            return Err(Problem::new("connect_config", "has fields set that this proxy does not support"));
        }
        Ok(config.enabled.is_none_or(|enabled| enabled.value))
    })?;
    Ok(connects.contains(&true))
}

fn targets(message: &WeightedCluster, clusters: &Clusters<'_>) -> Result<compiled::Targets, Problem> {
    weighted_cluster(message)?;
    let arms = each("clusters", &message.clusters, |arm| arm_of(arm, clusters))?;
    let sum: u64 = arms.iter().map(|arm| u64::from(arm.weight)).sum();
    let total = u32::try_from(sum).ok().filter(|total| *total > 0).ok_or_else(|| {
        Problem::new("clusters", format!("have weights that add up to {sum}; must be 1 to {}", u32::MAX))
    })?;
    #[allow(deprecated, reason = "still sent by control planes")]
    let declared = message.total_weight.map_or(total, |n| n.value);
    if declared != total {
        return Err(Problem::new(
            "total_weight",
            format!("is {declared}, but the weights add up to {total}"),
        ));
    }
    let by = match &message.random_value_specifier {
        None => compiled::WeightedBy::Random,
        Some(RandomValueSpecifier::UseHashPolicy(yes)) if yes.value => compiled::WeightedBy::Hash,
        Some(RandomValueSpecifier::UseHashPolicy(_)) => compiled::WeightedBy::Random,
        Some(RandomValueSpecifier::HeaderName(name)) => {
            compiled::WeightedBy::Header(Box::new(header_name("header_name", name)?))
        }
    };
    Ok(compiled::Targets::Weighted { clusters: arms, total, by })
}

fn arm_of(message: &ClusterWeight, clusters: &Clusters<'_>) -> Result<compiled::WeightedCluster, Problem> {
    cluster_weight(message)?;
    Ok(compiled::WeightedCluster {
        cluster: clusters(&message.name).under(|| "name".into())?,
        weight: message.weight.map_or(0, |n| n.value),
        request_headers: mutations(
            "request_headers",
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
        )?
        .into(),
        response_headers: mutations(
            "response_headers",
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
        )?
        .into(),
    })
}

fn hash_policy(message: &HashPolicyMessage) -> Result<compiled::HashPolicy, Problem> {
    hash_policy_fields(message)?;
    let terminal = message.terminal;
    match &message.policy_specifier {
        Some(PolicySpecifier::Header(header)) if header.regex_rewrite.is_some() => {
            Err(Problem::new("header.regex_rewrite", "is set, but this proxy does not support it"))
        }
        Some(PolicySpecifier::Header(header)) => Ok(compiled::HashPolicy::Header {
            name: header_name("header.header_name", &header.header_name)?,
            terminal,
        }),
        Some(PolicySpecifier::Cookie(cookie)) => {
            if !cookie.attributes.is_empty() {
                return Err(Problem::new("cookie.attributes", "is set, but this proxy does not support it"));
            }
            if !is_cookie_name(&cookie.name) || cookie.path.contains([';', '\r', '\n']) {
                return Err(Problem::new(
                    "cookie.name",
                    format!("is {:?}, which is not a cookie name", cookie.name),
                ));
            }
            Ok(compiled::HashPolicy::Cookie {
                name: cookie.name.as_str().into(),
                ttl: duration("cookie.ttl", cookie.ttl)?,
                path: cookie.path.as_str().into(),
                terminal,
            })
        }
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => {
            Ok(compiled::HashPolicy::SourceIp { terminal })
        }
        Some(_) => {
            Err(Problem::new("", "is not supported; give header, cookie or connection_properties.source_ip"))
        }
        None => Err(Problem::new("policy_specifier", "is missing")),
    }
}

pub(super) fn is_cookie_name(name: &str) -> bool {
    let odd = |c: char| c.is_ascii_control() || c.is_whitespace() || "=;,\"".contains(c);
    !name.is_empty() && !name.contains(odd)
}

/// Without a policy: once more where nothing was sent, or the upstream says that it did not look.
fn retry(message: Option<&RetryPolicy>) -> Result<compiled::RetryPolicy, Problem> {
    let Some(message) = message else {
        return Ok(compiled::RetryPolicy {
            max_retries: 1,
            per_try_timeout: None,
            on_connect_failure: true,
            on_refused_stream: true,
            on_broken_connection: true,
            on_status: None,
            back_off: None,
        });
    };
    retry_policy(message)?;
    each("retry_host_predicate", &message.retry_host_predicate, previous_hosts)?;
    let mut policy = compiled::RetryPolicy {
        max_retries: message.num_retries.map_or(1, |n| n.value),
        per_try_timeout: duration("per_try_timeout", message.per_try_timeout)?.filter(|d| !d.is_zero()),
        on_connect_failure: false,
        on_refused_stream: false,
        on_broken_connection: false,
        on_status: None,
        back_off: match &message.retry_back_off {
            None => None,
            Some(given) => Some(Arc::new(pauses(given).under(|| "retry_back_off".into())?)),
        },
    };
    let status = |code: u32| {
        let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        status.ok_or_else(|| Problem::new("", format!("is {code}, which is no status")))
    };
    let mut statuses: Vec<StatusCode> = Vec::new();
    for condition in message.retry_on.split(',').map(str::trim).filter(|c| !c.is_empty()) {
        // These three are also for what ended without an answer.
        if matches!(condition, "5xx" | "gateway-error" | "reset") {
            policy.on_connect_failure = true;
            policy.on_refused_stream = true;
            policy.on_broken_connection = true;
        }
        match condition {
            "connect-failure" => policy.on_connect_failure = true,
            "refused-stream" => policy.on_refused_stream = true,
            "reset-before-request" => policy.on_broken_connection = true,
            "reset" => {}
            "5xx" => statuses.extend((500..600).filter_map(|code| status(code).ok())),
            "gateway-error" => statuses.extend((502..505).filter_map(|code| status(code).ok())),
            "retriable-4xx" => statuses.push(StatusCode::CONFLICT),
            "retriable-status-codes" => {
                statuses.extend(each("retriable_status_codes", &message.retriable_status_codes, |code| {
                    status(*code)
                })?);
            }
            other => {
                let reason = format!(
                    "names {other:?}; this proxy supports 5xx, gateway-error, reset, connect-failure, refused-stream, \
                     reset-before-request, retriable-4xx and retriable-status-codes"
                );
                return Err(Problem::new("retry_on", reason));
            }
        }
    }
    policy.on_status = (!statuses.is_empty()).then(|| statuses.into());
    Ok(policy)
}

/// Another endpoint is always taken where there is one; that is all that may be asked for.
fn previous_hosts(message: &RetryHostPredicate) -> Result<(), Problem> {
    let Some(retry_host_predicate::ConfigType::TypedConfig(any)) = &message.config_type else {
        return Err(Problem::new("typed_config", "is missing"));
    };
    let of = type_of(any);
    if of != PREVIOUS_HOSTS {
        let reason = format!("is a {of}; this proxy supports {PREVIOUS_HOSTS} here");
        return Err(Problem::new("typed_config", reason));
    }
    Ok(())
}

/// As Envoy: the longest is ten times the first where nothing is said.
fn pauses(message: &RetryBackOff) -> Result<(std::time::Duration, std::time::Duration), Problem> {
    back_off(message)?;
    let base = duration("base_interval", message.base_interval)?.filter(|base| !base.is_zero());
    let base =
        base.ok_or_else(|| Problem::new("base_interval", "is missing or 0; must be greater than 0"))?;
    let longest = duration("max_interval", message.max_interval)?.unwrap_or(base.saturating_mul(10));
    if longest < base {
        return Err(Problem::new("max_interval", "must not be less than base_interval"));
    }
    Ok((base, longest))
}

fn compile_redirect(message: &RedirectAction) -> Result<compiled::Redirect, Problem> {
    redirect(message)?;
    let status = match message.response_code() {
        RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
        RedirectResponseCode::Found => StatusCode::FOUND,
        RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
        RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
        RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
    };
    let scheme = match &message.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(scheme.as_str().into()),
    };
    let path = match &message.path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            Some(compiled::RedirectPath::Full(path.as_str().into()))
        }
        Some(PathRewriteSpecifier::PrefixRewrite(path)) => {
            Some(compiled::RedirectPath::Prefix(path.as_str().into()))
        }
        Some(PathRewriteSpecifier::RegexRewrite(_) | PathRewriteSpecifier::PathRewrite(_)) => {
            return Err(Problem::new("path_rewrite_specifier", "must be path_redirect or prefix_rewrite"));
        }
    };
    let port = u16::try_from(message.port_redirect).map_err(|_| {
        Problem::new("port_redirect", format!("is {}; must be 0 to 65535", message.port_redirect))
    })?;
    Ok(compiled::Redirect {
        status,
        scheme,
        host: (!message.host_redirect.is_empty()).then(|| message.host_redirect.as_str().into()),
        port: (port != 0).then_some(port),
        path,
        strip_query: message.strip_query,
    })
}

fn direct(message: &DirectResponseAction) -> Result<compiled::Action, Problem> {
    direct_response(message)?;
    let status = u16::try_from(message.status).ok().and_then(|s| StatusCode::from_u16(s).ok());
    let status = status
        .filter(|s| s.as_u16() >= 200 && s.as_u16() < 600)
        .ok_or_else(|| Problem::new("status", format!("is {}; must be 200 to 599", message.status)))?;
    let body = match &message.body {
        None => bytes::Bytes::new(),
        Some(DataSource { specifier: Some(data_source::Specifier::InlineString(text)), .. }) => {
            text.clone().into()
        }
        Some(DataSource { specifier: Some(data_source::Specifier::InlineBytes(bytes)), .. }) => {
            bytes.clone().into()
        }
        Some(_) => return Err(Problem::new("body", "must be inline_string or inline_bytes")),
    };
    if body.len() > LARGEST_DIRECT_BODY {
        return Err(Problem::new("body", format!("has {} bytes; at most {LARGEST_DIRECT_BODY}", body.len())));
    }
    Ok(compiled::Action::Direct { status, body })
}

fn mutations(
    field: &str,
    add: &[HeaderValueOption],
    remove: &[String],
) -> Result<Vec<HeaderMutation>, Problem> {
    let mut all = each(&format!("{field}_to_remove"), remove, |name| {
        let name = header_name("", name)?;
        if name == HOST {
            return Err(Problem::new("", "is \"host\", which cannot be removed"));
        }
        Ok(HeaderMutation::Remove(name))
    })?;
    all.extend(each(&format!("{field}_to_add"), add, mutation)?.into_iter().flatten());
    Ok(all)
}

/// None where, as in Envoy, there is nothing to add: an empty value is kept only when that is said.
fn mutation(message: &HeaderValueOption) -> Result<Option<HeaderMutation>, Problem> {
    header_option(message)?;
    let given = message.header.as_ref().ok_or_else(|| Problem::new("header", "is missing"))?;
    let (name, value) = named_value(given).under(|| "header".into())?;
    #[allow(deprecated, reason = "still sent by control planes")]
    let append = message.append.map(|b| b.value);
    let is_kept = message.keep_empty_value || !value.is_empty();
    if append.is_some() && message.append_action() != HeaderAppendAction::AppendIfExistsOrAdd {
        return Err(Problem::new("append", "is set beside append_action; give one of them"));
    }
    let mutation = match (append, message.append_action()) {
        (Some(true), _) | (None, HeaderAppendAction::AppendIfExistsOrAdd) => {
            HeaderMutation::Append(name, value)
        }
        (Some(false), _) | (None, HeaderAppendAction::OverwriteIfExistsOrAdd) => {
            HeaderMutation::Set(name, value)
        }
        (None, HeaderAppendAction::AddIfAbsent) => HeaderMutation::SetIfAbsent(name, value),
        (None, HeaderAppendAction::OverwriteIfExists) => {
            return Err(Problem::new("append_action", "OVERWRITE_IF_EXISTS is not supported"));
        }
    };
    Ok(is_kept.then_some(mutation))
}

/// A header that is added, with its value.
pub(super) fn named_value(given: &HeaderMessage) -> Result<(HeaderName, HeaderValue), Problem> {
    header(given)?;
    let name = header_name("key", &given.key)?;
    if name == HOST {
        return Err(Problem::new("key", "is \"host\", which is changed by host_rewrite_literal only"));
    }
    if given.value.replace("%%", "").contains('%') {
        let reason = format!(
            "is {:?}; commands (%...%) are not supported, and a literal % is written %%",
            given.value
        );
        return Err(Problem::new("value", reason));
    }
    Ok((name, header_value("value", &given.value.replace("%%", "%"))?))
}

fn header_value(field: &str, value: &str) -> Result<HeaderValue, Problem> {
    HeaderValue::try_from(value)
        .map_err(|_| Problem::new(field, format!("is {value:?}, which no header can hold")))
}
