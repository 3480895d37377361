//! The CustomResourceDefinitions: the Gateway API's, whose versions we read, and our own, which are to be those of this
//! program.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::cluster::numbers;
use super::{Category, Check, Unseen};
use crate::kubernetes::crds::{self, DEFINITION};
use crate::objects::Kind;

const GROUP: &str = "gateway.networking.k8s.io";
/// What the release is called in the definitions.
const RELEASE: &str = "gateway.networking.k8s.io/bundle-version";
/// The release whose conformance suite is passed.
const TESTED: (u32, u32) = (1, 6);
/// Without these no request is routed.
const NEEDED: [Kind; 3] = [Kind::Gateway, Kind::GatewayClass, Kind::HttpRoute];

type Definitions = Result<Vec<CustomResourceDefinition>, Unseen>;

pub(super) fn gateway_api(definitions: &Definitions) -> Category {
    let checks = match definitions {
        Ok(definitions) => gateway_api_checks(definitions),
        Err(error) => vec![Check::unseen("the Gateway API's kinds are installed", error)],
    };
    Category { name: "gateway-api", checks }
}

fn gateway_api_checks(definitions: &[CustomResourceDefinition]) -> Vec<Check> {
    let hint = "install the Gateway API's standard channel, v1.6: https://gateway-api.sigs.k8s.io";
    let of = |kind: &&Kind| kind.api_version().starts_with(GROUP);
    let kinds: Vec<Kind> = Kind::ALL.iter().filter(of).copied().collect();
    let is_served = |kind: &Kind| {
        let name = format!("{}.{GROUP}", kind.plural());
        let version = kind.api_version().rsplit('/').next().unwrap_or_default();
        definitions.iter().any(|definition| {
            definition.metadata.name.as_deref() == Some(name.as_str())
                && definition.spec.versions.iter().any(|of| of.served && of.name == version)
        })
    };
    let words = |missing: Vec<&Kind>| {
        let names: Vec<String> = missing.iter().map(|kind| format!("{kind} (v1)")).collect();
        format!("not there: {}", names.join(", "))
    };
    let (needed, others): (Vec<&Kind>, Vec<&Kind>) = kinds.iter().partition(|kind| NEEDED.contains(kind));
    let missing =
        |of: Vec<&Kind>| -> Vec<Kind> { of.into_iter().filter(|kind| !is_served(kind)).copied().collect() };
    let (needed, others) = (missing(needed), missing(others));
    let what = "the Gateway API's kinds are installed";
    if !needed.is_empty() {
        return vec![Check::failed(what, words(needed.iter().collect()), hint)];
    }
    let mut checks = vec![match others.is_empty() {
        true => Check::ok(what),
        false => Check::warning(what, words(others.iter().collect()), hint),
    }];
    checks.push(release(definitions, hint));
    checks
}

fn release(definitions: &[CustomResourceDefinition], hint: &str) -> Check {
    let what = "their release is one that is known";
    let gateways = format!("gateways.{GROUP}");
    let definition = definitions.iter().find(|of| of.metadata.name.as_deref() == Some(gateways.as_str()));
    let release = definition.and_then(|of| of.metadata.annotations.as_ref()?.get(RELEASE));
    let Some(release) = release else { return Check::skipped(what, format!("no annotation {RELEASE}")) };
    match numbers(release) {
        Some(is) if is >= TESTED => Check::seen(what, release.as_str()),
        Some(_) => {
            Check::warning(what, format!("it is {release}: fields of later ones are not known there"), hint)
        }
        None => Check::skipped(what, format!("it is {release:?}")),
    }
}

pub(super) fn own(definitions: &Definitions, pre: bool) -> Category {
    let checks = match (definitions, crds::all()) {
        (Ok(definitions), Ok(ours)) => {
            let ours: Vec<(String, String)> = ours;
            ours.iter().map(|(file, text)| own_check(definitions, file, text, pre)).collect()
        }
        (Err(error), _) => vec![Check::unseen("our own kinds are installed", error)],
        (_, Err(error)) => vec![Check::skipped("our own kinds are installed", error.to_string())],
    };
    Category { name: "pontoon-kinds", checks }
}

fn own_check(definitions: &[CustomResourceDefinition], file: &str, text: &str, pre: bool) -> Check {
    let name = file.trim_end_matches(".yaml");
    let what = format!("{name} is that of this version");
    let hint =
        "helm upgrade brings it, or: pontoon crds | kubectl apply --server-side --force-conflicts -f -";
    let there = definitions.iter().find(|definition| definition.metadata.name.as_deref() == Some(name));
    let Some(there) = there else {
        return match pre {
            true => Check::seen(&what, "not there yet; the chart brings it"),
            false => Check::failed(&what, "it is not installed", hint),
        };
    };
    let conditions = there.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_established = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Established" && condition.status == "True");
    let is = there.metadata.annotations.as_ref().and_then(|all| all.get(DEFINITION));
    let same = is.is_some_and(|is| text.contains(is.as_str()));
    match (same, is_established, pre) {
        (_, false, _) => {
            Check::failed(&what, "the API server has not established it", "kubectl describe crd")
        }
        (true, true, _) => Check::ok(&what),
        (false, true, true) => Check::seen(&what, "another is there; the chart replaces it"),
        (false, true, false) => Check::failed(&what, "another is installed", hint),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Outcome;

    fn definition(name: &str, version: &str, annotation: (&str, &str)) -> CustomResourceDefinition {
        let (key, value) = annotation;
        serde_json::from_value(json!({
            "metadata": { "name": name, "annotations": { key: value } },
            "spec": {
                "group": "g", "scope": "Namespaced", "names": { "kind": "K", "plural": "ks" },
                "versions": [{ "name": version, "served": true, "storage": true }],
            },
            "status": { "conditions": [{ "type": "Established", "status": "True" }] },
        }))
        .unwrap()
    }

    fn gateway_api_of(release: &str, version: &str) -> Vec<CustomResourceDefinition> {
        let of = |kind: &&Kind| kind.api_version().starts_with(GROUP);
        let kinds = Kind::ALL.iter().filter(of);
        kinds
            .map(|kind| definition(&format!("{}.{GROUP}", kind.plural()), version, (RELEASE, release)))
            .collect()
    }

    fn outcomes(checks: &[Check]) -> Vec<Outcome> {
        checks.iter().map(|check| check.outcome).collect()
    }

    #[test]
    fn the_gateway_api_is_there_in_a_version_that_is_read() {
        use Outcome::{Failed, Ok, Skipped, Warning};
        let of = |definitions: &[CustomResourceDefinition]| outcomes(&gateway_api_checks(definitions));
        assert_eq!(of(&gateway_api_of("v1.6.3", "v1")), [Ok, Ok]);
        assert_eq!(of(&gateway_api_of("v1.7.0-rc.1", "v1")), [Ok, Ok]);
        assert_eq!(of(&gateway_api_of("v1.2.0", "v1")), [Ok, Warning]);
        assert_eq!(of(&gateway_api_of("main", "v1")), [Ok, Skipped]);
        assert_eq!(of(&gateway_api_of("v0.8.0", "v1beta1")), [Failed]);
        assert_eq!(of(&[]), [Failed]);
        let mut without = gateway_api_of("v1.6.3", "v1");
        without.retain(|definition| {
            definition.metadata.name.as_deref() != Some("tcproutes.gateway.networking.k8s.io")
        });
        assert_eq!(of(&without), [Warning, Ok]);
        let said = gateway_api_checks(&without)[0].why.clone().unwrap();
        assert_eq!(said, "not there: TCPRoute (v1)");
    }

    #[test]
    fn our_own_are_those_of_this_version() {
        let (file, text) = crds::all().unwrap().remove(0);
        let name = file.trim_end_matches(".yaml").to_owned();
        let sum = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{DEFINITION}: "))).unwrap();
        let of = |sum: &str, pre| {
            own_check(&[definition(&name, "v1alpha1", (DEFINITION, sum))], &file, &text, pre)
        };
        assert_eq!(of(sum.trim_matches(['"', '\'']), false).outcome, Outcome::Ok);
        assert_eq!(of("other", false).outcome, Outcome::Failed);
        assert_eq!(of("other", true).outcome, Outcome::Ok, "an upgrade");
        assert_eq!(own_check(&[], &file, &text, true).outcome, Outcome::Ok, "an installation");
        let missing = own_check(&[], &file, &text, false);
        assert_eq!(missing.outcome, Outcome::Failed);
        assert!(missing.hint.unwrap().contains("pontoon crds"));
    }
}
