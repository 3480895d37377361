//! Applies what one Gateway should have, object by object; what is somebody else's is left alone.

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::seen::Made;
use super::{Applied, PATIENCE, Wanted};
use crate::infrastructure::provision::REPLICAS;
use crate::objects::ObjectName;

/// Who applies, as the API server keeps it.
const MANAGER: &str = "pontoon-gateway";
/// Who makes it, and says how many pods there are at first: not the same, so that it is nobody's to say after that.
const FIRST_MANAGER: &str = "pontoon-gateway-first";

/// Why a Gateway does not have what it should.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// The name is taken.
    #[error(
        "{kind} {name} is there already and is not this Gateway's; delete it, or call the Gateway otherwise"
    )]
    Taken {
        /// Of what.
        kind: String,
        /// Which.
        name: String,
    },
    /// The API server does not take it.
    #[error("{kind} {name}: {}", words(source))]
    Refused {
        /// What.
        kind: String,
        /// Which.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// It does not answer.
    #[error("the API server does not answer")]
    Late,
    /// It is another's to do.
    #[error("this replica leads no more")]
    Deposed,
}

/// Without what the API server says to machines.
fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    }
}

impl ApplyError {
    /// In the Gateway API's words.
    pub(super) fn problem(self, has_asked: bool) -> (&'static str, String) {
        let is_invalid =
            |source: &kube::Error| matches!(source, kube::Error::Api(status) if status.code == 422);
        let reason = match &self {
            ApplyError::Refused { kind, source, .. }
                if kind == "Service" && has_asked && is_invalid(source) =>
            {
                "AddressNotUsable"
            }
            ApplyError::Refused { source, .. } if is_invalid(source) => "Invalid",
            _ => "Pending",
        };
        (reason, self.to_string())
    }
}

pub(super) async fn apply(
    client: Client,
    leads: watch::Receiver<bool>,
    wanted: Wanted,
    sum: u64,
) -> (ObjectName, Result<Applied, ApplyError>) {
    let mut applied = Applied { wanted: sum, ..Applied::default() };
    for object in &wanted.objects {
        if !*leads.borrow() {
            return (wanted.gateway, Err(ApplyError::Deposed));
        }
        let one = apply_one(&client, &wanted, object);
        let written = match tokio::time::timeout(PATIENCE, one).await {
            Ok(Ok(written)) => written,
            Ok(Err(error)) => return (wanted.gateway, Err(error)),
            Err(_) => return (wanted.gateway, Err(ApplyError::Late)),
        };
        let sum = |made: Option<Made>| made.map(|made| made.sum);
        match object["kind"].as_str() {
            Some("Deployment") => {
                applied.deployment = sum(written.try_parse().ok().as_ref().and_then(Made::deployment));
            }
            Some("Service") => {
                applied.service = sum(written.try_parse().ok().as_ref().and_then(Made::service));
            }
            Some("ServiceAccount") => {
                applied.account = sum(written.try_parse().ok().as_ref().and_then(Made::account));
            }
            Some("PodDisruptionBudget") => {
                applied.budget = sum(written.try_parse().ok().as_ref().and_then(Made::budget));
            }
            _ => {}
        }
    }
    (wanted.gateway, Ok(applied))
}

async fn apply_one(client: &Client, wanted: &Wanted, object: &Value) -> Result<DynamicObject, ApplyError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let name = text(&object["metadata"]["name"]);
    let api = api(client, &version, &kind, &wanted.gateway.namespace);
    let refused = |source: kube::Error| ApplyError::Refused {
        kind: kind.clone(),
        name: name.clone(),
        source: Box::new(source),
    };
    let there = match api.get_opt(&name).await.map_err(refused)? {
        Some(there) if !belongs_to(&there, &wanted.uid) => return Err(ApplyError::Taken { kind, name }),
        Some(there) => {
            if let Some(kept) = replicas_to_keep(&there, object) {
                let parameters = PatchParams::apply(FIRST_MANAGER).force();
                api.patch(&name, &parameters, &Patch::Apply(&kept)).await.map_err(refused)?;
            }
            there
        }
        // What is applied would become a part of what somebody has made by this name meanwhile.
        None => {
            let mut first = object.clone();
            if kind == "Deployment" && first["spec"]["replicas"].is_null() {
                first["spec"]["replicas"] = json!(REPLICAS);
            }
            let first: DynamicObject =
                serde_json::from_value(first).map_err(|error| refused(kube::Error::SerdeError(error)))?;
            let parameters =
                PostParams { field_manager: Some(FIRST_MANAGER.to_owned()), ..PostParams::default() };
            api.create(&parameters, &first).await.map_err(refused)?
        }
    };
    if let Some(rest) = let_go(&there) {
        let parameters =
            PatchParams { field_manager: Some(FIRST_MANAGER.to_owned()), ..PatchParams::default() };
        api.patch(&name, &parameters, &Patch::Merge(&rest)).await.map_err(refused)?;
    }
    let parameters = PatchParams::apply(MANAGER).force();
    api.patch(&name, &parameters, &Patch::Apply(object)).await.map_err(refused)
}

/// What is left to the first manager of what it has made, which is all of it at first: the API server keeps a field for as
/// long as anybody has it, also when it is applied no more. Not nothing: what nobody has is taken for another's when it is
/// applied for the first time.
fn let_go(there: &DynamicObject) -> Option<Value> {
    let mut all = there.metadata.managed_fields.clone()?;
    let mut is_less = false;
    for entry in &mut all {
        let has_made = entry.manager.as_deref() == Some(FIRST_MANAGER)
            && entry.operation.as_deref() == Some("Update")
            && entry.subresource.is_none();
        if let Some(fields) = entry.fields_v1.as_mut().filter(|_| has_made) {
            let mut rest = json!({});
            for (of, field) in [("f:metadata", "f:ownerReferences"), ("f:spec", "f:replicas")] {
                if !fields.0[of][field].is_null() {
                    rest[of][field] = fields.0[of][field].clone();
                }
            }
            is_less |= rest != fields.0;
            fields.0 = rest;
        }
    }
    is_less.then(|| json!({ "metadata": { "managedFields": all } }))
}

/// What is to be said in the first manager's name where a user's parameters said how many pods there are and do so no
/// more: a field that is nobody's goes back to its default, one pod, before an autoscaler has a word.
fn replicas_to_keep(there: &DynamicObject, wanted: &Value) -> Option<Value> {
    if wanted["kind"] != "Deployment" || !wanted["spec"]["replicas"].is_null() {
        return None;
    }
    let of_ours = there.metadata.managed_fields.iter().flatten().any(|entry| {
        entry.manager.as_deref() == Some(MANAGER)
            && entry.fields_v1.as_ref().is_some_and(|fields| !fields.0["f:spec"]["f:replicas"].is_null())
    });
    let replicas = there.data["spec"]["replicas"].as_u64().filter(|_| of_ours)?;
    Some(json!({
        "apiVersion": wanted["apiVersion"], "kind": wanted["kind"],
        "metadata": { "name": wanted["metadata"]["name"], "namespace": wanted["metadata"]["namespace"] },
        "spec": { "replicas": replicas },
    }))
}

fn belongs_to(object: &DynamicObject, owner: &str) -> bool {
    object.metadata.owner_references.iter().flatten().any(|one| one.uid == owner)
}

/// Takes away what was made by this name for the Gateway with the uid `owner`; what is somebody else's stays.
pub(super) async fn take_away(
    client: &Client,
    name: &ObjectName,
    owner: &str,
    (version, kind): (&str, &str),
) -> Result<(), kube::Error> {
    let api = api(client, version, kind, &name.namespace);
    let Some(there) = api.get_opt(&name.name).await?.filter(|there| belongs_to(there, owner)) else {
        return Ok(());
    };
    // Not another one that has come to its place meanwhile.
    let same = Preconditions { uid: there.metadata.uid, resource_version: None };
    match api.delete(&name.name, &DeleteParams::background().preconditions(same)).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        deleted => deleted.map(drop),
    }
}

fn api(client: &Client, version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let plural = format!("{}s", kind.to_ascii_lowercase());
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural);
    Api::namespaced_with(client.clone(), namespace, &resource)
}

#[cfg(test)]
mod tests;
