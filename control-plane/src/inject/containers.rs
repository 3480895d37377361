//! The containers that a pod is given.

use serde_json::{Value, json};

use super::options::{Interception, Options};
use super::{INTERCEPT, SIDECAR, Settings};
use crate::infrastructure::provision::ZONE_LABEL;

/// The sidecar's admin port, on loopback.
const ADMIN: u16 = 15_000;
/// Where the application's connections arrive.
pub(super) const OUTBOUND: u16 = 15_001;
/// Where its callers' do.
const INBOUND: u16 = 15_006;
/// What the kubelet asks.
pub(super) const HEALTH: u16 = 15_021;
/// Where its DNS queries do, on loopback.
const DNS: u16 = 15_053;
/// Nobody else's in the pod, it is to be hoped: what this user sends is not intercepted. No capability is needed
/// for that, other than for a mark.
pub(super) const USER: u32 = 15_001;

/// Where the API server mounts the service account's token in every container that has nothing there.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What is mounted there instead: neither container asks the API server for anything.
const NO_TOKEN: &str = "pontoon-no-token";

/// The volume that is empty. In memory: one on disk would keep the cluster's autoscaler from moving the pod.
pub(super) fn volume() -> Value {
    json!({ "name": NO_TOKEN, "emptyDir": { "medium": "Memory" } })
}

fn mounts() -> Value {
    json!([{ "name": NO_TOKEN, "mountPath": TOKEN_PATH, "readOnly": true }])
}

/// Where the sidecar listens, so that nobody else in the pod can.
pub(super) fn taken(options: &Options) -> Vec<u16> {
    let mut ports = vec![ADMIN, OUTBOUND, HEALTH];
    if options.interception == Interception::Redirect {
        ports.push(INBOUND);
    }
    if options.dns {
        ports.push(DNS);
    }
    ports
}

/// Those that start before all others, in their order: the rules, then the sidecar, which has then started when
/// the pod's own init containers do.
pub(super) fn before(settings: &Settings, options: &Options) -> Vec<Value> {
    let sidecar = sidecar(settings, options);
    let mut containers = match options.interception {
        Interception::Redirect => vec![intercept(options), sidecar],
        Interception::None => vec![sidecar],
    };
    if let Some(policy) = settings.pull_policy {
        containers.iter_mut().for_each(|container| container["imagePullPolicy"] = json!(policy.as_str()));
    }
    containers
}

/// A pod that says what it has as a whole has to have room for all that its containers say. Where that is shared out already
/// the API server would refuse what is added: of those resources ours say nothing, and have their part.
pub(super) fn share(containers: &mut [Value], of_pod: &Value) {
    for said in ["requests", "limits"] {
        let whole = of_pod[said].as_object().into_iter().flatten().map(|(resource, _)| resource);
        for resource in whole {
            for container in containers.iter_mut() {
                for own in ["requests", "limits"] {
                    if let Some(own) = container["resources"][own].as_object_mut() {
                        own.remove(resource);
                    }
                }
            }
        }
    }
}

/// Of both: what the one that comes first has is the other's when it has gone, so it costs the pod nothing; and a quota, or
/// the class `Guaranteed`, looks at all containers.
fn resources(options: &Options) -> Value {
    let mut limits = json!({});
    for (name, limit) in [("memory", &options.memory_limit), ("cpu", &options.cpu_limit)] {
        if let Some(limit) = limit {
            limits[name] = json!(limit);
        }
    }
    json!({
        "requests": { "cpu": options.cpu_request, "memory": options.memory_request },
        "limits": limits,
    })
}

/// Leaves again when the rules are in force: the network is the pod's, so there is nothing to undo.
fn intercept(options: &Options) -> Value {
    let mut arguments = vec![
        String::from("intercept"),
        String::from("up"),
        format!("--outbound-port={OUTBOUND}"),
        format!("--inbound-port={INBOUND}"),
        format!("--exclude-uid={USER}"),
    ];
    if options.dns {
        arguments.push(format!("--dns-port={DNS}"));
    }
    // The admin port and this one; and no SSH, which is not in pods.
    let inbound = [ADMIN.to_string(), HEALTH.to_string()].into_iter().chain(options.inbound_ports.clone());
    arguments.push(format!("--exclude-inbound-port={}", inbound.collect::<Vec<_>>().join(",")));
    for (option, list) in [
        ("--exclude-outbound-port", &options.outbound_ports),
        ("--exclude-outbound-cidr", &options.outbound_cidrs),
    ] {
        if !list.is_empty() {
            arguments.push(format!("{option}={}", list.join(",")));
        }
    }
    json!({
        "name": INTERCEPT,
        "image": options.image,
        "args": arguments,
        "resources": resources(options),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": mounts(),
    })
}

fn sidecar(settings: &Settings, options: &Options) -> Value {
    let field =
        |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let said = |name: &str, value: String| json!({ "name": name, "value": value });
    let mut environment = vec![
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_NAME", "metadata.name"),
        said("PONTOON_PROXY_NODE_ID", String::from("$(POD_NAMESPACE)/$(POD_NAME)")),
        said("PONTOON_PROXY_CLUSTER", String::from("$(POD_NAMESPACE)")),
        field("PONTOON_PROXY_ZONE", ZONE_LABEL),
        said("PONTOON_PROXY_XDS_SERVER", settings.xds_server.clone()),
        said("PONTOON_PROXY_HEALTH", format!("[::]:{HEALTH}")),
        said("PONTOON_PROXY_WORKERS", options.workers.to_string()),
        said("PONTOON_PROXY_DRAIN_SECONDS", options.drain_seconds.to_string()),
    ];
    match options.interception {
        Interception::Redirect => environment.extend([
            said("PONTOON_PROXY_OUTBOUND", format!("[::]:{OUTBOUND}")),
            said("PONTOON_PROXY_OUTBOUND_INTERCEPTED", String::from("true")),
            said("PONTOON_PROXY_INBOUND", format!("[::]:{INBOUND}=redirect")),
            said("PONTOON_PROXY_MARK", String::from("0")),
        ]),
        Interception::None => {
            environment.push(said("PONTOON_PROXY_OUTBOUND", format!("127.0.0.1:{OUTBOUND}")))
        }
    }
    if options.dns {
        environment.push(said("PONTOON_PROXY_DNS", format!("127.0.0.1:{DNS}")));
    }
    if let Some(log) = &options.log {
        environment.push(said("PONTOON_LOG", log.clone()));
    }
    let health = |path: &str| json!({ "path": path, "port": HEALTH });
    json!({
        "name": SIDECAR,
        "image": options.image,
        "restartPolicy": "Always",
        "env": environment,
        "ports": [{ "name": "pontoon-health", "containerPort": HEALTH, "protocol": "TCP" }],
        // What comes after starts when this holds.
        "startupProbe": { "httpGet": health("/started"), "periodSeconds": 1, "failureThreshold": 60 },
        "livenessProbe": { "httpGet": health("/live"), "periodSeconds": 10, "failureThreshold": 3 },
        "resources": resources(options),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": USER,
            "runAsNonRoot": true,
            "runAsUser": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": mounts(),
    })
}
