//! Whose requests an Ingress takes, by their address: the lists of ingress-nginx as rules of Envoy's RBAC filter.

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::rbac::v3::principal::{Identifier, Set};
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac as Rules, permission};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use ipnet::{IpNet, Ipv4Net};

use crate::compile::wire;

/// Where nothing is said, everybody's.
#[derive(Debug, Default)]
pub(super) struct Sources {
    allowed: Option<Vec<IpNet>>,
    denied: Vec<IpNet>,
}

impl Sources {
    /// Reads one of the annotations.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let networks = value.split(',').map(|item| network(item.trim()));
        let networks = networks.collect::<Result<Vec<_>, _>>()?;
        match name {
            "denylist-source-range" => self.denied = networks,
            // Where both are there, it is the one that counts in ingress-nginx.
            "allowlist-source-range" => self.allowed = Some(networks),
            _ => {
                self.allowed.get_or_insert(networks);
            }
        }
        Ok(())
    }

    /// What its routes say: who is denied is so whatever else is allowed.
    pub(super) fn rules(&self) -> Option<RbacPerRoute> {
        let allowed = self.allowed.as_deref().map(one_of);
        let denied = (!self.denied.is_empty()).then(|| Identifier::NotId(Box::new(one_of(&self.denied))));
        let ids: Vec<Principal> = allowed.into_iter().chain(denied.map(principal)).collect();
        if ids.is_empty() {
            return None;
        }
        let policy = Policy {
            permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
            principals: vec![principal(Identifier::AndIds(Set { ids }))],
            ..Policy::default()
        };
        // Of several the order on the wire would not be the same each time. By default what holds is allowed.
        let rules = Rules { policies: [("source-range".to_owned(), policy)].into(), ..Rules::default() };
        Some(RbacPerRoute { rbac: Some(Rbac { rules: Some(rules), ..Rbac::default() }) })
    }
}

/// A network or a single address. Of IPv4 written as IPv6, the IPv4 is meant.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network =
        network.map_err(|_| format!("{text:?} is no network or address, as 10.0.0.0/8 or 2001:db8::1 is"))?;
    let mapped = match network {
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    let mapped = mapped.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok());
    Ok(mapped.map_or(network, IpNet::V4).trunc())
}

fn one_of(networks: &[IpNet]) -> Principal {
    let remote = |network: &IpNet| {
        principal(Identifier::RemoteIp(CidrRange {
            address_prefix: network.addr().to_string(),
            prefix_len: wire::number(network.prefix_len().into()),
        }))
    };
    principal(Identifier::OrIds(Set { ids: networks.iter().map(remote).collect() }))
}

fn principal(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}
