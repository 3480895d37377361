//! What one group of clients should have: an immutable set of resources. Two snapshots share what they have
//! in common, so keeping one for each stream costs little, and finding what changed costs what changed.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::resource::{Resource, ResourceMessage, ResourceType};

/// Resources of one type by name.
pub type ResourceMap = OrdMap<Arc<str>, Resource>;

/// Resources of all types. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    types: [ResourceMap; ResourceType::ALL.len()],
    by_name_only: bool,
}

impl Snapshot {
    /// One whose resources are given to those who name them: a wildcard matches none of them. For sets of
    /// which each client uses a few.
    pub fn by_name_only() -> Snapshot {
        Snapshot { by_name_only: true, ..Snapshot::default() }
    }

    /// Whether a wildcard matches nothing here.
    pub fn is_by_name_only(&self) -> bool {
        self.by_name_only
    }

    /// Puts in a message; an earlier one of the same name goes. Gives the resource's version.
    pub fn insert<M: ResourceMessage>(&mut self, message: &M) -> Arc<str> {
        let resource = Resource::encode(message);
        let version = resource.version.clone();
        self.insert_encoded(M::TYPE, resource);
        version
    }

    /// Puts in a resource that is already encoded, so that snapshots share it.
    pub fn insert_encoded(&mut self, ty: ResourceType, resource: Resource) {
        self.types[ty.index()].insert(resource.name.clone(), resource);
    }

    /// Takes one out.
    pub fn remove(&mut self, ty: ResourceType, name: &str) -> Option<Resource> {
        self.types[ty.index()].remove(name)
    }

    /// One resource.
    pub fn get(&self, ty: ResourceType, name: &str) -> Option<&Resource> {
        self.types[ty.index()].get(name)
    }

    /// All of one type, by name.
    pub fn resources(&self, ty: ResourceType) -> &ResourceMap {
        &self.types[ty.index()]
    }

    /// Whether nothing was changed since one became the other; two that only happen to be equal are not the same.
    pub(crate) fn is_same(&self, other: &Snapshot) -> bool {
        let shared = self.types.iter().zip(&other.types).all(|(own, other)| own.ptr_eq(other));
        shared && self.by_name_only == other.by_name_only
    }

    /// How many there are of all types.
    pub fn len(&self) -> usize {
        self.types.iter().map(OrdMap::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.types.iter().all(OrdMap::is_empty)
    }
}

/// The names that differ between two maps. Parts that both share are not looked at.
pub(crate) fn changed_names(old: &ResourceMap, new: &ResourceMap) -> Vec<Arc<str>> {
    if old.ptr_eq(new) {
        return Vec::new();
    }
    old.diff(new)
        .filter_map(|item| match item {
            DiffItem::Add(name, _) | DiffItem::Remove(name, _) => Some(name.clone()),
            DiffItem::Update { old, new } => (old.1.version != new.1.version).then(|| new.0.clone()),
        })
        .collect()
}
