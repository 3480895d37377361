//! One host of an Ingress: its paths as rules of an `HTTPRoute`, and what is added to the routes that become of them.

use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{RedirectAction, Route, RouteAction};
use envoy_types::pb::envoy::extensions::filters::http::buffer::v3::{
    Buffer, BufferPerRoute, buffer_per_route,
};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use envoy_types::util::pack_any;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, IngressBackend};
use pontoon_proxy::route::expression::Expression;
use serde_json::{Value as Json, json};

use super::annotations::{Annotations, Canary, HeaderIs};
use super::{namespace_of, rate};
use crate::compile::INVALID;
use crate::compile::backend::Splits;
use crate::compile::chain::{BUFFER, EXT_AUTHZ, RATE_LIMIT, RBAC, SESSION};
use crate::compile::conflict;
use crate::compile::policy;
use crate::compile::route::{self, Compiled};
use crate::compile::status::ConditionType;
use crate::compile::wire::{self, Comparison};
use crate::objects::expression;
use crate::objects::problem::FieldError;
use crate::objects::{HttpRoute, ObjectName, Objects};

/// The ranks of paths: exact ones first, then the longer ones of all others, then the default backend.
const EXACT: u8 = 0;
const OTHERS: u8 = 2;
const DEFAULT: u8 = 3;

/// A host of an Ingress.
pub(super) struct Host<'i> {
    ingress: &'i ObjectName,
    created: jiff::Timestamp,
    annotations: &'i Annotations,
    /// `*.` stands for one label.
    one_label: Option<String>,
    rules: Vec<Rule<'i>>,
}

/// What becomes one rule or several.
struct Rule<'i> {
    /// Where its path is written.
    field: String,
    path: Path,
    to: To<'i>,
}

enum To<'i> {
    Backend {
        backend: &'i IngressBackend,
        canary: Option<(Canary, &'i IngressBackend)>,
    },
    /// A path of the same host.
    AppRoot(&'i str),
}

/// How a path is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Path {
    Exact(String),
    /// By elements.
    Prefix(String),
    /// By letters, as `ImplementationSpecific` is.
    Start(String),
    /// The start, whatever the case.
    Regex(String),
    Everything,
}

impl Path {
    fn of(written: &HTTPIngressPath, annotations: &Annotations) -> Path {
        let text = written.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
        let is_regex = annotations.use_regex || annotations.rewrite.is_some();
        match written.path_type.as_str() {
            "Exact" => Path::Exact(text),
            _ if is_regex => Path::Regex(text),
            "Prefix" => Path::Prefix(text),
            _ => Path::Start(text),
        }
    }

    fn matched(&self) -> Json {
        let (kind, value) = match self {
            Path::Exact(text) => ("Exact", text.clone()),
            Path::Prefix(text) | Path::Start(text) => ("PathPrefix", text.clone()),
            Path::Regex(text) => ("RegularExpression", format!("(?i:{text}).*")),
            Path::Everything => ("PathPrefix", "/".to_owned()),
        };
        json!({ "type": kind, "value": value })
    }

    /// What all that it takes begins with, as far as that is known.
    fn start(&self) -> Option<&str> {
        match self {
            Path::Exact(text) | Path::Start(text) => Some(text),
            Path::Prefix(text) => Some(text.trim_end_matches('/')),
            Path::Regex(_) | Path::Everything => None,
        }
    }

    fn rank(&self) -> (u8, usize) {
        match self {
            Path::Exact(text) => (EXACT, text.len()),
            // A slash at the end means nothing there.
            Path::Prefix(text) => (OTHERS, text.trim_end_matches('/').len()),
            Path::Start(text) | Path::Regex(text) => (OTHERS, text.len()),
            Path::Everything => (DEFAULT, 0),
        }
    }
}

impl<'i> Host<'i> {
    pub(super) fn new(
        ingress: &'i ObjectName,
        created: jiff::Timestamp,
        annotations: &'i Annotations,
        host: Option<&String>,
    ) -> Self {
        let one_label = host.and_then(|host| host.strip_prefix("*."));
        // The rules count for aliases, too.
        let aliases: String =
            annotations.aliases.iter().map(|alias| format!("|{}", regex::escape(alias))).collect();
        let one_label =
            one_label.map(|parent| format!("(?i)(?:[^.:]+\\.{}{aliases})(:[0-9]+)?", regex::escape(parent)));
        let app_root = annotations.app_root.as_deref().map(|path| Rule {
            field: "metadata.annotations".to_owned(),
            path: Path::Exact("/".to_owned()),
            to: To::AppRoot(path),
        });
        Host { ingress, created, annotations, one_label, rules: app_root.into_iter().collect() }
    }

    pub(super) fn path(
        &mut self,
        written: &'i HTTPIngressPath,
        field: &str,
        canary: Option<(Canary, &'i IngressBackend)>,
    ) {
        let to = To::Backend { backend: &written.backend, canary };
        self.rules.push(Rule { field: field.to_owned(), path: Path::of(written, self.annotations), to });
    }

    pub(super) fn default_backend(&mut self, backend: &'i IngressBackend) {
        let to = To::Backend { backend, canary: None };
        self.rules.push(Rule { field: "spec.defaultBackend".to_owned(), path: Path::Everything, to });
    }

    /// Its routes, where `https` those that send clients there; `is_tls`: for requests that came over it.
    pub(super) fn compile(
        &self,
        objects: &Objects,
        splits: &Splits,
        name: &ObjectName,
        https: bool,
        is_tls: bool,
    ) -> Compiled {
        let mut errors = Vec::new();
        let auth = self.annotations.auth.as_ref();
        let asked = auth.and_then(|auth| {
            let asked = auth.upstream(objects, splits, name);
            asked.map_err(|error| errors.push((ConditionType::ResolvedRefs, error))).ok()
        });
        let is_closed = self.annotations.is_closed || auth.is_some() && asked.is_none();
        let (mut rules, mut of): (Vec<Json>, Vec<&Rule<'_>>) = Default::default();
        for rule in &self.rules {
            for written in self.rules_of(objects, rule, (https, is_closed), &mut errors) {
                rules.push(written);
                of.push(rule);
            }
        }
        let http_route = serde_json::from_value::<HttpRoute>(json!({
            "metadata": { "name": &*name.name, "namespace": &*name.namespace }, "spec": { "rules": rules },
        }));
        let mut compiled = match http_route {
            Ok(http_route) => {
                let is_http2 = self.annotations.protocol.is_http2;
                route::of_ingress(objects, splits, name, &http_route, self.created, is_http2)
            }
            Err(error) => {
                let error = FieldError::new("spec", INVALID, error.to_string());
                errors.push((ConditionType::Accepted, error));
                Compiled::default()
            }
        };
        for entry in &mut compiled.entries {
            let Some(rule) = of.get(entry.order.rule) else { continue };
            let (class, length) = rule.path.rank();
            entry.order.rank.put_path(class, length);
            for route in &mut entry.routes {
                self.finish(route, rule, https, is_tls);
                if let (Some(auth), Some(asked), Some(Action::Route(_))) = (auth, &asked, &route.action) {
                    let said = pack_any(auth.of_route(&asked.name));
                    route.typed_per_filter_config.insert(EXT_AUTHZ.to_owned(), said);
                }
            }
            // A default backend is for what others leave.
            let last = entry.routes.last().filter(|_| rule.path != Path::Everything);
            entry.sum = last.and_then(|route| route.r#match.clone()).map(conflict::sum);
            entry.field = rule.field.as_str().into();
        }
        if let Some(asked) = asked {
            compiled.upstreams.insert(asked.name.clone(), asked);
        }
        for (kind, error) in std::mem::take(&mut compiled.errors) {
            // That nothing is sent to a backend has been said in the Ingress's own words.
            if error.reason != "NoBackend" {
                let number = error.field.strip_prefix("spec.rules[").and_then(|rest| rest.split(']').next());
                let rule = number.and_then(|number| of.get(number.parse::<usize>().ok()?));
                let field = rule.map_or(error.field.clone(), |rule| rule.field.clone());
                errors.push((kind, FieldError::new(field, error.reason, error.message)));
            }
        }
        compiled.errors = errors;
        compiled
    }

    /// A rule, and those of its canary before it.
    fn rules_of(
        &self,
        objects: &Objects,
        rule: &Rule<'_>,
        (https, is_closed): (bool, bool),
        errors: &mut Vec<(ConditionType, FieldError)>,
    ) -> Vec<Json> {
        let redirect = |redirect: Json| {
            let filters = [json!({ "type": "RequestRedirect", "requestRedirect": redirect })];
            vec![json!({ "matches": [{ "path": rule.path.matched() }], "filters": filters })]
        };
        let (backend, canary) = match &rule.to {
            _ if is_closed => return vec![self.rule(rule, &[], Vec::new())],
            _ if https && self.annotations.redirect.is_none() => {
                return redirect(json!({ "scheme": "https", "statusCode": 308 }));
            }
            To::AppRoot(path) => {
                let path = json!({ "type": "ReplaceFullPath", "replaceFullPath": path });
                return redirect(json!({ "path": path, "statusCode": 302 }));
            }
            // What it is, is said afterwards.
            _ if self.annotations.redirect.is_some() => return redirect(json!({ "statusCode": 302 })),
            To::Backend { backend, canary } => (backend, canary),
        };
        // A proxy would refuse all routes for one that it cannot read.
        if let Some(Err(message)) = self.rewritten(&rule.path).map(|pattern| expression::check(&pattern)) {
            errors.push((ConditionType::Accepted, FieldError::new(rule.field.clone(), INVALID, message)));
            return vec![self.rule(rule, &[], Vec::new())];
        }
        let mut resolve = |backend: &IngressBackend| match self.backend(objects, backend) {
            Ok(backend) => Some(backend),
            Err((kind, reason, message)) => {
                errors.push((kind, FieldError::new(format!("{}.backend", rule.field), reason, message)));
                None
            }
        };
        let Some(main) = resolve(backend) else { return vec![self.rule(rule, &[], Vec::new())] };
        let canary = canary.as_ref().and_then(|(canary, backend)| Some((canary, resolve(backend)?)));
        let Some((canary, other)) = canary else { return vec![self.rule(rule, &[], vec![main])] };
        let mut rules = Vec::new();
        let mut when = |header: &str, kind: &str, value: &str, to: &Json| {
            let header = json!({ "name": header, "type": kind, "value": value });
            rules.push(self.rule(rule, &[header], vec![to.clone()]));
        };
        match (&canary.header, &canary.header_is) {
            (Some(header), Some(HeaderIs::Value(value))) => when(header, "Exact", value, &other),
            (Some(header), Some(HeaderIs::Pattern(pattern))) => {
                when(header, "RegularExpression", &format!(".*(?:{pattern}).*"), &other);
            }
            (Some(header), None) => {
                when(header, "Exact", "always", &other);
                when(header, "Exact", "never", &main);
            }
            (None, _) => {}
        }
        if let Some(cookie) = &canary.cookie {
            let is = |value: &str| format!("(?:.*;\\s*)?{}={value}(?:\\s*;.*)?", regex::escape(cookie));
            when("cookie", "RegularExpression", &is("always"), &other);
            when("cookie", "RegularExpression", &is("never"), &main);
        }
        let weighted = |backend: &Json, weight: u32| {
            let mut backend = backend.clone();
            backend["weight"] = json!(weight);
            backend
        };
        let backends = match canary.weight {
            0 => vec![main],
            weight if weight == canary.total => vec![other],
            weight => vec![weighted(&main, canary.total - weight), weighted(&other, weight)],
        };
        rules.push(self.rule(rule, &[], backends));
        rules
    }

    fn rule(&self, rule: &Rule<'_>, headers: &[Json], backends: Vec<Json>) -> Json {
        let mut filters = Vec::new();
        if let Some(cors) = &self.annotations.cors {
            filters.push(json!({ "type": "CORS", "cors": cors }));
        }
        if let Some(host) = &self.annotations.host {
            filters.push(json!({ "type": "URLRewrite", "urlRewrite": { "hostname": host } }));
        }
        // As in ingress-nginx it goes with a rewrite only.
        if let (Some(prefix), Some(_)) = (&self.annotations.forwarded_prefix, &self.annotations.rewrite) {
            let set = json!([{ "name": "X-Forwarded-Prefix", "value": prefix }]);
            filters.push(json!({ "type": "RequestHeaderModifier", "requestHeaderModifier": { "set": set } }));
        }
        let mut written = json!({
            "matches": [{ "path": rule.path.matched(), "headers": headers }],
            "filters": filters,
            "backendRefs": backends,
        });
        if let Some(retries) = self.annotations.retries {
            written["retry"] = json!({ "attempts": retries });
        }
        written
    }

    fn backend(
        &self,
        objects: &Objects,
        written: &IngressBackend,
    ) -> Result<Json, (ConditionType, &'static str, String)> {
        let Some(service) = &written.service else {
            let message = "resource backends are not supported, only Services; it answers 500".to_owned();
            return Err((ConditionType::ResolvedRefs, "InvalidKind", message));
        };
        let namespace = namespace_of(self.ingress);
        let name = ObjectName::new(namespace, service.name.as_str());
        let known = objects.services.get(&name);
        let port = service.port.as_ref();
        let port =
            match (port.and_then(|port| port.name.as_deref()), port.and_then(|port| port.number), known) {
                (Some(called), _, Some(service)) => {
                    let found = service.ports.iter().find(|port| *port.name == *called);
                    let found = found.ok_or_else(|| {
                        let message = format!("Service {name} has no port called {called}");
                        (ConditionType::ResolvedRefs, "BackendNotFound", message)
                    })?;
                    Some(i32::from(found.port))
                }
                (_, number, _) => number,
            };
        if self.annotations.protocol.is_tls {
            let port = port.and_then(|port| u16::try_from(port).ok());
            if policy::of_backend(objects, ("Service", &name), port).is_none() {
                let message = format!(
                    "backend-protocol HTTPS needs a BackendTLSPolicy for Service {name}, which says whose certificates \
                     count; it answers 500"
                );
                return Err((ConditionType::ResolvedRefs, "NoBackendTLSPolicy", message));
            }
        }
        Ok(json!({ "name": service.name, "port": port }))
    }

    /// Adds to a route what the Gateway API has no words for.
    fn finish(&self, route: &mut Route, rule: &Rule<'_>, https: bool, is_tls: bool) {
        if let Some(matched) = &mut route.r#match {
            if let Some(pattern) = &self.one_label {
                matched.headers.push(wire::header(":authority", Comparison::Regex(pattern.clone())));
            }
            if let Path::Start(text) = &rule.path {
                matched.path_specifier = Some(PathSpecifier::Prefix(text.clone()));
            }
        }
        match (&mut route.action, &self.annotations.redirect) {
            (Some(Action::Redirect(to)), Some(annotation)) if !matches!(rule.to, To::AppRoot(_)) => {
                *to = redirect(&annotation.to, to, annotation.status);
            }
            (Some(Action::Redirect(to)), _) => to.strip_query = matches!(rule.to, To::AppRoot(_)) && !https,
            (Some(Action::Route(action)), _) => {
                self.finish_action(action, rule);
                if let Some(affinity) = &self.annotations.affinity {
                    let said = affinity.of_route(rule.path.start(), is_tls);
                    route.typed_per_filter_config.insert(SESSION.to_owned(), said);
                }
            }
            _ => {}
        }
        // What is redirected is no request to the service, in ingress-nginx either.
        if let (Some(rate), Some(Action::Route(_))) = (self.annotations.rate, &route.action) {
            route.typed_per_filter_config.insert(RATE_LIMIT.to_owned(), pack_any(rate::of_each_client(rate)));
        }
        if let Some(bytes) = self.annotations.body_bytes {
            let limit = match bytes {
                0 => buffer_per_route::Override::Disabled(true),
                bytes => {
                    buffer_per_route::Override::Buffer(Buffer { max_request_bytes: wire::number(bytes) })
                }
            };
            let limit = BufferPerRoute { r#override: Some(limit) };
            route.typed_per_filter_config.insert(BUFFER.to_owned(), pack_any(limit));
        }
        if let Some(rules) = self.annotations.sources.rules() {
            route.typed_per_filter_config.insert(RBAC.to_owned(), pack_any(rules));
        }
    }

    /// What the target of a rewrite is put in place of: the whole path, whatever is behind what was matched.
    fn rewritten(&self, path: &Path) -> Option<String> {
        self.annotations.rewrite.as_ref()?;
        match path {
            Path::Everything => None,
            Path::Regex(text) => Some(format!("^(?i:{text}).*$")),
            _ => Some("^.*$".to_owned()),
        }
    }

    fn finish_action(&self, action: &mut RouteAction, rule: &Rule<'_>) {
        action.idle_timeout = self.annotations.idle.map(wire::duration);
        let (Some(target), Some(pattern)) = (&self.annotations.rewrite, self.rewritten(&rule.path)) else {
            return;
        };
        let groups = Expression::part(&pattern).map_or(1, |pattern| pattern.groups());
        action.regex_rewrite = Some(RegexMatchAndSubstitute {
            pattern: Some(wire::regex(pattern)),
            substitution: substitution(target, groups),
        });
    }
}

/// `$1` as RE2 writes it. A group that is not there is empty, as in nginx.
fn substitution(target: &str, groups: usize) -> String {
    let mut parts = target.split('$');
    let mut text = parts.next().unwrap_or_default().replace('\\', "\\\\");
    for part in parts {
        let (number, rest) = part.split_at(part.len().min(1));
        if number.parse::<usize>().is_ok_and(|number| number < groups) {
            text.push('\\');
            text.push_str(number);
        }
        text.push_str(&rest.replace('\\', "\\\\"));
    }
    text
}

/// Where a redirect goes that is written as an address or a path.
fn redirect(to: &str, placeholder: &RedirectAction, status: u32) -> RedirectAction {
    use envoy_types::pb::envoy::config::route::v3::redirect_action::RedirectResponseCode as Code;
    let code = match status {
        301 => Code::MovedPermanently,
        303 => Code::SeeOther,
        307 => Code::TemporaryRedirect,
        308 => Code::PermanentRedirect,
        _ => Code::Found,
    };
    let fixed = to.strip_suffix("$request_uri");
    let mut action =
        RedirectAction { response_code: code as i32, strip_query: fixed.is_none(), ..placeholder.clone() };
    let Ok(uri) = fixed.unwrap_or(to).parse::<http::Uri>() else { return action };
    if let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) {
        action.host_redirect = host.to_owned();
        action.port_redirect = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 }).into();
        action.scheme_rewrite_specifier = Some(SchemeRewriteSpecifier::SchemeRedirect(scheme.to_owned()));
    }
    if fixed.is_none() {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        action.path_rewrite_specifier = Some(PathRewriteSpecifier::PathRedirect(path.to_owned()));
    }
    action
}
