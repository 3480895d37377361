//! Both proxies say the same of themselves: their `/config_dump`, whole and in parts.

use std::collections::BTreeSet;

use anyhow::ensure;
use pontoon_e2e::wait::get;
use serde_json::Value;

use super::Proxy;

/// Of the whole dump, and of some parts.
const QUERIES: [&str; 6] = [
    "include_eds",
    "name_regex=a|http&include_eds",
    "resource=static_clusters&mask=cluster.name,cluster.type",
    "mask=static_listeners",
    "mask=bootstrap.admin.address",
    "resource=dynamic_listeners",
];
/// Where each runs on its own ports, that is all that differs in these.
const LISTS: [&str; 4] =
    ["static_clusters", "static_listeners", "static_route_configs", "static_endpoint_configs"];

/// Envoy's dump and ours, without what is each one's own: ports, times, and what Envoy says of its build.
pub(super) async fn same(envoy: &Proxy, ours: &Proxy) -> anyhow::Result<String> {
    for query in QUERIES {
        let (theirs, our) = (dump(envoy, query).await?, dump(ours, query).await?);
        let mut found = Vec::new();
        differences("", &theirs, &our, &mut found);
        ensure!(found.is_empty(), "{query}: Envoy's and ours differ\n{}", found.join("\n"));
    }
    for wrong in ["resource=nothing", "name_regex=(", "mask=static_listeners,static_clusters"] {
        for proxy in [envoy, ours] {
            ensure!(dump(proxy, wrong).await.is_err(), "{wrong} is answered");
        }
    }
    Ok(format!("{} queries", QUERIES.len()))
}

/// Where they differ, and what each has there.
fn differences(at: &str, theirs: &Value, our: &Value, found: &mut Vec<String>) {
    match (theirs, our) {
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let [a, b] = [a, b].map(|side| side.get(name).unwrap_or(&Value::Null));
                differences(&format!("{at}.{name}"), a, b, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (position, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{at}[{position}]"), a, b, found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{at}: {a} and {b}")),
    }
}

async fn dump(proxy: &Proxy, query: &str) -> anyhow::Result<Value> {
    let text = get(&format!("http://{}/config_dump?{query}", proxy.admin)).await?;
    let mut dump: Value = serde_json::from_str(&text)?;
    for section in dump["configs"].as_array_mut().into_iter().flatten() {
        if let Some(bootstrap) = section.get_mut("bootstrap") {
            let own = bootstrap.take();
            *bootstrap = serde_json::json!({
                "node": own["node"].is_object(),
                "admin": own["admin"]["address"],
                "static_resources": own["static_resources"],
            });
        }
        for list in LISTS {
            if let Some(Value::Array(elements)) = section.get_mut(list) {
                elements.sort_by_key(|element| element.to_string().replace(char::is_numeric, ""));
            }
        }
    }
    tidy(&mut dump, proxy.ports());
    Ok(dump)
}

/// How ours shows what it does not know the fields of.
const TYPED_STRUCT: &str = "type.googleapis.com/xds.type.v3.TypedStruct";

/// Times go; ports are numbered by their purpose; endpoints that drain are unhealthy; of a type that ours does not know, the name stays.
fn tidy(value: &mut Value, ports: &[u16]) {
    match value {
        Value::Object(fields) => {
            fields.remove("last_updated");
            if fields.get("@type").is_some_and(|of| of == TYPED_STRUCT) {
                let of = fields.remove("type_url").unwrap_or_default();
                fields.insert(String::from("@type"), of);
            }
            // Envoy says of one that drains what that means for its balancer.
            if let Some(health) = fields.get_mut("health_status").filter(|health| **health == "DRAINING") {
                *health = "UNHEALTHY".into();
            }
            for (name, inner) in fields {
                let port = inner.as_u64().filter(|_| name == "port_value");
                match port.and_then(|port| ports.iter().position(|own| u64::from(*own) == port)) {
                    Some(position) => *inner = position.into(),
                    None => tidy(inner, ports),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| tidy(item, ports)),
        _ => {}
    }
}
