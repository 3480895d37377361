//! What is said of a pod that is given a sidecar and has something in it that has no effect, or another than is
//! meant. It runs all the same. The API server may cut what is longer than 256 characters.

use serde_json::Value;

use super::LABEL;
use super::application::{VARIABLES, is_waited_for};
use super::containers::{HEALTH, USER, taken};
use super::options::{self, ENVIRONMENT, Interception, Options};

pub(super) fn of(pod: &Value, options: &Options) -> Vec<String> {
    let mut said = options::warnings(pod);
    said.extend(label(pod));
    let spec = &pod["spec"];
    let containers = || {
        ["initContainers", "containers"].into_iter().flat_map(|list| {
            spec[list].as_array().into_iter().flatten().map(move |container| (list, container))
        })
    };
    let is_begun = containers().any(|(list, container)| {
        is_waited_for(list, container, options) && hook(container).is_none_or(asks_for_the_end)
    });
    for (list, container) in containers() {
        let mut warnings = if options.environment { environment(container) } else { Vec::new() };
        if is_waited_for(list, container, options)
            && hook(container).is_some_and(|hook| !asks_for_the_end(hook))
        {
            warnings.push(format!(
                "its own preStop hook stays, {}; it can ask for that: GET /end at port {HEALTH}",
                if is_begun { "and does not wait for its callers" } else { "and none begins the drain" }
            ));
        }
        warnings.extend(ports(container, &taken(options)));
        let user = |of: &Value| of["securityContext"]["runAsUser"].as_u64();
        if options.interception == Interception::Redirect
            && user(container).or(user(spec)) == Some(USER.into())
        {
            warnings.push(format!("its user is the sidecar's, {USER}: what it sends is not intercepted"));
        }
        let name = container["name"].as_str().unwrap_or_default();
        said.extend(warnings.into_iter().map(|warning| format!("container {name}: {warning}")));
    }
    said
}

/// A label by which something is meant that it does not do.
pub(super) fn label(object: &Value) -> Option<String> {
    let value = &object["metadata"]["labels"][LABEL];
    let is_known = value.is_null() || value == "enabled" || value == "disabled";
    (!is_known)
        .then(|| format!("label {LABEL} is {value}, which means nothing: it can be enabled or disabled"))
}

/// What a container has of its own to be called at its end.
fn hook(container: &Value) -> Option<&Value> {
    Some(&container["lifecycle"]["preStop"]).filter(|hook| !hook.is_null())
}

/// By its text: whatever the hook runs, it names the port.
fn asks_for_the_end(hook: &Value) -> bool {
    hook.to_string().contains(&HEALTH.to_string())
}

fn ports(container: &Value, taken: &[u16]) -> Vec<String> {
    let own = container["ports"].as_array().into_iter().flatten();
    own.filter_map(|port| port["containerPort"].as_u64())
        .filter(|port| taken.iter().any(|taken| u64::from(*taken) == *port))
        .map(|port| format!("its port {port} is one that the sidecar listens at"))
        .collect()
}

/// What `envFrom` brings is not known here, and what `env` has goes before it.
fn environment(container: &Value) -> Vec<String> {
    let own = |name: &str| container["env"].as_array()?.iter().find(|one| one["name"] == name);
    let from = |name: &&str| own(name).is_some_and(|own| own["valueFrom"].is_object());
    let mut said: Vec<String> = VARIABLES
        .into_iter()
        .filter(from)
        .map(|name| format!("{name} is left as its valueFrom says, and may not tell of the sidecar"))
        .collect();
    if container["envFrom"].as_array().is_some_and(|from| !from.is_empty()) {
        let added: Vec<&str> = VARIABLES.into_iter().filter(|name| own(name).is_none()).collect();
        if !added.is_empty() {
            said.push(format!(
                "what is injected replaces what envFrom may say of {} ({ENVIRONMENT}: disabled leaves it out)",
                added.join(", ")
            ));
        }
    }
    said
}
