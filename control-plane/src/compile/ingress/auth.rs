//! `auth-url`: who is asked before a request of an Ingress goes on, by Envoy's ext_authz. That asks as the request came,
//! and lets in by 200 alone; the proxy is told to ask as nginx does.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{HttpUri, http_uri};
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::check_settings::ServiceOverride;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz_per_route::Override;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{
    AuthorizationResponse, CheckSettings, ExtAuthzPerRoute, HttpService,
};
use envoy_types::pb::envoy::r#type::matcher::v3::ListStringMatcher;

use super::annotations::path;
use crate::compile::backend::{self, Splits};
use crate::compile::reference::Backend;
use crate::compile::wire::{self, Comparison};
use crate::model::upstream::Upstream;
use crate::objects::problem::FieldError;
use crate::objects::{Kind, ObjectName, ObjectRef, Objects};

/// The context extension by which the proxy asks as nginx does: the method, the host, and where to sign in.
const NGINX: &str = "pontoon.dev/auth-request";
/// For an answer. ingress-nginx has a minute.
const TIMEOUT: Duration = Duration::from_secs(15);
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
/// Of an answer they are not for an endpoint, whatever is listed.
const NEVER_SET: [&str; 6] = ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te"];
/// Of nginx's variables those that the proxy knows, and what others are called there.
const VARIABLES: [(&str, &str); 7] = [
    ("scheme", "scheme"),
    ("pass_access_scheme", "scheme"),
    ("host", "host"),
    ("http_host", "http_host"),
    ("best_http_host", "http_host"),
    ("request_uri", "request_uri"),
    ("escaped_request_uri", "escaped_request_uri"),
];

/// Who is asked.
#[derive(Debug)]
pub(super) struct Auth {
    url: String,
    service: ObjectName,
    port: u16,
    path: String,
    /// As the proxy is told.
    nginx: String,
    /// What the endpoint gets of the answer, in lower case.
    headers: Vec<String>,
}

/// Whether an annotation is read with `auth-url`.
pub(super) fn takes(name: &str) -> bool {
    matches!(name, "auth-method" | "auth-response-headers" | "auth-signin")
}

/// Reads `auth-url` and what is said beside it.
pub(super) fn read<'v>(url: &str, of: &impl Fn(&str) -> Option<&'v str>) -> Result<Auth, String> {
    let (host, service, port, asked) = place(url)
        .ok_or("expected http://SERVICE.NAMESPACE.svc[.cluster.local][:PORT][/PATH], without variables")?;
    let method = of("auth-method").filter(|method| !method.is_empty()).unwrap_or("GET");
    if !METHODS.contains(&method) {
        return Err(format!("auth-method: expected one of {}", METHODS.join(", ")));
    }
    let headers = of("auth-response-headers").unwrap_or_default().split(',').map(str::trim);
    let headers = headers.filter(|name| !name.is_empty()).map(|name| {
        let name = name.to_ascii_lowercase();
        match http::HeaderName::from_bytes(name.as_bytes()).is_ok() && !NEVER_SET.contains(&name.as_str()) {
            true => Ok(name),
            false => Err(format!("auth-response-headers: {name:?} is no header that an endpoint can get")),
        }
    });
    let sign_in = of("auth-signin").filter(|url| !url.is_empty()).map(|url| {
        sign_in(url)
            .ok_or("auth-signin: expected an address or a path, with variables as $escaped_request_uri")
    });
    let words = [Some(method.to_owned()), Some(host.to_owned()), sign_in.transpose()?];
    Ok(Auth {
        url: url.to_owned(),
        service,
        port,
        path: path(&asked)?,
        nginx: words.into_iter().flatten().collect::<Vec<_>>().join(" "),
        headers: headers.collect::<Result<_, _>>()?,
    })
}

/// The host of a cluster's Service, its port, and a path with the query.
fn place(url: &str) -> Option<(&str, ObjectName, u16, String)> {
    let rest = url.strip_prefix("http://").filter(|rest| !rest.contains(['$', '#', '@']))?;
    let (authority, asked) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok().filter(|port| *port > 0)?),
        None => (authority, 80),
    };
    let name = host.strip_suffix(".cluster.local").unwrap_or(host).strip_suffix(".svc")?;
    let (service, namespace) = name.split_once('.')?;
    let is_label = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let slash = if asked.starts_with('/') { "" } else { "/" };
    (is_label(service) && is_label(namespace))
        .then(|| (host, ObjectName::new(namespace, service), port, format!("{slash}{asked}")))
}

/// Where to sign in, with the variables that the proxy knows. As in ingress-nginx it is told where to come back to.
fn sign_in(url: &str) -> Option<String> {
    let is_place = ["http://", "https://", "/"].iter().any(|start| url.starts_with(start));
    if !is_place || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut pieces = url.split('$');
    let mut known = pieces.next()?.to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(piece.len());
        let (name, rest) = piece.split_at(end);
        let (_, name) = VARIABLES.iter().find(|(nginx, _)| *nginx == name)?;
        known.push_str(&format!("${name}{rest}"));
    }
    let query = url.split_once('?').map(|(_, query)| query);
    let has_return = |query: &str| query.split('&').any(|pair| pair.len() > 3 && pair.starts_with("rd="));
    let separator = match query {
        Some(query) if has_return(query) => return Some(known),
        Some("") => "",
        Some(_) => "&",
        None => "?",
    };
    Some(format!("{known}{separator}rd=$scheme://$http_host$escaped_request_uri"))
}

impl Auth {
    /// The cluster that is asked. One of another namespace has to be granted there, unlike with ingress-nginx: it is asked by
    /// proxies whom it may trust, for a path of the Ingress's choice.
    pub(super) fn upstream(
        &self,
        objects: &Objects,
        splits: &Splits,
        ingress: &ObjectName,
    ) -> Result<Upstream, FieldError> {
        const FIELD: &str = "metadata.annotations";
        let port = Some(i32::from(self.port));
        let ObjectName { namespace, name } = &self.service;
        let backend =
            Backend { group: None, kind: None, namespace: Some(namespace), name, port, weight: None };
        let asking = ObjectRef { kind: Kind::Ingress, name: ingress.clone() };
        backend::resolve_one(objects, splits, &asking, &backend, FIELD).map_err(|error| {
            FieldError::new(FIELD, error.reason, format!("auth-url: {}; it answers 500", error.message))
        })
    }

    /// What a route says of the filter.
    pub(super) fn of_route(&self, cluster: &str) -> ExtAuthzPerRoute {
        let list = |names: &[String]| {
            let patterns = names.iter().map(|name| wire::string(Comparison::Exact(name.clone()))).collect();
            // Envoy takes no list of none.
            (!names.is_empty()).then_some(ListStringMatcher { patterns })
        };
        let service = HttpService {
            server_uri: Some(HttpUri {
                uri: self.url.clone(),
                timeout: Some(wire::duration(TIMEOUT)),
                http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(cluster.to_owned())),
            }),
            path_override: self.path.clone(),
            authorization_response: Some(AuthorizationResponse {
                allowed_upstream_headers: list(&self.headers),
                allowed_client_headers_on_success: list(&["set-cookie".to_owned()]),
                ..AuthorizationResponse::default()
            }),
            ..HttpService::default()
        };
        let settings = CheckSettings {
            // One only: of several the order on the wire would not be the same each time.
            context_extensions: [(NGINX.to_owned(), self.nginx.clone())].into(),
            service_override: Some(ServiceOverride::HttpService(service)),
            ..CheckSettings::default()
        };
        ExtAuthzPerRoute { r#override: Some(Override::CheckSettings(settings)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(url: &str, name: &str, value: &'static str) -> Result<Auth, String> {
        read(url, &|asked: &str| (asked == name).then_some(value))
    }

    #[test]
    fn a_service_of_the_cluster_is_asked() {
        for (url, expected) in [
            ("http://auth.shop.svc", Some(("shop/auth", 80, "/", "GET auth.shop.svc"))),
            (
                "http://auth.shop.svc.cluster.local:4180/check?a=b",
                Some(("shop/auth", 4180, "/check?a=b", "GET auth.shop.svc.cluster.local")),
            ),
            ("http://auth.shop.svc?a=b", Some(("shop/auth", 80, "/?a=b", "GET auth.shop.svc"))),
            ("https://auth.shop.svc/", None),
            ("http://auth.shop/", None),
            ("http://auth.svc/", None),
            ("http://a.auth.shop.svc/", None),
            ("http://auth.shop.svc.example.com/", None),
            ("http://auth.shop.svc:0/", None),
            ("http://auth.shop.svc:http/", None),
            ("http://user@auth.shop.svc/", None),
            ("http://auth.shop.svc/$request_uri", None),
            ("http://$host/", None),
            ("http://10.0.0.1/", None),
            ("http://auth.shop.svc/a b", None),
        ] {
            let read = read_from(url, "", "").ok();
            let read = read.map(|auth| (auth.service.to_string(), auth.port, auth.path, auth.nginx));
            let expected = expected
                .map(|(service, port, path, nginx)| (service.into(), port, path.into(), nginx.into()));
            assert_eq!(read, expected, "{url}");
        }
    }

    #[test]
    fn what_is_said_beside_it_is_read_or_nothing_is() {
        const URL: &str = "http://auth.shop.svc";
        let auth = read_from(URL, "auth-response-headers", "X-User, x-groups,,Set-Cookie").expect("a list");
        assert_eq!(auth.headers, ["x-user", "x-groups", "set-cookie"]);
        assert_eq!(read_from(URL, "auth-method", "HEAD").expect("a method").nginx, "HEAD auth.shop.svc");
        for (name, values) in [
            ("auth-response-headers", ["Host", "x y", "Transfer-Encoding"]),
            ("auth-method", ["get", "CONNECT", "GET "]),
            ("auth-signin", ["start", "https://a.test/ b", "https://a.test/$arg_rd"]),
        ] {
            for value in values {
                let problem = read_from(URL, name, value).expect_err(value);
                assert!(problem.starts_with(name), "{problem}");
            }
        }
    }

    #[test]
    fn who_signs_in_comes_back() {
        const BACK: &str = "rd=$scheme://$http_host$escaped_request_uri";
        for (url, expected) in [
            ("https://a.test/start", format!("https://a.test/start?{BACK}")),
            ("/start?a=b&rd=", format!("/start?a=b&rd=&{BACK}")),
            (
                "https://$host/start?rd=$escaped_request_uri",
                "https://$host/start?rd=$escaped_request_uri".into(),
            ),
            (
                "https://$best_http_host/?a&rd=$pass_access_scheme://x",
                "https://$http_host/?a&rd=$scheme://x".into(),
            ),
        ] {
            assert_eq!(sign_in(url), Some(expected), "{url}");
        }
    }
}
