//! What users have made of it: the classes of Gateways that are ours, and whether their Gateways are served.

use kube::Api;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;

use super::{Category, Check, Cluster, Unseen};
use crate::objects::Controller;

/// Of those that are not as they should be, so many are named.
const NAMED: usize = 5;

pub(super) async fn look(cluster: &Cluster, controller: &Controller) -> Category {
    let classes = list(cluster, "GatewayClass").await;
    let checks = match (classes, list(cluster, "Gateway").await) {
        (Ok(classes), Ok(gateways)) => judge(controller, &classes, &gateways),
        (Err(error), _) | (_, Err(error)) => vec![Check::unseen("Gateways are served", &error)],
    };
    Category { name: "gateways", checks }
}

/// None where the kind is not known.
async fn list(cluster: &Cluster, kind: &str) -> Result<Vec<DynamicObject>, Unseen> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", kind));
    let api = Api::<DynamicObject>::all_with(cluster.client.clone(), &resource);
    let listed = cluster.within(async {
        match api.list(&ListParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            listed => listed.map(|list| list.items),
        }
    });
    listed.await
}

fn judge(controller: &Controller, classes: &[DynamicObject], gateways: &[DynamicObject]) -> Vec<Check> {
    let name = |object: &DynamicObject| object.metadata.name.clone().unwrap_or_default();
    let says_so = |class: &&DynamicObject| class.data["spec"]["controllerName"] == controller.as_str();
    let ours: Vec<&DynamicObject> = classes.iter().filter(says_so).collect();
    let what = "there is a GatewayClass, and it is accepted";
    if ours.is_empty() {
        let hint = "helm upgrade makes one once the Gateway API's kinds are there, or make one with this controllerName";
        return vec![Check::warning(what, format!("none has the controllerName {controller}"), hint)];
    }
    let hint = "kubectl describe says why";
    let wrong: Vec<String> =
        ours.iter().filter(|class| !says(class, "Accepted")).map(|class| name(class)).collect();
    let mut checks = vec![match wrong.as_slice() {
        [] => Check::seen(what, ours.iter().map(|class| name(class)).collect::<Vec<_>>().join(", ")),
        wrong => Check::failed(what, format!("not accepted: {}", wrong.join(", ")), hint),
    }];
    let names: Vec<String> = ours.iter().map(|class| name(class)).collect();
    let is_ours = |gateway: &&DynamicObject| {
        let class = gateway.data["spec"]["gatewayClassName"].as_str();
        class.is_some_and(|class| names.iter().any(|name| name == class))
    };
    let ours: Vec<&DynamicObject> = gateways.iter().filter(is_ours).collect();
    let wrong: Vec<String> = ours
        .iter()
        .filter(|gateway| !says(gateway, "Programmed"))
        .map(|gateway| {
            format!("{}/{}", gateway.metadata.namespace.as_deref().unwrap_or_default(), name(gateway))
        })
        .collect();
    let what = "every Gateway is served as it is written";
    checks.push(match wrong.len() {
        0 => Check::seen(what, format!("{} of them", ours.len())),
        count => {
            let more = if count > NAMED { ", ..." } else { "" };
            let named = wrong[..count.min(NAMED)].join(", ");
            Check::warning(what, format!("{count} of {} are not: {named}{more}", ours.len()), hint)
        }
    });
    checks
}

/// A condition is true of what is written now.
fn says(object: &DynamicObject, condition: &str) -> bool {
    let all = object.data["status"]["conditions"].as_array();
    let found = all.into_iter().flatten().find(|one| one["type"] == condition);
    found.is_some_and(|found: &Value| {
        found["status"] == "True" && found["observedGeneration"].as_i64() == object.metadata.generation
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Outcome;
    use crate::objects::controller::CONTROLLER;

    fn judge(classes: &[DynamicObject], gateways: &[DynamicObject]) -> Vec<Check> {
        super::judge(&Controller::default(), classes, gateways)
    }

    fn object(name: &str, spec: Value, condition: &str, status: &str, observed: i64) -> DynamicObject {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "shop", "generation": 2 },
            "spec": spec,
            "status": { "conditions": [{ "type": condition, "status": status, "observedGeneration": observed }] },
        }))
        .unwrap()
    }

    fn class(status: &str) -> DynamicObject {
        object("pontoon", json!({ "controllerName": CONTROLLER }), "Accepted", status, 2)
    }

    fn gateway(class: &str, status: &str, observed: i64) -> DynamicObject {
        object("edge", json!({ "gatewayClassName": class }), "Programmed", status, observed)
    }

    #[test]
    fn gateways_of_ours_are_programmed_as_they_are_now() {
        use Outcome::{Failed, Ok, Warning};
        let of = |classes: &[DynamicObject], gateways: &[DynamicObject]| -> Vec<Outcome> {
            judge(classes, gateways).iter().map(|check| check.outcome).collect()
        };
        assert_eq!(of(&[class("True")], &[]), [Ok, Ok]);
        assert_eq!(of(&[class("True")], &[gateway("pontoon", "True", 2)]), [Ok, Ok]);
        assert_eq!(of(&[class("True")], &[gateway("pontoon", "True", 1)]), [Ok, Warning]);
        assert_eq!(of(&[class("True")], &[gateway("pontoon", "False", 2)]), [Ok, Warning]);
        assert_eq!(of(&[class("True")], &[gateway("others", "False", 2)]), [Ok, Ok]);
        assert_eq!(of(&[class("False")], &[]), [Failed, Ok]);
        assert_eq!(of(&[], &[gateway("pontoon", "True", 2)]), [Warning]);
        let others = object("others", json!({ "controllerName": "example.com/x" }), "Accepted", "False", 2);
        assert_eq!(of(&[others], &[]), [Warning]);
        let said = judge(&[class("True")], &[gateway("pontoon", "False", 2)]).remove(1).why.unwrap();
        assert_eq!(said, "1 of 1 are not: shop/edge");
    }
}
