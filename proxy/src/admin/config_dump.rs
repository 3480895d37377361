//! The resources in force, in the shape of Envoy's `config_dump`: one section a type, each resource with its
//! version, the time since when it is in force, and the reason where a later version was refused.

use std::time::SystemTime;

use pontoon_xds::ResourceType;
use pontoon_xds::json::to_json;
use serde_json::{Map, Value, json};

use crate::config::{Dumped, Store};

pub(super) fn render(store: &Store) -> Value {
    let all = store.dump();
    let section = |ty: ResourceType| {
        let (kind, list, member) = shape(ty);
        let entries: Vec<Value> =
            all.iter().filter(|dumped| dumped.ty == ty).map(|dumped| entry(dumped, member)).collect();
        json!({ "@type": format!("type.googleapis.com/envoy.admin.v3.{kind}"), list: entries })
    };
    json!({ "configs": ResourceType::ALL.map(section) })
}

/// The dump's message, its list, and the resource's member in an entry.
fn shape(ty: ResourceType) -> (&'static str, &'static str, &'static str) {
    match ty {
        ResourceType::Secret => ("SecretsConfigDump", "dynamic_active_secrets", "secret"),
        ResourceType::Cluster => ("ClustersConfigDump", "dynamic_active_clusters", "cluster"),
        ResourceType::Endpoint => ("EndpointsConfigDump", "dynamic_endpoint_configs", "endpoint_config"),
        ResourceType::Listener => ("ListenersConfigDump", "dynamic_listeners", "listener"),
        ResourceType::Route => ("RoutesConfigDump", "dynamic_route_configs", "route_config"),
    }
}

fn entry(dumped: &Dumped, member: &str) -> Value {
    let mut state = Map::new();
    if let Some((resource, since)) = &dumped.in_force {
        state.insert("version_info".into(), (*resource.version).into());
        state.insert(member.into(), to_json(dumped.ty.type_url(), &resource.body));
        state.insert("last_updated".into(), stamp(*since));
    }
    let mut entry = if dumped.ty == ResourceType::Listener {
        let mut entry = Map::from_iter([("name".to_owned(), Value::from(&*dumped.name))]);
        if !state.is_empty() {
            entry.insert("active_state".into(), state.into());
        }
        entry
    } else {
        state
    };
    if let Some(refused) = &dumped.refused {
        let state = json!({
            "name": *dumped.name,
            "details": refused.reason,
            "version_info": *refused.version,
            "last_update_attempt": stamp(refused.at),
        });
        entry.insert("error_state".into(), state);
    }
    entry.into()
}

fn stamp(at: SystemTime) -> Value {
    jiff::Timestamp::try_from(at).map_or(Value::Null, |t| t.to_string().into())
}
