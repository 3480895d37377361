//! Where requests can be sent, however the user wrote it down: one cluster's worth of settings and a source of
//! endpoints; and which endpoints a source has at the moment.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::instance::{Application, Instance, InstanceStatus, RegistryView};
use crate::objects::ObjectName;
use crate::objects::pool::{CONNECT_TIMEOUT, EurekaSource, LoadBalancer, PoolSpec, Protocol};
use crate::objects::problem::FieldError;

/// What becomes one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The cluster's name: `eureka/<APP>`, `eureka/<APP>/<selector>`, `eureka-vip/<name>` or
    /// `pool/<namespace>/<name>`.
    pub name: Arc<str>,
    /// Where its endpoints come from.
    pub source: Source,
    /// What is spoken to them.
    pub protocol: Protocol,
    /// To establish a connection.
    pub connect_timeout: Duration,
    /// How one is chosen.
    pub load_balancer: LoadBalancer,
}

/// Where endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A Eureka application's instances, those whose metadata has all of the selector.
    Eureka {
        /// In upper case, as registries keep it.
        application: Arc<str>,
        /// Empty: all.
        selector: BTreeMap<String, String>,
    },
    /// The instances of all Eureka applications that go by this name (`vipAddress`), in lower case.
    EurekaVip(Arc<str>),
    /// Written down.
    Static(Vec<Endpoint>),
    /// Looked up by the proxies.
    Dns {
        /// The name.
        name: String,
        /// The port.
        port: u16,
    },
}

/// One address to send requests to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// Its share against the others, at least 1.
    pub weight: u32,
}

impl Upstream {
    /// A Eureka application with the settings that need no `Pool`.
    pub fn of_eureka(source: &EurekaSource) -> Self {
        let application: Arc<str> = source.application.to_uppercase().into();
        Self {
            name: eureka_name(&application, &source.selector).into(),
            source: Source::Eureka { application, selector: source.selector.clone() },
            protocol: Protocol::default(),
            connect_timeout: CONNECT_TIMEOUT,
            load_balancer: LoadBalancer::default(),
        }
    }

    /// What goes by a name of its own in Eureka, whichever applications that is.
    pub fn of_vip(name: &str) -> Self {
        let name: Arc<str> = name.to_lowercase().into();
        Self {
            name: format!("eureka-vip/{name}").into(),
            source: Source::EurekaVip(name),
            protocol: Protocol::default(),
            connect_timeout: CONNECT_TIMEOUT,
            load_balancer: LoadBalancer::default(),
        }
    }

    /// Stands in for a backend that cannot be used: a cluster without endpoints, so that its share is answered
    /// 503. A name without a cluster would make proxies wait for one.
    pub fn unresolved() -> Self {
        Self {
            name: "unresolved".into(),
            source: Source::Static(Vec::new()),
            protocol: Protocol::default(),
            connect_timeout: CONNECT_TIMEOUT,
            load_balancer: LoadBalancer::default(),
        }
    }

    /// A `Pool`.
    pub fn of_pool(name: &ObjectName, spec: &PoolSpec) -> Result<Self, FieldError> {
        let source = match (&spec.endpoints, &spec.dns, &spec.eureka) {
            (Some(written), None, None) => Source::Static(static_endpoints(written)?),
            (None, Some(dns), None) => Source::Dns { name: dns.name.clone(), port: dns.port },
            (None, None, Some(eureka)) => Source::Eureka {
                application: eureka.application.to_uppercase().into(),
                selector: eureka.selector.clone(),
            },
            _ => {
                return Err(FieldError::new(
                    "spec",
                    "one_of",
                    "set exactly one of endpoints, dns and eureka",
                ));
            }
        };
        Ok(Self {
            name: format!("pool/{name}").into(),
            source,
            protocol: spec.protocol,
            connect_timeout: spec.connect_timeout.0,
            load_balancer: spec.load_balancer,
        })
    }
}

fn static_endpoints(written: &[crate::objects::pool::PoolEndpoint]) -> Result<Vec<Endpoint>, FieldError> {
    let mut endpoints = Vec::with_capacity(written.len());
    for (index, endpoint) in written.iter().enumerate() {
        let ip: IpAddr = endpoint.address.parse().map_err(|_| {
            FieldError::new(
                format!("spec.endpoints[{index}].address"),
                "invalid_value",
                "expected an IPv4 or IPv6 address; a name goes into spec.dns",
            )
        })?;
        endpoints.push(Endpoint { address: (ip, endpoint.port).into(), weight: endpoint.weight.max(1) });
    }
    Ok(in_order(endpoints))
}

/// By address, each once: the same set is the same resource, whatever order it came in.
fn in_order(mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    endpoints.sort_unstable();
    endpoints.dedup_by_key(|endpoint| endpoint.address);
    endpoints
}

fn eureka_name(application: &str, selector: &BTreeMap<String, String>) -> String {
    let labels = selector.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
    match labels.is_empty() {
        true => format!("eureka/{application}"),
        false => format!("eureka/{application}/{}", labels.join(",")),
    }
}

/// The endpoints of a source at one moment, and what is to be said about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Those that take traffic, in order of address.
    pub endpoints: Vec<Endpoint>,
    /// What a status shows of it.
    pub status: SourceStatus,
}

/// What is to be said about a cluster's endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// How many take traffic; `None` where the proxies look the name up.
    pub endpoints: Option<usize>,
    /// A registry source of which no instance has been seen.
    pub unknown: bool,
    /// The endpoints are the last that were known: their leases ran out, but no instance said that it goes.
    pub held: bool,
    /// Instances that would take traffic if it were not for this.
    pub left_out: Vec<LeftOut>,
}

/// An instance that is `UP` and still no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The instance's id.
    pub instance: Arc<str>,
    /// Why, and what to do.
    pub message: String,
}

impl Source {
    /// The endpoints at this moment. A registry's instances count only while they are `UP`.
    pub fn resolve(&self, registry: &RegistryView) -> Resolved {
        match self {
            Source::Static(endpoints) => Resolved {
                status: SourceStatus { endpoints: Some(endpoints.len()), ..SourceStatus::default() },
                endpoints: endpoints.clone(),
            },
            Source::Dns { .. } => Resolved::default(),
            Source::Eureka { application, selector } => {
                let application = registry.applications.get(application);
                of_instances(application, |instance| selected(instance, selector))
            }
            Source::EurekaVip(name) => of_instances(registry.applications.values(), |instance| {
                instance.vips().any(|vip| vip.eq_ignore_ascii_case(name))
            }),
        }
    }
}

/// The endpoints of those instances of some applications that are wanted.
fn of_instances<'r>(
    applications: impl IntoIterator<Item = &'r Arc<Application>>,
    wanted: impl Fn(&Instance) -> bool,
) -> Resolved {
    let mut endpoints = Vec::new();
    let mut left_out = Vec::new();
    let (mut seen, mut held) = (false, false);
    for application in applications {
        for instance in application.instances.values().filter(|instance| wanted(instance)) {
            seen = true;
            held |= application.held;
            if instance.status != InstanceStatus::Up {
                continue;
            }
            match endpoint_of(instance) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(message) => left_out.push(LeftOut { instance: instance.id.clone(), message }),
            }
        }
    }
    let endpoints = in_order(endpoints);
    let status = SourceStatus {
        endpoints: Some(endpoints.len()),
        unknown: !seen,
        held: held && !endpoints.is_empty(),
        left_out,
    };
    Resolved { endpoints, status }
}

fn selected(instance: &Instance, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| instance.metadata.get(key) == Some(value))
}

/// The address is the instance's IP: its `hostName` is often a name that only its own machine knows.
fn endpoint_of(instance: &Instance) -> Result<Endpoint, String> {
    let ip: IpAddr = instance.ip.trim().parse().map_err(|_| {
        format!(
            "its ipAddr {:?} is not an IP address; set eureka.instance.prefer-ip-address or ip-address there",
            instance.ip
        )
    })?;
    let port = instance.port.filter(|port| *port != 0).ok_or_else(|| {
        "it has no plain HTTP port enabled; TLS to instances is not supported yet".to_owned()
    })?;
    Ok(Endpoint { address: (ip, port).into(), weight: 1 })
}

#[cfg(test)]
mod tests;
