//! What the proxies of a Gateway run in, in a cluster: made of the Gateway by a pure function, so that it can be
//! checked without one. What applies it is in [`crate::kubernetes::gateways`].

pub mod parameters;
pub mod provision;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::objects::ObjectName;

/// A Gateway's address, as its status says it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Address {
    /// `IPAddress` or `Hostname`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// It.
    pub value: String,
}

/// How a Gateway's infrastructure stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Where its clients find it.
    pub addresses: Vec<Address>,
    /// Whether at least one of its pods is available.
    pub is_available: bool,
    /// Why it cannot be made, or not as it is asked for: one of the Gateway API's reasons, and for people.
    pub problem: Option<(&'static str, String)>,
}

/// By Gateway; of one that is not here nothing was made yet.
pub type Standings = BTreeMap<ObjectName, Standing>;
