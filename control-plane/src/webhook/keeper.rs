//! Keeps the certificate: in a Secret, so that all replicas serve with one, and its authority in the configurations of
//! the webhooks: of the one that injects and of the one that validates, where they are there. Two replicas that renew at
//! once are told apart by the API server: one of them conflicts, and takes what the other has written at its next look.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certificate::{Material, is_due, issue};

/// Between two looks. A replica serves with the certificate before for so long, whose authority is still believed.
const LOOK: Duration = Duration::from_secs(10);
/// After a look that failed.
const AGAIN: Duration = Duration::from_secs(2);
/// Who says which webhooks are called.
const CONFIGURATIONS: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];
const AUTHORITIES: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// How a webhook is called.
#[derive(Debug, Clone)]
pub struct Names {
    /// The namespace of the Service and of the Secret.
    pub namespace: String,
    /// The Service by which the API server reaches it.
    pub service: String,
    /// The Secret of the certificate; made where it is missing.
    pub secret: String,
    /// The MutatingWebhookConfiguration and the ValidatingWebhookConfiguration.
    pub configuration: String,
}

impl Names {
    fn dns(&self) -> Vec<String> {
        let Names { namespace, service, .. } = self;
        vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")]
    }
}

/// Looks after it until `stop`, and says which certificate to serve with.
pub(super) async fn keep(
    client: kube::Client,
    names: Names,
    in_use: watch::Sender<Option<Material>>,
    stop: CancellationToken,
) {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &names.namespace);
    let apis = CONFIGURATIONS.map(|kind| {
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        Api::<DynamicObject>::all_with(client.clone(), &ApiResource::from_gvk(&kind))
    });
    loop {
        let looked = async {
            let serving = in_use.borrow().clone();
            let mut configurations = Vec::new();
            for api in &apis {
                configurations.extend(
                    api.get_opt(&names.configuration).await?.map(|configuration| (api, configuration)),
                );
            }
            let of_release = configurations.first().map(|(_, of)| of.metadata.clone()).unwrap_or_default();
            let material = material(&secrets, of_release, &names, serving).await?;
            if configurations.is_empty() {
                anyhow::bail!("there is no {} {}", CONFIGURATIONS.join(" and no "), names.configuration);
            }
            // First the API server believes it, then it is shown.
            for (api, configuration) in &configurations {
                believe(api, configuration, &names.configuration, &material).await?;
            }
            Ok::<_, anyhow::Error>(material)
        };
        let pause = match looked.await {
            Ok(material) => {
                in_use.send_if_modified(|now| {
                    let is_new = now.as_ref() != Some(&material);
                    if is_new {
                        tracing::info!(secret = names.secret, "serving with another certificate");
                        *now = Some(material);
                    }
                    is_new
                });
                LOOK
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the webhook's certificate cannot be looked after; trying again"
                );
                AGAIN
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The one in the Secret, renewed if it is due. `serving` is shown until then, wherever the Secret has gone. One that is
/// made is of the same release as what has the metadata `of_release`.
async fn material(
    secrets: &Api<Secret>,
    of_release: ObjectMeta,
    names: &Names,
    serving: Option<Material>,
) -> anyhow::Result<Material> {
    let (now, dns) = (SystemTime::now(), names.dns());
    let kept = secrets.get_opt(&names.secret).await?;
    let before = kept.as_ref().and_then(read);
    if let Some(material) = before.clone().filter(|material| !is_due(material, &dns, now)) {
        return Ok(material);
    }
    let material = issue(&dns, before.or(serving).as_ref(), now)?;
    let data =
        [(AUTHORITIES, &material.authorities), (CERTIFICATE, &material.certificate), (KEY, &material.key)];
    let data: BTreeMap<String, ByteString> =
        data.into_iter().map(|(name, pem)| (name.to_owned(), ByteString(pem.clone().into_bytes()))).collect();
    let parameters = PostParams::default();
    match kept {
        Some(mut secret) => {
            secret.data = Some(data);
            // With the version that was read: of two that renew, one conflicts.
            secrets.replace(&names.secret, &parameters, &secret).await?;
        }
        None => {
            let metadata = beside(&names.secret, of_release);
            let type_ = Some(String::from("kubernetes.io/tls"));
            secrets
                .create(&parameters, &Secret { metadata, data: Some(data), type_, ..Secret::default() })
                .await?;
        }
    }
    tracing::info!(secret = names.secret, "a new certificate for the webhook");
    Ok(material)
}

/// What is made anew belongs to the release that the configuration belongs to: Helm neither upgrades nor removes what is
/// not said to be its own.
fn beside(name: &str, configuration: ObjectMeta) -> ObjectMeta {
    let annotations = configuration.annotations.map(|mut all| {
        all.retain(|key, _| key.starts_with("meta.helm.sh/"));
        all
    });
    let labels = configuration.labels;
    ObjectMeta { name: Some(name.to_owned()), labels, annotations, ..ObjectMeta::default() }
}

fn read(secret: &Secret) -> Option<Material> {
    let text = |name: &str| String::from_utf8(secret.data.as_ref()?.get(name)?.0.clone()).ok();
    Some(Material { authorities: text(AUTHORITIES)?, certificate: text(CERTIFICATE)?, key: text(KEY)? })
}

/// Has the API server believe the certificate's authority, on every webhook of a configuration.
async fn believe(
    api: &Api<DynamicObject>,
    configuration: &DynamicObject,
    name: &str,
    material: &Material,
) -> anyhow::Result<()> {
    let Some(patch) = told(configuration, &material.authorities) else { return Ok(()) };
    api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    let kind = configuration.types.as_ref().map(|types| types.kind.as_str());
    tracing::info!(kind, configuration = name, "the API server believes the webhook's certificate");
    Ok(())
}

/// What makes every webhook of a configuration believe these authorities; none where all do.
fn told(configuration: &DynamicObject, authorities: &str) -> Option<Value> {
    let bundle = json!(ByteString(authorities.as_bytes().to_vec()));
    let webhooks = configuration.data["webhooks"].as_array()?;
    if webhooks.iter().all(|webhook| webhook["clientConfig"]["caBundle"] == bundle) {
        return None;
    }
    // By name, as a strategic merge does: the rest of each is the chart's.
    let webhooks: Vec<Value> = webhooks
        .iter()
        .map(|webhook| json!({ "name": webhook["name"], "clientConfig": { "caBundle": bundle } }))
        .collect();
    Some(json!({ "webhooks": webhooks }))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Method, Request, Response};
    use http_body_util::BodyExt;
    use kube::client::Body;

    use super::*;

    #[tokio::test]
    async fn what_is_being_shown_is_believed_on_when_the_secret_was_deleted() {
        let server = tower::service_fn(|request: Request<Body>| async move {
            let is_get = request.method() == Method::GET;
            let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
            let missing = json!({ "kind": "Status", "code": 404, "reason": "NotFound" }).to_string();
            let body = if is_get { missing.into_bytes() } else { body.unwrap_or_default().to_vec() };
            let status = if is_get { 404 } else { 201 };
            Ok::<_, Infallible>(Response::builder().status(status).body(Body::from(body)).unwrap())
        });
        let names = Names {
            namespace: "pontoon-system".into(),
            service: "webhook".into(),
            secret: "webhook".into(),
            configuration: "pontoon".into(),
        };
        let client = kube::Client::new(server, "default");
        let secrets = Api::namespaced(client, &names.namespace);
        let serving = issue(&names.dns(), None, SystemTime::now()).unwrap();
        let made = material(&secrets, ObjectMeta::default(), &names, Some(serving.clone())).await.unwrap();
        assert_ne!(made.certificate, serving.certificate, "a deleted Secret is one that is not to be used");
        assert!(
            made.authorities.contains(&serving.authorities),
            "the API server may ask before the next look"
        );
        assert!(made.authorities.len() > serving.authorities.len());
    }

    #[test]
    fn every_webhook_of_a_configuration_is_told() {
        let of = |bundles: &[Value]| {
            let webhook =
                |bundle| json!({ "name": "hook", "clientConfig": { "caBundle": bundle, "url": "u" } });
            let webhooks: Vec<Value> = bundles.iter().map(webhook).collect();
            let object = json!({ "metadata": { "name": "pontoon-webhook" }, "webhooks": webhooks });
            told(&serde_json::from_value(object).unwrap(), "abc")
        };
        assert_eq!(of(&[json!("YWJj"), json!("YWJj")]), None);
        assert_eq!(of(&[]), None);
        let hook = json!({ "name": "hook", "clientConfig": { "caBundle": "YWJj" } });
        assert_eq!(of(&[json!("YWJj"), json!(null)]), Some(json!({ "webhooks": [hook, hook] })));
        assert_eq!(of(&[json!("eHl6")]), Some(json!({ "webhooks": [hook] })));
    }

    #[test]
    fn a_secret_that_is_made_anew_is_the_releases() {
        let of = |key: &str| BTreeMap::from([(key.to_owned(), "pontoon".to_owned())]);
        let mut annotations = of("meta.helm.sh/release-name");
        annotations.extend(of("kubectl.kubernetes.io/last-applied-configuration"));
        let configuration = ObjectMeta {
            name: Some("hook".to_owned()),
            uid: Some("u".to_owned()),
            labels: Some(of("app.kubernetes.io/managed-by")),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        };
        let expected = ObjectMeta {
            name: Some("secret".to_owned()),
            labels: Some(of("app.kubernetes.io/managed-by")),
            annotations: Some(of("meta.helm.sh/release-name")),
            ..ObjectMeta::default()
        };
        assert_eq!(beside("secret", configuration), expected);
    }
}
