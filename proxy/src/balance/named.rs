//! Endpoints by their addresses: all of a set, whether they take requests or not.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::upstream::cluster::{Endpoint, EndpointSet};

/// Made when it is first asked: few clusters have sessions.
#[derive(Debug, Default)]
pub(super) struct Named(Option<HashMap<SocketAddr, usize>>);

impl Named {
    /// `set` is always the same.
    pub(super) fn find<'s>(
        &mut self,
        set: &'s EndpointSet,
        address: SocketAddr,
    ) -> Option<&'s Arc<Endpoint>> {
        let all = self.0.get_or_insert_with(|| {
            set.endpoints.iter().enumerate().map(|(index, endpoint)| (endpoint.address(), index)).collect()
        });
        set.endpoints.get(*all.get(&address)?)
    }
}
