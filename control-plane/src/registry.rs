//! Where services say that they are there. One folder a kind of registry; each hands on a
//! [`RegistryView`](crate::model::instance::RegistryView) and knows nothing of who reads it.

pub mod eureka;
pub mod kubernetes;
