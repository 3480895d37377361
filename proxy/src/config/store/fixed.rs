//! The bootstrap's own resources, which the control plane cannot change: as they are at the start, and anew when the
//! file says others. Those that are the same stay untouched; the others come by the way that the control plane's do.

use std::collections::BTreeSet;
use std::sync::Arc;

use pontoon_xds::{Resource, ResourceType};
use tokio::time::Instant;
use tracing::subscriber::{NoSubscriber, with_default};

use super::{EndpointSource, Problem, Store, is_inline};
use crate::config::differing::Met;
use crate::config::problem::Under;

/// Who refers to others goes first.
const REMOVED_IN_ORDER: [ResourceType; 3] =
    [ResourceType::Listener, ResourceType::Cluster, ResourceType::Secret];

/// What has become of resources when the bootstrap was read again, each with its type.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// New ones and changed ones.
    pub put: Vec<String>,
    /// Those that are no longer there.
    pub removed: Vec<String>,
    /// Those that could be used when they were tried and a moment later could not, as when a file has changed in
    /// between. Their last good version goes on.
    pub failed: Vec<Problem>,
}

impl Store {
    /// The store of a process whose bootstrap has resources: secrets before clusters before listeners. `alone`:
    /// there are no others.
    ///
    /// # Errors
    /// When one of them cannot be used, or a name is there twice.
    pub fn fixed(own: Vec<(ResourceType, Resource)>, alone: bool, now: Instant) -> Result<Store, Problem> {
        let mut store = Store { alone, ..Store::default() };
        for (ty, resource) in own {
            let at = told(ty, &resource.name);
            if !store.fixed.insert((ty, resource.name.clone())) {
                return Err(Problem::new(at, "is there twice"));
            }
            store.put(ty, resource, now).under(|| at)?;
        }
        store.settle(now);
        if alone {
            store.needs_nobody()?;
        }
        Ok(store)
    }

    /// Whether there is all that is named, where nobody will ever tell the rest.
    fn needs_nobody(&self) -> Result<(), Problem> {
        let reason = "comes by ADS, and there is no dynamic_resources.ads_config";
        let from_ads = |name: &&Arc<str>| {
            let settings = self.handles.get(*name).and_then(|handle| handle.settings.load_full());
            settings.is_some_and(|settings| matches!(settings.source, EndpointSource::Eds(_)))
        };
        if let Some(name) = self.clusters.keys().find(from_ads) {
            return Err(Problem::new(format!("CDS {name:?}.eds_cluster_config.eds_config"), reason));
        }
        let mut listeners = self.listeners.iter();
        let named = listeners.find(|(_, entry)| {
            entry.value.handle.route_handles().iter().any(|routes| !is_inline(&routes.name))
        });
        match named {
            Some((name, _)) => {
                Err(Problem::new(format!("LDS {name:?}.filter_chains.rds.config_source"), reason))
            }
            None => Ok(()),
        }
    }

    /// Puts in force what the bootstrap says now in the place of what it said, in the same order.
    ///
    /// # Errors
    /// As at a start, and where the control plane has a resource of that name. Then nothing has changed.
    pub fn refix(&mut self, own: Vec<(ResourceType, Resource)>, now: Instant) -> Result<Changed, Problem> {
        // All of it or nothing: what refers to each other is only good together. What it would log is logged later.
        with_default(NoSubscriber::default(), || Store::fixed(own.clone(), self.alone, now))?;
        let names: BTreeSet<(ResourceType, Arc<str>)> =
            own.iter().map(|(ty, resource)| (*ty, resource.name.clone())).collect();
        if let Some((ty, name)) = names.difference(&self.fixed).find(|(ty, name)| self.has(*ty, name)) {
            let reason = "is the name of a resource of the control plane's; give it another";
            return Err(Problem::new(told(*ty, name), reason));
        }
        let before = std::mem::replace(&mut self.fixed, names);
        let mut changed = Changed::default();
        for (ty, resource) in own {
            if self.version(ty, &resource.name) == Some(&resource.version) {
                continue;
            }
            let at = told(ty, &resource.name);
            let key = (ty, resource.name.clone());
            match self.put(ty, resource, now).under(|| at.clone()) {
                Ok(()) => {
                    self.refused.remove(&key);
                    changed.put.push(at);
                }
                Err(problem) => changed.failed.push(problem),
            }
        }
        let gone: Vec<(ResourceType, Arc<str>)> = before.difference(&self.fixed).cloned().collect();
        for ty in REMOVED_IN_ORDER {
            for key in gone.iter().filter(|(of, _)| *of == ty) {
                self.refused.remove(key);
                self.differing.put(ty, &key.1, Met::new());
                self.remove(ty, &key.1, now);
                changed.removed.push(told(ty, &key.1));
            }
        }
        self.settle(now);
        Ok(changed)
    }

    /// The version that is in force, or waits to be.
    fn version(&self, ty: ResourceType, name: &Arc<str>) -> Option<&Arc<str>> {
        if let Some(waiting) = self.waiting.get(&(ty, name.clone())) {
            return Some(&waiting.resource.version);
        }
        let resource = match ty {
            ResourceType::Secret => &self.secrets.get(name)?.resource,
            ResourceType::Cluster => &self.clusters.get(name)?.resource,
            ResourceType::Listener => &self.listeners.get(name)?.resource,
            ResourceType::Endpoint => &self.assignments.get(name)?.resource,
            ResourceType::Route => &self.routes.get(name)?.current.as_ref()?.resource,
        };
        Some(&resource.version)
    }

    fn has(&self, ty: ResourceType, name: &Arc<str>) -> bool {
        self.version(ty, name).is_some() || ty == ResourceType::Listener && self.apis.contains_key(name)
    }
}

/// As [`Problem`]s name it.
fn told(ty: ResourceType, name: &str) -> String {
    format!("{} {name:?}", ty.short_name())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::bootstrap;
    use pontoon_xds::client::Update;

    fn resources(clusters: &[Value]) -> Vec<(ResourceType, Resource)> {
        let text = json!({"node": {"id": "a"}, "static_resources": {"clusters": clusters}});
        bootstrap::read(text).unwrap().resources
    }

    fn cluster(name: &str, timeout: &str) -> Value {
        json!({"name": name, "type": "STATIC", "connect_timeout": timeout})
    }

    #[test]
    fn what_is_the_same_stays_and_what_is_wrong_changes_nothing() {
        let now = Instant::now();
        let first = resources(&[cluster("a", "1s"), cluster("b", "1s")]);
        let mut store = Store::fixed(first.clone(), true, now).unwrap();
        assert_eq!(store.refix(first, now), Ok(Changed::default()));
        let wrong = resources(&[cluster("a", "2s"), json!({"name": "c", "lb_policy": "MAGLEV"})]);
        let problem = store.refix(wrong, now).unwrap_err();
        assert!(problem.path.starts_with("CDS \"c\""), "{problem}");
        assert!(
            store.has(ResourceType::Cluster, &"b".into()) && !store.has(ResourceType::Cluster, &"c".into())
        );
        let other = resources(&[cluster("a", "2s"), cluster("c", "1s")]);
        let changed = store.refix(other, now).unwrap();
        assert_eq!(changed.put, ["CDS \"a\"", "CDS \"c\""]);
        assert_eq!((changed.removed, changed.failed), (vec![String::from("CDS \"b\"")], vec![]));
        assert!(
            store.has(ResourceType::Cluster, &"c".into()) && !store.has(ResourceType::Cluster, &"b".into())
        );
    }

    #[test]
    fn the_control_planes_names_are_its_own() {
        let now = Instant::now();
        let mut store = Store::fixed(resources(&[cluster("a", "1s")]), false, now).unwrap();
        let [(ty, theirs)] = resources(&[cluster("b", "1s")]).try_into().unwrap();
        let update = |changed: Vec<Resource>, removed: Vec<Arc<str>>| Update { ty, changed, removed };
        assert!(store.apply(update(vec![theirs.clone()], vec![]), now).is_empty());
        let both = resources(&[cluster("a", "1s"), cluster("b", "9s")]);
        assert!(store.refix(both.clone(), now).unwrap_err().reason.contains("control plane"));
        assert!(store.apply(update(vec![], vec!["b".into()]), now).is_empty());
        assert_eq!(store.refix(both, now).unwrap().put, ["CDS \"b\""]);
        // And now it is the bootstrap's.
        assert_eq!(store.apply(update(vec![theirs], vec![]), now).len(), 1);
    }
}
