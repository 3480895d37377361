//! What exists, as plain data: instances as registries report them, the user's objects and the state of
//! migrations. No I/O here; `compile` turns a [`Model`] into xDS resources, and nothing else decides what is
//! served.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::objects::{ObjectName, Objects};

pub mod addresses;
pub mod instance;
pub mod migration;
pub mod upstream;

use addresses::Addresses;
use instance::RegistryView;
use migration::MigrationState;

/// Everything that decides what is served, at one moment. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    /// The user's objects.
    pub objects: Arc<Objects>,
    /// What the registries report.
    pub registry: Arc<RegistryView>,
    /// The state of each migration that has one. A migration without is where its object says it starts.
    pub migrations: Arc<BTreeMap<ObjectName, MigrationState>>,
    /// The virtual addresses of services, as far as they are assigned.
    pub addresses: Arc<Addresses>,
    /// Whether the proxies of each Gateway run in pods that are made for it: there they listen on every address, and
    /// those that the Gateway asks for are its Service's.
    pub in_pods: bool,
}

impl Model {
    /// The state in force of a migration: what was set, else where its object starts.
    pub fn state_of(&self, name: &ObjectName) -> Option<MigrationState> {
        let object = self.objects.migrations.get(name)?;
        Some(self.migrations.get(name).cloned().unwrap_or_else(|| MigrationState::initial(&object.spec)))
    }
}
