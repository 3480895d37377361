//! What the API server has of the infrastructure of Gateways, of ours only: events in, standings out, no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use pontoon_xds::server as xds;
use serde::Serialize;
use tokio::time::Instant;
use twox_hash::XxHash64;

use super::Having;
use crate::infrastructure::provision::GATEWAY;
use crate::infrastructure::{Address, Standing, Standings};
use crate::kubernetes::mirror::{Change, Heard, Mirror};
use crate::kubernetes::pods::addresses as addresses_of;
use crate::objects::ObjectName;

/// Of one Deployment, Service, ServiceAccount or PodDisruptionBudget, what matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    /// Whose it is.
    pub(super) gateway: ObjectName,
    /// The `uid` of its controller.
    pub(super) owner: String,
    /// The sum of what is asked for in it: changes when anybody changes that.
    pub(super) sum: u64,
    /// Of a Service: where it is reached.
    addresses: Vec<Address>,
    /// Of a Deployment: whether a pod is available.
    is_available: bool,
}

impl Made {
    pub(super) fn deployment(deployment: &Deployment) -> Option<Made> {
        let status = deployment.status.as_ref();
        let available = status.and_then(|status| status.available_replicas).unwrap_or_default();
        let made = Made::of(&deployment.metadata, &deployment.spec)?;
        Some(Made { is_available: available > 0, ..made })
    }

    pub(super) fn service(service: &Service) -> Option<Made> {
        Some(Made { addresses: addresses(service), ..Made::of(&service.metadata, &service.spec)? })
    }

    /// What else is in it may be the API server's own.
    pub(super) fn account(account: &ServiceAccount) -> Option<Made> {
        Made::of(&account.metadata, &account.automount_service_account_token)
    }

    pub(super) fn budget(budget: &PodDisruptionBudget) -> Option<Made> {
        Made::of(&budget.metadata, &budget.spec)
    }

    fn of(metadata: &ObjectMeta, spec: &impl Serialize) -> Option<Made> {
        let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let asked = serde_json::to_vec(&(&metadata.labels, spec)).unwrap_or_default();
        Some(Made {
            gateway: gateway_of(metadata)?,
            owner: owner.map(|owner| owner.uid.clone()).unwrap_or_default(),
            sum: XxHash64::oneshot(0, &asked),
            addresses: Vec::new(),
            is_available: false,
        })
    }
}

fn gateway_of(metadata: &ObjectMeta) -> Option<ObjectName> {
    let name = metadata.annotations.as_ref()?.get(GATEWAY)?;
    Some(ObjectName::new(metadata.namespace.as_deref()?, name.as_str()))
}

/// At which a Service is reached, the widest first.
fn addresses(service: &Service) -> Vec<Address> {
    let ip = |value: &String| Address { kind: "IPAddress", value: value.clone() };
    let Some(spec) = &service.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("LoadBalancer") {
        let ingress = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
        let ingress = ingress.flat_map(|balancer| balancer.ingress.iter().flatten());
        return ingress
            .filter_map(|one| match (&one.ip, &one.hostname) {
                (Some(value), _) => Some(ip(value)),
                (None, Some(name)) => Some(Address { kind: "Hostname", value: name.clone() }),
                (None, None) => None,
            })
            .collect();
    }
    // `None` is a Service without an address.
    spec.cluster_ips.iter().flatten().filter(|value| value.parse::<IpAddr>().is_ok()).map(ip).collect()
}

/// A Gateway's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    ips: Vec<IpAddr>,
    /// They are its node's.
    is_on_host: bool,
    gateway: ObjectName,
    /// It serves, and is not about to end.
    is_ready: bool,
}

/// Reads a pod. One that has ended keeps its addresses in its status, and others may have been given them since.
pub(super) fn proxy(pod: &Pod) -> Option<Proxy> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let ips = addresses_of(status.pod_ips.as_deref(), status.pod_ip.as_ref());
    if ips.is_empty() {
        return None;
    }
    let mut conditions = status.conditions.iter().flatten();
    let is_ready = pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let is_on_host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    Some(Proxy { ips, is_on_host, gateway: gateway_of(&pod.metadata)?, is_ready })
}

/// All of it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) deployments: Mirror<ObjectName, Option<Made>>,
    pub(super) services: Mirror<ObjectName, Option<Made>>,
    pub(super) accounts: Mirror<ObjectName, Option<Made>>,
    pub(super) budgets: Mirror<ObjectName, Option<Made>>,
    pods: Mirror<ObjectName, Option<Proxy>>,
}

impl Default for Seen {
    fn default() -> Self {
        let (deployments, services) = (Mirror::default(), Mirror::default());
        let (accounts, budgets) = (Mirror::default(), Mirror::default());
        // An address that is taken for a pod's after it has gone opens another's keys to whoever has it then. A pod that
        // is missed meanwhile goes on with what it has.
        Seen { deployments, services, accounts, budgets, pods: Mirror::trusting() }
    }
}

/// What is heard of one of the five.
#[derive(Debug)]
pub(super) enum News {
    Deployment(Heard<ObjectName, Option<Made>>),
    Service(Heard<ObjectName, Option<Made>>),
    Account(Heard<ObjectName, Option<Made>>),
    Budget(Heard<ObjectName, Option<Made>>),
    Pod(Heard<ObjectName, Option<Proxy>>),
}

impl Seen {
    pub(super) fn is_complete(&self) -> bool {
        let made = [&self.deployments, &self.services, &self.accounts, &self.budgets];
        made.iter().all(|made| made.is_complete()) && self.pods.is_complete()
    }

    pub(super) fn hear(&mut self, news: News, now: Instant) -> Change<ObjectName> {
        match news {
            News::Deployment(heard) => self.deployments.hear(heard, now),
            News::Service(heard) => self.services.hear(heard, now),
            News::Account(heard) => self.accounts.hear(heard, now),
            News::Budget(heard) => self.budgets.hear(heard, now),
            News::Pod(heard) => self.pods.hear(heard, now),
        }
    }

    pub(super) fn standings(&self) -> Standings {
        let mut standings = Standings::new();
        let of = |standings: &mut Standings, made: &Made, with: &dyn Fn(&mut Standing)| {
            with(standings.entry(made.gateway.clone()).or_default());
        };
        for made in self.deployments.iter().filter_map(|(_, made)| made.as_ref()) {
            of(&mut standings, made, &|standing| standing.is_available |= made.is_available);
        }
        for made in self.services.iter().filter_map(|(_, made)| made.as_ref()) {
            of(&mut standings, made, &|standing| standing.addresses.extend(made.addresses.iter().cloned()));
        }
        standings
    }

    /// Which Gateway's each address is.
    pub(super) fn proxies(&self) -> HashMap<IpAddr, Having> {
        let mut proxies = HashMap::new();
        for proxy in self.pods.iter().filter_map(|(_, proxy)| proxy.as_ref()) {
            for ip in &proxy.ips {
                match proxies.get_mut(ip) {
                    Some(Having::Node(gateways)) if proxy.is_on_host => {
                        gateways.insert(proxy.gateway.clone());
                    }
                    None if proxy.is_on_host => {
                        proxies.insert(*ip, Having::Node(BTreeSet::from([proxy.gateway.clone()])));
                    }
                    // A pod's own is no node's.
                    _ if proxy.is_on_host => {}
                    _ => {
                        proxies.insert(*ip, Having::Own(proxy.gateway.clone()));
                    }
                }
            }
        }
        proxies
    }

    /// As who each of the pods comes to the xDS server, and whether it is ready.
    pub(super) fn clients(&self) -> BTreeMap<xds::Client, bool> {
        let client = |(pod, proxy): (&ObjectName, &Option<Proxy>)| {
            let proxy = proxy.as_ref()?;
            let client = xds::Client { view: proxy.gateway.to_string(), node: pod.to_string() };
            Some((client, proxy.is_ready))
        };
        self.pods.iter().filter_map(client).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn metadata(gateway: &str) -> Value {
        json!({
            "name": format!("{gateway}-pontoon"), "namespace": "shop",
            "annotations": { GATEWAY: gateway },
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": gateway, "uid": "u-1",
                "controller": true,
            }],
        })
    }

    fn service(spec: Value, status: Value) -> Option<Made> {
        let service = json!({ "metadata": metadata("edge"), "spec": spec, "status": status });
        Made::service(&serde_json::from_value(service).unwrap())
    }

    fn said(made: Option<Made>) -> Vec<(&'static str, String)> {
        made.unwrap().addresses.into_iter().map(|address| (address.kind, address.value)).collect()
    }

    #[test]
    fn a_gateway_is_reached_where_its_service_is() {
        let ips = json!(["10.96.0.7", "fd00::7"]);
        let cluster = service(json!({ "type": "ClusterIP", "clusterIPs": ips }), json!({}));
        assert_eq!(
            said(cluster),
            [("IPAddress", "10.96.0.7".to_owned()), ("IPAddress", "fd00::7".to_owned())]
        );
        assert_eq!(said(service(json!({ "type": "ClusterIP", "clusterIPs": ["None"] }), json!({}))), []);
        let spec = json!({ "type": "LoadBalancer", "clusterIPs": ips });
        assert_eq!(said(service(spec.clone(), json!({}))), [], "the balancer has none yet");
        let ingress =
            json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }, { "hostname": "lb.example" }] } });
        let wanted = [("IPAddress", "192.0.2.1".to_owned()), ("Hostname", "lb.example".to_owned())];
        assert_eq!(said(service(spec, ingress)), wanted);
    }

    #[test]
    fn only_what_is_asked_for_is_a_change() {
        let with = |ports: Value, status: Value| {
            service(json!({ "clusterIPs": ["10.96.0.7"], "ports": ports }), status).unwrap().sum
        };
        let ports = json!([{ "port": 80 }]);
        let before = with(ports.clone(), json!({}));
        assert_eq!(before, with(ports, json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } })));
        assert_ne!(before, with(json!([{ "port": 81 }]), json!({})));
    }

    #[test]
    fn what_goes_of_all_that_was_made_is_news() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        let name = ObjectName::new("shop", "edge-pontoon");
        let account = |automount: bool, secrets: Value| {
            let account = json!({
                "metadata": metadata("edge"), "automountServiceAccountToken": automount, "secrets": secrets,
            });
            Made::account(&serde_json::from_value(account).unwrap())
        };
        let budget = |most: u32| {
            let budget = json!({ "metadata": metadata("edge"), "spec": { "maxUnavailable": most } });
            Made::budget(&serde_json::from_value(budget).unwrap())
        };
        let mut is_news = |news: News| !seen.hear(news, now).keys.is_empty();
        assert!(is_news(News::Account(Heard::Applied(name.clone(), account(false, json!([]))))));
        let with_token = account(false, json!([{ "name": "edge-token" }]));
        assert!(!is_news(News::Account(Heard::Applied(name.clone(), with_token))), "others write that");
        assert!(is_news(News::Account(Heard::Applied(name.clone(), account(true, json!([]))))));
        assert!(is_news(News::Account(Heard::Deleted(name.clone()))));
        assert!(is_news(News::Budget(Heard::Applied(name.clone(), budget(1)))));
        assert!(is_news(News::Budget(Heard::Applied(name.clone(), budget(2)))));
        assert!(is_news(News::Budget(Heard::Deleted(name))));
    }

    #[test]
    fn a_gateways_standing_is_that_of_both() {
        let mut seen = Seen::default();
        let now = Instant::now();
        let name = ObjectName::new("shop", "edge-pontoon");
        let made = service(json!({ "clusterIPs": ["10.96.0.7"] }), json!({}));
        seen.hear(News::Service(Heard::Applied(name.clone(), made)), now);
        let deployment = |available: i32| {
            let status = json!({ "availableReplicas": available });
            let deployment = json!({ "metadata": metadata("edge"), "status": status });
            Made::deployment(&serde_json::from_value(deployment).unwrap())
        };
        let gateway = ObjectName::new("shop", "edge");
        for (available, is_available) in [(0, false), (1, true), (0, false)] {
            seen.hear(News::Deployment(Heard::Applied(name.clone(), deployment(available))), now);
            let standing = &seen.standings()[&gateway];
            assert_eq!((standing.is_available, standing.addresses.len()), (is_available, 1));
        }
        seen.hear(News::Service(Heard::Deleted(name)), now);
        assert!(seen.standings()[&gateway].addresses.is_empty());
    }

    #[test]
    fn a_pod_without_an_address_is_nobody() {
        let pod = |status: Value, metadata: Value| {
            proxy(&serde_json::from_value(json!({ "metadata": metadata, "status": status })).unwrap())
        };
        assert_eq!(pod(json!({}), metadata("edge")), None);
        let of_edge = |ips: &[&str]| {
            let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            Some(Proxy { ips, is_on_host: false, gateway: ObjectName::new("shop", "edge"), is_ready: false })
        };
        assert_eq!(pod(json!({ "podIP": "10.1.0.1" }), metadata("edge")), of_edge(&["10.1.0.1"]));
        let both = json!([{ "ip": "10.1.0.1" }, { "ip": "fd00::1" }]);
        let status = json!({ "podIP": "10.1.0.1", "podIPs": both, "phase": "Running" });
        assert_eq!(pod(status, metadata("edge")), of_edge(&["10.1.0.1", "fd00::1"]));
        for phase in ["Succeeded", "Failed"] {
            assert_eq!(
                pod(json!({ "podIP": "10.1.0.1", "phase": phase }), metadata("edge")),
                None,
                "{phase}"
            );
        }
        assert_eq!(pod(json!({ "podIP": "10.1.0.1" }), json!({ "name": "x", "namespace": "shop" })), None);
    }

    #[test]
    fn a_pod_is_ready_until_it_is_told_to_end() {
        let is_ready = |ready: &str, deleted: Value| {
            let mut metadata = metadata("edge");
            metadata["deletionTimestamp"] = deleted;
            let status = json!({ "podIP": "10.1.0.1", "conditions": [{ "type": "Ready", "status": ready }] });
            let pod = json!({ "metadata": metadata, "status": status });
            proxy(&serde_json::from_value(pod).unwrap()).unwrap().is_ready
        };
        assert!(is_ready("True", Value::Null));
        assert!(!is_ready("False", Value::Null));
        assert!(!is_ready("True", json!("2026-11-01T00:00:00Z")));
    }

    #[test]
    fn a_nodes_address_is_not_one_gateways() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        for (name, address) in [("edge", "192.0.2.1"), ("other", "192.0.2.1"), ("edge", "192.0.2.2")] {
            let pod = json!({
                "metadata": metadata(name), "spec": { "hostNetwork": true, "containers": [] },
                "status": { "podIP": address },
            });
            let pod = proxy(&serde_json::from_value(pod).unwrap());
            let named = ObjectName::new("shop", format!("{name}-{address}"));
            seen.hear(News::Pod(Heard::Applied(named, pod)), now);
        }
        let [edge, other] = ["edge", "other"].map(|name| ObjectName::new("shop", name));
        let proxies = seen.proxies();
        let of = |address: [u8; 4]| proxies.get(&IpAddr::from(address)).cloned();
        assert_eq!(of([192, 0, 2, 1]), Some(Having::Node(BTreeSet::from([edge.clone(), other]))));
        assert_eq!(of([192, 0, 2, 2]), Some(Having::Node(BTreeSet::from([edge]))));
    }

    #[test]
    fn a_pod_that_a_list_does_not_have_is_nobody_at_once() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        let name = ObjectName::new("shop", "edge-1");
        let gateway = ObjectName::new("shop", "edge");
        let ips = vec![IpAddr::from([10, 1, 0, 1])];
        let of = Proxy { ips, is_on_host: false, gateway, is_ready: true };
        seen.hear(News::Pod(Heard::Applied(name, Some(of))), now);
        assert_eq!(seen.proxies().len(), 1);
        let client = xds::Client { view: "shop/edge".into(), node: "shop/edge-1".into() };
        assert_eq!(seen.clients(), BTreeMap::from([(client, true)]), "as its bootstrap says");
        for heard in [Heard::ListBegins, Heard::ListEnds] {
            assert_eq!(seen.hear(News::Pod(heard), now).doubted, 0);
        }
        assert!(seen.proxies().is_empty());
    }
}
