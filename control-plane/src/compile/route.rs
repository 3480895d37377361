//! One `HTTPRoute` or `GRPCRoute` to routes with their rank; which listeners they hang on is `attach`'s matter. A rule that
//! cannot be served as written answers 500 (to gRPC 503, which is UNAVAILABLE there): letting its requests fall through to
//! another rule would send them where nobody meant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3::redirect_action::PathRewriteSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy, Route, RouteAction, RouteMatch, WeightedCluster, route,
};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use envoy_types::util::pack_any;

use super::backend::{self, Arm, Destination, Splits};
use super::chain::CORS;
use super::conflict;
use super::filter::{self, Filters, Headers, RewritePath};
use super::matching::{self, Matched, PathMatch, Rank};
use super::migration::Split;
use super::policy::Target;
use super::reference::Backend;
use super::rule::{self, Rule};
use super::status::ConditionType;
use super::tries::{self, Timeouts, retry, timeouts};
use super::wire;
use crate::model::upstream::Upstream;
use crate::objects::problem::FieldError;
use crate::objects::{GrpcRoute, HttpRoute, Kind, ObjectName, ObjectRef, Objects};

/// The routes of one `HTTPRoute`.
#[derive(Debug, Clone, Default)]
pub(super) struct Compiled {
    pub(super) entries: Vec<Entry>,
    /// The clusters that the routes send to.
    pub(super) upstreams: BTreeMap<Arc<str>, Upstream>,
    /// The migrations that the routes are split by.
    pub(super) migrations: BTreeSet<ObjectName>,
    /// What the rules name as backends.
    pub(super) targets: BTreeSet<Target>,
    /// What mirrors name.
    pub(super) mirrors: BTreeSet<Target>,
    pub(super) errors: Vec<(ConditionType, FieldError)>,
}

/// What one match of one rule became: its canaries, then itself.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) order: Order,
    pub(super) routes: Vec<Route>,
    /// Of its match; `None`: it is for what nobody else takes.
    pub(super) sum: Option<conflict::Sum>,
    /// Where an Ingress has it; empty for other kinds, of which rule and match say it.
    pub(super) field: Box<str>,
}

/// First the rank, then the Gateway API's tie-breaks: the older route, the name, the place in the route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    pub(super) rank: Rank,
    pub(super) created: jiff::Timestamp,
    name: ObjectName,
    pub(super) rule: usize,
    pub(super) matched: usize,
}

/// Compiles an `HTTPRoute`.
pub(super) fn http(objects: &Objects, splits: &Splits, name: &ObjectName, object: &HttpRoute) -> Compiled {
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let rules = object.spec.rules.iter().flatten().enumerate();
    let rules = rules.map(|(index, rule)| rule::of_http(rule, &format!("spec.rules[{index}]")));
    let mut compiled = compile(objects, splits, (Kind::HttpRoute, name), created, rules.collect());
    if object.spec.use_default_gateways.is_some() {
        let message = "there are no default gateways; name them in parentRefs";
        let error = FieldError::new("spec.useDefaultGateways", "UnsupportedValue", message);
        compiled.errors.push((ConditionType::Accepted, error));
    }
    compiled
}

/// Compiles a `GRPCRoute`.
pub(super) fn grpc(objects: &Objects, splits: &Splits, name: &ObjectName, object: &GrpcRoute) -> Compiled {
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let rules = object.spec.rules.iter().flatten().enumerate();
    let rules = rules.map(|(index, rule)| rule::of_grpc(rule, &format!("spec.rules[{index}]")));
    compile(objects, splits, (Kind::GrpcRoute, name), created, rules.collect())
}

/// Compiles what an Ingress was turned into. Its backends are all in its own namespace, so that it needs no grant.
pub(super) fn of_ingress(
    objects: &Objects,
    splits: &Splits,
    name: &ObjectName,
    object: &HttpRoute,
    created: jiff::Timestamp,
    is_http2: bool,
) -> Compiled {
    let rules = object.spec.rules.iter().flatten().enumerate();
    let rules = rules.map(|(index, rule)| rule::of_http(rule, &format!("spec.rules[{index}]")));
    // By its kind it is known what is spoken to the endpoints.
    let kind = if is_http2 { Kind::GrpcRoute } else { Kind::HttpRoute };
    compile(objects, splits, (kind, name), Some(created), rules.collect())
}

fn compile(
    objects: &Objects,
    splits: &Splits,
    (kind, name): (Kind, &ObjectName),
    created: Option<jiff::Timestamp>,
    rules: Vec<Rule<'_>>,
) -> Compiled {
    let mut compiled = Compiled::default();
    let route = ObjectRef { kind, name: name.clone() };
    // Two kinds may have a route of one name.
    let prefix = if kind == Kind::HttpRoute { name.to_string() } else { format!("{kind}/{name}") };
    // Without a time it is taken for the youngest.
    let created = created.unwrap_or(jiff::Timestamp::MAX);
    for (index, rule) in rules.into_iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        let action = action(objects, splits, &route, &rule, &field, &mut compiled);
        let matches = match rule.matches {
            Ok(matches) => matches,
            // What cannot be matched cannot be answered either.
            Err(error) => {
                compiled.errors.push((ConditionType::Accepted, error));
                continue;
            }
        };
        for (number, matched) in matches.into_iter().enumerate() {
            let route_name = format!("{prefix}/{index}/{number}");
            let order = Order {
                rank: matched.rank.clone(),
                created,
                name: name.clone(),
                rule: index,
                matched: number,
            };
            let at = format!("{field}.matches[{number}]");
            let routes = match routes(kind, &route_name, &matched, &action) {
                Ok(routes) => routes,
                Err(message) => {
                    let error = FieldError::new(at, "UnsupportedValue", message);
                    compiled.errors.push((ConditionType::Accepted, error));
                    vec![named(&route_name, matched.route_match(), unavailable(kind))]
                }
            };
            let sum = Some(conflict::sum(matched.route_match()));
            compiled.entries.push(Entry { order, routes, sum, field: "".into() });
        }
    }
    compiled
}

/// What no version could serve, whatever else there is.
pub(super) fn invalid_http(object: &HttpRoute) -> Vec<FieldError> {
    let rules = object.spec.rules.iter().flatten().enumerate();
    invalid(rules.map(|(index, rule)| rule::of_http(rule, &format!("spec.rules[{index}]"))))
}

/// As [`invalid_http`].
pub(super) fn invalid_grpc(object: &GrpcRoute) -> Vec<FieldError> {
    let rules = object.spec.rules.iter().flatten().enumerate();
    invalid(rules.map(|(index, rule)| rule::of_grpc(rule, &format!("spec.rules[{index}]"))))
}

fn invalid<'o>(rules: impl Iterator<Item = Rule<'o>>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, rule) in rules.enumerate() {
        let field = format!("spec.rules[{index}]");
        errors.extend(filter::compile(&rule.filters, &field).err());
        errors.extend(rule.timeouts.and_then(|written| timeouts(written, &field).err()));
        errors.extend(rule.retry.and_then(|written| retry(Some(written), &field).err()));
        for (number, (backend, filters)) in rule.backends.iter().enumerate() {
            let field = format!("{field}.backendRefs[{number}]");
            errors.extend(backend::weight(backend.weight, &field).err());
            errors.extend(filter::of_backend(filters, &field).err());
        }
        errors.extend(rule.matches.err());
    }
    errors
}

/// What a rule does with a request, whichever of its matches it fits.
enum Action<'s> {
    Redirect(Box<Filters>),
    Forward(Box<Forwarding<'s>>),
    Unavailable,
}

/// How requests are sent on.
struct Forwarding<'s> {
    filters: Filters,
    mirrors: Vec<RequestMirrorPolicy>,
    timeouts: Timeouts,
    retry: RetryPolicy,
    destination: Destination<'s>,
    /// The share of backends that cannot be used, where it is answered here.
    lost: Option<RuntimeFractionalPercent>,
}

fn action<'s>(
    objects: &'s Objects,
    splits: &'s Splits,
    route: &ObjectRef,
    rule: &Rule<'s>,
    field: &str,
    compiled: &mut Compiled,
) -> Action<'s> {
    let filters = filter::compile(&rule.filters, field);
    let timeouts = rule.timeouts.map_or(Ok(Timeouts::default()), |written| timeouts(written, field));
    let retry = retry(rule.retry, field);
    let unsupported = rule.unsupported.map(|name| {
        let message = "this is not supported; the rule answers 500";
        FieldError::new(format!("{field}.{name}"), "UnsupportedValue", message)
    });
    let (filters, mirrors, timeouts, retry) = match (filters, timeouts, retry, unsupported) {
        (Ok((filters, mirrors)), Ok(timeouts), Ok(retry), None) => (filters, mirrors, timeouts, retry),
        (filters, timeouts, retry, unsupported) => {
            let errors = [filters.err(), timeouts.err(), retry.err(), unsupported];
            compiled.errors.extend(errors.into_iter().flatten().map(|e| (ConditionType::Accepted, e)));
            return Action::Unavailable;
        }
    };
    if filters.redirect.is_some() {
        return Action::Redirect(Box::new(filters));
    }
    let mut errors = Vec::new();
    let backends = rule.backends.iter().map(|(backend, _)| *backend).enumerate();
    let mut destination = backend::resolve(objects, splits, route, backends, field, &mut errors);
    let target = |backend: &Backend<'_>| {
        let namespace = backend.namespace.unwrap_or(&route.name.namespace);
        Target {
            group: backend.group.unwrap_or_default().to_owned(),
            kind: backend.kind.unwrap_or("Service").to_owned(),
            name: ObjectName::new(namespace, backend.name),
        }
    };
    compiled.targets.extend(rule.backends.iter().map(|(backend, _)| target(backend)));
    compiled.mirrors.extend(mirrors.iter().map(|(_, mirror)| target(&mirror.backend)));
    if rule.backends.is_empty() {
        let message = "the rule has neither a backend nor a redirect; it answers 500";
        compiled.errors.push((ConditionType::Effective, FieldError::new(field, "NoBackend", message)));
    }
    if let Some(destination) = &mut destination
        && let Err(error) = change_headers(destination, rule, field)
    {
        compiled.errors.push((ConditionType::Accepted, error));
        return Action::Unavailable;
    }
    let mirrors = mirrors.into_iter().filter_map(|(field, mirror)| {
        let to = backend::resolve_one(objects, splits, route, &mirror.backend, &field);
        let upstream = to.map_err(|error| errors.push(error)).ok()?;
        let policy = RequestMirrorPolicy {
            cluster: upstream.name.to_string(),
            runtime_fraction: filter::fraction(&mirror, &field).ok().flatten(),
            // It is to look as the request does.
            disable_shadow_host_suffix_append: true,
            ..RequestMirrorPolicy::default()
        };
        compiled.upstreams.insert(upstream.name.clone(), upstream);
        Some(policy)
    });
    let mirrors = mirrors.collect();
    compiled.errors.extend(errors.into_iter().map(|error| (ConditionType::ResolvedRefs, error)));
    let Some(mut destination) = destination else { return Action::Unavailable };
    let lost = match (&mut destination, route.kind) {
        // A cluster without endpoints answers 503, which is right for gRPC only.
        (Destination::Clusters(arms), Kind::HttpRoute) => take_lost(arms),
        _ => None,
    };
    let mut used = |upstream: &Upstream| {
        compiled.upstreams.insert(upstream.name.clone(), upstream.clone());
    };
    match &destination {
        Destination::Migration(_, split) => split.upstreams().for_each(&mut used),
        Destination::Clusters(arms) => arms.iter().map(|arm| &arm.upstream).for_each(&mut used),
    }
    if let Destination::Migration(migration, split) = &destination {
        compiled.migrations.insert((*migration).clone());
        compiled.targets.extend(split.targets.iter().cloned());
    }
    Action::Forward(Box::new(Forwarding { filters, mirrors, timeouts, retry, destination, lost }))
}

/// Takes out those arms that cannot be used, and gives their share of the requests; not all of them are so.
fn take_lost(arms: &mut Vec<Arm>) -> Option<RuntimeFractionalPercent> {
    let sum = |arms: &[Arm]| arms.iter().map(|arm| u64::from(arm.weight)).sum::<u64>();
    let all = sum(arms);
    arms.retain(|arm| !arm.upstream.is_unresolved());
    let lost = all.saturating_sub(sum(arms));
    if lost == 0 {
        return None;
    }
    // Some of either side is some on the wire, too.
    let millionths = (lost * filter::MILLION + all / 2) / all;
    Some(filter::millionths(millionths.clamp(1, filter::MILLION - 1)))
}

/// Gives each arm what its backend's own filters say.
fn change_headers(destination: &mut Destination<'_>, rule: &Rule<'_>, field: &str) -> Result<(), FieldError> {
    for (index, (_, filters)) in
        rule.backends.iter().enumerate().filter(|(_, (_, filters))| !filters.is_empty())
    {
        let field = format!("{field}.backendRefs[{index}]");
        let headers = filter::of_backend(filters, &field)?;
        match destination {
            Destination::Clusters(arms) => {
                if let Some(arm) = arms.get_mut(index) {
                    arm.headers = headers;
                }
            }
            Destination::Migration(..) => {
                let message = "a service under migration has no filters of its own; use the rule's";
                return Err(FieldError::new(format!("{field}.filters"), "UnsupportedValue", message));
            }
        }
    }
    Ok(())
}

fn named(name: &str, matched: RouteMatch, action: route::Action) -> Route {
    Route { name: name.to_owned(), r#match: Some(matched), action: Some(action), ..Route::default() }
}

/// What the API has for requests that cannot be sent on; to gRPC, 503 is its UNAVAILABLE.
fn unavailable(kind: Kind) -> route::Action {
    let status = if kind == Kind::GrpcRoute { 503 } else { 500 };
    route::Action::DirectResponse(DirectResponseAction { status, ..DirectResponseAction::default() })
}

fn routes(kind: Kind, name: &str, matched: &Matched, action: &Action<'_>) -> Result<Vec<Route>, String> {
    match action {
        Action::Unavailable => Ok(vec![named(name, matched.route_match(), unavailable(kind))]),
        Action::Redirect(filters) => {
            let paths = match &filters.redirect_path {
                None => vec![(matched.route_match(), None)],
                Some(RewritePath::Full(path)) => {
                    vec![(matched.route_match(), Some(PathRewriteSpecifier::PathRedirect(path.clone())))]
                }
                prefix @ Some(RewritePath::Prefix(_)) => rewritten_paths(matched, prefix.as_ref())?
                    .into_iter()
                    .map(|(matched, to)| {
                        (matched, (!to.is_empty()).then_some(PathRewriteSpecifier::PrefixRewrite(to)))
                    })
                    .collect(),
            };
            let route = |(number, (route_match, path))| {
                let redirect = RedirectAction {
                    path_rewrite_specifier: path,
                    ..filters.redirect.clone().unwrap_or_default()
                };
                let action = route::Action::Redirect(redirect);
                let mut route = named(&numbered(name, number), route_match, action);
                route.response_headers_to_add.clone_from(&filters.headers.response_add);
                route.response_headers_to_remove.clone_from(&filters.headers.response_remove);
                say_cors(&mut route, filters);
                route
            };
            Ok(paths.into_iter().enumerate().map(route).collect())
        }
        Action::Forward(forwarding) => {
            let paths = rewritten_paths(matched, forwarding.filters.rewrite_path.as_ref())?;
            let mut routes = Vec::new();
            for (number, (route_match, rewrite)) in paths.into_iter().enumerate() {
                forward(kind, &numbered(name, number), route_match, rewrite, forwarding, &mut routes);
            }
            Ok(routes)
        }
    }
}

fn say_cors(route: &mut Route, filters: &Filters) {
    if let Some(cors) = &filters.cors {
        route.typed_per_filter_config.insert(CORS.to_owned(), pack_any(cors.clone()));
    }
}

/// All requests to one service, as a rule without matches and filters sends them.
pub(super) fn to_service(name: &str, destination: Destination<'_>) -> Vec<Route> {
    let mut routes = Vec::new();
    let everything = matching::everything().route_match();
    let forwarding = Forwarding {
        filters: Filters::default(),
        mirrors: Vec::new(),
        timeouts: Timeouts::default(),
        retry: tries::usual(),
        destination,
        lost: None,
    };
    forward(Kind::HttpRoute, name, everything, String::new(), &forwarding, &mut routes);
    routes
}

/// A match that needs more than one route numbers the further ones.
fn numbered(name: &str, number: usize) -> String {
    if number == 0 { name.to_owned() } else { format!("{name}/{number}") }
}

fn forward(
    kind: Kind,
    name: &str,
    matched: RouteMatch,
    rewrite: String,
    forwarding: &Forwarding<'_>,
    routes: &mut Vec<Route>,
) {
    let Forwarding { filters, mirrors, timeouts, retry, destination, lost } = forwarding;
    if let Some(lost) = lost {
        let drawn = RouteMatch { runtime_fraction: Some(lost.clone()), ..matched.clone() };
        let mut route = named(&format!("{name}/invalid"), drawn, unavailable(kind));
        say_cors(&mut route, filters);
        routes.push(route);
    }
    let mut base = RouteAction {
        prefix_rewrite: rewrite,
        host_rewrite_specifier: filters.rewrite_host.clone().map(HostRewriteSpecifier::HostRewriteLiteral),
        // Envoy's default of 15 s would cut event streams and long polls; a stream without progress ends anyway.
        timeout: Some(wire::duration(timeouts.request.unwrap_or_default())),
        // Who asks for no timeout (GEP-1742) is not to be cut for want of bytes either.
        idle_timeout: timeouts.request.filter(Duration::is_zero).map(wire::duration),
        retry_policy: Some(RetryPolicy {
            per_try_timeout: timeouts.per_try.map(wire::duration),
            ..retry.clone()
        }),
        request_mirror_policies: mirrors.clone(),
        ..RouteAction::default()
    };
    // A whole path in place of one that is known by a part only. What a backslash means there is not meant here.
    if let (Some(RewritePath::Full(path)), "") = (&filters.rewrite_path, base.prefix_rewrite.as_str()) {
        base.regex_rewrite = Some(RegexMatchAndSubstitute {
            pattern: Some(wire::regex("^.*$".to_owned())),
            substitution: path.replace('\\', "\\\\"),
        });
    }
    let mut push = |name: &str, matched: RouteMatch, action: RouteAction| {
        let mut route = named(name, matched, route::Action::Route(action));
        route.request_headers_to_add.clone_from(&filters.headers.request_add);
        route.request_headers_to_remove.clone_from(&filters.headers.request_remove);
        route.response_headers_to_add.clone_from(&filters.headers.response_add);
        route.response_headers_to_remove.clone_from(&filters.headers.response_remove);
        say_cors(&mut route, filters);
        routes.push(route);
    };
    let to = |specifier: ClusterSpecifier| RouteAction { cluster_specifier: Some(specifier), ..base.clone() };
    match destination {
        Destination::Migration(_, split) => {
            for (name, matched, cluster) in canaries(name, &matched, split) {
                push(&name, matched, to(ClusterSpecifier::Cluster(cluster)));
            }
            match split.weighted() {
                Some(weighted) => {
                    let mut action = to(ClusterSpecifier::WeightedClusters(weighted));
                    action.hash_policy = split.hash_policy();
                    push(name, matched, action);
                }
                None => routes.push(named(name, matched, unavailable(kind))),
            }
        }
        Destination::Clusters(arms) => push(name, matched, to(cluster_specifier(arms))),
    }
}

/// One route more for each canary: the same match and one header, straight to the target.
fn canaries<'s>(
    name: &'s str,
    matched: &'s RouteMatch,
    split: &'s Split,
) -> impl Iterator<Item = (String, RouteMatch, String)> + 's {
    let target = split.target.as_ref().map(|target| target.name.to_string());
    target.into_iter().flat_map(move |target| {
        split.canaries.iter().enumerate().map(move |(index, header)| {
            let mut matched = matched.clone();
            matched.headers.push(header.clone());
            (format!("{name}/canary/{index}"), matched, target.clone())
        })
    })
}

fn cluster_specifier(arms: &[Arm]) -> ClusterSpecifier {
    if let [Arm { upstream, headers, .. }] = arms
        && headers.is_empty()
    {
        return ClusterSpecifier::Cluster(upstream.name.to_string());
    }
    let weights = arms.iter().map(|Arm { upstream, weight, headers }| {
        let Headers { request_add, request_remove, response_add, response_remove } = headers.clone();
        ClusterWeight {
            name: upstream.name.to_string(),
            weight: wire::number(*weight),
            request_headers_to_add: request_add,
            request_headers_to_remove: request_remove,
            response_headers_to_add: response_add,
            response_headers_to_remove: response_remove,
            ..ClusterWeight::default()
        }
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster {
        clusters: weights.collect(),
        ..WeightedCluster::default()
    })
}

/// The match and what replaces the matched path. Taking a prefix off altogether needs two: of `/shop` and
/// `/shop/cart` the first has to become `/`, the second must not become `//cart`.
fn rewritten_paths(
    matched: &Matched,
    rewrite: Option<&RewritePath>,
) -> Result<Vec<(RouteMatch, String)>, String> {
    match (rewrite, &matched.path) {
        (None, _) => Ok(vec![(matched.route_match(), String::new())]),
        (Some(RewritePath::Full(path)), PathMatch::Exact(_)) => {
            Ok(vec![(matched.route_match(), path.clone())])
        }
        (Some(RewritePath::Full(_)), _) => Ok(vec![(matched.route_match(), String::new())]),
        (Some(RewritePath::Prefix(to)), PathMatch::Prefix(from)) => match (from.as_str(), to.as_str()) {
            ("", "") => Ok(vec![(matched.route_match(), String::new())]),
            ("", to) => Ok(vec![(matched.route_match(), format!("{to}/"))]),
            (from, "") => {
                let exact = matched.with_path(PathSpecifier::Path(from.to_owned()));
                let below = matched.with_path(PathSpecifier::Prefix(format!("{from}/")));
                Ok(vec![(exact, "/".to_owned()), (below, "/".to_owned())])
            }
            (_, to) => Ok(vec![(matched.route_match(), to.to_owned())]),
        },
        (Some(RewritePath::Prefix(_)), _) => {
            Err("ReplacePrefixMatch needs a PathPrefix match; the match answers 500".to_owned())
        }
    }
}
