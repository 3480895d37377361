//! How a sidecar's names are written: in a zone of our own, with a search domain of the host's after them, or as they
//! are. HTTP and DNS ask here, so that both take the same names for the same services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What names have after them, and what they resolve to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    /// Our own zone, in lower case and without dots at its ends: a name in it is the service of what is before it,
    /// and nobody else is asked for it.
    pub zone: String,
    /// The same of each domain that resolvers try after a name.
    pub search: Vec<String>,
    /// Where services have their virtual addresses from.
    pub ranges: Vec<IpNet>,
}

impl Default for Naming {
    /// `internal` is for private use (ICANN, 2024), so no name of the zone is anybody else's. The ranges are those of
    /// the control plane's defaults.
    fn default() -> Self {
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 8);
        let v6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd70, 0x6f6e, 0x746f, 0x6f6e, 0, 0, 0, 0), 104);
        let (zone, search) = ("mesh.internal".to_owned(), Vec::new());
        Self { zone, search, ranges: vec![IpNet::V4(v4), IpNet::V6(v6)] }
    }
}

impl Naming {
    /// A name of our zone without it; any other as it is.
    pub(crate) fn within_zone<'n>(&self, name: &'n str) -> &'n str {
        before(name, &self.zone).unwrap_or(name)
    }

    /// Whether a name is in our zone, or the zone itself.
    pub(crate) fn is_in_zone(&self, name: &str) -> bool {
        name == self.zone || before(name, &self.zone).is_some()
    }

    /// What is before the search domain that a name ends with; the longest counts.
    pub(crate) fn unsearched<'n>(&self, name: &'n str) -> Option<&'n str> {
        self.search.iter().filter_map(|domain| before(name, domain)).min_by_key(|short| short.len())
    }

    /// Whether an address is one of the ranges'.
    pub(crate) fn is_virtual(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }
}

/// What is before `.domain`, where there is something.
fn before<'n>(name: &'n str, domain: &str) -> Option<&'n str> {
    if domain.is_empty() {
        return None;
    }
    name.strip_suffix(domain)?.strip_suffix('.').filter(|short| !short.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_and_search_domains_end_at_a_dot_and_the_longest_counts() {
        let search = ["cluster.local", "svc.cluster.local", "default.svc.cluster.local", ""];
        let naming = Naming { search: search.map(str::to_owned).into(), ..Naming::default() };
        assert_eq!(naming.within_zone("orders.mesh.internal"), "orders");
        assert_eq!(naming.within_zone("orders.default.mesh.internal"), "orders.default");
        for other in ["mesh.internal", ".mesh.internal", "orders.xmesh.internal", "orders"] {
            assert_eq!(naming.within_zone(other), other);
        }
        assert!(naming.is_in_zone("mesh.internal") && !naming.is_in_zone("xmesh.internal"));
        assert_eq!(naming.unsearched("orders.default.svc.cluster.local"), Some("orders"));
        assert_eq!(naming.unsearched("orders.shop.svc.cluster.local"), Some("orders.shop"));
        assert_eq!(naming.unsearched("svc.cluster.local"), Some("svc"));
        assert_eq!(naming.unsearched("orders"), None);
    }

    #[test]
    fn virtual_addresses_are_those_of_the_ranges() {
        let naming = Naming::default();
        for (address, is) in [("240.240.1.2", true), ("fd70:6f6e:746f:6f6e::9", true), ("10.0.0.1", false)] {
            assert_eq!(naming.is_virtual(address.parse().unwrap()), is, "{address}");
        }
    }
}
