//! What an Envoy and our proxy say of resources that come from one control plane: the same fields in the same places.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use pontoon_e2e::wait::{get, until};
use serde_json::Value;

use super::PATIENCE;

/// Each a section and one of its lists.
const LISTS: [(&str, &str); 5] = [
    ("ClustersConfigDump", "dynamic_active_clusters"),
    ("EndpointsConfigDump", "dynamic_endpoint_configs"),
    ("ListenersConfigDump", "dynamic_listeners"),
    ("RoutesConfigDump", "dynamic_route_configs"),
    ("SecretsConfigDump", "dynamic_active_secrets"),
];

/// What only one of them says: Envoy writes out a default, and does not tell the version of endpoints.
const KNOWN: [&str; 3] =
    ["[].endpoint_config.policy.overprovisioning_factor", "[].version_info", "[].last_updated"];

/// The paths of fields are the same, in each list and in each resource.
pub(super) async fn same(envoy: SocketAddr, ours: SocketAddr) -> anyhow::Result<String> {
    let mut fields = 0;
    for (section, list) in LISTS {
        until(&format!("{list} to be the same"), PATIENCE, async || {
            let theirs = shape(&of(envoy, section, list).await?);
            let our = shape(&of(ours, section, list).await?);
            let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| -> Vec<String> {
                let known =
                    |path: &&String| list == "dynamic_endpoint_configs" && KNOWN.contains(&path.as_str());
                a.difference(b).filter(|path| !known(path)).cloned().collect()
            };
            let (missing, more) = (only(&theirs, &our), only(&our, &theirs));
            ensure!(
                missing.is_empty() && more.is_empty(),
                "{list}: missing {missing:#?}, too much {more:#?}"
            );
            ensure!(!our.is_empty(), "{list} is empty");
            fields += our.len();
            Ok(())
        })
        .await?;
    }
    Ok(format!("{fields} fields"))
}

/// As our proxy shows one (its own test says so): by its name, with what failed and why, and no state.
pub(super) async fn refused_listener(envoy: SocketAddr, name: &str) -> anyhow::Result<()> {
    let listeners = of(envoy, "ListenersConfigDump", "dynamic_listeners").await?;
    let listeners = listeners.as_array().context("no listeners")?;
    let refused = listeners.iter().find(|listener| listener["name"] == name);
    let refused = refused.with_context(|| format!("no {name} among {listeners:#?}"))?;
    let error = &refused["error_state"];
    ensure!(error["failed_configuration"]["name"] == name && error["details"].is_string(), "{refused:#}");
    ensure!(refused.get("active_state").is_none(), "{refused:#}");
    Ok(())
}

/// One list of a section of `/config_dump`.
pub(super) async fn of(admin: SocketAddr, section: &str, list: &str) -> anyhow::Result<Value> {
    let text = get(&format!("http://{admin}/config_dump?include_eds")).await?;
    let mut dump: Value = serde_json::from_str(&text)?;
    let sections = dump["configs"].as_array_mut().context("no configs")?;
    let found = sections.iter_mut().find(|one| {
        one["@type"]
            .as_str()
            .is_some_and(|url| url == format!("type.googleapis.com/envoy.admin.v3.{section}"))
    });
    Ok(found.with_context(|| format!("no {section}"))?[list].take())
}

/// Every path to a value, without positions in lists.
fn shape(value: &Value) -> BTreeSet<String> {
    fn walk(at: &str, value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, inner)| walk(&format!("{at}.{name}"), inner, found));
            }
            Value::Array(items) => items.iter().for_each(|inner| walk(&format!("{at}[]"), inner, found)),
            _ => drop(found.insert(at.to_owned())),
        }
    }
    let mut found = BTreeSet::new();
    walk("", value, &mut found);
    found
}
