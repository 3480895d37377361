//! What a Gateway becomes in a cluster: a Deployment of `pontoon-proxy` and its Service, of nobody else's use, in the
//! Gateway's own namespace. A pure function; whoever applies it (server-side, as one field manager) and what else is
//! written on these objects do not disturb each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Map, Value, json};
use twox_hash::XxHash64;

use super::parameters::Parameters;
use crate::objects::{Controller, DEFAULT_NAMESPACE, Gateway};

/// On everything that is made for a Gateway, by the Gateway API (GEP-1762).
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
const GATEWAY_CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";
/// Tells what we have made from what others have made for a Gateway.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "pontoon");
/// A Gateway's name, which a label may be too short for.
pub const GATEWAY: &str = "pontoon.dev/gateway";
/// Whose they are, unless that is the usual one.
pub const CONTROLLER_NAME: &str = "pontoon.dev/controller-name";
/// Of a label's value, and of a Service's name (RFC 1035).
const LONGEST: usize = 63;
/// How many there are at first: a Gateway without a proxy for a moment is an outage.
pub const REPLICAS: u32 = 2;
/// Where a pod runs, as a field of it.
pub const ZONE_LABEL: &str = "metadata.labels['topology.kubernetes.io/zone']";
/// The one container of its pods.
pub(super) const PROXY: &str = "pontoon-proxy";
/// What the kubelet asks.
const HEALTH: u16 = 15_021;
/// Until every node's rules have forgotten a pod that is told to end.
const LINGER_SECONDS: u32 = 3;
/// For what is in flight after that.
const DRAIN_SECONDS: u32 = 30;
/// Beyond both, before the kubelet kills.
const SPARE_SECONDS: u32 = 5;

/// What is the same for every Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The image of `pontoon-proxy`.
    pub image: String,
    /// When a node fetches it; none: as Kubernetes has it by the image's tag.
    pub pull_policy: Option<PullPolicy>,
    /// The control plane as the proxies reach it, `http://HOST:PORT`.
    pub xds_server: String,
    /// The Services' type.
    pub service_type: ServiceType,
    /// Whose they are.
    pub controller: Controller,
}

/// When a node fetches an image that it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// Each time that a container starts.
    Always,
    /// Once.
    IfNotPresent,
    /// Somebody else brings it.
    Never,
}

impl PullPolicy {
    /// As Kubernetes has it.
    pub fn as_str(self) -> &'static str {
        match self {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        }
    }
}

/// How a Service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum ServiceType {
    /// At an address of the cloud's.
    LoadBalancer,
    /// At a port of each node's, too.
    NodePort,
    /// From inside of the cluster.
    #[value(name = "ClusterIP")]
    ClusterIp,
}

impl ServiceType {
    fn as_str(self) -> &'static str {
        match self {
            ServiceType::LoadBalancer => "LoadBalancer",
            ServiceType::NodePort => "NodePort",
            ServiceType::ClusterIp => "ClusterIP",
        }
    }
}

/// The ServiceAccount, Deployment, Service and PodDisruptionBudget of a Gateway, ready to be applied. They go with
/// it: it is their owner. How many pods there are is not said unless `parameters` do: it may be an autoscaler's to say.
pub fn provision(
    gateway: &Gateway,
    ports: &BTreeSet<u16>,
    settings: &Settings,
    parameters: &[Parameters],
) -> Vec<Value> {
    let made = Made::of(gateway, settings);
    let mut objects =
        vec![made.service_account(), made.deployment(), made.service(ports), made.disruption_budget()];
    for object in &mut objects {
        parameters.iter().for_each(|parameters| parameters.apply(object));
        // What finds the pods has to be on them, whatever else is said.
        if object["kind"] == "Deployment" {
            made.label(map(map(object, "spec"), "template"));
        }
        made.label(object);
        if object["kind"] == "Service" {
            addresses(object, &asked(gateway));
        }
    }
    objects
}

/// The addresses that a Gateway asks for.
pub fn asked(gateway: &Gateway) -> Vec<IpAddr> {
    let all = gateway.spec.addresses.iter().flatten();
    all.filter_map(|address| address.value.as_deref()?.parse().ok()).collect()
}

/// `GATEWAY-CLASS`, as GEP-1762 has it; shortened with a sum of the whole where a Service may not be called so.
pub fn name_of(gateway: &str, class: &str) -> String {
    let whole = format!("{gateway}-{class}").replace('.', "-");
    let begins_well = whole.starts_with(|first: char| first.is_ascii_lowercase());
    if whole.len() <= LONGEST && begins_well {
        return whole;
    }
    let sum = XxHash64::oneshot(0, whole.as_bytes()) & 0xffff_ffff;
    let start: String = whole.chars().take(LONGEST - 11).collect();
    let start = start.trim_end_matches('-');
    format!("{}{start}-{sum:08x}", if begins_well { "" } else { "g-" })
}

struct Made<'a> {
    name: String,
    namespace: &'a str,
    gateway: &'a str,
    class: &'a str,
    uid: &'a str,
    /// What the Gateway's `infrastructure` says.
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    settings: &'a Settings,
}

impl<'a> Made<'a> {
    fn of(gateway: &'a Gateway, settings: &'a Settings) -> Made<'a> {
        let name = gateway.metadata.name.as_deref().unwrap_or_default();
        let class = gateway.spec.gateway_class_name.as_str();
        let infrastructure = gateway.spec.infrastructure.as_ref();
        let own = |map: Option<&BTreeMap<String, String>>| {
            map.into_iter().flatten().map(|(key, value)| (key.clone(), json!(value))).collect()
        };
        Made {
            name: name_of(name, class),
            namespace: gateway.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE),
            gateway: name,
            class,
            uid: gateway.metadata.uid.as_deref().unwrap_or_default(),
            labels: own(infrastructure.and_then(|own| own.labels.as_ref())),
            annotations: own(infrastructure.and_then(|own| own.annotations.as_ref())),
            settings,
        }
    }

    /// How the pods are found. It cannot be changed later, so nothing that a user writes is in it.
    fn selector(&self) -> Value {
        json!({ GATEWAY_NAME: self.label_value() })
    }

    /// A Gateway's name may be longer than a label's value.
    fn label_value(&self) -> String {
        match self.gateway.len() {
            0..=LONGEST => self.gateway.to_owned(),
            _ => name_of(self.gateway, self.class),
        }
    }

    /// Adds the labels that are ours to what has metadata, and the name in full.
    fn label(&self, object: &mut Value) {
        let mut set = |of: &str, key: &str, value: &str| {
            let map = map(map(object, "metadata"), of);
            map[key] = json!(value);
        };
        set("labels", GATEWAY_NAME, &self.label_value());
        set("labels", MANAGED_BY.0, MANAGED_BY.1);
        // A gateway is no application.
        set("labels", crate::inject::LABEL, "disabled");
        if self.class.len() <= LONGEST {
            set("labels", GATEWAY_CLASS, self.class);
        }
        set("annotations", GATEWAY, self.gateway);
        if !self.settings.controller.is_default() {
            set("annotations", CONTROLLER_NAME, self.settings.controller.as_str());
        }
    }

    fn object(&self, api_version: &str, kind: &str) -> Value {
        let mut labels = self.labels.clone();
        labels.insert("app.kubernetes.io/name".to_owned(), json!("pontoon-proxy"));
        json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": labels,
                "annotations": self.annotations,
                "ownerReferences": [{
                    "apiVersion": "gateway.networking.k8s.io/v1",
                    "kind": "Gateway",
                    "name": self.gateway,
                    "uid": self.uid,
                    "controller": true,
                    "blockOwnerDeletion": true,
                }],
            },
        })
    }

    /// Of its own, for policies; it may do nothing.
    fn service_account(&self) -> Value {
        let mut account = self.object("v1", "ServiceAccount");
        account["automountServiceAccountToken"] = json!(false);
        account
    }

    fn deployment(&self) -> Value {
        let mut deployment = self.object("apps/v1", "Deployment");
        let metadata = json!({
            "labels": deployment["metadata"]["labels"], "annotations": self.annotations,
        });
        deployment["spec"] = json!({
            "selector": { "matchLabels": self.selector() },
            "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 }, "type": "RollingUpdate" },
            "template": { "metadata": metadata, "spec": self.pod() },
        });
        if let Some(policy) = self.settings.pull_policy {
            let container = &mut deployment["spec"]["template"]["spec"]["containers"][0];
            container["imagePullPolicy"] = json!(policy.as_str());
        }
        deployment
    }

    fn pod(&self) -> Value {
        let health = |path: &str| json!({ "path": path, "port": HEALTH });
        let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
        let said = |name: &str, value: &str| json!({ "name": name, "value": value });
        let spread = |over: &str| {
            json!({
                "maxSkew": 1,
                "topologyKey": over,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": { "matchLabels": self.selector() },
            })
        };
        json!({
            "automountServiceAccountToken": false,
            "serviceAccountName": self.name,
            "terminationGracePeriodSeconds": LINGER_SECONDS + DRAIN_SECONDS + SPARE_SECONDS,
            "securityContext": {
                "runAsNonRoot": true,
                "seccompProfile": { "type": "RuntimeDefault" },
                // Ports 80 and 443 without a capability: one of the sysctls that the level `restricted` lets pass.
                "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "0" }],
            },
            "topologySpreadConstraints": [spread("kubernetes.io/hostname"), spread("topology.kubernetes.io/zone")],
            "containers": [{
                "name": PROXY,
                "image": self.settings.image,
                "env": [
                    field("POD_NAME", "metadata.name"),
                    said("PONTOON_PROXY_NODE_ID", &format!("{}/$(POD_NAME)", self.namespace)),
                    said("PONTOON_PROXY_CLUSTER", &format!("{}/{}", self.namespace, self.gateway)),
                    // Of its node's, since Kubernetes 1.35; empty before, and where nodes have none.
                    field("PONTOON_PROXY_ZONE", ZONE_LABEL),
                    said("PONTOON_PROXY_XDS_SERVER", &self.settings.xds_server),
                    said("PONTOON_PROXY_HEALTH", &format!("[::]:{HEALTH}")),
                    said("PONTOON_PROXY_DRAIN_SECONDS", &DRAIN_SECONDS.to_string()),
                    // Who writes routes is not to reach the admin port, nor the node's metadata.
                    said("PONTOON_PROXY_REFUSE_LOCAL_ENDPOINTS", "true"),
                ],
                "ports": [{ "name": "health", "containerPort": HEALTH, "protocol": "TCP" }],
                "readinessProbe": { "httpGet": health("/ready"), "periodSeconds": 1 },
                "livenessProbe": { "httpGet": health("/live"), "periodSeconds": 10 },
                "lifecycle": { "preStop": { "sleep": { "seconds": LINGER_SECONDS } } },
                // Of what strangers may make it hold it sheds by its limit.
                "resources": { "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "memory": "1Gi" } },
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                    "readOnlyRootFilesystem": true,
                },
            }],
        })
    }

    fn service(&self, ports: &BTreeSet<u16>) -> Value {
        let mut service = self.object("v1", "Service");
        let port = |port: &u16| json!({ "name": format!("port-{port}"), "port": port, "targetPort": port, "protocol": "TCP" });
        service["spec"] = json!({
            "type": self.settings.service_type.as_str(),
            "selector": self.selector(),
            "ports": ports.iter().map(port).collect::<Vec<_>>(),
            "ipFamilyPolicy": "PreferDualStack",
        });
        service
    }

    fn disruption_budget(&self) -> Value {
        let mut budget = self.object("policy/v1", "PodDisruptionBudget");
        budget["spec"] = json!({
            "maxUnavailable": 1,
            "selector": { "matchLabels": self.selector() },
            // A pod that serves nobody is not to keep a node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        });
        budget
    }
}

/// A field that is a map, whatever somebody has laid over it.
fn map<'v>(of: &'v mut Value, field: &str) -> &'v mut Value {
    if !of.is_object() {
        *of = json!({});
    }
    let field = &mut of[field];
    if !field.is_object() {
        *field = json!({});
    }
    field
}

/// Asks for addresses in the way that the Service's type knows. Whether it gets them is seen when it is there.
fn addresses(service: &mut Value, asked: &[IpAddr]) {
    let Some(first) = asked.first() else { return };
    let spec = map(service, "spec");
    if spec["type"] == "LoadBalancer" {
        spec["loadBalancerIP"] = json!(first.to_string());
    } else {
        spec["clusterIP"] = json!(first.to_string());
        spec["clusterIPs"] = json!(asked.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
}

#[cfg(test)]
mod tests;
