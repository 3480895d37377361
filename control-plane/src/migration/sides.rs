//! What the control plane knows of a migration's two sides: how many endpoints there are and how many would
//! take traffic. Of a DNS name it knows nothing: the proxies resolve it.

use std::collections::BTreeMap;

use super::stage::Circumstances;
use crate::model::Model;
use crate::model::upstream::{Source, Upstream};
use crate::objects::ObjectName;
use crate::objects::migration::Side;
use crate::objects::pool::{EurekaSource, ServiceSource};

/// One side of a migration, seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideView {
    /// `eureka INVENTORY`, `pool default/inventory-new`.
    pub name: String,
    /// How many endpoints would take traffic, and how many there are. None where only the proxies can tell.
    pub endpoints: Option<Endpoints>,
}

/// Endpoints, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Would take traffic.
    pub healthy: usize,
    /// Are known.
    pub known: usize,
}

/// Looks at one side.
pub fn side(model: &Model, namespace: &str, side: &Side) -> SideView {
    if let Some(source) = &side.eureka {
        return SideView { name: eureka_name(source), endpoints: Some(instances(model, source)) };
    }
    if let Some(source) = &side.service {
        let name = format!("service {namespace}/{}", source.name);
        return SideView { name, endpoints: pods(model, namespace, source) };
    }
    let name = ObjectName::new(namespace, side.pool.as_deref().unwrap_or_default());
    let Some(pool) = model.objects.pools.get(&name) else {
        return SideView { name: format!("pool {name} (missing)"), endpoints: Some(Endpoints::default()) };
    };
    let endpoints = if let Some(source) = &pool.spec.eureka {
        Some(instances(model, source))
    } else if let Some(source) = &pool.spec.service {
        pods(model, namespace, source)
    } else {
        // Written-down endpoints are taken at their word: the proxies find out, and eject.
        pool.spec.endpoints.as_ref().map(|list| Endpoints { healthy: list.len(), known: list.len() })
    };
    SideView { name: format!("pool {name}"), endpoints }
}

/// What the stage machine must know of a migration. Of one without an object, nothing.
pub fn circumstances(model: &Model, name: &ObjectName) -> Circumstances {
    let Some(object) = model.objects.migrations.get(name) else {
        return Circumstances { legacy: None, target: None, keyed: false, canary: false };
    };
    let healthy = |s: &Side| side(model, &name.namespace, s).endpoints.map(|endpoints| endpoints.healthy);
    Circumstances {
        legacy: healthy(&object.spec.legacy),
        target: healthy(&object.spec.target),
        keyed: object.spec.key.is_some(),
        canary: !object.spec.canary.is_empty(),
    }
}

/// Of a Service that is not there, none; of one that stands for a DNS name, only the proxies can tell.
fn pods(model: &Model, namespace: &str, source: &ServiceSource) -> Option<Endpoints> {
    let name = ObjectName::new(namespace, source.name.as_str());
    let Ok(upstream) = Upstream::of_service(&model.objects, &name, source.port) else {
        return Some(Endpoints::default());
    };
    let healthy = upstream.source.resolve(&model.registry).status.endpoints?;
    let Source::Service { name, port, .. } = &upstream.source else { return None };
    let service = model.registry.services.services.get(name);
    let known = service.and_then(|service| service.ports.get(port)).map_or(0, Vec::len);
    Some(Endpoints { healthy, known })
}

fn eureka_name(source: &EurekaSource) -> String {
    let mut name = format!("eureka {}", source.application.to_uppercase());
    if !source.selector.is_empty() {
        let pairs: Vec<String> =
            source.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        name.push_str(&format!(" ({})", pairs.join(", ")));
    }
    name
}

fn instances(model: &Model, source: &EurekaSource) -> Endpoints {
    let application = source.application.to_uppercase();
    let Some(application) = model.registry.applications.get(application.as_str()) else {
        return Endpoints::default();
    };
    let chosen = |metadata: &BTreeMap<String, String>| {
        source.selector.iter().all(|(key, value)| metadata.get(key) == Some(value))
    };
    let known = application.instances.values().filter(|instance| chosen(&instance.metadata)).count();
    // What the proxies would be given: an instance that is UP but has no address is none of it.
    let healthy = Upstream::of_eureka(source).source.resolve(&model.registry).endpoints.len();
    Endpoints { healthy, known }
}
