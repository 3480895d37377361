//! `Service` of core/v1, as far as routes need it: which ports it has and how they are spoken to. It is known in
//! Kubernetes only; where its endpoints are is the registry's (`crate::registry::kubernetes`).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use super::problem::FieldError;

/// A Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// The DNS name that it stands for (`type: ExternalName`), and nothing else then.
    pub external_name: Option<Arc<str>>,
    /// Where it is reached in the cluster. None where it has no such address: it is headless, or stands for a name.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Whether IPv6 comes first in `ipFamilies`.
    pub prefers_v6: bool,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// What slices call it; empty where there is only one.
    pub name: Arc<str>,
    /// What routes call it.
    pub port: u16,
    /// What is spoken, where it says so (`appProtocol`).
    pub app_protocol: Option<Arc<str>>,
}

impl Service {
    /// Reads a Service.
    pub fn of(service: &core::Service) -> Service {
        let Some(spec) = &service.spec else { return Service::default() };
        let ports =
            spec.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        let ports = ports.filter_map(|port| {
            Some(ServicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                port: u16::try_from(port.port).ok().filter(|port| *port != 0)?,
                app_protocol: port.app_protocol.as_deref().map(Arc::from),
            })
        });
        // Of a headless one they are `None`.
        let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let external = spec.type_.as_deref() == Some("ExternalName");
        Service {
            ports: ports.collect(),
            external_name: spec.external_name.as_deref().filter(|_| external).map(Arc::from),
            cluster_ips: addresses.filter_map(|address| address.parse().ok()).collect(),
            prefers_v6: spec.ip_families.iter().flatten().next().is_some_and(|family| family == "IPv6"),
        }
    }

    /// The port of this number, or the only one where none is said.
    ///
    /// # Errors
    /// When there is no such port; of the field `port`.
    pub fn port(&self, wanted: Option<u16>) -> Result<&ServicePort, FieldError> {
        let found = match (wanted, self.ports.as_slice()) {
            (Some(wanted), ports) => ports.iter().find(|port| port.port == wanted),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        found.ok_or_else(|| {
            let ports: Vec<String> = self.ports.iter().map(|port| port.port.to_string()).collect();
            let has = match ports.as_slice() {
                [] => "it has no TCP port".to_owned(),
                ports => format!("it has {}", ports.join(", ")),
            };
            let message = match wanted {
                Some(wanted) => format!("the Service has no port {wanted}; {has}"),
                None => format!("expected one of the Service's ports; {has}"),
            };
            FieldError::new("port", "PortNotFound", message)
        })
    }
}
