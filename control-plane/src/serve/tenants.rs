//! Who may be told what. A client sees the view that it names by `node.cluster`, and nothing else exists for it; here it
//! is decided whether it may name that one. Until clients have certificates, what can be checked of one is the address
//! that it comes from.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use tokio::time::Instant;

use crate::compile::is_gateway;
use crate::kubernetes::gateways::{Having, Proxies};
use crate::kubernetes::pods::Pods;

/// How long an address beside those of pods may be that of a pod which is not known yet: a kubelet says which one it has
/// when its containers run already.
const SETTLES: Duration = Duration::from_secs(10);
/// After that who asks is let in for so long; later it is a newcomer again, as the address may be another's.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Newcomers at a time.
const NEWCOMERS: usize = 4096;

/// What a file of tenants says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tenants {
    tenants: Vec<Tenant>,
}

/// Namespaces, and where the clients come from that may be told of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tenant {
    /// For people.
    name: String,
    namespaces: Vec<String>,
    networks: Vec<IpNet>,
}

/// Why there are no tenants to go by.
#[derive(Debug, thiserror::Error)]
pub enum TenantsError {
    /// The file is not there or cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path}: {message}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Line and reason.
        message: String,
    },
}

impl Tenants {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read, or a tenant could never be told anything.
    pub fn read(path: &Path) -> Result<Tenants, TenantsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TenantsError::Read { path: path.to_owned(), source })?;
        Tenants::parse(&text).map_err(|message| TenantsError::Parse { path: path.to_owned(), message })
    }

    fn parse(text: &str) -> Result<Tenants, String> {
        let all: Tenants = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        for tenant in &all.tenants {
            let named = tenant.namespaces.iter().all(|name| !name.is_empty() && !name.contains('/'));
            if tenant.namespaces.is_empty() || tenant.networks.is_empty() || !named {
                let name = &tenant.name;
                return Err(format!(
                    "tenant {name:?}: expected namespaces and networks, at least one of each"
                ));
            }
        }
        Ok(all)
    }

    /// Whether a client from `address` may be told of a view: `NAMESPACE` of sidecars, `NAMESPACE/NAME` of a gateway. It
    /// is told the same where there is no such view, so that it does not learn which there are.
    ///
    /// # Errors
    /// With what the client is told.
    pub fn check(&self, view: &str, address: Option<IpAddr>) -> Result<(), String> {
        let namespace = view.split('/').next().unwrap_or_default();
        let from = |tenant: &&Tenant| {
            address.is_some_and(|address| tenant.networks.iter().any(|network| network.contains(&address)))
        };
        let mut own = self.tenants.iter().filter(from);
        if own.any(|tenant| tenant.namespaces.iter().any(|own| own == namespace)) {
            return Ok(());
        }
        let place = address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
        Err(format!(
            "clients at {place} are not told of namespace {namespace:?}; look at node.cluster and at the control \
             plane's --xds-tenants"
        ))
    }
}

/// Who is told what, by all that is known of callers.
#[derive(Debug, Default)]
pub struct Visibility {
    /// What the operator says.
    pub tenants: Option<Tenants>,
    /// The pods that Gateways were given, each with its Gateway; `None`: Gateways are given none.
    pub pods: Option<Proxies>,
    /// Of which namespace each pod is; `None`: there are no pods.
    pub namespaces: Option<Pods>,
    /// Addresses beside those of pods that no pod is known to have.
    pub newcomers: Newcomers,
}

/// Since when they have asked.
#[derive(Debug, Default)]
pub struct Newcomers(Mutex<HashMap<IpAddr, Instant>>);

impl Newcomers {
    /// Whether one has asked for so long that it can be no pod's.
    fn has_settled(&self, address: IpAddr, now: Instant) -> bool {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.retain(|_, since| now.duration_since(*since) < SETTLES + REMEMBERED);
        if since.len() >= NEWCOMERS && !since.contains_key(&address) {
            return false;
        }
        now.duration_since(*since.entry(address).or_insert(now)) >= SETTLES
    }

    /// It is a pod's.
    fn is_known(&self, address: IpAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }
}

impl Visibility {
    /// Whether a client from `address` may be told of a view. A pod that was made for a Gateway is told of that one, and
    /// of nothing else; of a Gateway are told its pods, and whoever a tenant's networks let in. Any other pod is told of its
    /// own namespace. On a node's network a Gateway's pod cannot be told from others: there those are told as elsewhere.
    ///
    /// # Errors
    /// With what the client is told.
    pub fn check(&self, view: &str, address: Option<IpAddr>) -> Result<(), String> {
        // One that listens for both families sees IPv4 written as IPv6.
        let address = address.map(|address| address.to_canonical());
        let Some(pods) = &self.pods else { return self.check_namespace(view, address) };
        let having = address.and_then(|address| pods.load().get(&address).cloned());
        let (is_its, is_pod) = match having {
            Some(Having::Own(gateway)) => (gateway.to_string() == view, true),
            Some(Having::Node(gateways)) => (gateways.iter().any(|one| one.to_string() == view), false),
            None => (false, false),
        };
        match &self.tenants {
            _ if is_its && !self.is_of_another_namespace(view, address) => Ok(()),
            _ if !is_pod && !is_gateway(view) => self.check_namespace(view, address),
            Some(tenants) if !is_pod => tenants.check(view, address),
            _ => Err(format!(
                "a pod is told of the Gateway that it was made for, and this one is not Gateway {view}'s; a pod that \
                 has just been made may have to ask again"
            )),
        }
    }

    /// Whether its address is known to be that of a pod elsewhere by now: of what is heard of pods in two places one may be
    /// late, and a Gateway's keys are told to nobody else.
    fn is_of_another_namespace(&self, view: &str, address: Option<IpAddr>) -> bool {
        let asked = view.split('/').next().unwrap_or_default();
        let pods = self.namespaces.as_ref().zip(address);
        pods.is_some_and(|(pods, address)| pods.namespaces_of(address).iter().any(|own| **own != *asked))
    }

    /// Of other namespaces than a pod's own, and of an address that is no pod's (a VM's, a node's, a NAT's), the operator
    /// decides; who says nothing lets everybody in but pods, and what may be one.
    fn check_namespace(&self, view: &str, address: Option<IpAddr>) -> Result<(), String> {
        let asked = view.split('/').next().unwrap_or_default();
        let pods = self.namespaces.as_ref().zip(address);
        let own = pods.map(|(pods, address)| pods.namespaces_of(address)).unwrap_or_default();
        if let Some(address) = address.filter(|_| !own.is_empty()) {
            self.newcomers.is_known(address);
        }
        match &self.tenants {
            _ if own.contains(asked) => Ok(()),
            Some(tenants) => tenants.check(view, address),
            None if own.is_empty() => match pods {
                Some((pods, address))
                    if pods.are_beside(address) && !self.newcomers.has_settled(address, Instant::now()) =>
                {
                    Err(format!(
                        "no pod is known that has {address}, which is beside the addresses of pods: one that has just \
                         been given it has to ask again, and what is none is let in after {} s, or at once by the \
                         control plane's --xds-tenants",
                        SETTLES.as_secs()
                    ))
                }
                _ => Ok(()),
            },
            None => Err(format!(
                "a pod is told of its own namespace, and this one is not in {asked:?}; look at node.cluster and, for one \
                 that is to be told of others, at the control plane's --xds-tenants; a pod that has just been given its \
                 address may have to ask again"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::kubernetes::mirror::Heard;
    use crate::objects::ObjectName;

    const FILE: &str = "
tenants:
- {name: shop, namespaces: [shop, common], networks: [10.1.0.0/16, 'fd00:1::/32']}
- {name: bank, namespaces: [bank, common], networks: [10.2.0.0/16]}
";

    #[test]
    fn a_client_is_told_of_the_namespaces_of_its_networks() {
        let tenants = Tenants::parse(FILE).unwrap();
        for (view, address, expected) in [
            ("shop", "10.1.2.3", true),
            ("shop/edge", "10.1.2.3", true),
            ("shop", "fd00:1::5", true),
            ("common", "10.2.0.1", true),
            ("bank", "10.1.2.3", false),
            ("bank/edge", "10.1.2.3", false),
            ("shop", "10.3.0.1", false),
            ("none", "10.1.2.3", false),
            ("", "10.1.2.3", false),
            ("shop2", "10.1.2.3", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(tenants.check(view, Some(address)).is_ok(), expected, "{view} {address}");
        }
        assert!(tenants.check("shop", None).is_err());
        let told = |view| tenants.check(view, Some([10, 1, 0, 1].into())).unwrap_err().replace(view, "?");
        assert_eq!(told("bank"), told("nowhere"), "who may not see it does not learn whether it exists");
    }

    #[test]
    fn a_pod_is_told_of_its_own_gateway_only() {
        let pods =
            HashMap::from([(IpAddr::from([10, 1, 0, 1]), Having::Own(ObjectName::new("shop", "edge")))]);
        let pods = || Some(Proxies::new(arc_swap::ArcSwap::from_pointee(pods.clone())));
        let visibility = Visibility { pods: pods(), ..Visibility::default() };
        let check = |visibility: &Visibility, view: &str, address: &str| {
            visibility.check(view, Some(address.parse().unwrap())).is_ok()
        };
        assert!(check(&visibility, "shop/edge", "10.1.0.1"));
        assert!(check(&visibility, "shop/edge", "::ffff:10.1.0.1"));
        assert!(!check(&visibility, "shop/other", "10.1.0.1"));
        assert!(!check(&visibility, "bank", "10.1.0.1"), "a gateway is no sidecar");
        assert!(!check(&visibility, "shop/edge", "10.1.0.2"), "another pod");
        assert!(check(&visibility, "shop", "10.1.0.2"), "a sidecar");
        let tenants = Some(Tenants::parse(FILE).unwrap());
        let visibility = Visibility { tenants, pods: pods(), ..Visibility::default() };
        assert!(check(&visibility, "shop/edge", "10.1.0.2"), "the operator lets its network in");
        assert!(!check(&visibility, "bank/edge", "10.1.0.2"));
        assert!(!check(&visibility, "shop/other", "10.1.0.1"), "a Gateway's pod stays that");
    }

    #[test]
    fn gateways_on_one_nodes_network_do_not_shut_out_each_other_nor_others() {
        let gateways = ["edge", "other"].map(|name| ObjectName::new("shop", name));
        let node = IpAddr::from([192, 0, 2, 1]);
        let pods = HashMap::from([(node, Having::Node(gateways.into()))]);
        let pods = Some(Proxies::new(arc_swap::ArcSwap::from_pointee(pods)));
        let mut visibility = Visibility { pods, namespaces: Some(Pods::default()), ..Visibility::default() };
        let check = |visibility: &Visibility, view: &str| visibility.check(view, Some(node)).is_ok();
        assert!(check(&visibility, "shop/edge") && check(&visibility, "shop/other"));
        assert!(check(&visibility, "bank"), "what else is on the node's network");
        assert!(!check(&visibility, "bank/edge"));
        let file = FILE.replace("10.2.0.0/16", "192.0.2.0/24");
        visibility.tenants = Some(Tenants::parse(&file).unwrap());
        assert!(check(&visibility, "bank/edge") && check(&visibility, "shop/edge"));
        assert!(!check(&visibility, "shop/third"));
    }

    #[test]
    fn a_pod_is_told_of_its_own_namespace_only() {
        let known = Pods::default();
        let of = |last: u8| IpAddr::from([10, 1, 0, last]);
        let hear = |heard| known.hear(heard, tokio::time::Instant::now());
        hear(Heard::Applied(ObjectName::new("shop", "a"), vec![of(1)]));
        hear(Heard::Applied(ObjectName::new("bank", "b"), vec![of(2)]));
        let namespaces = || Some(known.clone());
        let mut visibility = Visibility { namespaces: namespaces(), ..Visibility::default() };
        let check = |visibility: &Visibility, view: &str, last| visibility.check(view, Some(of(last)));
        for (view, last, expected) in [
            ("shop", 1, true),
            ("shop/edge", 1, true),
            ("bank", 1, false),
            ("bank/edge", 1, false),
            ("nowhere", 1, false),
            ("", 1, false),
            ("bank", 2, true),
        ] {
            assert_eq!(check(&visibility, view, last).is_ok(), expected, "{view} {last}");
        }
        assert!(visibility.check("bank", Some("::ffff:10.1.0.1".parse().unwrap())).is_err());
        let vm = Some("10.1.1.1".parse().unwrap());
        assert!(visibility.check("bank", vm).is_ok() && visibility.check("shop/edge", vm).is_ok());
        assert!(check(&visibility, "shop", 3).is_err(), "it may be a pod's that is not known yet");
        let told = |view: &str| check(&visibility, view, 1).unwrap_err().replace(view, "?");
        assert_eq!(told("bank"), told("nowhere"), "it does not learn which there are");

        // The same where Gateways are given pods; theirs are told of their own all the same.
        let gateways = HashMap::from([(of(4), Having::Own(ObjectName::new("shop", "edge")))]);
        visibility.pods = Some(Proxies::new(arc_swap::ArcSwap::from_pointee(gateways)));
        hear(Heard::Applied(ObjectName::new("shop", "edge-1"), vec![of(4)]));
        assert!(check(&visibility, "shop/edge", 4).is_ok());
        assert!(check(&visibility, "shop", 4).is_err(), "a gateway is no sidecar");
        assert!(check(&visibility, "shop", 1).is_ok() && check(&visibility, "bank", 1).is_err());

        // Of a Gateway's pod that has gone nobody else is told, whichever is heard of first.
        hear(Heard::Applied(ObjectName::new("bank", "d"), vec![of(4)]));
        assert!(check(&visibility, "shop/edge", 4).is_err());
        hear(Heard::Deleted(ObjectName::new("bank", "d")));
        assert!(check(&visibility, "shop/edge", 4).is_ok());

        // Another has its address now. Until that is known it has to ask again.
        assert!(check(&visibility, "bank", 1).is_err());
        hear(Heard::Deleted(ObjectName::new("shop", "a")));
        hear(Heard::Applied(ObjectName::new("bank", "c"), vec![of(1)]));
        assert!(check(&visibility, "bank", 1).is_ok() && check(&visibility, "shop", 1).is_err());

        visibility.tenants = Some(Tenants::parse(FILE).unwrap());
        assert!(check(&visibility, "common", 1).is_ok(), "the operator lets its network in");
        assert!(check(&visibility, "bank", 1).is_ok() && check(&visibility, "nowhere", 1).is_err());
    }

    #[test]
    fn what_is_beside_pods_and_stays_unknown_is_let_in() {
        let newcomers = Newcomers::default();
        let (one, other) = (IpAddr::from([10, 1, 0, 3]), IpAddr::from([10, 1, 0, 4]));
        let begin = Instant::now();
        let at = |address, seconds| newcomers.has_settled(address, begin + Duration::from_secs(seconds));
        assert_eq!([at(one, 0), at(one, 9), at(one, 10), at(one, 69)], [false, false, true, true]);
        assert!(!at(one, 70), "it may be another's by then");
        assert!(at(one, 80) && !at(other, 80));
        newcomers.is_known(one);
        assert!(!at(one, 81));
    }

    #[test]
    fn a_file_that_says_nothing_is_refused() {
        for text in [
            "tenants: [{name: a, namespaces: [a], networks: []}]",
            "tenants: [{name: a, namespaces: [], networks: [10.0.0.0/8]}]",
            "tenants: [{name: a, namespaces: [a/b], networks: [10.0.0.0/8]}]",
            "tenants: [{name: a, namespaces: [a], network: [10.0.0.0/8]}]",
            "tenants: [{name: a, namespaces: [a], networks: [10.0.0]}]",
            "{}",
        ] {
            assert!(Tenants::parse(text).is_err(), "{text}");
        }
    }
}
