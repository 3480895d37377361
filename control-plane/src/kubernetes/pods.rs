//! In which namespace the pod is that has an address: what a client of xDS says of itself is held against it. Of a pod
//! only its name and its addresses are read and kept.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Pod, PodIP};
use kube::core::{ApiResource, Object};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::mirror::{Heard, Mirror};
use super::watch::{QUEUE, Relist, Said, follow};
use crate::objects::ObjectName;

/// Others may have been given the addresses of one that has ended.
const RUNS: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Of a pod, what is read of what the API server sends.
type Read = Object<Spec, Status>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    /// Its addresses are its node's, as are those of all others there that have this.
    host_network: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Status {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIP>>,
}

/// A pod's addresses, of both families.
pub(in crate::kubernetes) fn addresses(pod_ips: Option<&[PodIP]>, pod_ip: Option<&String>) -> Vec<IpAddr> {
    let all = pod_ips.into_iter().flatten().map(|ip| &ip.ip).chain(pod_ip);
    let all: BTreeSet<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    all.into_iter().collect()
}

/// All pods that have addresses of their own; always the newest.
#[derive(Debug, Clone)]
pub struct Pods(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    known: Mutex<Mirror<ObjectName, Vec<IpAddr>>>,
    listed: watch::Sender<bool>,
}

impl Default for Pods {
    fn default() -> Self {
        // As of a Gateway's pods: an address that is another's by now must not be taken for the one's before.
        Pods(Arc::new(Shared { known: Mutex::new(Mirror::trusting()), listed: watch::Sender::new(false) }))
    }
}

impl Pods {
    /// Begins to watch all namespaces; what comes with it runs until it is dropped.
    pub fn watch(client: Client) -> (Pods, impl Future<Output = ()> + Send + 'static) {
        let pods = Pods::default();
        let (hand_on, mut heard_in) = mpsc::channel(QUEUE);
        let api = Api::<Read>::all_with(client, &ApiResource::erase::<Pod>(&()));
        let config = watcher::Config::default().fields(RUNS);
        // It ends when nobody listens to it any more.
        tokio::spawn(follow(api, config, "Pod", Relist::default(), hand_on, heard));
        let followed = pods.clone();
        let following = async move {
            while let Some(heard) = heard_in.recv().await {
                heard.into_iter().for_each(|heard| followed.hear(heard, Instant::now()));
            }
        };
        (pods, following)
    }

    /// Waits until all were listed once.
    pub async fn complete(&self) {
        // The sender is this one's own.
        let _ = self.0.listed.subscribe().wait_for(|listed| *listed).await;
    }

    /// Takes up what was heard.
    pub fn hear(&self, heard: Heard<ObjectName, Vec<IpAddr>>, now: Instant) {
        let mut known = self.known();
        known.hear(heard, now);
        let is_complete = known.is_complete();
        drop(known);
        self.0.listed.send_if_modified(|listed| std::mem::replace(listed, is_complete) != is_complete);
    }

    /// Of the pods that have an address: one, but for the moments in which one that ends and one that begins are both
    /// known. Each is looked at, as it is asked once a stream.
    pub fn namespaces_of(&self, address: IpAddr) -> BTreeSet<Arc<str>> {
        let known = self.known();
        let having = known.iter().filter(|(_, addresses)| addresses.contains(&address));
        having.map(|(pod, _)| pod.namespace.clone()).collect()
    }

    /// Whether a pod has an address of the same network: of 256 of IPv4, or of a /64 of IPv6, which is the least that a node is
    /// given for its pods.
    pub fn are_beside(&self, address: IpAddr) -> bool {
        let is_near = |other: &IpAddr| match (address, other) {
            (IpAddr::V4(one), IpAddr::V4(other)) => one.octets()[..3] == other.octets()[..3],
            (IpAddr::V6(one), IpAddr::V6(other)) => one.segments()[..4] == other.segments()[..4],
            _ => false,
        };
        self.known().iter().any(|(_, addresses)| addresses.iter().any(is_near))
    }

    fn known(&self) -> MutexGuard<'_, Mirror<ObjectName, Vec<IpAddr>>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn heard(said: Said<Read>) -> Option<Heard<ObjectName, Vec<IpAddr>>> {
    let name = |pod: &Read| ObjectName::new(pod.namespace().unwrap_or_default(), pod.name_any());
    Some(match said {
        Said::Event(Event::Init) => Heard::ListBegins,
        Said::Event(Event::InitApply(pod)) => Heard::Listed(name(&pod), own_addresses(&pod)?),
        Said::Event(Event::InitDone) => Heard::ListEnds,
        Said::Event(Event::Apply(pod)) => match own_addresses(&pod) {
            Some(addresses) => Heard::Applied(name(&pod), addresses),
            None => Heard::Deleted(name(&pod)),
        },
        Said::Event(Event::Delete(pod)) => Heard::Deleted(name(&pod)),
        // They are a part of every Kubernetes.
        Said::Absent => return None,
    })
}

/// `None`: it has none yet, or its node's.
fn own_addresses(pod: &Read) -> Option<Vec<IpAddr>> {
    let status = pod.status.as_ref().filter(|_| pod.spec.host_network != Some(true))?;
    Some(addresses(status.pod_ips.as_deref(), status.pod_ip.as_ref())).filter(|all| !all.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, host_network: bool, ips: &[&str]) -> Read {
        let ips: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": name },
            "spec": { "hostNetwork": host_network, "containers": [{ "name": "a", "image": "b" }] },
            "status": { "phase": "Running", "podIP": ips.first().map(|ip| &ip["ip"]), "podIPs": ips },
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn an_address_is_of_its_pods_namespace_while_the_pod_has_it() {
        let pods = Pods::default();
        let say =
            |event| heard(Said::Event(event)).into_iter().for_each(|heard| pods.hear(heard, Instant::now()));
        let of = |address: &str| {
            let found = pods.namespaces_of(address.parse().unwrap());
            found.iter().map(ToString::to_string).collect::<Vec<String>>()
        };
        let both = ["10.1.0.1", "fd00::1"];
        say(Event::Init);
        say(Event::InitApply(pod("a", false, &both)));
        say(Event::InitApply(pod("node", true, &["192.0.2.1"])));
        say(Event::InitApply(pod("new", false, &[])));
        assert!(!*pods.0.listed.borrow());
        say(Event::InitDone);
        assert!(*pods.0.listed.borrow());
        assert_eq!((of("10.1.0.1"), of("fd00::1")), (vec!["shop".to_owned()], vec!["shop".to_owned()]));
        assert!(of("192.0.2.1").is_empty(), "a node's is nobody's in particular");
        say(Event::Apply(pod("new", false, &["10.1.0.2"])));
        assert_eq!(of("10.1.0.2"), ["shop"]);
        say(Event::Delete(pod("a", false, &both)));
        assert!(of("10.1.0.1").is_empty());
        // Of what a list does not have nothing is believed.
        say(Event::Init);
        say(Event::InitDone);
        assert!(of("10.1.0.2").is_empty());
    }
}
