//! Why a request goes where it goes: the proxies' own code, run here over what is published for a gateway.

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use pontoon_proxy::explain::{Explanation, Request, explain as explain_request};

use super::problem::Problem;
use super::types::{ExplainRequest, ExplainResponse, ExplainedMigration, SplitSide};
use super::{Answer, Api, Body, migrations};
use crate::compile::is_gateway;
use crate::objects::ObjectName;
use crate::serve::world::{Proxies, World};

/// Explains one request.
#[utoipa::path(
    post, path = "/api/v1/explain", operation_id = "explain", tag = "look", request_body = ExplainRequest,
    responses(
        (status = 200, body = ExplainResponse), (status = 400, body = Problem), (status = 401, body = Problem),
        (status = 404, body = Problem)
    ),
    security(("token" = []))
)]
pub(super) async fn explain(State(api): State<Api>, body: Body<ExplainRequest>) -> Answer<ExplainResponse> {
    let world = api.world();
    let request = request(&body.0)?;
    let gateway = gateway(&world, &body.0)?;
    let Some(snapshot) = world.compiled.views.get(gateway.as_str()).cloned() else {
        return Err(no_gateway(&world, &gateway));
    };
    // It compiles the gateway's whole configuration, as a proxy does.
    let explanation = tokio::task::spawn_blocking(move || explain_request(&snapshot, &request))
        .await
        .map_err(|error| Problem::internal(format!("the explanation failed: {error}")))?;
    let migrations = concerned(&world, &api.inner.proxies, &gateway, &explanation);
    let explanation =
        serde_json::to_value(explanation).map_err(|error| Problem::internal(error.to_string()))?;
    Ok(Json(ExplainResponse { gateway, explanation, migrations }))
}

fn request(body: &ExplainRequest) -> Result<Request, Problem> {
    let uri: Uri = body.url.parse().map_err(|error| wrong("url", &body.url, &error))?;
    if uri.scheme_str() != Some("http") || uri.authority().is_none() {
        return Err(Problem::bad_request(format!(
            "{:?} is no whole URL: http://HOST[:PORT]/PATH, with the host that users ask for",
            body.url
        )));
    }
    let method = body.method.as_deref().unwrap_or("GET");
    let method: Method = method.parse().map_err(|error| wrong("method", method, &error))?;
    let mut headers = HeaderMap::new();
    for (name, value) in &body.headers {
        let name: HeaderName = name.parse().map_err(|error| wrong("header name", name, &error))?;
        let value: HeaderValue = value.parse().map_err(|error| wrong("header value", value, &error))?;
        headers.append(name, value);
    }
    Ok(Request { method, uri, headers, client: None })
}

fn wrong(what: &str, value: &str, error: &dyn std::fmt::Display) -> Problem {
    Problem::bad_request(format!("{value:?} is no {what}: {error}"))
}

fn gateway(world: &World, body: &ExplainRequest) -> Result<String, Problem> {
    if let Some(gateway) = &body.gateway {
        return Ok(gateway.clone());
    }
    if let Some(migration) = &body.migration {
        let name = name(migration)?;
        let state = world.book.state(&name).ok_or_else(|| migrations::unknown(&name))?;
        let carriers = world.compiled.migrations.get(&name).map(|on_the_wire| &on_the_wire.routes);
        let first = carriers.and_then(|routes| routes.iter().find(|(view, _)| is_gateway(view)));
        return first.map(|(view, _)| view.to_string()).ok_or_else(|| {
            let detail =
                format!("no route of any gateway refers to the service of {name} (at {})", state.position);
            Problem::not_found("no_such_gateway", detail)
        });
    }
    let mut views = gateways(world);
    match (views.next(), views.next()) {
        (Some(only), None) => Ok(only.to_string()),
        (None, _) => Err(Problem::not_found("no_such_gateway", "no gateway is being served")),
        (Some(_), Some(_)) => Err(Problem::bad_request(format!(
            "say which gateway: {}",
            gateways(world).collect::<Vec<_>>().join(", ")
        ))),
    }
}

fn gateways(world: &World) -> impl Iterator<Item = &str> {
    world.compiled.views.keys().map(|view| &**view).filter(|view| is_gateway(view))
}

fn name(text: &str) -> Result<ObjectName, Problem> {
    let (namespace, name) = text
        .split_once('/')
        .ok_or_else(|| Problem::bad_request(format!("{text:?} is no migration: NAMESPACE/NAME")))?;
    Ok(ObjectName::new(namespace, name))
}

fn no_gateway(world: &World, gateway: &str) -> Problem {
    let known: Vec<&str> = gateways(world).collect();
    let detail = format!("no gateway {gateway:?} is being served; there are: {}", known.join(", "));
    Problem::not_found("no_such_gateway", detail)
}

/// The migrations that the chosen cluster is a side of.
fn concerned(
    world: &World,
    proxies: &Proxies,
    gateway: &str,
    explanation: &Explanation,
) -> Vec<ExplainedMigration> {
    let (Some(cluster), Some(routes)) = (&explanation.cluster, &explanation.route_configuration) else {
        return Vec::new();
    };
    let carries =
        |(view, name): &(std::sync::Arc<str>, std::sync::Arc<str>)| **view == *gateway && **name == **routes;
    let mut concerned = Vec::new();
    for (name, on_the_wire) in &*world.compiled.migrations {
        let is = |side: &Option<std::sync::Arc<str>>| {
            // For gRPC it is a cluster of its own.
            let rest = side.as_deref().and_then(|side| cluster.strip_prefix(side));
            matches!(rest, Some("" | "/h2"))
        };
        let side = if is(&on_the_wire.target) {
            SplitSide::Target
        } else if is(&on_the_wire.legacy) {
            SplitSide::Legacy
        } else {
            continue;
        };
        if on_the_wire.routes.iter().any(carries)
            && let Some(migration) = world.migration(name, proxies)
        {
            concerned.push(ExplainedMigration { side, migration });
        }
    }
    concerned
}
