//! Endpoints that no resource names: where intercepted connections were going to. Each client's connection has one of
//! its own, and so connections of its own to it: what a server believes of a connection (NTLM and Negotiate authenticate
//! those, not requests) must not come to be believed of another client.

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::cluster::{Endpoint, EndpointHealth};

/// Where an intercepted connection was going to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Original {
    pub(crate) destination: SocketAddr,
    /// The client, where its address is to be kept.
    pub(crate) source: Option<IpAddr>,
}

impl Original {
    pub(crate) fn endpoint(self) -> Arc<Endpoint> {
        Arc::new(Endpoint::from_source(self.source, self.destination, 1, EndpointHealth::Healthy))
    }
}

/// That of one client's connection, made when it is first asked for. Its pool goes with it.
#[derive(Debug, Default)]
pub(crate) struct Own(OnceCell<Arc<Endpoint>>);

impl Own {
    pub(crate) fn endpoint(&self, original: Original) -> Arc<Endpoint> {
        Arc::clone(self.0.get_or_init(|| original.endpoint()))
    }
}
