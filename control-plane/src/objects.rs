//! The user's objects: their kinds, where they are read from, and what is wrong with them. Gateway API kinds
//! keep their upstream types; our own are of group `pontoon.dev`.

use std::sync::Arc;

use imbl::OrdMap;
use serde::Serialize;

use self::document::Object;

mod catalogue;
pub(crate) mod check;
pub mod directory;
mod document;
pub mod duration;
pub mod kubernetes;
pub mod migration;
pub mod pool;
pub mod problem;
pub mod schema;
pub mod secret;
pub mod service;
mod source;
mod validate;
pub mod yaml;

pub use catalogue::Loaded;
pub use gateway_api::gatewayclasses::GatewayClass;
pub use gateway_api::gateways::Gateway;
pub use gateway_api::httproutes::HttpRoute;
pub use kubernetes::{ClusterSource, Observation, Observations};
pub use migration::Migration;
pub use pool::Pool;
pub use secret::Secret;
pub use service::Service;
pub use source::DirectorySource;
pub use validate::{Report, load, semantic_problems, validate};

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// An object within its kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A name in a namespace.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// `gateway.networking.k8s.io/v1`.
    Gateway,
    /// `gateway.networking.k8s.io/v1`, of no namespace.
    GatewayClass,
    /// `gateway.networking.k8s.io/v1`.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// `pontoon.dev/v1alpha1`.
    Migration,
    /// `pontoon.dev/v1alpha1`.
    Pool,
    /// `v1`.
    Secret,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 6] =
        [Kind::Gateway, Kind::GatewayClass, Kind::HttpRoute, Kind::Migration, Kind::Pool, Kind::Secret];

    /// As YAML's `kind` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Gateway => "Gateway",
            Kind::GatewayClass => "GatewayClass",
            Kind::HttpRoute => "HTTPRoute",
            Kind::Migration => "Migration",
            Kind::Pool => "Pool",
            Kind::Secret => "Secret",
        }
    }

    /// As YAML's `apiVersion` spells it.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Gateway | Kind::GatewayClass | Kind::HttpRoute => "gateway.networking.k8s.io/v1",
            Kind::Migration | Kind::Pool => "pontoon.dev/v1alpha1",
            Kind::Secret => "v1",
        }
    }

    /// As the API server's paths spell it.
    pub fn plural(self) -> String {
        let lower = self.as_str().to_ascii_lowercase();
        match lower.strip_suffix('y') {
            Some(stem) if !stem.ends_with(['a', 'e', 'i', 'o', 'u']) => format!("{stem}ies"),
            _ if lower.ends_with('s') => format!("{lower}es"),
            _ => format!("{lower}s"),
        }
    }

    /// Whether its objects are of a namespace each. Those of the others have an empty one.
    pub fn is_namespaced(self) -> bool {
        self != Kind::GatewayClass
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An object of any kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name.
    #[serde(flatten)]
    pub name: ObjectName,
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// All objects that are in force, by kind. Cheap to clone; an object that did not change keeps its `Arc`, so
/// that a reader can tell by identity what changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects {
    /// `Gateway`s.
    pub gateways: OrdMap<ObjectName, Arc<Gateway>>,
    /// `GatewayClass`es.
    pub gateway_classes: OrdMap<ObjectName, Arc<GatewayClass>>,
    /// `HTTPRoute`s.
    pub routes: OrdMap<ObjectName, Arc<HttpRoute>>,
    /// `Migration`s.
    pub migrations: OrdMap<ObjectName, Arc<Migration>>,
    /// `Pool`s.
    pub pools: OrdMap<ObjectName, Arc<Pool>>,
    /// `Secret`s.
    pub secrets: OrdMap<ObjectName, Arc<Secret>>,
    /// Kubernetes Services; a directory has none.
    pub services: OrdMap<ObjectName, Arc<Service>>,
}

impl Objects {
    fn put(&mut self, name: ObjectName, object: &Object) {
        match object {
            Object::Gateway(object) => drop(self.gateways.insert(name, object.clone())),
            Object::GatewayClass(object) => drop(self.gateway_classes.insert(name, object.clone())),
            Object::HttpRoute(object) => drop(self.routes.insert(name, object.clone())),
            Object::Migration(object) => drop(self.migrations.insert(name, object.clone())),
            Object::Pool(object) => drop(self.pools.insert(name, object.clone())),
            Object::Secret(object) => drop(self.secrets.insert(name, object.clone())),
        }
    }

    fn take(&mut self, ObjectRef { kind, name }: &ObjectRef) {
        match kind {
            Kind::Gateway => drop(self.gateways.remove(name)),
            Kind::GatewayClass => drop(self.gateway_classes.remove(name)),
            Kind::HttpRoute => drop(self.routes.remove(name)),
            Kind::Migration => drop(self.migrations.remove(name)),
            Kind::Pool => drop(self.pools.remove(name)),
            Kind::Secret => drop(self.secrets.remove(name)),
        }
    }

    /// The migration of a service in a namespace. Of several, the first by name: validation refuses the others.
    pub fn migration_of(&self, namespace: &str, service: &str) -> Option<(&ObjectName, &Arc<Migration>)> {
        self.migrations.iter().find(|(name, migration)| {
            &*name.namespace == namespace && migration.spec.service.eq_ignore_ascii_case(service)
        })
    }
}
