//! Metrics, made from the present world at each scrape. Labels name what users wrote down (migrations,
//! gateways), never what registers itself: a label a client can invent is a way to fill the memory.

use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::api::types::Progress;
use super::world::{Proxies, World, status_word};
use crate::objects::Kind;

/// OpenMetrics text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Ratio = Gauge<f64, std::sync::atomic::AtomicU64>;

/// The metrics' text.
pub fn render(world: &World, proxies: &Proxies, ready: bool, audit_ok: bool) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("pontoon");
    let plain = |registry: &mut Registry, name: &str, help: &str, value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    plain(&mut registry, "ready", "Whether objects and registry are loaded and proxies served", ready.into());
    plain(&mut registry, "audit_intact", "Whether the audit log's chain verified at start", audit_ok.into());

    objects(world, &mut registry);
    instances(world, &mut registry);
    migrations(world, proxies, &mut registry);

    let connected = Family::<Labels, Gauge>::default();
    let refusing = Family::<Labels, Gauge>::default();
    for proxy in proxies.views() {
        let gateway = vec![("gateway", proxy.cluster.clone())];
        // A proxy of a gateway that nobody wrote down shares one label with its like.
        let known = world.compiled.views.keys().any(|view| **view == *proxy.cluster);
        let gateway = if known { gateway } else { vec![("gateway", "unknown".to_owned())] };
        connected.get_or_create(&gateway).inc();
        let refuses = proxy.types.values().any(|of_type| of_type.last_nack.is_some());
        refusing.get_or_create(&gateway).inc_by(refuses.into());
    }
    registry.register("xds_proxies", "Connected xDS streams by gateway", connected);
    registry.register("xds_proxies_refusing", "Of these, those that have refused something", refusing);

    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn objects(world: &World, registry: &mut Registry) {
    let family = Family::<Labels, Gauge>::default();
    let objects = &world.model.objects;
    for kind in Kind::ALL {
        let count = objects.names(kind).count();
        family.get_or_create(&vec![("kind", kind.to_string())]).set(count as i64);
    }
    registry.register("objects", "Objects being served", family);
    let refused: Gauge = Gauge::default();
    refused.set(world.folder.problems.len() as i64);
    registry.register("objects_refused", "Problems in the objects' folder", refused);
}

fn instances(world: &World, registry: &mut Registry) {
    let family = Family::<Labels, Gauge>::default();
    let (applications, held): (Gauge, Gauge) = Default::default();
    for application in world.model.registry.applications.values() {
        applications.inc();
        held.inc_by(application.held.into());
        for instance in application.instances.values() {
            family.get_or_create(&vec![("status", status_word(instance.status).to_owned())]).inc();
        }
    }
    registry.register("registry_instances", "Registered instances by status", family);
    registry.register("registry_applications", "Registered applications", applications);
    registry.register(
        "registry_applications_held",
        "Applications of which only expired leases are left",
        held,
    );
}

fn migrations(world: &World, proxies: &Proxies, registry: &mut Registry) {
    let stage = Family::<Labels, Gauge>::default();
    let share = Family::<Labels, Ratio>::default();
    let revision = Family::<Labels, Gauge>::default();
    let in_force = Family::<Labels, Gauge>::default();
    let took = Family::<Labels, Ratio>::default();
    for migration in world.migrations(proxies) {
        let name = vec![("migration", migration.name.clone())];
        let with_stage = vec![("migration", migration.name), ("stage", migration.stage.to_string())];
        stage.get_or_create(&with_stage).set(1);
        share.get_or_create(&name).set(f64::from(migration.target_share.hundredths()) / 10_000.0);
        revision.get_or_create(&name).set(i64::try_from(migration.revision).unwrap_or(i64::MAX));
        in_force.get_or_create(&name).set((migration.in_force.progress == Progress::InForce).into());
        if let Some(ms) = migration.in_force.took_ms {
            took.get_or_create(&name).set(ms / 1000.0);
        }
    }
    registry.register("migration_stage", "1 for the stage a migration is at", stage);
    registry.register("migration_target_ratio", "Share of the keys that goes to the target", share);
    registry.register("migration_revision", "Counts a migration's changes", revision);
    registry.register("migration_in_force", "Whether every connected proxy has acknowledged it", in_force);
    registry.register(
        "migration_in_force_seconds",
        "From the last change's command to its last acknowledgement",
        took,
    );
}
