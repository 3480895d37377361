//! The webhook that gives pods a sidecar and looks at Migrations and Pools: its pods, its certificate, whether the API
//! server believes that, and whether it asks at all. The last is tried with objects that are never made (a dry run).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::plane::ready;
use super::{Category, Check, Cluster, Unseen};
use crate::inject::{LABEL, SIDECAR};
use crate::objects::migration::{MigrationSpec, Side};
use crate::objects::{Controller, Migration};

const NAME: &str = "webhook";
/// Of all that belongs to it, in the chart.
const WEBHOOK: &str = "pontoon-webhook";
/// The one that validates, in its configuration.
const VALIDATES: &str = "objects.validate.pontoon.dev";
/// Where nobody is kept from being asked about pods.
const TRIED_IN: &str = "default";
const TOLD: &str = "the API server is told whom to believe";
const BELIEVED: &str = "the webhook's certificate is one of those";
const ASKED: &str = "the API server asks it about pods";
const HEEDED: &str = "the API server asks it about Migrations and Pools";
const UNREACHED: &str = "the API server has to reach port 9443 of the webhook's pods: look at NetworkPolicies, firewalls between it and \
                         the nodes, and at the certificate above";
/// It is renewed when it is good for less than 20 days: this one was not.
const OVERDUE: Duration = Duration::from_secs(15 * 24 * 3600);
/// For a connection to it.
const CONNECT: Duration = Duration::from_secs(3);

/// How the webhooks of a configuration are called; none where there is no such configuration.
type Configuration = Result<Option<Vec<WebhookClientConfig>>, Unseen>;

async fn injecting(cluster: &Cluster, controller: &Controller) -> Configuration {
    let api = Api::<MutatingWebhookConfiguration>::all(cluster.client.clone());
    let name = controller.in_cluster(WEBHOOK, &cluster.namespace);
    let found = cluster.within(api.get_opt(&name)).await?;
    let call = |found: MutatingWebhookConfiguration| {
        found.webhooks.into_iter().flatten().map(|webhook| webhook.client_config).collect()
    };
    Ok(found.map(call).filter(|calls: &Vec<_>| is_of(&cluster.namespace, calls)))
}

async fn validating(cluster: &Cluster, controller: &Controller) -> Configuration {
    let api = Api::<ValidatingWebhookConfiguration>::all(cluster.client.clone());
    let name = controller.in_cluster(WEBHOOK, &cluster.namespace);
    let found = cluster.within(api.get_opt(&name)).await?;
    let call = |found: ValidatingWebhookConfiguration| {
        found.webhooks.into_iter().flatten().map(|webhook| webhook.client_config).collect()
    };
    Ok(found.map(call).filter(|calls: &Vec<_>| is_of(&cluster.namespace, calls)))
}

/// One that calls into another namespace is another installation's. Of one that calls nobody it cannot be told.
fn is_of(namespace: &str, calls: &[WebhookClientConfig]) -> bool {
    calls.iter().filter_map(|call| call.service.as_ref()).all(|service| service.namespace == namespace)
}

/// A part of it counts: it has to be whole then.
pub(super) async fn is_installed(cluster: &Cluster, controller: &Controller) -> bool {
    let deployment = cluster.own::<Deployment>(WEBHOOK).await;
    matches!(deployment, Ok(Some(_)))
        || matches!(injecting(cluster, controller).await, Ok(Some(_)))
        || matches!(validating(cluster, controller).await, Ok(Some(_)))
}

pub(super) async fn look(cluster: &Cluster, controller: &Controller, is_installed: bool) -> Category {
    if !is_installed {
        let why = "it is not installed (injector.enabled, validator.enabled)";
        return Category { name: NAME, checks: vec![Check::skipped("the webhook is ready", why)] };
    }
    let mut checks = vec![ready("the webhook is ready", &cluster.own::<Deployment>(WEBHOOK).await)];
    let (injecting, validating) =
        (injecting(cluster, controller).await, validating(cluster, controller).await);
    match authorities(&[&injecting, &validating]) {
        Ok(authorities) => {
            checks.push(Check::ok(TOLD));
            checks.push(certificate(cluster, &authorities).await);
        }
        Err(check) => checks.push(*check),
    }
    checks.push(match injecting {
        Ok(None) => Check::skipped(ASKED, "there is no MutatingWebhookConfiguration (injector.enabled)"),
        _ => asked(try_a_pod(cluster).await),
    });
    checks.push(match validating {
        Ok(None) => Check::skipped(HEEDED, "there is no ValidatingWebhookConfiguration (validator.enabled)"),
        _ => heeded(try_a_migration(cluster).await),
    });
    Category { name: NAME, checks }
}

/// Whom the API server believes, as PEM: the same for all webhooks of all configurations.
fn authorities(configurations: &[&Configuration]) -> Result<Vec<u8>, Box<Check>> {
    let hint = "the webhook writes it within 10 s; kubectl logs -l app.kubernetes.io/name=pontoon-webhook says why it does \
                not";
    let mut calls: Vec<&WebhookClientConfig> = Vec::new();
    for configuration in configurations {
        match configuration {
            Ok(webhooks) => calls.extend(webhooks.iter().flatten()),
            Err(error) => return Err(Box::new(Check::unseen(TOLD, error))),
        }
    }
    if configurations.iter().all(|configuration| matches!(configuration, Ok(None))) {
        let why = format!(
            "there is no MutatingWebhookConfiguration and no ValidatingWebhookConfiguration {WEBHOOK}"
        );
        return Err(Box::new(Check::failed(TOLD, why, "helm upgrade makes them")));
    }
    let first = calls.first().and_then(|call| call.ca_bundle.as_ref()).filter(|bundle| !bundle.0.is_empty());
    let Some(first) = first.filter(|first| calls.iter().all(|call| call.ca_bundle.as_ref() == Some(*first)))
    else {
        let why = "a webhook of a configuration has no caBundle, or another";
        return Err(Box::new(Check::failed(TOLD, why, hint)));
    };
    Ok(first.0.clone())
}

/// The one that is served with; where that is not reached from here, the one in the Secret.
async fn certificate(cluster: &Cluster, authorities: &[u8]) -> Check {
    let name = format!("{WEBHOOK}.{}.svc", cluster.namespace);
    let served = served(cluster, authorities, &name).await;
    let chain = match served {
        Some(Ok(chain)) => chain,
        Some(Err(why)) => return not_believed(why),
        None => match cluster.own::<Secret>(WEBHOOK).await {
            Ok(secret) => {
                let pem = secret.and_then(|secret| secret.data?.remove("tls.crt"));
                let pem = pem.map(|pem| pem.0).unwrap_or_default();
                CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect()
            }
            Err(Unseen::Forbidden(_)) => {
                let why = "the webhook is not reached from here, and you may not read its Secret";
                return Check::skipped(BELIEVED, why);
            }
            Err(error) => return Check::unseen(BELIEVED, &error),
        },
    };
    judge(&chain, authorities, &name, UnixTime::now())
}

fn not_believed(why: String) -> Check {
    let hint = "kubectl delete secret pontoon-webhook has a new one made, and the API server told of it";
    Check::failed(BELIEVED, why, hint)
}

/// By a handshake as the API server has it. None: nobody is reached.
async fn served(
    cluster: &Cluster,
    authorities: &[u8],
    name: &str,
) -> Option<Result<Vec<CertificateDer<'static>>, String>> {
    let service = cluster.own::<Service>(WEBHOOK).await.ok()??;
    let address = service.spec?.cluster_ip?;
    let connecting = TcpStream::connect((address, 443));
    let stream = tokio::time::timeout(CONNECT, connecting).await.ok()?.ok()?;
    let shaken = async {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_root_certificates(roots(authorities)).with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let stream = tokio::time::timeout(CONNECT, connected).await??;
        let (_, connection) = stream.get_ref();
        let chain = connection.peer_certificates().unwrap_or_default();
        Ok::<_, anyhow::Error>(chain.iter().map(|one| one.clone().into_owned()).collect())
    };
    Some(shaken.await.map_err(|error| format!("{error:#}")))
}

fn roots(authorities: &[u8]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(authorities).filter_map(Result::ok));
    roots
}

/// Whether a chain is one that the API server would believe now, and has been renewed when it was due.
fn judge(chain: &[CertificateDer<'_>], authorities: &[u8], name: &str, now: UnixTime) -> Check {
    let Some((end, rest)) = chain.split_first() else {
        return not_believed("there is no certificate".to_owned());
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots(authorities)), provider).build();
    let verified = match (verifier, ServerName::try_from(name.to_owned())) {
        (Ok(verifier), Ok(name)) => verifier
            .verify_server_cert(end, rest, &name, &[], now)
            .map(drop)
            .map_err(|error| error.to_string()),
        (Err(error), _) => Err(error.to_string()),
        (_, Err(error)) => Err(error.to_string()),
    };
    if let Err(why) = verified {
        return not_believed(why);
    }
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(end) else {
        return not_believed("it cannot be read".to_owned());
    };
    let ends = certificate.validity().not_after.timestamp();
    let left = u64::try_from(ends).unwrap_or_default().saturating_sub(now.as_secs());
    let days = format!("good for {} days", left / (24 * 3600));
    if left < OVERDUE.as_secs() {
        let hint = "it should have been renewed: kubectl logs -l app.kubernetes.io/name=pontoon-webhook says why it was not";
        return Check::warning(BELIEVED, days, hint);
    }
    Check::seen(BELIEVED, days)
}

/// What the API server would make of a pod.
async fn try_a_pod(cluster: &Cluster) -> Result<Pod, kube::Error> {
    let pod = json!({
        "metadata": {
            "generateName": "pontoon-check-",
            "labels": { LABEL: "enabled" },
            "annotations": { "pontoon.dev/interception": "none" },
        },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "check", "image": "pontoon.dev/check:none",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    });
    let pod: Pod = serde_json::from_value(pod).map_err(kube::Error::SerdeError)?;
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), TRIED_IN);
    pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await
}

fn asked(tried: Result<Pod, kube::Error>) -> Check {
    match tried {
        Ok(pod) => {
            let containers = pod.spec.and_then(|spec| spec.init_containers).unwrap_or_default();
            match containers.iter().any(|container| container.name == SIDECAR) {
                true => Check::ok(ASKED),
                false => Check::failed(
                    ASKED,
                    format!(
                        "a pod with the label {LABEL}=enabled in namespace {TRIED_IN} (a dry run) was given no sidecar"
                    ),
                    UNREACHED,
                ),
            }
        }
        Err(kube::Error::Api(status)) if status.message.contains("failed calling webhook") => {
            Check::failed(ASKED, status.message.clone(), UNREACHED)
        }
        // A policy of the cluster's, or of yours.
        Err(kube::Error::Api(status)) => {
            Check::skipped(ASKED, format!("no pod can be tried in namespace {TRIED_IN}: {}", status.message))
        }
        Err(error) => Check::unseen(ASKED, &error.into()),
    }
}

/// What the API server would make of a Migration that its schema lets in, and that nobody could use.
async fn try_a_migration(cluster: &Cluster) -> Result<Migration, kube::Error> {
    let side = |pool: &str| Side { pool: Some(pool.to_owned()), ..Side::default() };
    let spec = MigrationSpec {
        service: "not/a/name".to_owned(),
        legacy: side("one"),
        target: side("other"),
        ..MigrationSpec::default()
    };
    let metadata = ObjectMeta { generate_name: Some("pontoon-check-".to_owned()), ..ObjectMeta::default() };
    let migrations = Api::<Migration>::namespaced(cluster.client.clone(), TRIED_IN);
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    migrations.create(&parameters, &Migration { metadata, spec }).await
}

fn heeded(tried: Result<Migration, kube::Error>) -> Check {
    match tried {
        Ok(_) => {
            let why = format!(
                "a Migration with a wrong spec.service was taken in namespace {TRIED_IN} (a dry run)"
            );
            Check::failed(HEEDED, why, UNREACHED)
        }
        // By us, and not by the schema or somebody else's policy.
        Err(kube::Error::Api(status))
            if status.message.contains(&format!("{VALIDATES:?} denied the request")) =>
        {
            Check::ok(HEEDED)
        }
        Err(kube::Error::Api(status)) => {
            let why = format!("no Migration can be tried in namespace {TRIED_IN}: {}", status.message);
            Check::skipped(HEEDED, why)
        }
        Err(error) => Check::unseen(HEEDED, &error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::Value;

    use super::*;
    use crate::check::Outcome;
    use crate::webhook::certificate::{Material, issue};

    const SERVER: &str = "pontoon-webhook.pontoon-system.svc";

    fn made() -> Material {
        issue(&[SERVER.to_owned()], None, SystemTime::now()).unwrap()
    }

    fn judged(material: &Material, authorities: &str, name: &str, days: u64) -> Check {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(material.certificate.as_bytes()).map(Result::unwrap).collect();
        let now =
            UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + days * 24 * 3600));
        judge(&chain, authorities.as_bytes(), name, now)
    }

    #[test]
    fn a_certificate_is_believed_in_its_name_and_time() {
        let (ours, others) = (made(), made());
        for (authorities, name, days, expected) in [
            (&ours.authorities, SERVER, 0, Outcome::Ok),
            (&ours.authorities, SERVER, 14, Outcome::Ok),
            (&ours.authorities, SERVER, 16, Outcome::Warning),
            (&ours.authorities, SERVER, 31, Outcome::Failed),
            (&ours.authorities, "pontoon-webhook.elsewhere.svc", 0, Outcome::Failed),
            (&others.authorities, SERVER, 0, Outcome::Failed),
            (&String::new(), SERVER, 0, Outcome::Failed),
        ] {
            assert_eq!(judged(&ours, authorities, name, days).outcome, expected, "{name} after {days} days");
        }
        assert_eq!(judge(&[], ours.authorities.as_bytes(), SERVER, UnixTime::now()).outcome, Outcome::Failed);
    }

    #[test]
    fn all_webhooks_of_all_configurations_have_the_bundle() {
        let configuration = |bundles: &[Option<&str>]| -> Configuration {
            let call = |bundle: &Option<&str>| json!({ "caBundle": bundle });
            let calls: Vec<Value> = bundles.iter().map(call).collect();
            Ok(Some(serde_json::from_value(json!(calls)).unwrap()))
        };
        let of = |injecting: &[Option<&str>], validating: &[Option<&str>]| {
            authorities(&[&configuration(injecting), &configuration(validating)])
        };
        let (one, other) = (Some("YWJj"), Some("YQ=="));
        assert_eq!(of(&[one, one], &[one]).unwrap(), b"abc");
        type Bundles<'b> = &'b [Option<&'b str>];
        let wrong: [(Bundles<'_>, Bundles<'_>); 5] = [
            (&[one, None], &[one]),
            (&[one], &[other]),
            (&[one], &[None]),
            (&[Some("")], &[Some("")]),
            (&[], &[]),
        ];
        for (injecting, validating) in wrong {
            let outcome = of(injecting, validating).unwrap_err().outcome;
            assert_eq!(outcome, Outcome::Failed, "{injecting:?} {validating:?}");
        }
        // One that is not installed.
        assert_eq!(authorities(&[&Ok(None), &configuration(&[one])]).unwrap(), b"abc");
        assert_eq!(authorities(&[&Ok(None), &Ok(None)]).unwrap_err().outcome, Outcome::Failed);
        let unseen = Err(Unseen::Forbidden("no".to_owned()));
        assert_eq!(authorities(&[&configuration(&[one]), &unseen]).unwrap_err().outcome, Outcome::Skipped);
    }

    #[test]
    fn a_configuration_that_calls_another_installation_is_not_ours() {
        let calls = |namespaces: &[&str]| -> Vec<WebhookClientConfig> {
            let call = |namespace: &&str| json!({ "service": { "name": WEBHOOK, "namespace": namespace } });
            serde_json::from_value(namespaces.iter().map(call).collect()).unwrap()
        };
        assert!(is_of("here", &calls(&["here", "here"])));
        assert!(!is_of("here", &calls(&["elsewhere"])));
    }

    #[test]
    fn a_migration_that_cannot_be_used_is_refused_by_us() {
        let refused = |message: &str| {
            let status = json!({ "status": "Failure", "message": message, "reason": "Invalid", "code": 422 });
            heeded(Err(kube::Error::Api(serde_json::from_value(status).unwrap()))).outcome
        };
        let ours =
            "admission webhook \"objects.validate.pontoon.dev\" denied the request: Migration default/x: ...";
        assert_eq!(refused(ours), Outcome::Ok);
        assert_eq!(refused("admission webhook \"policy.example\" denied the request: no"), Outcome::Skipped);
        assert_eq!(refused("migrations.pontoon.dev is forbidden: you may not"), Outcome::Skipped);
        assert_eq!(heeded(Ok(Migration::default())).outcome, Outcome::Failed);
        let manifest = include_str!("../../../deploy/kubernetes/pontoon.yaml");
        assert!(manifest.contains(&format!("- name: {VALIDATES}\n")), "the chart calls it otherwise");
    }

    #[test]
    fn a_pod_that_was_given_a_sidecar_has_it() {
        let pod = |init: Value| {
            let spec = json!({ "containers": [{ "name": "check" }], "initContainers": init });
            asked(Ok(serde_json::from_value(json!({ "spec": spec })).unwrap())).outcome
        };
        assert_eq!(pod(json!([{ "name": SIDECAR }])), Outcome::Ok);
        assert_eq!(pod(json!([])), Outcome::Failed);
    }
}
