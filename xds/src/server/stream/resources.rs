//! What a response carries: a few, or all that the client then has. The latter is shared with what is published, so that a
//! thousand clients that wait for the same state of the world hold it once.

use std::ops::Bound;
use std::sync::Arc;

use crate::resource::Resource;
use crate::snapshot::ResourceMap;

/// The resources of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resources {
    /// These.
    Listed(Vec<Resource>),
    /// All that the client has with this response, by name.
    All(ResourceMap),
}

impl Resources {
    /// In the order in which they are sent.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        let (listed, all) = match self {
            Resources::Listed(listed) => (listed.as_slice(), None),
            Resources::All(all) => (&[][..], Some(all)),
        };
        listed.iter().chain(all.into_iter().flat_map(|all| all.values()))
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Resources::Listed(listed) => listed.len(),
            Resources::All(all) => all.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Those of a response that are still to be sent.
#[derive(Debug)]
pub(in crate::server) enum Left {
    Listed(std::vec::IntoIter<Resource>),
    /// Those after a name. An iterator that owns the map would copy what others share of it.
    After(ResourceMap, Option<Arc<str>>),
}

impl From<Resources> for Left {
    fn from(resources: Resources) -> Left {
        match resources {
            Resources::Listed(listed) => Left::Listed(listed.into_iter()),
            Resources::All(all) => Left::After(all, None),
        }
    }
}

impl Iterator for Left {
    type Item = Resource;

    fn next(&mut self) -> Option<Resource> {
        match self {
            Left::Listed(left) => left.next(),
            Left::After(all, last) => {
                let from = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                let (name, resource) = all.range::<_, Arc<str>>((from, Bound::Unbounded)).next()?;
                let (name, resource) = (name.clone(), resource.clone());
                *last = Some(name);
                Some(resource)
            }
        }
    }
}
