//! Where requests can be sent, however the user wrote it down: one cluster's worth of settings and a source of
//! endpoints; and which endpoints a source has at the moment.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::instance::{Application, Instance, InstanceStatus, PodEndpoint, RegistryView};
use crate::objects::pool::{CONNECT_TIMEOUT, EurekaSource, LoadBalancer, PoolSpec, Protocol};
use crate::objects::problem::{FieldError, did_you_mean};
use crate::objects::{ObjectName, Objects};

/// What becomes one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The cluster's name: `eureka/<APP>`, `eureka/<APP>/<selector>`, `eureka-vip/<name>`,
    /// `pool/<namespace>/<name>` or `service/<namespace>/<name>/<port>`; with `/h2` or `/tls/<policy>` behind it
    /// where that is not as it is by itself.
    pub name: Arc<str>,
    /// Where its endpoints come from.
    pub source: Source,
    /// What is spoken to them.
    pub protocol: Protocol,
    /// To establish a connection.
    pub connect_timeout: Duration,
    /// How one is chosen.
    pub load_balancer: LoadBalancer,
    /// How its endpoints are spoken to over TLS. `None`: they are not.
    pub tls: Option<Tls>,
}

/// TLS to endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Who says so, as `namespace/name`.
    pub policy: Arc<str>,
    /// What is asked for (SNI), and what the certificate must be for unless there are `names`.
    pub hostname: String,
    /// Whose certificates count, as PEM.
    pub authorities: Arc<str>,
    /// The certificate must be for one of these.
    pub names: Vec<EndpointName>,
}

/// A name in an endpoint's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointName {
    /// A DNS name.
    Dns(String),
    /// A URI, as of SPIFFE.
    Uri(String),
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
    /// What stands behind a port of a Kubernetes Service.
    Service {
        /// The Service.
        name: ObjectName,
        /// The port's name, as slices have it.
        port: Arc<str>,
        /// Which address of a pod that has both is used.
        prefers_v6: bool,
    },
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// Its share against the others, at least 1.
    pub weight: u32,
    /// Where it runs, where that is known.
    pub zone: Option<Arc<str>>,
    /// The zones whose clients it is meant for, in order; empty: nothing is said.
    pub for_zones: Arc<[Arc<str>]>,
}

/// No other cluster's name is without a slash.
const UNRESOLVED: &str = "unresolved";

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
            tls: None,
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
            tls: None,
        }
    }

    /// Stands in for a backend that cannot be used: a cluster without endpoints, so that its share is answered
    /// 503. A name without a cluster would make proxies wait for one.
    pub fn unresolved() -> Self {
        Self {
            name: UNRESOLVED.into(),
            source: Source::Static(Vec::new()),
            protocol: Protocol::default(),
            connect_timeout: CONNECT_TIMEOUT,
            load_balancer: LoadBalancer::default(),
            tls: None,
        }
    }

    /// Whether it stands in for what cannot be used.
    pub fn is_unresolved(&self) -> bool {
        *self.name == *UNRESOLVED
    }

    /// A port of a Kubernetes Service; with the only one where none is said.
    ///
    /// # Errors
    /// When there is no such Service (field `name`), or it has no such port (`port`).
    pub fn of_service(objects: &Objects, name: &ObjectName, port: Option<u16>) -> Result<Self, FieldError> {
        let service = objects.services.get(name).ok_or_else(|| {
            let known = objects.services.keys().filter(|known| known.namespace == name.namespace);
            let hint = did_you_mean(&name.name, known.map(|known| &*known.name))
                .map_or(String::new(), |meant| format!("; did you mean {meant}?"));
            FieldError::new("name", "BackendNotFound", format!("there is no Service {name}{hint}"))
        })?;
        let (source, port, protocol) = if let Some(external) = &service.external_name {
            // Its ports need not be listed.
            let port = port.map_or_else(|| service.port(None).map(|port| port.port), Ok)?;
            (Source::Dns { name: external.to_string(), port }, port, Protocol::default())
        } else {
            let found = service.port(port)?;
            let (name, prefers_v6) = (name.clone(), service.prefers_v6);
            let protocol = protocol_of(found.app_protocol.as_deref());
            (Source::Service { name, port: found.name.clone(), prefers_v6 }, found.port, protocol)
        };
        Ok(Self {
            name: format!("service/{name}/{port}").into(),
            source,
            protocol,
            connect_timeout: CONNECT_TIMEOUT,
            load_balancer: LoadBalancer::default(),
            tls: None,
        })
    }

    /// A `Pool`.
    ///
    /// # Errors
    /// When nothing can be sent to it as it is written, or the Service that it names is not there.
    pub fn of_pool(objects: &Objects, name: &ObjectName, spec: &PoolSpec) -> Result<Self, FieldError> {
        let mut protocol = spec.protocol;
        let source = match (&spec.endpoints, &spec.dns, &spec.eureka, &spec.service) {
            (Some(written), None, None, None) => Source::Static(static_endpoints(written)?),
            (None, Some(dns), None, None) => Source::Dns { name: dns.name.clone(), port: dns.port },
            (None, None, Some(eureka), None) => Source::Eureka {
                application: eureka.application.to_uppercase().into(),
                selector: eureka.selector.clone(),
            },
            (None, None, None, Some(service)) => {
                let target = ObjectName::new(name.namespace.clone(), service.name.as_str());
                let upstream = Self::of_service(objects, &target, service.port).map_err(|error| {
                    FieldError { field: format!("spec.service.{}", error.field), ..error }
                })?;
                // What the Service says of itself holds where the pool says nothing else.
                if protocol == Protocol::default() {
                    protocol = upstream.protocol;
                }
                upstream.source
            }
            _ => {
                return Err(FieldError::new(
                    "spec",
                    "one_of",
                    "set exactly one of endpoints, dns, eureka and service",
                ));
            }
        };
        Ok(Self {
            name: format!("pool/{name}").into(),
            source,
            protocol,
            connect_timeout: spec.connect_timeout.0,
            load_balancer: spec.load_balancer,
            tls: None,
        })
    }

    /// The same, spoken to in HTTP/2.
    #[must_use]
    pub fn in_http2(self) -> Self {
        match self.protocol {
            Protocol::H2c => self,
            Protocol::Http1 => {
                Self { name: format!("{}/h2", self.name).into(), protocol: Protocol::H2c, ..self }
            }
        }
    }

    /// The same, spoken to over TLS.
    #[must_use]
    pub fn behind(self, tls: Tls) -> Self {
        Self { name: format!("{}/tls/{}", self.name, tls.policy).into(), tls: Some(tls), ..self }
    }
}

/// What a Service's `appProtocol` stands for (KEP-3726); of none, HTTP/1.1. Whether that is spoken over TLS is a policy's to
/// say, and other names are of no meaning here.
fn protocol_of(app_protocol: Option<&str>) -> Protocol {
    match app_protocol {
        Some("kubernetes.io/h2c" | "h2c" | "grpc") => Protocol::H2c,
        None | Some(_) => Protocol::Http1,
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
        let (address, weight) = ((ip, endpoint.port).into(), endpoint.weight.max(1));
        endpoints.push(Endpoint { address, weight, zone: None, for_zones: Arc::default() });
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
            Source::Service { name, port, prefers_v6 } => {
                let pods = registry.services.services.get(name).and_then(|service| service.ports.get(port));
                of_pods(pods.map(Vec::as_slice), *prefers_v6, registry.services.held)
            }
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

/// Those pods that are ready; where none is, those that are about to end but still answer.
fn of_pods(pods: Option<&[PodEndpoint]>, prefers_v6: bool, held: bool) -> Resolved {
    let all = pods.unwrap_or_default();
    let none_ready = !all.iter().any(|pod| pod.ready);
    let takes_new = |pod: &&PodEndpoint| pod.ready || none_ready && pod.serving && pod.terminating;
    let endpoints = all.iter().filter(takes_new).filter_map(|pod| {
        let address = if prefers_v6 { pod.v6.or(pod.v4) } else { pod.v4.or(pod.v6) }?;
        // Of those that end nobody is preferred.
        let for_zones = if pod.ready { pod.for_zones.clone() } else { Arc::default() };
        Some(Endpoint { address, weight: 1, zone: pod.zone.clone(), for_zones })
    });
    let endpoints = in_order(endpoints.collect());
    let status = SourceStatus {
        endpoints: Some(endpoints.len()),
        unknown: pods.is_none(),
        held: held && !endpoints.is_empty(),
        left_out: Vec::new(),
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
    Ok(Endpoint { address: (ip, port).into(), weight: 1, zone: None, for_zones: Arc::default() })
}

#[cfg(test)]
mod tests;
