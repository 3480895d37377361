//! The HTTP filters of a listener and what routes say about them, and the network filter in front of the manager
//! that limits connections.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http::buffer::v3::{
    Buffer as BufferMessage, BufferPerRoute, buffer_per_route,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::{Cors, CorsPolicy};
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{ExtAuthz, ExtAuthzPerRoute};
use envoy_types::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute,
};
use envoy_types::pb::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use envoy_types::pb::google::protobuf::Any;
use http::HeaderValue;
use pontoon_xds::json::{EMPTY_URL, type_of};
use prost::Name as _;

use super::authz;
use super::lds::unpack;
use super::matching;
use super::problem::{Problem, Under, each};
use super::rate_limit;
use super::rbac;
use super::rds::Clusters;
use super::session;
use super::support::{Message, support};
use crate::route::authz::{Filter as AuthzFilter, OfRoute as AuthzOfRoute};
use crate::route::cors;
use crate::route::filters::{Buffer, ByFilter};
use crate::route::rate_limit::{Filter as RateFilter, RateLimit};
use crate::route::rbac::{Filter, Override};
use crate::route::session::{Filter as SessionFilter, Session};

pub(super) const MESSAGES: &[Message] = &[
    HTTP_FILTER,
    ROUTER,
    BUFFER,
    BUFFER_PER_ROUTE,
    GRPC_WEB,
    CORS,
    CORS_POLICY,
    CONNECTION_LIMIT,
    FILTER_CONFIG,
];

support! {
    HTTP_FILTER, http_filter_fields: HttpFilter = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
    read: name, is_optional, disabled, config_type;
    ignored:;
    refused: ;
}

support! {
    ROUTER, router: Router = "envoy.extensions.filters.http.router.v3.Router";
    read: ;
    ignored:
        dynamic_stats => "it only names statistics",
        suppress_grpc_request_failure_code_stats => "it only names statistics",
        upstream_log_options => "there is no upstream log",
        start_child_span => "spans are not reported",
        suppress_envoy_headers => "no x-envoy headers are added, whatever it says";
    refused: upstream_log, strict_check_headers, upstream_http_filters, respect_expected_rq_timeout, reject_connect_request_early_data;
}

support! {
    BUFFER, buffer: BufferMessage = "envoy.extensions.filters.http.buffer.v3.Buffer";
    read: max_request_bytes;
    ignored:;
    refused: ;
}

support! {
    BUFFER_PER_ROUTE, buffer_per_route: BufferPerRoute = "envoy.extensions.filters.http.buffer.v3.BufferPerRoute";
    read: r#override;
    ignored:;
    refused: ;
}

const GRPC_WEB: Message = Message {
    name: "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb",
    read: &[],
    ignored: &[],
    differs: &[],
    refused: &[],
};

const CORS: Message = Message {
    name: "envoy.extensions.filters.http.cors.v3.Cors",
    read: &[],
    ignored: &[],
    differs: &[],
    refused: &[],
};

support! {
    CORS_POLICY, cors_policy: CorsPolicy = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
    read: allow_origin_string_match, allow_methods, allow_headers, expose_headers, max_age, allow_credentials, forward_not_matching_preflights;
    ignored:;
    refused: filter_enabled, shadow_enabled, allow_private_network_access;
}

support! {
    FILTER_CONFIG, filter_config: FilterConfig = "envoy.config.route.v3.FilterConfig";
    read: config, is_optional;
    ignored:;
    refused: disabled;
}

support! {
    CONNECTION_LIMIT, connection_limit: ConnectionLimit = "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit";
    read: max_connections;
    ignored:
        stat_prefix => "it only names statistics";
    refused: runtime_enabled, delay;
}

/// The filters that a route can say are on, without another word, by the names that they have everywhere: by another
/// it may be one that this proxy does not have.
const ENABLED: [&str; 5] = [BUFFER_NAME, "envoy.filters.http.cors", rbac::NAME, session::NAME, authz::NAME];
const BUFFER_NAME: &str = "envoy.filters.http.buffer";

/// What the filters before the router say.
#[derive(Debug, Default)]
pub(super) struct Filters {
    /// Nothing is buffered for them: a body that is longer is refused as soon as that is known.
    pub(super) buffers: Vec<Buffer>,
    /// gRPC-Web clients are served.
    pub(super) grpc_web: bool,
    /// The names under which what routes say of CORS counts.
    pub(super) cors: Vec<Box<str>>,
    /// Who may ask.
    pub(super) rbac: Vec<Filter>,
    pub(super) sessions: Vec<SessionFilter>,
    pub(super) rate_limits: Vec<RateFilter>,
    pub(super) authz: Vec<AuthzFilter>,
}

/// What a route, and what is around it, says about the filters, by their names.
#[derive(Debug, Default, Clone)]
pub(super) struct OfRoute {
    bodies: BTreeMap<Box<str>, Option<u64>>,
    cors: BTreeMap<Box<str>, Arc<cors::Cors>>,
    rbac: BTreeMap<Box<str>, Override>,
    sessions: BTreeMap<Box<str>, Option<Arc<Session>>>,
    rate_limits: BTreeMap<Box<str>, Option<Arc<RateLimit>>>,
    authz: BTreeMap<Box<str>, AuthzOfRoute>,
}

impl OfRoute {
    /// Limits of body bytes: 0 for none, and nothing where the filter's own counts.
    pub(super) fn bodies(&self) -> ByFilter<Option<u64>> {
        by_filter(&self.bodies)
    }

    pub(super) fn cors(&self) -> ByFilter<Arc<cors::Cors>> {
        by_filter(&self.cors)
    }

    pub(super) fn rbac(&self) -> ByFilter<Override> {
        by_filter(&self.rbac)
    }

    /// Nothing where as many requests are taken as come.
    pub(super) fn rate_limits(&self) -> ByFilter<Option<Arc<RateLimit>>> {
        by_filter(&self.rate_limits)
    }

    pub(super) fn authz(&self) -> ByFilter<AuthzOfRoute> {
        by_filter(&self.authz)
    }

    /// Nothing where the filter's own counts.
    pub(super) fn sessions(&self) -> ByFilter<Option<Arc<Session>>> {
        by_filter(&self.sessions)
    }
}

fn by_filter<T: Clone>(said: &BTreeMap<Box<str>, T>) -> ByFilter<T> {
    said.iter().map(|(name, said)| (name.clone(), said.clone())).collect()
}

pub(super) fn compile(filters: &[HttpFilter]) -> Result<Filters, Problem> {
    let (last, earlier) = match filters {
        [] => return Err(Problem::new("http_filters", "is empty; the last one must be the router")),
        [earlier @ .., last] => (last, earlier),
    };
    let mut compiled = Filters::default();
    each("http_filters", earlier, |filter| {
        http_filter_fields(filter)?;
        let name = || -> Box<str> { filter.name.as_str().into() };
        if !compiled.authz.is_empty() && is_asked_first(filter) {
            let reason = "comes behind ext_authz; here that asks behind CORS, RBAC and local_ratelimit only";
            return Err(Problem::new("name", reason));
        }
        match &filter.config_type {
            Some(http_filter::ConfigType::TypedConfig(any)) if any.type_url == BufferMessage::type_url() => {
                let most = bytes_of(&unpack(any)?).under(|| "typed_config".into())?;
                compiled.buffers.push(Buffer { name: name(), most, disabled: filter.disabled });
            }
            // It does nothing of itself, and what a route says of it enables it there.
            Some(http_filter::ConfigType::TypedConfig(any)) if any.type_url == Cors::type_url() => {
                compiled.cors.push(name());
            }
            Some(http_filter::ConfigType::TypedConfig(any)) if any.type_url == Rbac::type_url() => {
                let rules = rbac::compile(&unpack(any)?).under(|| "typed_config".into())?;
                let behind_cors = !compiled.cors.is_empty();
                compiled.rbac.push(Filter { name: name(), rules, disabled: filter.disabled, behind_cors });
            }
            Some(http_filter::ConfigType::TypedConfig(any))
                if any.type_url == StatefulSession::type_url() =>
            {
                let session = session::of_listener(any).under(|| "typed_config".into())?;
                compiled.sessions.push(SessionFilter { name: name(), session, disabled: filter.disabled });
            }
            Some(http_filter::ConfigType::TypedConfig(any)) if any.type_url == LocalRateLimit::type_url() => {
                let limit = rate_limit::compile(&unpack(any)?).under(|| "typed_config".into())?;
                let limit = limit.filter(|_| !filter.disabled).map(Arc::new);
                compiled.rate_limits.push(RateFilter { name: name(), limit });
            }
            Some(http_filter::ConfigType::TypedConfig(any)) if any.type_url == ExtAuthz::type_url() => {
                let asking = authz::compile(&filter.name, filter.disabled, &unpack(any)?);
                compiled.authz.push(asking.under(|| "typed_config".into())?);
            }
            _ if filter.disabled => {}
            Some(http_filter::ConfigType::TypedConfig(any)) if any.type_url == GrpcWeb::type_url() => {
                compiled.grpc_web = true;
            }
            _ if filter.is_optional => {}
            _ => {
                let reason = format!(
                    "is the filter {:?}, which this proxy does not have; mark it is_optional to go without",
                    filter.name
                );
                return Err(Problem::new("name", reason));
            }
        }
        Ok(())
    })?;
    let position = earlier.len();
    match &last.config_type {
        _ if last.disabled => {
            Err(Problem::new("disabled", "is true; the router, which ends the chain, cannot be"))
        }
        Some(http_filter::ConfigType::TypedConfig(any)) => {
            unpack(any).and_then(|message| router(&message).under(|| "typed_config".into()))
        }
        _ => Err(Problem::new("typed_config", "is missing; the last filter must be the router")),
    }
    .under(|| format!("http_filters[{position}]"))?;
    Ok(compiled)
}

/// Whether it has its say before anybody else is asked.
fn is_asked_first(filter: &HttpFilter) -> bool {
    let Some(http_filter::ConfigType::TypedConfig(any)) = &filter.config_type else { return false };
    [Cors::type_url(), Rbac::type_url(), LocalRateLimit::type_url()].contains(&any.type_url)
}

fn bytes_of(message: &BufferMessage) -> Result<u64, Problem> {
    buffer(message)?;
    match message.max_request_bytes {
        Some(bytes) if bytes.value > 0 => Ok(bytes.value.into()),
        _ => Err(Problem::new("max_request_bytes", "is missing or 0; must be greater than 0")),
    }
}

/// Reads what a route says about the filters; `around`: what is said around it, where it says nothing.
pub(super) fn of_route(
    configs: &HashMap<String, Any>,
    around: &OfRoute,
    clusters: &Clusters<'_>,
) -> Result<OfRoute, Problem> {
    let mut of = around.clone();
    for (name, any) in configs {
        let at = || format!("typed_per_filter_config[{name}]");
        let any = match said(name, any).under(at)? {
            Said::Nothing => continue,
            Said::Enabled => {
                // What a policy does not do around it, it does not do for being enabled.
                let key: Box<str> = name.as_str().into();
                match name.as_str() {
                    BUFFER_NAME => drop(of.bodies.entry(key).or_default()),
                    rbac::NAME => drop(of.rbac.entry(key).or_default()),
                    session::NAME => drop(of.sessions.entry(key).or_default()),
                    authz::NAME => drop(of.authz.entry(key).or_default()),
                    _ => {}
                }
                continue;
            }
            Said::This(any) => any,
        };
        if any.type_url == CorsPolicy::type_url() {
            let message: CorsPolicy = unpack(&any).under(at)?;
            of.cors.insert(name.as_str().into(), Arc::new(cors_of(&message).under(at)?));
            continue;
        }
        if any.type_url == LocalRateLimit::type_url() {
            let limit = rate_limit::compile(&unpack(&any).under(at)?).under(at)?;
            of.rate_limits.insert(name.as_str().into(), limit.map(Arc::new));
            continue;
        }
        if any.type_url == RbacPerRoute::type_url() {
            let rules = rbac::of_route(&unpack(&any).under(at)?).under(at)?;
            of.rbac.insert(name.as_str().into(), Some(rules));
            continue;
        }
        if any.type_url == ExtAuthzPerRoute::type_url() {
            let message: ExtAuthzPerRoute = unpack(&any).under(at)?;
            let said = authz::of_route(&message, of.authz.get(name.as_str()), clusters).under(at)?;
            of.authz.insert(name.as_str().into(), said);
            continue;
        }
        if any.type_url == StatefulSessionPerRoute::type_url() {
            of.sessions.insert(name.as_str().into(), Some(session::of_route(&any).under(at)?));
            continue;
        }
        let message: BufferPerRoute = unpack(&any).under(at)?;
        buffer_per_route(&message).under(at)?;
        let limit = match &message.r#override {
            Some(buffer_per_route::Override::Disabled(true)) => 0,
            Some(buffer_per_route::Override::Buffer(buffer)) => {
                bytes_of(buffer).under(|| "buffer".into()).under(at)?
            }
            _ => {
                let reason = "is missing; give buffer, or disabled: true";
                return Err(Problem::new("override", reason)).under(at);
            }
        };
        of.bodies.insert(name.as_str().into(), Some(limit));
    }
    Ok(of)
}

fn cors_of(message: &CorsPolicy) -> Result<cors::Cors, Problem> {
    cors_policy(message)?;
    let value = |field: &str, text: &str| match text {
        "" => Ok(None),
        text => HeaderValue::try_from(text)
            .map(Some)
            .map_err(|_| Problem::new(field, format!("is {text:?}, which no header can hold"))),
    };
    Ok(cors::Cors {
        origins: each("allow_origin_string_match", &message.allow_origin_string_match, matching::string)?,
        methods: value("allow_methods", &message.allow_methods)?,
        headers: value("allow_headers", &message.allow_headers)?,
        expose: value("expose_headers", &message.expose_headers)?,
        max_age: value("max_age", &message.max_age)?,
        credentials: message.allow_credentials.is_some_and(|flag| flag.value),
        forward_others: message.forward_not_matching_preflights.is_none_or(|flag| flag.value),
    })
}

/// What a route says of one filter.
enum Said<'a> {
    /// What this proxy goes without.
    Nothing,
    /// It is on, as it is.
    Enabled,
    This(Cow<'a, Any>),
}

/// Looks into what says of itself that one may go without it, or only that the filter is on.
fn said<'a>(name: &str, any: &'a Any) -> Result<Said<'a>, Problem> {
    if any.type_url != FilterConfig::type_url() {
        return Ok(Said::This(Cow::Borrowed(any)));
    }
    let message: FilterConfig = unpack(any)?;
    filter_config(&message)?;
    let reason = match message.config {
        Some(inner)
            if [
                BufferPerRoute::type_url(),
                CorsPolicy::type_url(),
                RbacPerRoute::type_url(),
                LocalRateLimit::type_url(),
                StatefulSessionPerRoute::type_url(),
                ExtAuthzPerRoute::type_url(),
            ]
            .contains(&inner.type_url) =>
        {
            return Ok(Said::This(Cow::Owned(inner)));
        }
        Some(inner) if is_empty(&inner) && ENABLED.contains(&name) => return Ok(Said::Enabled),
        _ if message.is_optional => return Ok(Said::Nothing),
        Some(inner) if is_empty(&inner) => {
            format!("is empty, which enables the filter; this proxy does that for {}", ENABLED.join(", "))
        }
        inner => {
            let of = inner.map_or(String::from("nothing"), |inner| type_of(&inner));
            format!("is of {of}, which this proxy does not have; mark it is_optional to go without")
        }
    };
    Err(Problem::new("config", reason))
}

/// As it comes by xDS, and from a file.
fn is_empty(any: &Any) -> bool {
    any.type_url.is_empty() || any.type_url == EMPTY_URL
}

/// How many connections a listener may have.
pub(super) fn connections(any: &Any) -> Result<Option<usize>, Problem> {
    if any.type_url != ConnectionLimit::type_url() {
        return Ok(None);
    }
    let message: ConnectionLimit = unpack(any)?;
    connection_limit(&message)?;
    match message.max_connections.map(|n| usize::try_from(n.value)) {
        Some(Ok(limit)) if limit > 0 => Ok(Some(limit)),
        _ => Err(Problem::new("max_connections", "is missing or 0; must be greater than 0")),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::stateful_session_per_route;
    use envoy_types::pb::google::protobuf::UInt32Value;

    use super::*;
    use crate::upstream::cluster::Cluster;

    fn clusters(name: &str) -> Result<Arc<Cluster>, Problem> {
        Ok(Arc::new(Cluster::named(name.into())))
    }

    fn any<M: prost::Message + prost::Name>(message: &M) -> Any {
        Any { type_url: M::type_url(), value: message.encode_to_vec() }
    }

    fn filter(config: Any) -> HttpFilter {
        HttpFilter {
            name: "x".into(),
            config_type: Some(http_filter::ConfigType::TypedConfig(config)),
            ..HttpFilter::default()
        }
    }

    fn bytes(value: u32) -> BufferMessage {
        BufferMessage { max_request_bytes: Some(UInt32Value { value }) }
    }

    #[test]
    fn filters_before_the_router() {
        let router = filter(any(&Router::default()));
        let compiled = compile(&[filter(any(&bytes(10))), filter(any(&GrpcWeb {})), router.clone()]).unwrap();
        assert_eq!(compiled.buffers, [Buffer { name: "x".into(), most: 10, disabled: false }]);
        assert!(compiled.grpc_web);
        let problem = compile(&[filter(any(&bytes(0))), router.clone()]).unwrap_err();
        assert_eq!(problem.path, "http_filters[0].typed_config.max_request_bytes");
        let problem = compile(&[filter(any(&ConnectionLimit::default())), router.clone()]).unwrap_err();
        assert_eq!(problem.path, "http_filters[0].name");
        let optional = HttpFilter { is_optional: true, ..filter(any(&ConnectionLimit::default())) };
        assert!(compile(&[optional, router.clone()]).is_ok());
        assert_eq!(
            compile(&[router.clone(), filter(any(&bytes(1)))]).unwrap_err().path,
            "http_filters[0].name"
        );
        let filters = [
            filter(any(&Rbac::default())),
            filter(any(&Cors {})),
            filter(any(&Rbac::default())),
            router.clone(),
        ];
        let of: Vec<bool> = compile(&filters).unwrap().rbac.iter().map(|filter| filter.behind_cors).collect();
        assert_eq!(of, [false, true]);
        // Off, but for the routes that say something of them; what cannot be done by route is off.
        let off = |config| HttpFilter { disabled: true, ..filter(config) };
        let filters = [off(any(&Cors {})), off(any(&bytes(5))), off(any(&GrpcWeb {})), router.clone()];
        let compiled = compile(&filters).unwrap();
        assert_eq!((compiled.cors.len(), compiled.grpc_web), (1, false));
        assert_eq!(compiled.buffers, [Buffer { name: "x".into(), most: 5, disabled: true }]);
        let without = HttpFilter { disabled: true, ..router };
        assert_eq!(compile(&[without]).unwrap_err().path, "http_filters[0].disabled");
    }

    #[test]
    fn a_route_may_have_its_own_limit() {
        let of = |r#override| {
            let config = any(&BufferPerRoute { r#override });
            let configs = HashMap::from([("envoy.filters.http.buffer".to_owned(), config)]);
            let of = of_route(&configs, &OfRoute::default(), &clusters);
            of.map(|of| of.bodies().of("envoy.filters.http.buffer").copied())
        };
        assert_eq!(of(Some(buffer_per_route::Override::Buffer(bytes(7)))), Ok(Some(Some(7))));
        assert_eq!(of(Some(buffer_per_route::Override::Disabled(true))), Ok(Some(Some(0))));
        assert_eq!(of(None).unwrap_err().path, "typed_per_filter_config[envoy.filters.http.buffer].override");
        assert!(of_route(&HashMap::new(), &OfRoute::default(), &clusters).unwrap().bodies().is_empty());
        let other = HashMap::from([("x".to_owned(), any(&Router::default()))]);
        assert!(of_route(&other, &OfRoute::default(), &clusters).is_err());
    }

    #[test]
    fn a_route_says_more_than_what_is_around_it() {
        let limit =
            |most| any(&BufferPerRoute { r#override: Some(buffer_per_route::Override::Buffer(bytes(most))) });
        let on = any(&FilterConfig { config: Some(Any::default()), ..FilterConfig::default() });
        let of = |name: &str, config: &Any, around: &OfRoute| {
            of_route(&HashMap::from([(name.to_owned(), config.clone())]), around, &clusters)
        };
        let buffer = "envoy.filters.http.buffer";
        let around = of(buffer, &limit(5), &OfRoute::default()).unwrap();
        let bodies = |of: OfRoute| of.bodies();
        assert_eq!(bodies(of(buffer, &limit(7), &around).unwrap()).of(buffer), Some(&Some(7)));
        let other = bodies(of("other", &limit(7), &around).unwrap());
        assert_eq!((other.of(buffer), other.of("other")), (Some(&Some(5)), Some(&Some(7))));
        // Enabled, with what is said around it, or with its own.
        assert_eq!(bodies(of(buffer, &on, &around).unwrap()).of(buffer), Some(&Some(5)));
        assert_eq!(bodies(of(buffer, &on, &OfRoute::default()).unwrap()).of(buffer), Some(&None));
        let refused = of("shop.auth", &on, &around).unwrap_err();
        assert!(refused.reason.contains("enables the filter"), "{refused}");
    }

    #[test]
    fn a_route_has_rules_of_its_own_or_none_or_those_of_the_filter() {
        let wrapped = |config| any(&FilterConfig { config: Some(config), ..FilterConfig::default() });
        let own = |rules| any(&RbacPerRoute { rbac: Some(Rbac { rules, ..Rbac::default() }) });
        let allows = |config: Any| {
            let name = "envoy.filters.http.rbac";
            let of = of_route(&HashMap::from([(name.to_owned(), config)]), &OfRoute::default(), &clusters)
                .unwrap();
            of.rbac().of(name).unwrap().as_ref().map(|rules| rules.allow)
        };
        for config in [own(Some(Default::default())), wrapped(own(Some(Default::default())))] {
            assert_eq!(allows(config), Some(true), "nobody");
        }
        for config in [own(None), any(&RbacPerRoute::default()), wrapped(any(&RbacPerRoute::default()))] {
            assert_eq!(allows(config), Some(false), "everybody");
        }
        assert_eq!(allows(wrapped(Any::default())), None, "as the filter says");
    }

    #[test]
    fn a_route_says_what_may_be_gone_without() {
        let of = |config: Any, is_optional, disabled| {
            let config = any(&FilterConfig { config: Some(config), is_optional, disabled });
            of_route(&HashMap::from([("x".to_owned(), config)]), &OfRoute::default(), &clusters)
        };
        let limit = any(&BufferPerRoute { r#override: Some(buffer_per_route::Override::Buffer(bytes(7))) });
        let unknown = any(&ConnectionLimit::default());
        assert!(of(limit.clone(), false, false).is_ok());
        assert!(of(unknown.clone(), true, false).is_ok());
        let refused = of(unknown, false, false).unwrap_err();
        assert_eq!(refused.path, "typed_per_filter_config[x].config");
        assert!(refused.reason.contains("is_optional"), "{}", refused.reason);
        assert_eq!(of(limit, true, true).unwrap_err().path, "typed_per_filter_config[x].disabled");
    }

    #[test]
    fn a_route_says_which_sessions_it_has() {
        let listeners = HttpFilter { disabled: true, ..filter(any(&StatefulSession::default())) };
        let compiled = compile(&[listeners, filter(any(&Router::default()))]).unwrap();
        assert!(matches!(&*compiled.sessions, [filter] if filter.disabled && &*filter.name == "x"));
        let of = |config: Any| {
            let config = any(&FilterConfig { config: Some(config), is_optional: true, disabled: false });
            let of = of_route(
                &HashMap::from([(session::NAME.to_owned(), config)]),
                &OfRoute::default(),
                &clusters,
            );
            of.unwrap().sessions().of(session::NAME).map(|said| said.is_some())
        };
        let none = stateful_session_per_route::Override::Disabled(true);
        assert_eq!(of(any(&StatefulSessionPerRoute { r#override: Some(none) })), Some(true));
        assert_eq!(of(Any::default()), Some(false), "it is on, as the listener has it");
    }

    #[test]
    fn others_are_asked_behind_what_says_so_here() {
        use envoy_types::pb::envoy::config::core::v3::{HttpUri, http_uri};
        use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{HttpService, ext_authz};
        use envoy_types::pb::google::protobuf::Duration;
        let server = HttpUri {
            timeout: Some(Duration { seconds: 1, nanos: 0 }),
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster("a".into())),
            ..HttpUri::default()
        };
        let service = HttpService { server_uri: Some(server), ..HttpService::default() };
        let services = Some(ext_authz::Services::HttpService(service));
        let asking = || filter(any(&ExtAuthz { services: services.clone(), ..ExtAuthz::default() }));
        let router = || filter(any(&Router::default()));
        let compiled = compile(&[filter(any(&Cors {})), asking(), filter(any(&bytes(5))), router()]).unwrap();
        assert_eq!(compiled.authz.len(), 1);
        for first in [any(&Cors {}), any(&Rbac::default()), any(&LocalRateLimit::default())] {
            let problem = compile(&[asking(), filter(first), router()]).unwrap_err();
            assert_eq!(problem.path, "http_filters[1].name");
        }
        let problem = compile(&[filter(any(&ExtAuthz::default())), router()]).unwrap_err();
        assert_eq!(problem.path, "http_filters[0].typed_config.http_service");
    }

    #[test]
    fn a_limit_of_connections() {
        use envoy_types::pb::google::protobuf::UInt64Value;
        let of = |value| {
            let max_connections = Some(UInt64Value { value });
            connections(&any(&ConnectionLimit { max_connections, ..ConnectionLimit::default() }))
        };
        assert_eq!(of(5), Ok(Some(5)));
        assert!(of(0).is_err());
        assert_eq!(connections(&any(&Router::default())), Ok(None));
    }
}
