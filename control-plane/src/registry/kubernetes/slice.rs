//! An `EndpointSlice` (discovery.k8s.io/v1), as far as balancing needs it: a twentieth of what the API server sends.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{self, EndpointSlice};

use crate::objects::ObjectName;

/// The label that says whose slice it is.
const SERVICE: &str = "kubernetes.io/service-name";
/// Kubernetes' own limit for one slice. More would be somebody else's mistake.
const MOST_ENDPOINTS: usize = 1000;
/// Kubernetes' own limit for the zones of one endpoint.
const MOST_ZONES: usize = 8;

/// A slice by its name.
pub type Key = ObjectName;

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The Service.
    pub service: ObjectName,
    /// TCP ports: the name (empty: none) and the number at the endpoints.
    pub ports: Vec<(Arc<str>, u16)>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What it is the address of: a pod in two families, or in two slices, is one.
    pub target: Arc<str>,
    /// Where it is.
    pub ip: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Answers, also while it ends.
    pub serving: bool,
    /// Is about to end.
    pub terminating: bool,
    /// Where it runs.
    pub zone: Option<Arc<str>>,
    /// Whose clients it is meant for (`hints.forZones`); empty: nothing is said.
    pub for_zones: Arc<[Arc<str>]>,
}

fn for_zones(endpoint: &v1::Endpoint) -> Arc<[Arc<str>]> {
    let hints = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let mut zones: Vec<Arc<str>> =
        hints.iter().take(MOST_ZONES).map(|zone| Arc::from(zone.name.as_str())).collect();
    // The same set is the same resource.
    zones.sort_unstable();
    zones.dedup();
    zones.into()
}

/// The name of a slice.
pub fn key(slice: &EndpointSlice) -> Option<Key> {
    let metadata = &slice.metadata;
    Some(ObjectName::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?))
}

/// Reads a slice. `None`: it is of no Service, or of names instead of addresses (`FQDN`), which kube-proxy does not
/// follow either.
pub fn read(slice: &EndpointSlice) -> Option<(Key, Slice)> {
    let key = key(slice)?;
    let service = slice.metadata.labels.as_ref()?.get(SERVICE).filter(|name| !name.is_empty())?;
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        return None;
    }
    let ports =
        slice.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let ports = ports.filter_map(|port| {
        let number = u16::try_from(port.port?).ok().filter(|number| *number != 0)?;
        Some((port.name.as_deref().unwrap_or_default().into(), number))
    });
    let endpoints = slice.endpoints.iter().take(MOST_ENDPOINTS).filter_map(|endpoint| {
        // All that follow the first are of no defined meaning.
        let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let conditions = endpoint.conditions.as_ref();
        // Nothing said is ready (the API's own words).
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let target = endpoint.target_ref.as_ref();
        let target = target.and_then(|target| target.uid.as_deref().or(target.name.as_deref()));
        Some(Endpoint {
            target: target.map_or_else(|| ip.to_string().into(), Arc::from),
            ip,
            ready,
            serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            zone: endpoint.zone.as_deref().map(Arc::from),
            for_zones: for_zones(endpoint),
        })
    });
    let service = ObjectName::new(key.namespace.clone(), service.as_str());
    let slice = Slice { service, ports: ports.collect(), endpoints: endpoints.collect() };
    Some((key, slice))
}
