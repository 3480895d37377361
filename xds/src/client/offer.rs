//! What a response brings, read from either wire form. A resource that cannot be read is refused alone.

use std::sync::Arc;

use prost::{Message, Name};

use super::Rejected;
use crate::pb::envoy::service::discovery::v3::Resource as WireResource;
use crate::pb::google::protobuf::Any;
use crate::resource::{Resource, ResourceType};

#[derive(Debug, Default)]
pub(super) struct Offer {
    pub(super) resources: Vec<Resource>,
    /// Delta: what is gone, or never was.
    pub(super) removed: Vec<Arc<str>>,
    pub(super) rejected: Vec<Rejected>,
    /// Of something in it not even the name can be read.
    pub(super) nameless: bool,
}

/// All five types have their name there; the rest is not looked at.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

impl Offer {
    /// Resources that travel without their names and versions, or wrapped together with them.
    pub(super) fn of_sotw(ty: ResourceType, resources: Vec<Any>) -> Offer {
        let mut offer = Offer::default();
        for (position, any) in resources.into_iter().enumerate() {
            if any.type_url == WireResource::type_url() {
                match WireResource::decode(any.value.as_slice()) {
                    Ok(resource) => offer.put(ty, resource),
                    Err(error) => offer.put_nameless(position, &error.to_string()),
                }
            } else if any.type_url != ty.type_url() {
                offer.put_nameless(position, &wrong_type(&any, ty));
            } else {
                match Named::decode(any.value.as_slice()) {
                    Ok(Named { name }) if name.is_empty() => offer.put_nameless(position, "has no name"),
                    Ok(Named { name }) => {
                        let body = any.value.into();
                        offer.resources.push(Resource { name: name.into(), version: "".into(), body });
                    }
                    Err(error) => offer.put_nameless(position, &format!("cannot be decoded: {error}")),
                }
            }
        }
        offer
    }

    pub(super) fn of_delta(ty: ResourceType, resources: Vec<WireResource>, removed: Vec<String>) -> Offer {
        let removed = removed.into_iter().map(Arc::from).collect();
        let mut offer = Offer { removed, ..Offer::default() };
        for resource in resources {
            offer.put(ty, resource);
        }
        offer
    }

    fn put(&mut self, ty: ResourceType, resource: WireResource) {
        let (name, version): (Arc<str>, Arc<str>) = (resource.name.into(), resource.version.into());
        let reason = match resource.resource {
            _ if resource.ttl.is_some() => String::from("ttl: resources do not run out here"),
            Some(any) if any.type_url == ty.type_url() => {
                self.resources.push(Resource { name, version, body: any.value.into() });
                return;
            }
            Some(any) => wrong_type(&any, ty),
            None => String::from("holds no resource"),
        };
        self.nameless |= name.is_empty();
        self.rejected.push(Rejected { name, reason });
    }

    fn put_nameless(&mut self, position: usize, reason: &str) {
        self.nameless = true;
        let name = format!("resources[{position}]").into();
        self.rejected.push(Rejected { name, reason: reason.to_owned() });
    }
}

fn wrong_type(any: &Any, ty: ResourceType) -> String {
    format!("holds a {:?} where a {} belongs", any.type_url, ty.type_url())
}
