//! Who is reached from here: pods from a VM, and what is outside of the cluster from a pod. It is told of the machine that
//! this runs on, by connecting and closing.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use tokio::net::TcpStream;

use super::{Category, Check, Cluster, Options, Unseen};
use crate::infrastructure::provision::GATEWAY_NAME;
use crate::kubernetes::role::{LEADER, ROLE};

/// For one connection.
const CONNECT: Duration = Duration::from_secs(3);
/// At a time.
const AT_ONCE: usize = 16;
/// Of each sort, so many are tried.
const TRIED: usize = 32;
/// Of those that are not reached, so many are named.
const NAMED: usize = 3;
/// Ports of pods, by what they are for: xDS, and the health of proxies.
const XDS: u16 = 18_000;
const HEALTH: u16 = 15_021;

/// How many have to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Must {
    All,
    Some,
    None,
}

pub(super) async fn look(cluster: &Cluster, options: &Options) -> Category {
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let planes = pods(cluster, &cluster.namespace, &format!("{ROLE}={LEADER}"), XDS).await;
    let gateways = pods(cluster, "", GATEWAY_NAME, HEALTH).await;
    // A machine that nobody sends requests from need not reach them.
    let pods_must = if in_pod || options.from_vm { Must::All } else { Must::None };
    // An endpoint may be down, and it says nothing of the way there.
    let endpoints_must = if in_pod { Must::Some } else { Must::None };
    let mut checks = vec![
        tried("the control plane's pod is reached from here", planes, pods_must).await,
        tried("pods of Gateways are reached from here", gateways, pods_must).await,
        tried("endpoints of Pools are reached from here", endpoints(cluster).await, endpoints_must).await,
    ];
    if !options.reach.is_empty() {
        checks.push(
            tried("what --reach names is reached from here", Ok(options.reach.clone()), Must::All).await,
        );
    }
    Category { name: "reachability", checks }
}

/// The addresses of ready pods, with a port.
async fn pods(cluster: &Cluster, namespace: &str, label: &str, port: u16) -> Result<Vec<String>, Unseen> {
    let client = cluster.client.clone();
    let api = if namespace.is_empty() { Api::<Pod>::all(client) } else { Api::namespaced(client, namespace) };
    let pods = cluster.within(api.list(&ListParams::default().labels(label))).await?;
    Ok(pods.items.iter().filter_map(|pod| ready_address(pod, port)).collect())
}

fn ready_address(pod: &Pod, port: u16) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let is_ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let is_ending = pod.metadata.deletion_timestamp.is_some();
    let ip: std::net::IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    (is_ready && !is_ending).then(|| std::net::SocketAddr::from((ip, port)).to_string())
}

/// Those that Pools name by address: VMs, as a rule.
async fn endpoints(cluster: &Cluster) -> Result<Vec<String>, Unseen> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("pontoon.dev", "v1alpha1", "Pool"));
    let api = Api::<DynamicObject>::all_with(cluster.client.clone(), &resource);
    let pools = cluster.within(async {
        match api.list(&ListParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            listed => listed.map(|list| list.items),
        }
    });
    Ok(pools.await?.iter().flat_map(of_pool).collect())
}

fn of_pool(pool: &DynamicObject) -> Vec<String> {
    let endpoints = pool.data["spec"]["endpoints"].as_array().into_iter().flatten();
    endpoints
        .filter_map(|endpoint| {
            let address: std::net::IpAddr = endpoint["address"].as_str()?.parse().ok()?;
            let port = u16::try_from(endpoint["port"].as_u64()?).ok()?;
            Some(std::net::SocketAddr::from((address, port)).to_string())
        })
        .collect()
}

async fn tried(what: &str, targets: Result<Vec<String>, Unseen>, must: Must) -> Check {
    let targets = match targets {
        Ok(targets) => targets,
        Err(error) => return Check::unseen(what, &error),
    };
    let connected = targets.iter().take(TRIED).map(|target| async move {
        match tokio::time::timeout(CONNECT, TcpStream::connect(target.as_str())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("{target}: {error}")),
            Err(_) => Err(format!("{target}: no answer in {CONNECT:?}")),
        }
    });
    let results: Vec<Result<(), String>> = stream::iter(connected).buffered(AT_ONCE).collect().await;
    judge(what, &results, must)
}

fn judge(what: &str, results: &[Result<(), String>], must: Must) -> Check {
    if results.is_empty() {
        return Check::skipped(what, "there are none");
    }
    let all = results.len();
    let lost: Vec<&str> =
        results.iter().filter_map(|result| result.as_ref().err()).map(String::as_str).collect();
    if lost.is_empty() {
        return Check::seen(what, format!("{all} of {all}"));
    }
    let why = format!("{} of {all} are not: {}", lost.len(), lost[..lost.len().min(NAMED)].join("; "));
    let hint = "look at routes between the networks (pods' addresses have to be routed there, and the way back), at \
                NetworkPolicies, at firewalls";
    match must {
        Must::Some if lost.len() < all => Check::warning(what, why, hint),
        Must::All | Must::Some => Check::failed(what, why, hint),
        Must::None => Check::skipped(what, format!("{why}; on a VM: --from-vm")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Outcome;

    #[tokio::test]
    async fn who_listens_is_reached_and_who_does_not_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap().to_string();
        assert_eq!(tried("x", Ok(vec![there.clone()]), Must::All).await.outcome, Outcome::Ok);
        // Nobody may listen below 1024 by chance.
        let nobody = || "127.0.0.1:1".to_owned();
        let both = tried("x", Ok(vec![there.clone(), nobody()]), Must::All).await;
        assert_eq!(both.outcome, Outcome::Failed);
        assert!(both.why.unwrap().starts_with("1 of 2 are not: 127.0.0.1:1: "));
        let some = tried("x", Ok(vec![there, nobody()]), Must::Some).await;
        assert_eq!(some.outcome, Outcome::Warning);
        assert_eq!(tried("x", Ok(vec![nobody()]), Must::Some).await.outcome, Outcome::Failed);
        assert_eq!(tried("x", Ok(vec![nobody()]), Must::None).await.outcome, Outcome::Skipped);
        assert_eq!(tried("x", Ok(Vec::new()), Must::All).await.outcome, Outcome::Skipped);
        let hidden = Err(Unseen::Forbidden("no".to_owned()));
        assert_eq!(tried("x", hidden, Must::All).await.outcome, Outcome::Skipped);
    }

    #[test]
    fn a_pod_that_is_ready_and_stays_has_an_address() {
        let pod = |ready: &str, ip: &str, deleted: bool| {
            let deletion = deleted.then_some("2026-11-28T12:00:00Z");
            let pod: Pod = serde_json::from_value(json!({
                "metadata": { "deletionTimestamp": deletion },
                "status": { "podIP": ip, "conditions": [{ "type": "Ready", "status": ready }] },
            }))
            .unwrap();
            ready_address(&pod, 80)
        };
        assert_eq!(pod("True", "10.1.0.1", false).as_deref(), Some("10.1.0.1:80"));
        assert_eq!(pod("True", "fd00::1", false).as_deref(), Some("[fd00::1]:80"));
        assert_eq!(pod("False", "10.1.0.1", false), None);
        assert_eq!(pod("True", "10.1.0.1", true), None);
    }

    #[test]
    fn a_pools_endpoints_are_those_with_an_address() {
        let pool: DynamicObject = serde_json::from_value(json!({
            "metadata": { "name": "orders" },
            "spec": { "endpoints": [
                { "address": "10.9.0.1", "port": 8080 }, { "address": "orders.example", "port": 80 }, { "port": 1 },
            ] },
        }))
        .unwrap();
        assert_eq!(of_pool(&pool), ["10.9.0.1:8080"]);
    }
}
