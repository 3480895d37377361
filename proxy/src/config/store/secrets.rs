//! Secrets, and what waits for them. A listener or cluster whose secrets are not all here is kept aside, and its
//! earlier version goes on; a new secret is tried on all that use it before any of them gets it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret as SecretMessage;
use pontoon_xds::{Resource, ResourceType};
use tokio::time::Instant;

use super::{Entry, Problem, Refused, Store, decode, named};
use crate::config::chains::Chain;
use crate::config::problem::Under;
use crate::config::secrets::{self, References, Secret};
use crate::tls::client::ClientTls;
use crate::tls::server::ServerTls;
use crate::upstream::cluster::{Cluster, ClusterSettings};

/// So long a process is not ready because of a secret; Envoy's initial fetch timeout. What waits goes on waiting.
const READY_WAIT: Duration = Duration::from_secs(15);

/// A listener or cluster that waits for secrets.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) resource: Resource,
    references: References,
    deadline: Instant,
    overdue: bool,
}

impl Waiting {
    /// Until when readiness waits for it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.overdue).then_some(self.deadline)
    }

    pub(super) fn settle(&mut self, now: Instant) {
        if !self.overdue && now >= self.deadline {
            self.overdue = true;
            tracing::warn!(resource = %self.resource.name, "still waits for secrets: not in force");
        }
    }
}

/// TLS made anew for one user of it.
enum Rebuilt {
    Chain(Arc<Chain>, Arc<ServerTls>),
    Cluster(Arc<Cluster>, Arc<ClientTls>),
}

impl Rebuilt {
    fn put_in_force(self) {
        match self {
            Rebuilt::Chain(chain, server) => {
                if let Some(tls) = &chain.tls {
                    tls.server.store(Some(server));
                }
            }
            Rebuilt::Cluster(cluster, tls) => {
                let Some(settings) = cluster.settings.load_full() else { return };
                let settings = ClusterSettings { tls: Some(tls), ..ClusterSettings::clone(&settings) };
                cluster.settings.store(Some(Arc::new(settings)));
            }
        }
    }
}

impl Store {
    /// Whether a resource has to wait for one of the secrets it names; then it is kept aside.
    pub(super) fn waits(
        &mut self,
        ty: ResourceType,
        resource: &Resource,
        references: References,
        now: Instant,
    ) -> bool {
        if references.iter().all(|(name, _)| self.secrets.contains_key(name)) {
            return false;
        }
        let key = (ty, resource.name.clone());
        let deadline = self.waiting.get(&key).map_or(now + READY_WAIT, |earlier| earlier.deadline);
        let overdue = now >= deadline;
        self.waiting.insert(key, Waiting { resource: resource.clone(), references, deadline, overdue });
        true
    }

    pub(super) fn put_secret(&mut self, resource: Resource, now: Instant) -> Result<(), Problem> {
        let message: SecretMessage =
            decode(&resource).map_err(|_| Problem::new("", "cannot be decoded as a Secret"))?;
        named(&resource, &message.name)?;
        let secret = secrets::compile(&message)?;
        for ((ty, user), waiting) in &self.waiting {
            let other = waiting
                .references
                .iter()
                .find(|(name, kind)| *name == resource.name && *kind != secret.kind());
            if let Some((_, wanted)) = other {
                let reason = format!(
                    "is {}, but {} {user} names it as {}",
                    secret.kind().words(),
                    ty.short_name(),
                    wanted.words()
                );
                return Err(Problem::new("type", reason));
            }
        }
        let name = resource.name.clone();
        let before = self.secrets.insert(name.clone(), Entry::new(resource, secret));
        let (rebuilt, problems) = self.rebuild(|user| user.iter().any(|(used, _)| *used == name), |_| false);
        if let Some(problem) = problems.into_iter().next() {
            match before {
                Some(before) => self.secrets.insert(name, before),
                None => self.secrets.remove(&name),
            };
            return Err(problem);
        }
        rebuilt.into_iter().for_each(Rebuilt::put_in_force);
        self.release(now);
        Ok(())
    }

    /// Puts in force what has all its secrets.
    fn release(&mut self, now: Instant) {
        let has_all =
            |waiting: &Waiting| waiting.references.iter().all(|(name, _)| self.secrets.contains_key(name));
        let ready: Vec<(ResourceType, Arc<str>)> =
            self.waiting.iter().filter(|(_, waiting)| has_all(waiting)).map(|(key, _)| key.clone()).collect();
        for key in ready {
            let Some(Waiting { resource, .. }) = self.waiting.remove(&key) else { continue };
            if let Err(problem) = self.put(key.0, resource.clone(), now) {
                // It was acknowledged when it came, so that the control plane is told by the status alone.
                tracing::error!(name = %key.1, %problem, "cannot be used with its secrets");
                let refused = Refused { resource, reason: problem.to_string(), at: SystemTime::now() };
                self.refused.insert(key, refused);
            }
        }
    }

    /// Makes TLS anew for those that name such secrets or such files.
    fn rebuild(
        &self,
        names: impl Fn(&References) -> bool,
        files: impl Fn(&PathBuf) -> bool,
    ) -> (Vec<Rebuilt>, Vec<Problem>) {
        let secrets = |name: &str| self.secret(name);
        let (mut rebuilt, mut problems) = (Vec::new(), Vec::new());
        for (name, entry) in &self.listeners {
            let chains = entry.value.handle.chains.load();
            for (chain, downstream) in chains.iter().zip(&entry.value.downstream) {
                let (Some(tls), Some(downstream)) = (&chain.tls, downstream) else { continue };
                if !names(&downstream.references()) && !downstream.files().any(&files) {
                    continue;
                }
                let built = downstream.build(&secrets, tls.server.load().as_deref());
                match built.under(|| format!("listener {name}")) {
                    Ok(server) => rebuilt.push(Rebuilt::Chain(chain.clone(), Arc::new(server))),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        for (name, entry) in &self.clusters {
            let (Some(upstream), Some(handle)) = (&entry.value, self.handles.get(name)) else { continue };
            if !names(&upstream.references()) && !upstream.files().any(&files) {
                continue;
            }
            match upstream.build(&secrets).under(|| format!("cluster {name}")) {
                Ok(tls) => rebuilt.push(Rebuilt::Cluster(handle.clone(), tls)),
                Err(problem) => problems.push(problem),
            }
        }
        (rebuilt, problems)
    }

    /// The files that certificates are read from.
    pub fn tls_files(&self) -> BTreeSet<PathBuf> {
        let of_listeners = self.listeners.values().flat_map(|entry| &entry.value.downstream).flatten();
        let of_clusters = self.clusters.values().filter_map(|entry| entry.value.as_ref());
        let given = of_listeners.flat_map(|tls| tls.files()).chain(of_clusters.flat_map(|tls| tls.files()));
        let of_secrets = self.secrets.values().flat_map(|entry| entry.value.files());
        given.cloned().chain(of_secrets).collect()
    }

    /// Reads certificates anew, after a file has changed. What cannot be used is left as it was, and told.
    pub fn reload_tls(&mut self) -> Vec<Problem> {
        let from_files: BTreeSet<&Arc<str>> = self
            .secrets
            .iter()
            .filter(|(_, entry)| !entry.value.files().is_empty())
            .map(|(name, _)| name)
            .collect();
        let (rebuilt, problems) =
            self.rebuild(|user| user.iter().any(|(name, _)| from_files.contains(name)), |_| true);
        rebuilt.into_iter().for_each(Rebuilt::put_in_force);
        problems
    }

    /// A secret that is here.
    pub(super) fn secret(&self, name: &str) -> Option<&Secret> {
        self.secrets.get(name).map(|entry| &entry.value)
    }

    /// The secrets that something here names, be it in force or waiting.
    pub(super) fn named_secrets(&self) -> BTreeSet<Arc<str>> {
        let of_listeners = self.listeners.values().flat_map(|entry| &entry.value.downstream).flatten();
        let of_clusters = self.clusters.values().filter_map(|entry| entry.value.as_ref());
        let in_force =
            of_listeners.flat_map(|tls| tls.references()).chain(of_clusters.flat_map(|tls| tls.references()));
        let waiting = self.waiting.values().flat_map(|waiting| waiting.references.iter().cloned());
        in_force.chain(waiting).map(|(name, _)| name).collect()
    }

    /// What waits for which secrets, in words.
    pub(super) fn missing_secrets(&self) -> impl Iterator<Item = String> {
        self.waiting.iter().flat_map(|((ty, user), waiting)| {
            let missing = waiting.references.iter().filter(|(name, _)| !self.secrets.contains_key(name));
            missing.map(move |(name, _)| format!("{} {user}: secret {name} not received", ty.short_name()))
        })
    }
}
