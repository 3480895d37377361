//! What changes of `HTTPRoute`s, and of the Services that they name, do to a plan: each costs what it concerns, however
//! many others there are. All else is planned anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use pontoon_xds::{Resource, ResourceType};

use super::attach::Attachment;
use super::conflict::Place;
use super::hosts::Hosts;
use super::listener::Parsed;
use super::routes::{self, HttpHung};
use super::standing::Standings;
use super::status::Statuses;
use super::{Compiler, Plan, PlannedView, Used, gateway, is_on_kubernetes, sidecar};
use crate::model::Model;
use crate::objects::{Kind, ObjectName, ObjectRef, Objects};

/// What changes of a plan concern.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Route configurations, with their views.
    routes: Vec<(Arc<str>, Resource)>,
    /// Clusters that are used by others than before, or are others.
    clusters: BTreeSet<Arc<str>>,
}

/// What of a name is known from the routes that refer to it.
#[derive(Debug, Default)]
pub(super) struct Referrers {
    /// By Service.
    by_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    /// Those with which something is wrong: what would be right may be said otherwise with each Service.
    wrong: BTreeSet<ObjectName>,
}

impl Referrers {
    pub(super) fn add(&mut self, name: &ObjectName, hung: &HttpHung) {
        for service in services(hung) {
            self.by_service.entry(service.clone()).or_default().insert(name.clone());
        }
        if !hung.one.refused.is_empty() {
            self.wrong.insert(name.clone());
        }
    }

    fn remove(&mut self, name: &ObjectName, hung: &HttpHung) {
        for service in services(hung) {
            if let Some(routes) = self.by_service.get_mut(service) {
                routes.remove(name);
                if routes.is_empty() {
                    self.by_service.remove(service);
                }
            }
        }
        self.wrong.remove(name);
    }
}

fn services(hung: &HttpHung) -> impl Iterator<Item = &ObjectName> {
    let named = hung.compiled.targets.iter().chain(&hung.compiled.mirrors);
    named.filter(|of| of.group.is_empty() && of.kind == "Service").map(|of| &of.name)
}

/// The names of what is not the same in both. Parts that both share are not looked at.
fn changed<V: PartialEq>(
    before: &OrdMap<ObjectName, Arc<V>>,
    now: &OrdMap<ObjectName, Arc<V>>,
) -> BTreeSet<ObjectName> {
    let names = before.diff(now).filter_map(|item| match item {
        DiffItem::Add(name, _) | DiffItem::Remove(name, _) => Some(name),
        DiffItem::Update { old, new } => (!Arc::ptr_eq(old.1, new.1)).then_some(new.0),
    });
    names.cloned().collect()
}

impl Plan {
    /// Whether a model differs in nothing but what can be followed.
    pub(super) fn can_follow(&self, model: &Model) -> bool {
        let (before, now) = (&*self.objects, &*model.objects);
        self.in_pods == model.in_pods
            && self.migrations == model.migrations
            && is_on_kubernetes(now) == self.splits.registered.is_some()
            && self.has_same_names(model)
            // Policies say which gateways use their backends.
            && now.backend_tls_policies.is_empty()
            // Where an Ingress has a certificate for a host, the host's routes hang on its listener too.
            && self.gateways.values().flat_map(|of| &of.listeners).all(|of| of.parent.kind != Kind::Ingress)
            && is_same_but_routes(before, now)
            && (before.services.ptr_eq(&now.services)
                || !self.has_frontends && only_http_routes_name_services(now))
    }

    /// Takes up the changes. `None`: a migration or what sidecars are told is concerned, which is more than that.
    pub(super) fn follow(&mut self, model: &Model) -> Option<Touched> {
        let now = &*model.objects;
        let mut names = changed(&self.objects.routes, &now.routes);
        if !self.objects.services.ptr_eq(&now.services) {
            for service in changed(&self.objects.services, &now.services) {
                if sidecar::is_called(&self.splits, &model.addresses, &service) {
                    return None;
                }
                names.extend(self.referrers.by_service.get(&service).into_iter().flatten().cloned());
            }
            names.extend(self.referrers.wrong.iter().cloned());
        }
        let compile = |name: ObjectName| match now.routes.get(&name) {
            Some(object) => {
                let new = routes::http_route(now, &self.splits, &self.gateways, &name, object)?;
                Some((name, Some(new)))
            }
            None => Some((name, None)),
        };
        let new: Vec<(ObjectName, Option<HttpHung>)> =
            names.into_iter().map(compile).collect::<Option<_>>()?;
        let moves = |hung: Option<&HttpHung>| {
            hung.is_some_and(|hung| !hung.compiled.migrations.is_empty() || hung.one.on_services)
        };
        if new.iter().any(|(name, new)| moves(new.as_ref()) || moves(self.http.get(name))) {
            return None;
        }

        let mut touched = Touched::default();
        let mut said = BTreeSet::new();
        let mut gateways = BTreeSet::new();
        let (mut statuses, mut standings) =
            (Statuses::clone(&self.statuses), Standings::clone(&self.standings));
        for (name, new) in new {
            let route = ObjectRef { kind: Kind::HttpRoute, name: name.clone() };
            statuses.forget(&route);
            said.insert(route.clone());
            standings.routes.remove(&route);
            if let Some(old) = self.http.remove(&name) {
                gateways.extend(old.one.attachments.keys().cloned());
                self.routes.requests.remove(&route);
                self.take(&name, &old, &mut touched);
            }
            if let Some(new) = new {
                gateways.extend(new.one.attachments.keys().cloned());
                self.routes.requests.insert(route.clone(), new.compiled.clone());
                self.put(&name, &new, &mut touched);
                new.one.say(&route, &mut statuses, &mut standings);
                statuses.settle(route);
                self.http.insert(name, new);
            }
        }
        self.conflicts.say(said, &self.routes, &self.gateways, &mut statuses, &mut standings);
        for name in gateways {
            let Some(parsed) = self.gateways.get(&name) else { continue };
            gateway::stand_one(now, (&name, parsed), &self.attached, &mut standings);
            let Some((view_name, view)) = view_of(&mut self.views, &name) else { continue };
            for port in &mut view.ports {
                for resource in port.encode(parsed, &self.routes) {
                    view.routes.retain(|before| before.name != resource.name);
                    view.routes.push(resource.clone());
                    touched.routes.push((view_name.clone(), resource));
                }
            }
        }
        (self.statuses, self.standings) = (Arc::new(statuses), Arc::new(standings));
        self.objects = model.objects.clone();
        Some(touched)
    }

    fn put(&mut self, name: &ObjectName, hung: &HttpHung, touched: &mut Touched) {
        self.referrers.add(name, hung);
        hung.one.count(&mut self.attached, |count| count + 1);
        for (gateway, attachments) in &hung.one.attachments {
            let Some(parsed) = self.gateways.get(gateway) else { continue };
            let Some((_, view)) = view_of(&mut self.views, gateway) else { continue };
            for port in &mut view.ports {
                attachments.iter().for_each(|attachment| port.put(attachment, parsed));
                for (place, route) in places(gateway, parsed, port, attachments) {
                    self.conflicts.put(&place, route, &hung.compiled);
                }
            }
            for _ in 0..tables(view, attachments) {
                for (cluster, upstream) in &hung.compiled.upstreams {
                    *view.clusters.entry(cluster.clone()).or_insert(0) += 1;
                    let used = self.upstreams.entry(cluster.clone());
                    used.or_insert_with(|| Used::of(upstream)).times += 1;
                }
            }
        }
        for (cluster, upstream) in &hung.compiled.upstreams {
            if let Some(used) = self.upstreams.get_mut(cluster) {
                used.upstream = upstream.clone();
            }
            touched.clusters.insert(cluster.clone());
        }
    }

    fn take(&mut self, name: &ObjectName, hung: &HttpHung, touched: &mut Touched) {
        self.referrers.remove(name, hung);
        hung.one.count(&mut self.attached, |count| count.saturating_sub(1));
        for (gateway, attachments) in &hung.one.attachments {
            let Some(parsed) = self.gateways.get(gateway) else { continue };
            let Some((_, view)) = view_of(&mut self.views, gateway) else { continue };
            for port in &mut view.ports {
                attachments.iter().for_each(|attachment| port.take(attachment, parsed));
                for (place, route) in places(gateway, parsed, port, attachments) {
                    self.conflicts.take(&place, route, &hung.compiled);
                }
            }
            for _ in 0..tables(view, attachments) {
                for cluster in hung.compiled.upstreams.keys() {
                    if let Some(times) = view.clusters.get_mut(cluster) {
                        *times -= 1;
                        if *times == 0 {
                            view.clusters.remove(cluster);
                        }
                    }
                    if let Some(used) = self.upstreams.get_mut(cluster) {
                        used.times -= 1;
                        if used.times == 0 {
                            self.upstreams.remove(cluster);
                        }
                    }
                }
            }
        }
        touched.clusters.extend(hung.compiled.upstreams.keys().cloned());
    }
}

/// The places that a route has on a port.
pub(super) fn places<'a>(
    gateway: &'a ObjectName,
    parsed: &'a Parsed,
    port: &'a Hosts,
    attachments: impl IntoIterator<Item = &'a Attachment>,
) -> impl Iterator<Item = (Place, &'a ObjectRef)> {
    attachments.into_iter().flat_map(move |attachment| {
        let Attachment { route, listener, hostnames } = attachment;
        let hosts = hostnames.iter().filter(|host| port.serves(*listener, host, parsed));
        hosts.map(move |host| {
            (Place { gateway: gateway.clone(), listener: *listener, host: host.clone() }, route)
        })
    })
}

fn view_of<'v>(
    views: &'v mut BTreeMap<Arc<str>, PlannedView>,
    gateway: &ObjectName,
) -> Option<(Arc<str>, &'v mut PlannedView)> {
    let name: Arc<str> = gateway.to_string().into();
    views.get_mut(&name).map(|view| (name, view))
}

/// How many route configurations of a gateway a route that hangs so is in.
fn tables(view: &PlannedView, attachments: &[Attachment]) -> usize {
    let listeners: BTreeSet<usize> = attachments.iter().map(|attachment| attachment.listener).collect();
    let of = |listener: usize| view.ports.iter().flat_map(move |port| port.tables_of(listener));
    listeners.into_iter().flat_map(of).collect::<BTreeSet<_>>().len()
}

fn is_same_but_routes(before: &Objects, now: &Objects) -> bool {
    let Objects {
        backend_tls_policies,
        config_maps,
        gateways,
        gateway_classes,
        grpc_routes,
        routes: _,
        ingresses,
        ingress_classes,
        listener_sets,
        meshes,
        namespaces,
        grants,
        tcp_routes,
        tls_routes,
        migrations,
        pools,
        secrets,
        services: _,
        controller: _,
        claimed,
        refused,
    } = before;
    backend_tls_policies.ptr_eq(&now.backend_tls_policies)
        && config_maps.ptr_eq(&now.config_maps)
        && gateways.ptr_eq(&now.gateways)
        && gateway_classes.ptr_eq(&now.gateway_classes)
        && claimed.ptr_eq(&now.claimed)
        && refused.ptr_eq(&now.refused)
        && grpc_routes.ptr_eq(&now.grpc_routes)
        && ingresses.ptr_eq(&now.ingresses)
        && ingress_classes.ptr_eq(&now.ingress_classes)
        && listener_sets.ptr_eq(&now.listener_sets)
        && meshes.ptr_eq(&now.meshes)
        && namespaces.ptr_eq(&now.namespaces)
        && grants.ptr_eq(&now.grants)
        && tcp_routes.ptr_eq(&now.tcp_routes)
        && tls_routes.ptr_eq(&now.tls_routes)
        && migrations.ptr_eq(&now.migrations)
        && pools.ptr_eq(&now.pools)
        && secrets.ptr_eq(&now.secrets)
}

fn only_http_routes_name_services(objects: &Objects) -> bool {
    objects.grpc_routes.is_empty()
        && objects.tcp_routes.is_empty()
        && objects.tls_routes.is_empty()
        && objects.ingresses.is_empty()
        && objects.migrations.is_empty()
        && objects.pools.is_empty()
}

impl Compiler {
    /// Puts what was touched into the snapshots.
    pub(super) fn put_touched(&mut self, plan: &Plan, touched: Touched, model: &Model) {
        for name in &touched.clusters {
            match plan.upstreams.get(name) {
                Some(used) => self.build_one(name, &used.upstream, &model.registry),
                None if self.sidecars.uses(name) => {}
                None => {
                    self.forget(name);
                    self.clusters.remove(name);
                }
            }
            let built = self.built.get(name);
            for (view_name, view) in &plan.views {
                let snapshot = self.snapshots.entry(view_name.clone()).or_default();
                let built = built.filter(|_| view.clusters.contains_key(name));
                let wanted = [
                    (ResourceType::Cluster, built.map(|built| built.for_view(view))),
                    (ResourceType::Endpoint, built.and_then(|built| built.endpoints.as_ref())),
                ];
                for (ty, wanted) in wanted {
                    match (wanted, snapshot.get(ty, name)) {
                        (Some(wanted), before) if before != Some(wanted) => {
                            snapshot.insert_encoded(ty, wanted.clone());
                        }
                        (None, Some(_)) => drop(snapshot.remove(ty, name)),
                        _ => {}
                    }
                }
            }
            if let Some(built) = built {
                self.clusters.insert(name.clone(), built.resolved.status.clone());
            }
        }
        for (view, resource) in touched.routes {
            let snapshot = self.snapshots.entry(view).or_default();
            if snapshot.get(ResourceType::Route, &resource.name) != Some(&resource) {
                snapshot.insert_encoded(ResourceType::Route, resource);
            }
        }
    }
}

#[cfg(test)]
mod tests;
