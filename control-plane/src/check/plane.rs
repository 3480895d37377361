//! The control plane: its Deployment, whether one of its replicas leads, and whether proxies are led there.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::ListParams;

use super::{Category, Check, Cluster, Unseen};
use crate::kubernetes::election;
use crate::kubernetes::lease;
use crate::kubernetes::role::{LEADER, ROLE};
use crate::objects::Controller;

/// Of the Deployment and the Service, in the chart.
const CONTROL_PLANE: &str = "pontoon";
const GATEWAY_IMAGE: &str = "PONTOON_GATEWAY_IMAGE";
/// Clocks differ, and a renewal takes a moment.
const LEASE_SLACK: SignedDuration = SignedDuration::from_secs(20);

pub(super) struct Plane {
    pub(super) category: Category,
    /// It gives Gateways pods.
    pub(super) makes_gateways: bool,
}

pub(super) async fn look(cluster: &Cluster, controller: &Controller) -> Plane {
    let lease_name = controller.own(lease::NAME);
    let deployment = cluster.own::<Deployment>(CONTROL_PLANE).await;
    let makes_gateways = deployment.as_ref().is_ok_and(|found| {
        let pod = found.as_ref().and_then(|found| found.spec.as_ref()?.template.spec.as_ref());
        let containers = pod.into_iter().flat_map(|pod| &pod.containers);
        containers.flat_map(|of| of.env.iter().flatten()).any(|variable| variable.name == GATEWAY_IMAGE)
    });
    let mut checks = vec![
        ready("the control plane is ready", &deployment),
        version(&deployment),
        leads(&cluster.own::<Lease>(&lease_name).await, Timestamp::now()),
        alone(&cluster.namespace, &leases(cluster, &lease_name).await, Timestamp::now()),
    ];
    checks.push(service(&cluster.own::<Service>(CONTROL_PLANE).await, &leaders(cluster).await));
    Plane { category: Category { name: "control-plane", checks }, makes_gateways }
}

/// All pods of a Deployment are ready.
pub(super) fn ready(what: &str, deployment: &Result<Option<Deployment>, Unseen>) -> Check {
    let deployment = match deployment {
        Ok(Some(deployment)) => deployment,
        Ok(None) => {
            let hint =
                "is it installed in another namespace? Say so with --namespace, or install it: helm install";
            return Check::failed(what, "there is no such Deployment", hint);
        }
        Err(error) => return Check::unseen(what, error),
    };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.as_ref();
    let ready = status.and_then(|status| status.ready_replicas).unwrap_or_default();
    let updated = status.and_then(|status| status.updated_replicas).unwrap_or_default();
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let hint = format!(
        "kubectl describe pods -l app.kubernetes.io/name={name} says what they wait for, kubectl logs what they say"
    );
    let why = format!("{ready} of {wanted} pods are ready");
    match (ready, wanted) {
        (0, _) => Check::failed(what, why, &hint),
        (ready, wanted) if ready < wanted || updated < wanted => {
            Check::warning(what, format!("{why}, {updated} as they were asked for last"), &hint)
        }
        _ => Check::seen(what, why),
    }
}

fn version(deployment: &Result<Option<Deployment>, Unseen>) -> Check {
    let what = "it is of this program's version";
    let Ok(Some(deployment)) = deployment else { return Check::skipped(what, "it is not there") };
    let labels = deployment.metadata.labels.as_ref();
    let is = labels.and_then(|labels| labels.get("app.kubernetes.io/version"));
    let ours = env!("CARGO_PKG_VERSION");
    match is {
        Some(is) if is == ours => Check::seen(what, ours),
        Some(is) => Check::warning(
            what,
            format!("it is {is}, this program {ours}"),
            "check with the program of that version, or upgrade: helm upgrade",
        ),
        None => Check::skipped(what, "it does not say of which it is"),
    }
}

fn leads(lease: &Result<Option<Lease>, Unseen>, now: Timestamp) -> Check {
    let what = "one of its replicas leads";
    let hint = "nobody writes statuses or makes Gateways' pods: kubectl logs -l app.kubernetes.io/name=pontoon says why, \
                kubectl get lease pontoon who was last";
    let spec = match lease {
        Ok(lease) => lease.as_ref().and_then(|lease| lease.spec.as_ref()),
        Err(error) => return Check::unseen(what, error),
    };
    match spec.map_or_else(|| Err("nobody holds the Lease".to_owned()), |spec| holder(spec, now)) {
        Ok(holder) => Check::seen(what, holder),
        Err(why) => Check::failed(what, why, hint),
    }
}

/// Those of that name in all namespaces: it is made of the controller's.
async fn leases(cluster: &Cluster, name: &str) -> Result<Vec<Lease>, Unseen> {
    let named = ListParams::default().fields(&format!("metadata.name={name}"));
    let leases = Api::<Lease>::all(cluster.client.clone());
    Ok(cluster.within(leases.list(&named)).await?.items)
}

/// No other installation takes the same classes for its own. Both would make what their Gateways run in.
fn alone(namespace: &str, leases: &Result<Vec<Lease>, Unseen>, now: Timestamp) -> Check {
    let what = "no other installation has the same controllerName";
    let hint = "uninstall one of them, or give it a name and a class of its own: gateways.controllerName, gateways.class.name";
    let leases = match leases {
        Ok(leases) => leases,
        Err(error) => return Check::unseen(what, error),
    };
    let is_alive = |lease: &&Lease| lease.spec.as_ref().is_some_and(|spec| holder(spec, now).is_ok());
    let others = leases.iter().filter(is_alive).filter_map(|lease| lease.metadata.namespace.as_deref());
    let others: Vec<&str> = others.filter(|other| *other != namespace).collect();
    match others.as_slice() {
        [] => Check::ok(what),
        others => Check::failed(what, format!("one leads in namespace {}", others.join(", ")), hint),
    }
}

/// Who holds a lease; or why nobody does.
fn holder(spec: &LeaseSpec, now: Timestamp) -> Result<&str, String> {
    let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty());
    let (Some(holder), Some(renewed)) = (holder, &spec.renew_time) else {
        return Err("nobody holds the Lease".to_owned());
    };
    let since = now.duration_since(renewed.0);
    let longest = SignedDuration::try_from(election::DURATION).unwrap_or(SignedDuration::ZERO) + LEASE_SLACK;
    if since > longest { Err(format!("{holder} did {} s ago", since.as_secs())) } else { Ok(holder) }
}

/// The pods that say that they lead.
async fn leaders(cluster: &Cluster) -> Result<Vec<String>, Unseen> {
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), &cluster.namespace);
    let with_label = ListParams::default().labels(&format!("{ROLE}={LEADER}"));
    let pods = cluster.within(pods.list_metadata(&with_label)).await?;
    Ok(pods.items.into_iter().filter_map(|pod| pod.metadata.name).collect())
}

fn service(service: &Result<Option<Service>, Unseen>, leaders: &Result<Vec<String>, Unseen>) -> Check {
    let what = "proxies are led to the one that leads";
    let hint = "helm upgrade restores the Service; the label pontoon.dev/role of its pods is written by the one that leads";
    match (service, leaders) {
        (Err(error), _) | (_, Err(error)) => Check::unseen(what, error),
        (Ok(None), _) => Check::failed(what, "there is no Service pontoon", hint),
        (Ok(Some(_)), Ok(leaders)) => match leaders.as_slice() {
            [_] => Check::ok(what),
            [] => Check::failed(what, format!("no pod has the label {ROLE}={LEADER}"), hint),
            // A moment ago another did.
            several => Check::warning(what, format!("several pods have it: {}", several.join(", ")), hint),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::check::Outcome;

    fn deployment(replicas: i32, ready: i32, updated: i32) -> Result<Option<Deployment>, Unseen> {
        let value = json!({
            "metadata": { "name": "pontoon", "labels": { "app.kubernetes.io/version": env!("CARGO_PKG_VERSION") } },
            "spec": { "replicas": replicas, "selector": {}, "template": {} },
            "status": { "readyReplicas": ready, "updatedReplicas": updated },
        });
        Ok(Some(serde_json::from_value(value).unwrap()))
    }

    #[test]
    fn a_deployment_is_ready_when_all_of_its_pods_are() {
        for (deployed, expected) in [
            (deployment(2, 2, 2), Outcome::Ok),
            (deployment(2, 1, 2), Outcome::Warning),
            (deployment(2, 2, 1), Outcome::Warning),
            (deployment(2, 0, 2), Outcome::Failed),
            (deployment(0, 0, 0), Outcome::Failed),
            (Ok(None), Outcome::Failed),
            (Err(Unseen::Forbidden("no".into())), Outcome::Skipped),
        ] {
            assert_eq!(ready("x", &deployed).outcome, expected, "{deployed:?}");
        }
        assert_eq!(version(&deployment(1, 1, 1)).outcome, Outcome::Ok);
    }

    #[test]
    fn who_leads_has_renewed_the_lease() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let of =
            |spec: Value| leads(&Ok(Some(serde_json::from_value(json!({ "spec": spec })).unwrap())), now);
        let held = |by: &str, at: &str| of(json!({ "holderIdentity": by, "renewTime": at }));
        assert_eq!(held("pontoon-a", "2026-11-28T11:59:58.000000Z").outcome, Outcome::Ok);
        assert_eq!(
            held("pontoon-a", "2026-11-28T12:00:09.000000Z").outcome,
            Outcome::Ok,
            "its clock is ahead"
        );
        let late = held("pontoon-a", "2026-11-28T11:58:00.000000Z");
        assert_eq!((late.outcome, late.why.as_deref()), (Outcome::Failed, Some("pontoon-a did 120 s ago")));
        assert_eq!(held("", "2026-11-28T11:59:58.000000Z").outcome, Outcome::Failed);
        assert_eq!(of(json!({})).outcome, Outcome::Failed, "as the chart makes it");
        assert_eq!(leads(&Ok(None), now).outcome, Outcome::Failed);
    }

    #[test]
    fn another_installation_of_the_same_name_is_told_by_its_lease() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let lease = |namespace: &str, at: &str| -> Lease {
            let spec = json!({ "holderIdentity": "pontoon-a", "renewTime": at });
            let metadata = json!({ "name": "pontoon", "namespace": namespace });
            serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).unwrap()
        };
        let (lately, long_ago) = ("2026-11-28T11:59:58.000000Z", "2026-11-28T11:00:00.000000Z");
        let of = |leases: Vec<Lease>| alone("ours", &Ok(leases), now);
        assert_eq!(of(vec![lease("ours", lately)]).outcome, Outcome::Ok);
        assert_eq!(of(vec![lease("ours", lately), lease("left", long_ago)]).outcome, Outcome::Ok);
        let two = of(vec![lease("ours", lately), lease("theirs", lately)]);
        assert_eq!(
            (two.outcome, two.why.as_deref()),
            (Outcome::Failed, Some("one leads in namespace theirs"))
        );
        let forbidden = Err(Unseen::Forbidden("no".to_owned()));
        assert_eq!(alone("ours", &forbidden, now).outcome, Outcome::Skipped);
    }

    #[test]
    fn one_pod_says_that_it_leads() {
        let there = || Ok(Some(Service::default()));
        let names = |names: &[&str]| Ok(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(service(&there(), &names(&["a"])).outcome, Outcome::Ok);
        assert_eq!(service(&there(), &names(&[])).outcome, Outcome::Failed);
        assert_eq!(service(&there(), &names(&["a", "b"])).outcome, Outcome::Warning);
        assert_eq!(service(&Ok(None), &names(&["a"])).outcome, Outcome::Failed);
    }
}
