//! What is said of a pod that is given a sidecar and has something in it that has no effect, or another than is
//! meant. It runs all the same. The API server may cut what is longer than 256 characters.

use serde_json::Value;

use super::application::VARIABLES;
use super::options::{self, ENVIRONMENT, Options};

pub(super) fn of(pod: &Value, options: &Options) -> Vec<String> {
    let mut said = options::warnings(pod);
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default();
            let warnings = if options.environment { environment(container) } else { Vec::new() };
            said.extend(warnings.into_iter().map(|warning| format!("container {name}: {warning}")));
        }
    }
    said
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
