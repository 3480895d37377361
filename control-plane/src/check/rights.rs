//! Permissions. What they have to be is said in one place, the plain manifest, which is made of the chart: before the
//! installation you have to be allowed to make all that is in it, after it the accounts in it have to have what its
//! roles say.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kube::Api;
use kube::api::PostParams;
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

use super::{Category, Check, Cluster, Unseen};
use crate::inject::workload;
use crate::objects::Controller;

const NAME: &str = "permissions";
const MANIFESTS: [&str; 2] = [
    include_str!("../../../deploy/kubernetes/crds.yaml"),
    include_str!("../../../deploy/kubernetes/pontoon.yaml"),
];
/// Questions at a time.
const AT_ONCE: usize = 8;
/// Of those that are missing, so many are named.
const NAMED: usize = 5;

/// Something that may be done, or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    group: String,
    resource: String,
    /// Of that name alone.
    name: Option<String>,
    /// In our own namespace alone.
    own_namespace: bool,
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Right { verb, group, resource, name, .. } = self;
        write!(f, "{verb} {resource}")?;
        if !group.is_empty() {
            write!(f, ".{group}")?;
        }
        name.as_ref().map_or(Ok(()), |name| write!(f, " {name}"))
    }
}

impl Right {
    fn attributes(&self, namespace: &str) -> ResourceAttributes {
        let (resource, sub) = match self.resource.split_once('/') {
            Some((resource, sub)) => (resource, Some(sub.to_owned())),
            None => (self.resource.as_str(), None),
        };
        ResourceAttributes {
            verb: Some(self.verb.clone()),
            group: Some(self.group.clone()),
            resource: Some(resource.to_owned()),
            subresource: sub,
            name: self.name.clone(),
            namespace: self.own_namespace.then(|| namespace.to_owned()),
            ..ResourceAttributes::default()
        }
    }
}

fn objects() -> Vec<Value> {
    MANIFESTS.iter().flat_map(|text| workload::read(text).unwrap_or_default()).collect()
}

/// What an account may do by the roles that are bound to it, in the manifest.
fn of_account(objects: &[Value], account: &str, without: &[&str]) -> BTreeSet<Right> {
    let is_bound = |binding: &&Value| {
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        let mut names = subjects.map(|subject| subject["name"].as_str());
        names.any(|name| name == Some(account))
            && !without.iter().any(|role| binding["roleRef"]["name"] == *role)
    };
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let mut rights = BTreeSet::new();
    for (binding, kind) in [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")] {
        for binding in of_kind(binding).filter(is_bound) {
            let name = &binding["roleRef"]["name"];
            let role = of_kind(kind).filter(|role| role["metadata"]["name"] == *name);
            let rules = role.flat_map(|role| role["rules"].as_array().into_iter().flatten());
            rights.extend(rules.flat_map(|rule| of_rule(rule, kind == "Role")));
        }
    }
    rights
}

fn of_rule(rule: &Value, own_namespace: bool) -> Vec<Right> {
    let texts = |field: &str| -> Vec<String> {
        let all = rule[field].as_array().into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut names: Vec<Option<String>> = texts("resourceNames").into_iter().map(Some).collect();
    if names.is_empty() {
        names.push(None);
    }
    let mut rights = Vec::new();
    for group in texts("apiGroups") {
        for resource in texts("resources") {
            for verb in texts("verbs") {
                rights.extend(names.iter().map(|name| Right {
                    verb: verb.clone(),
                    group: group.clone(),
                    resource: resource.clone(),
                    name: name.clone(),
                    own_namespace,
                }));
            }
        }
    }
    rights
}

impl Right {
    /// The Lease is called after the controller, and the webhook's configurations after its namespace.
    fn with_own_name(mut self, controller: &Controller, namespace: &str) -> Right {
        if self.resource == "leases" {
            self.name = self.name.map(|name| controller.own(&name));
        } else if self.resource.ends_with("webhookconfigurations") {
            self.name = self.name.map(|name| controller.in_cluster(&name, namespace));
        }
        self
    }
}

/// To make what is in the manifest.
fn to_install(objects: &[Value]) -> BTreeSet<Right> {
    let of_object = |object: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let version = text(&object["apiVersion"]);
        let (group, version) = version.split_once('/').unwrap_or(("", version.as_str()));
        let kind = GroupVersionKind::gvk(group, version, &text(&object["kind"]));
        let resource = ApiResource::from_gvk(&kind).plural;
        let own_namespace = object["metadata"]["namespace"].is_string();
        ["create", "patch"].map(|verb| Right {
            verb: verb.to_owned(),
            group: group.to_owned(),
            resource: resource.clone(),
            name: None,
            own_namespace,
        })
    };
    objects.iter().flat_map(of_object).collect()
}

/// Whether you may install.
pub(super) async fn before(cluster: &Cluster) -> Category {
    let what = "you may make all that is installed";
    let rights = to_install(&objects());
    let hint = "install as somebody who may, such as a cluster's administrator";
    let check = match missing(cluster, rights.clone(), None).await {
        Ok(missing) => judge(what, rights.len(), &missing, hint),
        Err(error) => Check::unseen(what, &error),
    };
    Category { name: NAME, checks: vec![check] }
}

/// Whether what is installed may do its work.
pub(super) async fn after(
    cluster: &Cluster,
    controller: &Controller,
    makes_gateways: bool,
    has_webhook: bool,
) -> Category {
    let objects = objects();
    let without: &[&str] = if makes_gateways { &[] } else { &["pontoon-gateways"] };
    let accounts = [("pontoon", "the control plane may do its work"), ("pontoon-webhook", "the webhook may")];
    let hint =
        "helm upgrade restores the roles, or: kubectl apply --server-side -f deploy/kubernetes/pontoon.yaml";
    let mut checks = Vec::new();
    for (account, what) in accounts.iter().take(if has_webhook { 2 } else { 1 }) {
        let rights = of_account(&objects, account, without);
        let own = |right: Right| right.with_own_name(controller, &cluster.namespace);
        let rights: BTreeSet<Right> = rights.into_iter().map(own).collect();
        checks.push(match missing(cluster, rights.clone(), Some(account)).await {
            Ok(missing) => judge(what, rights.len(), &missing, hint),
            Err(error) => Check::unseen(what, &error),
        });
    }
    Category { name: NAME, checks }
}

fn judge(what: &str, all: usize, missing: &[Right], hint: &str) -> Check {
    if missing.is_empty() {
        return Check::seen(what, format!("{all} permissions"));
    }
    let mut names: Vec<String> = missing.iter().take(NAMED).map(ToString::to_string).collect();
    if missing.len() > NAMED {
        names.push(format!("{} more", missing.len() - NAMED));
    }
    Check::failed(what, format!("not allowed: {}", names.join(", ")), hint)
}

/// Those of the rights that an account, or whoever asks, does not have.
async fn missing(
    cluster: &Cluster,
    rights: BTreeSet<Right>,
    account: Option<&str>,
) -> Result<Vec<Right>, Unseen> {
    let asked = rights.into_iter().map(|right| async {
        let may = match account {
            Some(account) => may_account(cluster, &right, account).await?,
            None => may_self(cluster, &right).await?,
        };
        Ok((!may).then_some(right))
    });
    let answers: Vec<Result<Option<Right>, Unseen>> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let answers: Result<Vec<Option<Right>>, Unseen> = answers.into_iter().collect();
    Ok(answers?.into_iter().flatten().collect())
}

async fn may_self(cluster: &Cluster, right: &Right) -> Result<bool, Unseen> {
    let attributes = Some(right.attributes(&cluster.namespace));
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: attributes, ..<_>::default() };
    let review = SelfSubjectAccessReview { spec, ..<_>::default() };
    let api = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let answer = cluster.within(api.create(&PostParams::default(), &review)).await?;
    Ok(is_allowed(answer.status))
}

async fn may_account(cluster: &Cluster, right: &Right, account: &str) -> Result<bool, Unseen> {
    let namespace = &cluster.namespace;
    let groups = vec![
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ];
    let spec = SubjectAccessReviewSpec {
        user: Some(format!("system:serviceaccount:{namespace}:{account}")),
        groups: Some(groups),
        resource_attributes: Some(right.attributes(namespace)),
        ..<_>::default()
    };
    let review = SubjectAccessReview { spec, ..<_>::default() };
    let api = Api::<SubjectAccessReview>::all(cluster.client.clone());
    let answer = cluster.within(api.create(&PostParams::default(), &review)).await?;
    Ok(is_allowed(answer.status))
}

fn is_allowed(status: Option<SubjectAccessReviewStatus>) -> bool {
    status.is_some_and(|status| status.allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Outcome;
    use crate::objects::Kind;

    fn words(rights: &BTreeSet<Right>) -> Vec<String> {
        rights.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_kind_that_is_read_may_be_watched() {
        let rights = of_account(&objects(), "pontoon", &[]);
        for kind in Kind::ALL {
            let group = kind.api_version().split_once('/').map_or("", |(group, _)| group);
            for verb in ["list", "watch"] {
                let has = |right: &Right| {
                    right.verb == verb && right.group == group && right.resource == kind.plural()
                };
                assert!(rights.iter().any(has), "{verb} {kind}");
            }
        }
        let without = of_account(&objects(), "pontoon", &["pontoon-gateways"]);
        assert!(words(&rights).contains(&"delete deployments.apps".to_owned()));
        assert!(!words(&without).contains(&"delete deployments.apps".to_owned()));
    }

    #[test]
    fn an_installation_with_a_name_has_a_lease_and_configurations_of_its_own() {
        let has = |account: &str, wanted: &str| {
            of_account(&objects(), account, &[]).into_iter().any(|right| {
                let controller = "example.com/gateways".parse().unwrap();
                right.with_own_name(&controller, "other").to_string() == wanted
            })
        };
        assert!(has("pontoon", "update leases.coordination.k8s.io pontoon-example.com-gateways"));
        assert!(!has("pontoon", "update leases.coordination.k8s.io pontoon"));
        let configuration =
            "patch validatingwebhookconfigurations.admissionregistration.k8s.io pontoon-webhook";
        assert!(has("pontoon-webhook", &format!("{configuration}-other")));
        assert!(!has("pontoon-webhook", configuration));
    }

    #[test]
    fn the_webhook_has_its_own() {
        let rights = of_account(&objects(), "pontoon-webhook", &[]);
        let configuration =
            "patch mutatingwebhookconfigurations.admissionregistration.k8s.io pontoon-webhook";
        assert!(words(&rights).contains(&configuration.to_owned()), "{rights:?}");
        let configuration = configuration.replace("mutating", "validating");
        assert!(words(&rights).contains(&configuration), "{rights:?}");
        let secret = rights.iter().find(|right| right.verb == "update").unwrap();
        assert_eq!(secret.to_string(), "update secrets pontoon-webhook");
        assert_eq!(secret.attributes("here").namespace.as_deref(), Some("here"));
    }

    #[test]
    fn who_installs_makes_every_kind_that_is_in_the_manifest() {
        let words = words(&to_install(&objects()));
        for right in [
            "create customresourcedefinitions.apiextensions.k8s.io",
            "create clusterroles.rbac.authorization.k8s.io",
            "create mutatingwebhookconfigurations.admissionregistration.k8s.io",
            "create validatingwebhookconfigurations.admissionregistration.k8s.io",
            "create networkpolicies.networking.k8s.io",
            "create gatewayclasses.gateway.networking.k8s.io",
            "patch deployments.apps",
            "patch leases.coordination.k8s.io",
        ] {
            assert!(words.contains(&right.to_owned()), "{right} is not in {words:?}");
        }
    }

    #[test]
    fn a_status_is_a_subresource_and_what_is_missing_is_named() {
        let right = |verb: &str| Right {
            verb: verb.to_owned(),
            group: "pontoon.dev".to_owned(),
            resource: "pools/status".to_owned(),
            name: None,
            own_namespace: false,
        };
        let attributes = right("patch").attributes("here");
        assert_eq!(attributes.resource.as_deref(), Some("pools"));
        assert_eq!(attributes.subresource.as_deref(), Some("status"));
        assert_eq!(attributes.namespace, None);
        let all: Vec<Right> = ["a", "b", "c", "d", "e", "f", "g"].map(right).to_vec();
        let check = judge("x", 7, &all, "");
        assert_eq!(check.outcome, Outcome::Failed);
        assert!(check.why.unwrap().ends_with("e pools/status.pontoon.dev, 2 more"));
        assert_eq!(judge("x", 7, &[], "").outcome, Outcome::Ok);
    }
}
