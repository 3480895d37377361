//! What there is: services and their endpoints, a tenth of them registered in Eureka, the others written as pools;
//! one of the registered is under a migration. A gateway has a route to each; sidecars may ask for any.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

/// Of each service.
pub(super) const ENDPOINTS: usize = 10;
/// The migration; its service is the first.
pub(super) const MIGRATION: &str = "moving";
/// Where it moves.
const TARGET: &str = "target";
/// Services that a sidecar asks for: a service calls a handful of others.
const OF_A_SIDECAR: usize = 10;
/// Objects of one file: the directory may have a thousand files of 1 MiB.
const OBJECTS_PER_FILE: usize = 100;
/// The file of the one pool that changes.
const CHANGING: &str = "changing.yaml";
const PORT: u16 = 8080;

/// So many services.
#[derive(Debug, Clone, Copy)]
pub(super) struct World {
    pub(super) services: usize,
}

impl World {
    /// Services in Eureka: the first ones.
    pub(super) fn registered(self) -> usize {
        self.services / 10
    }

    /// The services of which one endpoint changes with a registration: the second, or so many from it on.
    pub(super) fn changing(self, many: usize) -> std::ops::Range<usize> {
        1..1 + many
    }

    /// One service in a hundred.
    pub(super) fn hundredth(self) -> usize {
        self.services / 100
    }

    pub(super) fn cluster(self, service: usize) -> String {
        match service < self.registered() {
            true => format!("eureka/{}", application(service)),
            false => format!("pool/default/{}", name(service)),
        }
    }

    /// Those that a gateway sends to.
    pub(super) fn clusters(self) -> Vec<String> {
        let mut all: Vec<String> = (0..self.services).map(|service| self.cluster(service)).collect();
        all.push(format!("pool/default/{TARGET}"));
        all
    }

    /// The services that one sidecar asks for: those that change, and some of its own.
    pub(super) fn of_sidecar(self, sidecar: usize) -> BTreeSet<usize> {
        let mut wanted = BTreeSet::from([0, 1, self.services - 1]);
        // Any sequence that spreads will do, as long as each run has the same.
        let mut next = sidecar;
        while wanted.len() < OF_A_SIDECAR {
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            wanted.insert((next >> 33) % self.services);
        }
        wanted
    }

    /// The clusters of such services.
    pub(super) fn clusters_of(self, services: &BTreeSet<usize>) -> Vec<String> {
        let mut all: Vec<String> = services.iter().map(|service| self.cluster(*service)).collect();
        if services.contains(&0) {
            all.push(format!("pool/default/{TARGET}"));
        }
        all
    }

    /// Writes the objects into an empty folder.
    pub(super) fn write(self, folder: &Path) -> anyhow::Result<()> {
        let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  \
                       gatewayClassName: pontoon\n  listeners:\n  - {name: http, port: 8080, protocol: HTTP}\n";
        let migration = format!(
            "---\napiVersion: pontoon.dev/v1alpha1\nkind: Migration\nmetadata: {{name: {MIGRATION}}}\nspec:\n  service: \
             {}\n  legacy: {{eureka: {{application: {}}}}}\n  target: {{pool: {TARGET}}}\n  key: {{header: x-user}}\n",
            name(0),
            application(0),
        );
        save(
            folder,
            "gateway.yaml",
            &format!("{gateway}{migration}---\n{}", pool(TARGET, self.services, PORT)),
        )?;
        let services: Vec<usize> = (0..self.services).collect();
        for (number, chunk) in services.chunks(OBJECTS_PER_FILE).enumerate() {
            let routes = chunk.iter().map(|service| self.route(*service)).collect::<Vec<_>>();
            save(folder, &format!("routes-{number}.yaml"), &routes.join("---\n"))?;
        }
        let pools: Vec<usize> = (self.registered()..self.services - 1).collect();
        for (number, chunk) in pools.chunks(OBJECTS_PER_FILE).enumerate() {
            let pools = chunk.iter().map(|service| pool(&name(*service), *service, PORT)).collect::<Vec<_>>();
            save(folder, &format!("pools-{number}.yaml"), &pools.join("---\n"))?;
        }
        self.change_file(folder, PORT)
    }

    fn route(self, service: usize) -> String {
        let name = name(service);
        let backend = match service < self.registered() {
            true => format!("{{name: {name}, port: 80}}"),
            false => format!("{{name: {name}, kind: Pool, group: pontoon.dev}}"),
        };
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: \
             [{{name: edge}}]\n  rules:\n  - matches: [{{path: {{type: PathPrefix, value: /{name}}}}}]\n    backendRefs: \
             [{backend}]\n"
        )
    }

    /// Puts a new version in the place of the file of the last pool, with this port of its first endpoint.
    pub(super) fn change_file(self, folder: &Path, port: u16) -> anyhow::Result<()> {
        let last = self.services - 1;
        let hidden = folder.join(".changing");
        std::fs::write(&hidden, pool(&name(last), last, port)).context("cannot write an object")?;
        std::fs::rename(&hidden, folder.join(CHANGING)).context("cannot replace an object")
    }

    /// Every instance that is registered, in batches as a peer would send them.
    pub(super) fn batches(self, dirty_ms: u64) -> Vec<Value> {
        let instances: Vec<(usize, usize)> =
            (0..self.registered()).flat_map(|service| (0..ENDPOINTS).map(move |i| (service, i))).collect();
        let batch = |chunk: &[(usize, usize)]| {
            batch(chunk.iter().map(|(service, i)| instance(*service, *i, PORT, dirty_ms)))
        };
        instances.chunks(1_000).map(batch).collect()
    }

    /// A batch that changes one endpoint of each of these services.
    pub(super) fn batch_of(self, services: std::ops::Range<usize>, port: u16, dirty_ms: u64) -> Value {
        batch(services.map(|service| instance(service, 0, port, dirty_ms)))
    }

    /// A registration that changes the first endpoint of a service, with the application's name.
    pub(super) fn registration(self, service: usize, port: u16, dirty_ms: u64) -> (String, Value) {
        (application(service), json!({"instance": instance(service, 0, port, dirty_ms)}))
    }
}

/// As routes and sidecars name it.
pub(super) fn name(service: usize) -> String {
    format!("svc-{service:05}")
}

fn application(service: usize) -> String {
    format!("SVC-{service:05}")
}

fn address(service: usize, endpoint: usize) -> String {
    format!("10.{}.{}.{}", service >> 8, service & 255, endpoint + 1)
}

fn pool(name: &str, number: usize, first_port: u16) -> String {
    let mut out = format!(
        "apiVersion: pontoon.dev/v1alpha1\nkind: Pool\nmetadata: {{name: {name}}}\nspec:\n  endpoints:\n"
    );
    for i in 0..ENDPOINTS {
        let port = if i == 0 { first_port } else { PORT };
        let _ = writeln!(out, "  - {{address: {}, port: {port}}}", address(number, i));
    }
    out
}

/// As Spring's client sends it. The lease outlasts the run: nobody renews here.
fn instance(service: usize, endpoint: usize, port: u16, dirty_ms: u64) -> Value {
    let address = address(service, endpoint);
    json!({
        "instanceId": format!("{address}:{}:{PORT}", name(service)),
        "app": application(service),
        "hostName": address,
        "ipAddr": address,
        "status": "UP",
        "port": {"$": port, "@enabled": "true"},
        "securePort": {"$": 443, "@enabled": "false"},
        "dataCenterInfo": {"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"},
        "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 86_400},
        "metadata": {"management.port": PORT.to_string()},
        "homePageUrl": format!("http://{address}:{port}/"),
        "vipAddress": name(service),
        "lastDirtyTimestamp": dirty_ms.to_string(),
    })
}

fn batch(instances: impl Iterator<Item = Value>) -> Value {
    let item = |instance: Value| {
        json!({
            "appName": instance["app"], "id": instance["instanceId"], "status": "UP", "action": "Register",
            "lastDirtyTimestamp": instance["lastDirtyTimestamp"], "instanceInfo": instance,
        })
    };
    json!({"replicationList": instances.map(item).collect::<Vec<_>>()})
}

fn save(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sidecar_follows_what_changes() {
        let world = World { services: 1_000 };
        for sidecar in 0..50 {
            let wanted = world.of_sidecar(sidecar);
            assert_eq!(wanted.len(), OF_A_SIDECAR);
            assert!([0, 1, 999].iter().all(|service| wanted.contains(service)));
            assert_eq!(world.clusters_of(&wanted).len(), OF_A_SIDECAR + 1);
        }
        assert_eq!(world.clusters().len(), 1_001);
    }
}
