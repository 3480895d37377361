//! The user's objects: their kinds, where they are read from, and what is wrong with them. Gateway API kinds
//! keep their upstream types; our own are of group `pontoon.dev`.

use std::sync::Arc;

use imbl::OrdMap;
use serde::Serialize;

use self::document::Object;

mod catalogue;
mod check;
pub mod config_map;
pub mod controller;
pub mod directory;
mod document;
pub mod duration;
pub(crate) mod expression;
pub mod kubernetes;
pub mod migration;
pub mod namespace;
pub mod pool;
pub mod problem;
pub mod schema;
pub mod secret;
pub mod service;
mod source;
mod validate;
pub mod yaml;

pub use catalogue::Loaded;
pub use config_map::ConfigMap;
pub use controller::Controller;
pub use gateway_api::backendtlspolicies::BackendTlsPolicy;
pub use gateway_api::experimental::httproutes::HttpRoute;
pub use gateway_api::experimental::tcproutes::TcpRoute;
pub use gateway_api::experimental::xmeshes::XMesh as Mesh;
pub use gateway_api::gatewayclasses::GatewayClass;
pub use gateway_api::gateways::Gateway;
pub use gateway_api::grpcroutes::GrpcRoute;
pub use gateway_api::listenersets::ListenerSet;
pub use gateway_api::referencegrants::ReferenceGrant;
pub use gateway_api::tlsroutes::TlsRoute;
pub use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
pub use kubernetes::{ClusterSource, Observation, Observations};
pub use migration::Migration;
pub use namespace::Namespace;
pub use pool::Pool;
pub use secret::Secret;
pub use service::Service;
pub use source::DirectorySource;
#[cfg(feature = "fuzzing")]
pub use validate::load_text;
pub use validate::{Report, load, problems_of, semantic_problems, validate};

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
    #[serde(rename = "BackendTLSPolicy")]
    BackendTlsPolicy,
    /// `v1`.
    ConfigMap,
    /// `gateway.networking.k8s.io/v1`.
    Gateway,
    /// `gateway.networking.k8s.io/v1`. Of no namespace.
    GatewayClass,
    /// `gateway.networking.k8s.io/v1`.
    #[serde(rename = "GRPCRoute")]
    GrpcRoute,
    /// `gateway.networking.k8s.io/v1`.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    /// `networking.k8s.io/v1`.
    Ingress,
    /// `networking.k8s.io/v1`. Of no namespace.
    IngressClass,
    /// `gateway.networking.k8s.io/v1`.
    ListenerSet,
    /// `gateway.networking.x-k8s.io/v1alpha1`. Of no namespace.
    #[serde(rename = "XMesh")]
    Mesh,
    /// `pontoon.dev/v1alpha1`.
    Migration,
    /// `v1`. Of no namespace.
    Namespace,
    /// `pontoon.dev/v1alpha1`.
    Pool,
    /// `gateway.networking.k8s.io/v1`.
    ReferenceGrant,
    /// `v1`.
    Secret,
    /// `gateway.networking.k8s.io/v1`.
    #[serde(rename = "TCPRoute")]
    TcpRoute,
    /// `gateway.networking.k8s.io/v1`.
    #[serde(rename = "TLSRoute")]
    TlsRoute,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 17] = [
        Kind::BackendTlsPolicy,
        Kind::ConfigMap,
        Kind::Gateway,
        Kind::GatewayClass,
        Kind::GrpcRoute,
        Kind::HttpRoute,
        Kind::Ingress,
        Kind::IngressClass,
        Kind::ListenerSet,
        Kind::Mesh,
        Kind::Migration,
        Kind::Namespace,
        Kind::Pool,
        Kind::ReferenceGrant,
        Kind::Secret,
        Kind::TcpRoute,
        Kind::TlsRoute,
    ];

    /// As YAML's `kind` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::BackendTlsPolicy => "BackendTLSPolicy",
            Kind::ConfigMap => "ConfigMap",
            Kind::Gateway => "Gateway",
            Kind::GatewayClass => "GatewayClass",
            Kind::GrpcRoute => "GRPCRoute",
            Kind::HttpRoute => "HTTPRoute",
            Kind::Ingress => "Ingress",
            Kind::IngressClass => "IngressClass",
            Kind::ListenerSet => "ListenerSet",
            Kind::Mesh => "XMesh",
            Kind::Migration => "Migration",
            Kind::Namespace => "Namespace",
            Kind::Pool => "Pool",
            Kind::ReferenceGrant => "ReferenceGrant",
            Kind::Secret => "Secret",
            Kind::TcpRoute => "TCPRoute",
            Kind::TlsRoute => "TLSRoute",
        }
    }

    /// As YAML's `apiVersion` spells it.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Migration | Kind::Pool => "pontoon.dev/v1alpha1",
            Kind::ConfigMap | Kind::Namespace | Kind::Secret => "v1",
            Kind::Ingress | Kind::IngressClass => "networking.k8s.io/v1",
            Kind::Mesh => "gateway.networking.x-k8s.io/v1alpha1",
            _ => "gateway.networking.k8s.io/v1",
        }
    }

    /// As the API server's paths spell it.
    pub fn plural(self) -> String {
        let lower = self.as_str().to_ascii_lowercase();
        match lower.strip_suffix('y') {
            Some(stem) if !stem.ends_with(['a', 'e', 'i', 'o', 'u']) => format!("{stem}ies"),
            _ if lower.ends_with('s') || lower.ends_with("sh") => format!("{lower}es"),
            _ => format!("{lower}s"),
        }
    }

    /// Whether a document of this `apiVersion` is read: grants are mostly written as `v1beta1`, which is the same.
    pub fn is_read_as(self, api_version: &str) -> bool {
        api_version == self.api_version()
            || self == Kind::ReferenceGrant && api_version == "gateway.networking.k8s.io/v1beta1"
    }

    /// Whether several controllers write parts of one list in its objects' status.
    pub fn has_shared_status(self) -> bool {
        matches!(
            self,
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::BackendTlsPolicy
        )
    }

    /// Whether what is wrong with its objects is for those to say that refer to them: they have no status.
    fn is_said_by_others(self) -> bool {
        matches!(self, Kind::ConfigMap | Kind::Secret)
    }

    /// Whether its objects are in a namespace. The namespace of others is empty.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Kind::GatewayClass | Kind::IngressClass | Kind::Mesh | Kind::Namespace)
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
    /// `BackendTLSPolicy`s.
    pub backend_tls_policies: OrdMap<ObjectName, Arc<BackendTlsPolicy>>,
    /// `ConfigMap`s.
    pub config_maps: OrdMap<ObjectName, Arc<ConfigMap>>,
    /// `Gateway`s.
    pub gateways: OrdMap<ObjectName, Arc<Gateway>>,
    /// `GatewayClass`es.
    pub gateway_classes: OrdMap<ObjectName, Arc<GatewayClass>>,
    /// `GRPCRoute`s.
    pub grpc_routes: OrdMap<ObjectName, Arc<GrpcRoute>>,
    /// `HTTPRoute`s.
    pub routes: OrdMap<ObjectName, Arc<HttpRoute>>,
    /// `Ingress`es.
    pub ingresses: OrdMap<ObjectName, Arc<Ingress>>,
    /// `IngressClass`es.
    pub ingress_classes: OrdMap<ObjectName, Arc<IngressClass>>,
    /// `ListenerSet`s.
    pub listener_sets: OrdMap<ObjectName, Arc<ListenerSet>>,
    /// `XMesh`es.
    pub meshes: OrdMap<ObjectName, Arc<Mesh>>,
    /// `Namespace`s. One that is not here has no labels.
    pub namespaces: OrdMap<ObjectName, Arc<Namespace>>,
    /// `ReferenceGrant`s.
    pub grants: OrdMap<ObjectName, Arc<ReferenceGrant>>,
    /// `TCPRoute`s.
    pub tcp_routes: OrdMap<ObjectName, Arc<TcpRoute>>,
    /// `TLSRoute`s.
    pub tls_routes: OrdMap<ObjectName, Arc<TlsRoute>>,
    /// `Migration`s.
    pub migrations: OrdMap<ObjectName, Arc<Migration>>,
    /// `Pool`s.
    pub pools: OrdMap<ObjectName, Arc<Pool>>,
    /// `Secret`s.
    pub secrets: OrdMap<ObjectName, Arc<Secret>>,
    /// Kubernetes Services; a directory has none.
    pub services: OrdMap<ObjectName, Arc<Service>>,
    /// Whose classes are ours.
    pub controller: Controller,
    /// `Gateway`s of which their status says that they are ours, each with the class that it had then: they stay ours while
    /// there is no such class. A directory has none.
    pub claimed: OrdMap<ObjectName, Arc<str>>,
    /// `Secret`s and `ConfigMap`s that are there, but as they are now cannot be used, each with the reason. Where an earlier
    /// version could, that is in force.
    pub refused: OrdMap<ObjectRef, Arc<str>>,
}

/// Those of one namespace, without a look at the others.
pub(crate) fn in_namespace<'o, T: Clone>(
    all: &'o OrdMap<ObjectName, T>,
    namespace: &str,
) -> impl Iterator<Item = (&'o ObjectName, &'o T)> {
    let first = ObjectName::new(namespace, "");
    all.range(first..).take_while(move |(name, _)| *name.namespace == *namespace)
}

impl Objects {
    fn put(&mut self, name: ObjectName, object: &Object) {
        match object {
            Object::BackendTlsPolicy(object) => drop(self.backend_tls_policies.insert(name, object.clone())),
            Object::ConfigMap(object) => drop(self.config_maps.insert(name, object.clone())),
            Object::Gateway(object) => drop(self.gateways.insert(name, object.clone())),
            Object::GatewayClass(object) => drop(self.gateway_classes.insert(name, object.clone())),
            Object::GrpcRoute(object) => drop(self.grpc_routes.insert(name, object.clone())),
            Object::HttpRoute(object) => drop(self.routes.insert(name, object.clone())),
            Object::Ingress(object) => drop(self.ingresses.insert(name, object.clone())),
            Object::IngressClass(object) => drop(self.ingress_classes.insert(name, object.clone())),
            Object::ListenerSet(object) => drop(self.listener_sets.insert(name, object.clone())),
            Object::Mesh(object) => drop(self.meshes.insert(name, object.clone())),
            Object::Migration(object) => drop(self.migrations.insert(name, object.clone())),
            Object::Namespace(object) => drop(self.namespaces.insert(name, object.clone())),
            Object::Pool(object) => drop(self.pools.insert(name, object.clone())),
            Object::ReferenceGrant(object) => drop(self.grants.insert(name, object.clone())),
            Object::Secret(object) => drop(self.secrets.insert(name, object.clone())),
            Object::TcpRoute(object) => drop(self.tcp_routes.insert(name, object.clone())),
            Object::TlsRoute(object) => drop(self.tls_routes.insert(name, object.clone())),
        }
    }

    fn take(&mut self, ObjectRef { kind, name }: &ObjectRef) {
        match kind {
            Kind::BackendTlsPolicy => drop(self.backend_tls_policies.remove(name)),
            Kind::ConfigMap => drop(self.config_maps.remove(name)),
            Kind::Gateway => drop(self.gateways.remove(name)),
            Kind::GatewayClass => drop(self.gateway_classes.remove(name)),
            Kind::GrpcRoute => drop(self.grpc_routes.remove(name)),
            Kind::HttpRoute => drop(self.routes.remove(name)),
            Kind::Ingress => drop(self.ingresses.remove(name)),
            Kind::IngressClass => drop(self.ingress_classes.remove(name)),
            Kind::ListenerSet => drop(self.listener_sets.remove(name)),
            Kind::Mesh => drop(self.meshes.remove(name)),
            Kind::Migration => drop(self.migrations.remove(name)),
            Kind::Namespace => drop(self.namespaces.remove(name)),
            Kind::Pool => drop(self.pools.remove(name)),
            Kind::ReferenceGrant => drop(self.grants.remove(name)),
            Kind::Secret => drop(self.secrets.remove(name)),
            Kind::TcpRoute => drop(self.tcp_routes.remove(name)),
            Kind::TlsRoute => drop(self.tls_routes.remove(name)),
        }
    }

    /// Whether there is a `GatewayClass` of this name, whoever's it is.
    pub fn has_class(&self, name: &str) -> bool {
        self.gateway_classes.contains_key(&ObjectName::new("", name))
    }

    /// Why a `Secret` or `ConfigMap` cannot be used as it is now.
    pub fn why_refused(&self, kind: Kind, name: &ObjectName) -> Option<&str> {
        // Nearly always there are none.
        if self.refused.is_empty() {
            return None;
        }
        self.refused.get(&ObjectRef { kind, name: name.clone() }).map(|why| &**why)
    }

    /// What is to be said to those that refer to one that is not among these.
    pub fn why_missing(&self, kind: Kind, name: &ObjectName) -> String {
        match self.why_refused(kind, name) {
            Some(why) => format!("{kind} {name} cannot be used: {why}"),
            None => format!("there is no {kind} {name}"),
        }
    }

    /// The names of all objects of a kind.
    pub fn names(&self, kind: Kind) -> Box<dyn Iterator<Item = &ObjectName> + '_> {
        match kind {
            Kind::BackendTlsPolicy => Box::new(self.backend_tls_policies.keys()),
            Kind::ConfigMap => Box::new(self.config_maps.keys()),
            Kind::Gateway => Box::new(self.gateways.keys()),
            Kind::GatewayClass => Box::new(self.gateway_classes.keys()),
            Kind::GrpcRoute => Box::new(self.grpc_routes.keys()),
            Kind::HttpRoute => Box::new(self.routes.keys()),
            Kind::Ingress => Box::new(self.ingresses.keys()),
            Kind::IngressClass => Box::new(self.ingress_classes.keys()),
            Kind::ListenerSet => Box::new(self.listener_sets.keys()),
            Kind::Mesh => Box::new(self.meshes.keys()),
            Kind::Migration => Box::new(self.migrations.keys()),
            Kind::Namespace => Box::new(self.namespaces.keys()),
            Kind::Pool => Box::new(self.pools.keys()),
            Kind::ReferenceGrant => Box::new(self.grants.keys()),
            Kind::Secret => Box::new(self.secrets.keys()),
            Kind::TcpRoute => Box::new(self.tcp_routes.keys()),
            Kind::TlsRoute => Box::new(self.tls_routes.keys()),
        }
    }

    /// The migration of a service in a namespace. Of several, the first by name: validation refuses the others.
    pub fn migration_of(&self, namespace: &str, service: &str) -> Option<(&ObjectName, &Arc<Migration>)> {
        self.migrations.iter().find(|(name, migration)| {
            &*name.namespace == namespace && migration.spec.service.eq_ignore_ascii_case(service)
        })
    }
}
