//! One `HTTPRoute` to routes with their rank; which listeners they hang on is `gateway`'s matter. A rule that
//! cannot be served as written answers 500: letting its requests fall through to another rule would send them
//! where nobody meant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::redirect_action::PathRewriteSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, HostRewriteSpecifier};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy, Route, RouteAction, RouteMatch, WeightedCluster, route,
};
use gateway_api::httproutes::{HttpRouteRules, HttpRouteRulesTimeouts};

use super::INVALID;
use super::backend::{self, Destination, Splits};
use super::filter::{self, Filters, RewritePath};
use super::matching::{self, Matched, PathMatch, Rank};
use super::migration::Split;
use super::status::ConditionType;
use super::wire;
use crate::model::upstream::Upstream;
use crate::objects::problem::FieldError;
use crate::objects::{HttpRoute, ObjectName, Objects};

/// What nothing was sent of, or what the upstream says it did not look at, is tried once more.
const RETRY_ON: &str = "connect-failure,refused-stream,reset-before-request";

/// The routes of one `HTTPRoute`.
#[derive(Debug, Clone, Default)]
pub(super) struct Compiled {
    pub(super) entries: Vec<Entry>,
    /// The clusters that the routes send to.
    pub(super) upstreams: BTreeMap<Arc<str>, Upstream>,
    /// The migrations that the routes are split by.
    pub(super) migrations: BTreeSet<ObjectName>,
    pub(super) errors: Vec<(ConditionType, FieldError)>,
}

/// What one match of one rule became: its canaries, then itself.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) order: Order,
    pub(super) routes: Vec<Route>,
}

/// First the rank, then the Gateway API's tie-breaks: the older route, the name, the place in the route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    rank: Rank,
    created: jiff::Timestamp,
    name: ObjectName,
    rule: usize,
    matched: usize,
}

/// Compiles a route.
pub(super) fn compile(objects: &Objects, splits: &Splits, name: &ObjectName, object: &HttpRoute) -> Compiled {
    let mut compiled = Compiled::default();
    // Without a time it is taken for the youngest.
    let created = object.metadata.creation_timestamp.as_ref().map_or(jiff::Timestamp::MAX, |time| time.0);
    for (index, rule) in object.spec.rules.iter().flatten().enumerate() {
        let field = format!("spec.rules[{index}]");
        let matches = match matches(rule, &field) {
            Ok(matches) => matches,
            // What cannot be matched cannot be answered either.
            Err(error) => {
                compiled.errors.push((ConditionType::Accepted, error));
                continue;
            }
        };
        let action = action(objects, splits, name, rule, &field, &mut compiled);
        for (number, matched) in matches.into_iter().enumerate() {
            let route_name = format!("{name}/{index}/{number}");
            let order = Order {
                rank: matched.rank.clone(),
                created,
                name: name.clone(),
                rule: index,
                matched: number,
            };
            let at = format!("{field}.matches[{number}]");
            match routes(&route_name, &matched, &action) {
                Ok(routes) => compiled.entries.push(Entry { order, routes }),
                Err(message) => {
                    let error = FieldError::new(at, "UnsupportedValue", message);
                    compiled.errors.push((ConditionType::Accepted, error));
                    let routes = vec![named(&route_name, matched.route_match(), unavailable())];
                    compiled.entries.push(Entry { order, routes });
                }
            }
        }
    }
    compiled
}

/// What no version could serve, whatever else there is.
pub(super) fn invalid(object: &HttpRoute) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, rule) in object.spec.rules.iter().flatten().enumerate() {
        let field = format!("spec.rules[{index}]");
        let numbered = rule.matches.iter().flatten().enumerate();
        errors.extend(
            numbered
                .filter_map(|(number, m)| matching::compile(m, &format!("{field}.matches[{number}]")).err()),
        );
        errors.extend(filter::compile(rule.filters.as_deref().unwrap_or_default(), &field).err());
        errors.extend(rule.timeouts.as_ref().and_then(|written| timeouts(written, &field).err()));
        let weights = rule.backend_refs.iter().flatten().enumerate();
        errors.extend(
            weights.filter_map(|(number, b)| {
                backend::weight(b, &format!("{field}.backendRefs[{number}]")).err()
            }),
        );
    }
    errors
}

fn matches(rule: &HttpRouteRules, field: &str) -> Result<Vec<Matched>, FieldError> {
    let written = rule.matches.as_deref().unwrap_or_default();
    if written.is_empty() {
        return Ok(vec![matching::everything()]);
    }
    let numbered = written.iter().enumerate();
    numbered.map(|(index, m)| matching::compile(m, &format!("{field}.matches[{index}]"))).collect()
}

/// What a rule does with a request, whichever of its matches it fits.
enum Action<'s> {
    Redirect(Filters),
    Forward { filters: Filters, timeouts: Timeouts, destination: Destination<'s> },
    Unavailable,
}

#[derive(Debug, Clone, Copy, Default)]
struct Timeouts {
    request: Option<Duration>,
    per_try: Option<Duration>,
}

fn action<'s>(
    objects: &'s Objects,
    splits: &'s Splits,
    name: &ObjectName,
    rule: &HttpRouteRules,
    field: &str,
    compiled: &mut Compiled,
) -> Action<'s> {
    let filters = filter::compile(rule.filters.as_deref().unwrap_or_default(), field);
    let timeouts = rule.timeouts.as_ref().map_or(Ok(Timeouts::default()), |t| timeouts(t, field));
    let (filters, timeouts) = match (filters, timeouts) {
        (Ok(filters), Ok(timeouts)) => (filters, timeouts),
        (filters, timeouts) => {
            let errors = [filters.err(), timeouts.err()];
            compiled.errors.extend(errors.into_iter().flatten().map(|e| (ConditionType::Accepted, e)));
            return Action::Unavailable;
        }
    };
    if filters.redirect.is_some() {
        return Action::Redirect(filters);
    }
    let refs = rule.backend_refs.as_deref().unwrap_or_default();
    let mut errors = Vec::new();
    let destination = backend::resolve(objects, splits, &name.namespace, refs, field, &mut errors);
    if refs.is_empty() {
        let message = "the rule has neither a backend nor a redirect; it answers 500";
        errors.push(FieldError::new(field, "BackendNotFound", message));
    }
    compiled.errors.extend(errors.into_iter().map(|error| (ConditionType::ResolvedRefs, error)));
    let Some(destination) = destination else { return Action::Unavailable };
    let mut used = |upstream: &Upstream| {
        compiled.upstreams.insert(upstream.name.clone(), upstream.clone());
    };
    match &destination {
        Destination::Migration(_, split) => split.upstreams().for_each(&mut used),
        Destination::Clusters(clusters) => clusters.iter().map(|(upstream, _)| upstream).for_each(&mut used),
    }
    if let Destination::Migration(migration, _) = &destination {
        compiled.migrations.insert((*migration).clone());
    }
    Action::Forward { filters, timeouts, destination }
}

fn timeouts(written: &HttpRouteRulesTimeouts, field: &str) -> Result<Timeouts, FieldError> {
    let read = |text: &Option<String>, name: &str| {
        let at = || format!("{field}.timeouts.{name}");
        text.as_deref()
            .map(crate::objects::duration::parse)
            .transpose()
            .map_err(|message| FieldError::new(at(), INVALID, message))
    };
    let timeouts = Timeouts {
        request: read(&written.request, "request")?,
        per_try: read(&written.backend_request, "backendRequest")?.filter(|timeout| !timeout.is_zero()),
    };
    if let (Some(request), Some(per_try)) = (timeouts.request, timeouts.per_try)
        && !request.is_zero()
        && per_try > request
    {
        let at = format!("{field}.timeouts.backendRequest");
        return Err(FieldError::new(at, INVALID, "expected no more than timeouts.request"));
    }
    Ok(timeouts)
}

fn named(name: &str, matched: RouteMatch, action: route::Action) -> Route {
    Route { name: name.to_owned(), r#match: Some(matched), action: Some(action), ..Route::default() }
}

fn unavailable() -> route::Action {
    route::Action::DirectResponse(DirectResponseAction { status: 500, ..DirectResponseAction::default() })
}

fn routes(name: &str, matched: &Matched, action: &Action<'_>) -> Result<Vec<Route>, String> {
    match action {
        Action::Unavailable => Ok(vec![named(name, matched.route_match(), unavailable())]),
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
                route.response_headers_to_add.clone_from(&filters.response_add);
                route.response_headers_to_remove.clone_from(&filters.response_remove);
                route
            };
            Ok(paths.into_iter().enumerate().map(route).collect())
        }
        Action::Forward { filters, timeouts, destination } => {
            let paths = rewritten_paths(matched, filters.rewrite_path.as_ref())?;
            let mut routes = Vec::new();
            for (number, (route_match, rewrite)) in paths.into_iter().enumerate() {
                forward(
                    &numbered(name, number),
                    route_match,
                    rewrite,
                    filters,
                    *timeouts,
                    destination,
                    &mut routes,
                );
            }
            Ok(routes)
        }
    }
}

/// All requests to one service, as a rule without matches and filters sends them.
pub(super) fn to_service(name: &str, destination: &Destination<'_>) -> Vec<Route> {
    let mut routes = Vec::new();
    let everything = matching::everything().route_match();
    let (filters, timeouts) = (Filters::default(), Timeouts::default());
    forward(name, everything, String::new(), &filters, timeouts, destination, &mut routes);
    routes
}

/// A match that needs more than one route numbers the further ones.
fn numbered(name: &str, number: usize) -> String {
    if number == 0 { name.to_owned() } else { format!("{name}/{number}") }
}

fn forward(
    name: &str,
    matched: RouteMatch,
    rewrite: String,
    filters: &Filters,
    timeouts: Timeouts,
    destination: &Destination<'_>,
    routes: &mut Vec<Route>,
) {
    let base = RouteAction {
        prefix_rewrite: rewrite,
        host_rewrite_specifier: filters.rewrite_host.clone().map(HostRewriteSpecifier::HostRewriteLiteral),
        // Envoy's default of 15 s would cut event streams and long polls; a stream without progress ends anyway.
        timeout: Some(wire::duration(timeouts.request.unwrap_or_default())),
        retry_policy: Some(RetryPolicy {
            retry_on: RETRY_ON.to_owned(),
            num_retries: wire::number(1),
            per_try_timeout: timeouts.per_try.map(wire::duration),
            ..RetryPolicy::default()
        }),
        ..RouteAction::default()
    };
    let mut push = |name: &str, matched: RouteMatch, action: RouteAction| {
        let mut route = named(name, matched, route::Action::Route(action));
        route.request_headers_to_add.clone_from(&filters.request_add);
        route.request_headers_to_remove.clone_from(&filters.request_remove);
        route.response_headers_to_add.clone_from(&filters.response_add);
        route.response_headers_to_remove.clone_from(&filters.response_remove);
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
                None => routes.push(named(name, matched, unavailable())),
            }
        }
        Destination::Clusters(clusters) => push(name, matched, to(cluster_specifier(clusters))),
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

fn cluster_specifier(clusters: &[(Upstream, u32)]) -> ClusterSpecifier {
    if let [(upstream, _)] = clusters {
        return ClusterSpecifier::Cluster(upstream.name.to_string());
    }
    let weights = clusters.iter().map(|(upstream, weight)| ClusterWeight {
        name: upstream.name.to_string(),
        weight: wire::number(*weight),
        ..ClusterWeight::default()
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
        (Some(RewritePath::Full(_)), _) => {
            Err("ReplaceFullPath is supported with an Exact path only; the match answers 500".to_owned())
        }
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
