//! Says by a label of its own pod that this replica leads, so that the Service of the control plane leads proxies to it.
//! Whether a change is in force is what all proxies have acknowledged, and only who has them all can say so; the other
//! replicas are loaded and wait. Out of a pod nothing is labelled, and all replicas are asked.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use pontoon_xds::server::Server;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The label.
pub const ROLE: &str = "pontoon.dev/role";
/// Its value on the pod that leads.
pub const LEADER: &str = "leader";
/// Between looks: somebody may change a label.
const LOOK: Duration = Duration::from_secs(10);
/// After a look that failed: proxies that come anew find nobody meanwhile.
const AGAIN: Duration = Duration::from_secs(1);
/// For one look.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keeps the label until `stop`. Proxies that are connected here while another leads are sent there.
pub async fn keep(
    client: Client,
    namespace: String,
    pod: String,
    mut leads: watch::Receiver<bool>,
    server: Server,
    stop: CancellationToken,
) {
    let pods = Api::<Pod>::namespaced(client, &namespace);
    let mut is_pod = false;
    loop {
        let leads_now = *leads.borrow_and_update();
        let looked = tokio::time::timeout(PATIENCE, async {
            if !is_pod {
                let own = ListParams::default().fields(&format!("metadata.name={pod}"));
                is_pod = !pods.list_metadata(&own).await?.items.is_empty();
            }
            if is_pod { look(&pods, &pod, leads_now).await.map(Some) } else { Ok(None) }
        });
        let pause = match looked.await {
            Ok(Ok(None)) => {
                tracing::debug!(
                    namespace,
                    replica = pod,
                    "this replica is no pod; no label says that it leads"
                );
                return;
            }
            Ok(Ok(Some(step))) => {
                if step.is_elsewhere && server.has_clients() {
                    tracing::info!("another replica leads; proxies are sent to it");
                    server.dismiss();
                }
                LOOK
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the label {ROLE} of the replicas' pods cannot be looked after; proxies may find nobody");
                AGAIN
            }
            Err(_) => AGAIN,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leads.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What follows from who has the label.
#[derive(Debug, Default, PartialEq, Eq)]
struct Step {
    /// Our own pod lacks it.
    take: bool,
    /// These have it and do not lead.
    remove: Vec<String>,
    /// Another leads.
    is_elsewhere: bool,
}

fn step(leads: bool, own: &str, labelled: Vec<String>) -> Step {
    let take = leads && !labelled.iter().any(|pod| pod == own);
    let others: Vec<String> = labelled.into_iter().filter(|pod| pod != own).collect();
    match leads {
        true => Step { take, remove: others, is_elsewhere: false },
        // Where nobody else has it, nobody else leads yet: what is here goes on.
        false => Step { is_elsewhere: !others.is_empty(), ..Step::default() },
    }
}

async fn look(pods: &Api<Pod>, own: &str, leads: bool) -> Result<Step, kube::Error> {
    let with_label = ListParams::default().labels(&format!("{ROLE}={LEADER}"));
    let labelled = pods.list_metadata(&with_label).await?;
    let names = labelled.items.into_iter().filter_map(|pod| pod.metadata.name).collect();
    let step = step(leads, own, names);
    // First there is one, then no other.
    if step.take {
        label(pods, own, Some(LEADER)).await?;
    }
    for pod in &step.remove {
        match label(pods, pod, None).await {
            // It has gone, and its label with it.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => result?,
        }
    }
    Ok(step)
}

async fn label(pods: &Api<Pod>, pod: &str, role: Option<&str>) -> Result<(), kube::Error> {
    let patch = json!({ "metadata": { "labels": { ROLE: role } } });
    pods.patch_metadata(pod, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_one_that_leads_has_the_label_alone() {
        let take = |remove: &[&str]| Step { take: true, remove: names(remove), is_elsewhere: false };
        assert_eq!(step(true, "a", names(&[])), take(&[]));
        assert_eq!(step(true, "a", names(&["b", "c"])), take(&["b", "c"]));
        assert_eq!(step(true, "a", names(&["a"])), Step::default());
        assert_eq!(step(true, "a", names(&["a", "b"])), Step { remove: names(&["b"]), ..Step::default() });
    }

    #[test]
    fn proxies_are_sent_elsewhere_only_when_there_is_one() {
        assert_eq!(step(false, "a", names(&[])), Step::default());
        // It has led, and nobody has followed: with the API server away, say.
        assert_eq!(step(false, "a", names(&["a"])), Step::default());
        assert_eq!(step(false, "a", names(&["a", "b"])), Step { is_elsewhere: true, ..Step::default() });
    }
}
