//! What a user says about a Gateway's infrastructure: the ConfigMap that a Gateway's `infrastructure.parametersRef`
//! names, and its class's. Under the name of each object that is made it has that object's part, as YAML, which is laid
//! over what is made.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::provision::PROXY;
use crate::objects::{DEFAULT_NAMESPACE, Gateway, GatewayClass, Kind, ObjectName, Objects};

/// Parameters that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("data[{key}]: {message}")]
pub struct InvalidParameters {
    /// Which key.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// The keys of the ConfigMap, and the kinds that they are of.
const KEYS: [(&str, &str); 4] = [
    ("deployment", "Deployment"),
    ("service", "Service"),
    ("serviceAccount", "ServiceAccount"),
    ("podDisruptionBudget", "PodDisruptionBudget"),
];

/// Of its pods, what a Gateway may say itself.
const OF_POD: [&str; 10] = [
    "affinity",
    "containers",
    "dnsConfig",
    "dnsPolicy",
    "imagePullSecrets",
    "nodeSelector",
    "priorityClassName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
];
/// Of the one container.
const OF_CONTAINER: [&str; 4] = ["env", "imagePullPolicy", "name", "resources"];
/// Of a Service, what a Gateway may not say: by the first a Service takes the traffic to any address (CVE-2020-8554), by the
/// other it becomes a name for somebody else.
const OF_NO_SERVICE: [&str; 2] = ["externalIPs", "externalName"];
/// Keeps who writes routes from the node's metadata and the admin port.
const GUARD: &str = "PONTOON_PROXY_REFUSE_LOCAL_ENDPOINTS";

/// Whether it is one of these keys.
pub(crate) fn is_key(key: &str) -> bool {
    KEYS.iter().any(|(known, _)| *known == key)
}

/// By kind, an object's part.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters(BTreeMap<&'static str, Value>);

impl Parameters {
    /// Reads a ConfigMap's data.
    ///
    /// # Errors
    /// When it says what there is not, or what is not for a user to say.
    pub fn read(data: &BTreeMap<String, String>) -> Result<Parameters, InvalidParameters> {
        let mut overlays = BTreeMap::new();
        for (key, text) in data {
            let invalid = |message: String| InvalidParameters { key: key.clone(), message };
            let Some((_, kind)) = KEYS.iter().find(|(known, _)| known == key) else {
                let known = KEYS.map(|(known, _)| known).join(", ");
                return Err(invalid(format!("expected one of {known}")));
            };
            let overlay: Value =
                serde_saphyr::from_str(text).map_err(|error| invalid(format!("is not YAML: {error}")))?;
            let fields = overlay.as_object().ok_or_else(|| invalid("expected a map of fields".to_owned()))?;
            check(fields).map_err(invalid)?;
            overlays.insert(*kind, overlay);
        }
        Ok(Parameters(overlays))
    }

    /// Lays what is said of an object's kind over it.
    pub(super) fn apply(&self, object: &mut Value) {
        let overlay = object["kind"].as_str().and_then(|kind| self.0.get(kind));
        if let Some(overlay) = overlay {
            merge(object, overlay);
        }
    }
}

type Read = Result<Option<Parameters>, String>;

/// What a Gateway says of its own infrastructure.
///
/// # Errors
/// When what it names is not there or cannot be used.
pub fn of_gateway(objects: &Objects, gateway: &Gateway) -> Read {
    let infrastructure = gateway.spec.infrastructure.as_ref();
    let Some(named) = infrastructure.and_then(|own| own.parameters_ref.as_ref()) else { return Ok(None) };
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let name = ObjectName::new(namespace, named.name.as_str());
    let parameters = named_by(objects, (&named.group, &named.kind), &name)?;
    for (key, kind) in KEYS {
        if let Some(part) = parameters.as_ref().and_then(|parameters| parameters.0.get(kind)) {
            check_own(kind, part).map_err(|message| format!("ConfigMap {name}: data[{key}]: {message}"))?;
        }
    }
    Ok(parameters)
}

/// Who may write Gateways and ConfigMaps need not be who may make pods, and these are made in our name: they run our
/// program and no other, with no rights beyond those that they are given here; and take no traffic that is another's.
fn check_own(kind: &str, part: &Value) -> Result<(), String> {
    match kind {
        "Deployment" => check_deployment(part),
        "Service" => {
            let taken = OF_NO_SERVICE.iter().find(|field| part["spec"].get(field).is_some());
            taken.map_or(Ok(()), |field| Err(not_its("spec", field)))
        }
        _ => Ok(()),
    }
}

fn check_deployment(deployment: &Value) -> Result<(), String> {
    const POD: &str = "spec.template.spec";
    const CONTAINERS: &str = "spec.template.spec.containers";
    let pod = &deployment["spec"]["template"]["spec"];
    only(pod, &OF_POD, POD)?;
    for container in items(pod, "containers", CONTAINERS)? {
        only(container, &OF_CONTAINER, CONTAINERS)?;
        if container["name"] != PROXY {
            return Err(format!("{CONTAINERS}: {PROXY} is the only one that a Gateway has"));
        }
        let at = format!("{CONTAINERS}.env");
        for variable in items(container, "env", &at)? {
            only(variable, &["name", "value"], &at)?;
            let name = variable["name"].as_str().ok_or_else(|| format!("{at}: expected names and values"))?;
            if name == GUARD {
                return Err(not_its(&at, name));
            }
        }
    }
    Ok(())
}

fn not_its(at: &str, field: &str) -> String {
    format!("{at}.{field} is not for a Gateway to say; the parameters of its class may")
}

/// A map of these fields alone, or nothing.
fn only(of: &Value, known: &[&str], at: &str) -> Result<(), String> {
    let fields = match of {
        Value::Null => return Ok(()),
        Value::Object(fields) => fields,
        _ => return Err(format!("{at}: expected a map of fields")),
    };
    let other = fields.keys().find(|field| !known.contains(&field.as_str()));
    other.map_or(Ok(()), |field| Err(not_its(at, field)))
}

/// A list that may be missing. One that is `null` would take away what there is.
fn items<'v>(of: &'v Value, field: &str, at: &str) -> Result<&'v [Value], String> {
    match of.get(field) {
        None => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(format!("{at}: expected a list")),
    }
}

/// What a class says of that of all its Gateways.
///
/// # Errors
/// When what it names is not there or cannot be used.
pub fn of_class(objects: &Objects, class: &GatewayClass) -> Read {
    let Some(named) = &class.spec.parameters_ref else { return Ok(None) };
    let Some(namespace) = named.namespace.as_deref() else {
        return Err("expected the namespace of a ConfigMap".to_owned());
    };
    named_by(objects, (&named.group, &named.kind), &ObjectName::new(namespace, named.name.as_str()))
}

fn named_by(objects: &Objects, kind: (&str, &str), name: &ObjectName) -> Read {
    if kind != ("", "ConfigMap") {
        return Err("expected a ConfigMap".to_owned());
    }
    let config_map =
        objects.config_maps.get(name).ok_or_else(|| objects.why_missing(Kind::ConfigMap, name))?;
    let read = Parameters::read(&config_map.data);
    read.map(Some).map_err(|error| format!("ConfigMap {name}: {error}"))
}

/// What says which object it is, whose and of which pods, is ours to say.
fn check(fields: &Map<String, Value>) -> Result<(), String> {
    let unknown = |map: &Map<String, Value>, known: [&str; 2], at: &str| {
        let field = map.keys().find(|field| !known.contains(&field.as_str()))?;
        Some(format!("{at}{field} is not for a user to say; {at}{} and {at}{} are", known[0], known[1]))
    };
    let part = |name: &str| match fields.get(name) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(format!("{name}: expected a map of fields")),
    };
    if let Some(message) = unknown(fields, ["metadata", "spec"], "") {
        return Err(message);
    }
    let metadata = part("metadata")?;
    if let Some((name, _)) = metadata.into_iter().flatten().find(|(_, part)| !part.is_object()) {
        return Err(format!("metadata.{name}: expected a map of texts"));
    }
    if let Some(metadata) = metadata
        && let Some(message) = unknown(metadata, ["labels", "annotations"], "metadata.")
    {
        return Err(message);
    }
    if part("spec")?.is_some_and(|spec| spec.contains_key("selector")) {
        return Err("spec.selector is not for a user to say".to_owned());
    }
    Ok(())
}

/// Lays one over the other: maps field by field, lists of what has a `name` by that, everything else as a whole. `null`
/// takes a field away.
fn merge(object: &mut Value, overlay: &Value) {
    match (object, overlay) {
        (Value::Object(object), Value::Object(overlay)) => {
            for (key, value) in overlay {
                match value {
                    Value::Null => drop(object.remove(key)),
                    value => merge(object.entry(key.clone()).or_insert(Value::Null), value),
                }
            }
        }
        (Value::Array(items), Value::Array(overlay))
            if overlay.iter().all(|item| item["name"].is_string()) =>
        {
            for item in overlay {
                match items.iter_mut().find(|one| one["name"] == item["name"]) {
                    Some(one) => merge(one, item),
                    None => items.push(item.clone()),
                }
            }
        }
        (object, overlay) => *object = overlay.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(key: &str, text: &str) -> Result<Parameters, InvalidParameters> {
        Parameters::read(&BTreeMap::from([(key.to_owned(), text.to_owned())]))
    }

    #[test]
    fn what_is_ours_to_say_is_refused_by_its_name() {
        for (key, text, field) in [
            ("pod", "spec: {}", "expected one of deployment"),
            ("deployment", "kind: DaemonSet", "kind"),
            ("deployment", "spec: {selector: {}}", "spec.selector"),
            ("deployment", "spec: 1", "spec"),
            ("service", "metadata: {name: other}", "metadata.name"),
            ("service", "metadata: {labels: 1}", "metadata.labels"),
            ("service", "- 1", "a map"),
            ("service", "{", "not YAML"),
        ] {
            let error = read(key, text).unwrap_err();
            assert!(error.message.contains(field), "{key} {text}: {error}");
            assert_eq!(error.key, key);
        }
    }

    #[test]
    fn a_gateway_gives_its_pods_no_rights_and_no_other_program() {
        let own = |pod: &str| {
            let text =
                format!("spec: {{replicas: 3, template: {{metadata: {{labels: {{a: b}}}}, spec: {pod}}}}}");
            check_own("Deployment", &read("deployment", &text).unwrap().0["Deployment"])
        };
        for pod in [
            "{}",
            "{nodeSelector: {a: b}, tolerations: [{key: a}], terminationGracePeriodSeconds: 5}",
            "{containers: [{name: pontoon-proxy, resources: {limits: {cpu: 1}}}]}",
            "{containers: [{name: pontoon-proxy, env: [{name: PONTOON_LOG, value: debug}]}]}",
        ] {
            assert_eq!(own(pod), Ok(()), "{pod}");
        }
        for (pod, field) in [
            ("{serviceAccountName: admin}", "spec.serviceAccountName"),
            ("{automountServiceAccountToken: true}", "spec.automountServiceAccountToken"),
            ("{hostNetwork: true}", "spec.hostNetwork"),
            ("{securityContext: null}", "spec.securityContext"),
            ("{volumes: [{name: a, hostPath: {path: /}}]}", "spec.volumes"),
            ("{initContainers: [{name: a}]}", "spec.initContainers"),
            ("{containers: null}", "containers: expected a list"),
            ("{containers: [{name: other, resources: {}}]}", "the only one"),
            ("{containers: [{resources: {}}]}", "the only one"),
            ("{containers: [{name: pontoon-proxy, image: other}]}", "containers.image"),
            (
                "{containers: [{name: pontoon-proxy, securityContext: {privileged: true}}]}",
                "containers.securityContext",
            ),
            ("{containers: [{name: pontoon-proxy, env: null}]}", "env: expected a list"),
            ("{containers: [{name: pontoon-proxy, env: [{value: a}]}]}", "names and values"),
            ("{containers: [{name: pontoon-proxy, env: [{name: a, valueFrom: {}}]}]}", "env.valueFrom"),
            (
                "{containers: [{name: pontoon-proxy, env: [{name: PONTOON_PROXY_REFUSE_LOCAL_ENDPOINTS, value: 'false'}]}]}",
                "env.PONTOON_PROXY_REFUSE_LOCAL_ENDPOINTS",
            ),
            ("3", "expected a map"),
        ] {
            let error = own(pod).unwrap_err();
            assert!(error.contains(field), "{pod}: {error}");
        }
    }

    #[test]
    fn a_gateways_service_takes_no_traffic_that_is_anothers() {
        let own = |spec: &str| {
            check_own("Service", &read("service", &format!("spec: {spec}")).unwrap().0["Service"])
        };
        assert_eq!(own("{type: NodePort, externalTrafficPolicy: Local}"), Ok(()));
        for (spec, field) in [
            ("{externalIPs: [10.0.0.1]}", "spec.externalIPs"),
            ("{externalIPs: null}", "spec.externalIPs"),
            ("{type: ExternalName, externalName: a.example}", "spec.externalName"),
        ] {
            let error = own(spec).unwrap_err();
            assert!(error.contains(field), "{spec}: {error}");
        }
    }

    #[test]
    fn an_overlay_goes_field_by_field_and_lists_by_name() {
        let parameters = read(
            "deployment",
            "spec: {replicas: 3, template: {spec: {containers: [{name: a, image: null, cpu: 2}, {name: b}], list: [2]}}}",
        )
        .unwrap();
        let mut object = json!({ "kind": "Deployment", "spec": {
            "kept": true, "template": { "spec": {
                "containers": [{ "name": "a", "image": "x", "args": [] }], "list": [1],
            } },
        } });
        parameters.apply(&mut object);
        let wanted = json!({ "kind": "Deployment", "spec": {
            "kept": true, "replicas": 3, "template": { "spec": {
                "containers": [{ "name": "a", "args": [], "cpu": 2 }, { "name": "b" }], "list": [2],
            } },
        } });
        assert_eq!(object, wanted);
    }
}
