//! The cluster's certificates, its service account key and its kubeconfigs.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::node;

/// Writes all of them: `pki/*.crt`, `pki/*.key`, and a kubeconfig for each client of the API server.
pub(super) fn make(state: &Path, port: u16) -> anyhow::Result<()> {
    let pki = state.join("pki");
    std::fs::create_dir_all(&pki)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named("pontoon test cluster", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    std::fs::write(pki.join("ca.crt"), params.self_signed(&key)?.pem())?;
    std::fs::write(pki.join("ca.key"), key.serialize_pem())?;
    let authority = Issuer::new(params, key);

    let certificate = |file: &str, common: &str, group: Option<&str>, names: &[&str]| -> anyhow::Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(common, group);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into()?),
            });
        }
        let key = KeyPair::generate()?;
        std::fs::write(pki.join(format!("{file}.crt")), params.signed_by(&key, &authority)?.pem())?;
        std::fs::write(pki.join(format!("{file}.key")), key.serialize_pem())?;
        Ok(())
    };
    let service = "kubernetes.default.svc.cluster.local";
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", service, "localhost"];
    let addresses = ["127.0.0.1", node::ADDRESS, "10.96.0.1"];
    certificate("apiserver", "kube-apiserver", None, &[&names[..], &addresses].concat())?;
    certificate("front-proxy", "front-proxy", None, &[])?;
    certificate("admin", "admin", Some("system:masters"), &[])?;
    certificate("controllers", "system:kube-controller-manager", None, &[])?;
    certificate("scheduler", "system:kube-scheduler", None, &[])?;
    certificate("proxy", "system:kube-proxy", None, &[])?;
    let user = format!("system:node:{}", node::NAME);
    certificate("kubelet", &user, Some("system:nodes"), &[node::NAME, node::ADDRESS])?;
    let tokens = KeyPair::generate()?;
    std::fs::write(pki.join("sa.key"), tokens.serialize_pem())?;
    // By itself: of an elliptic key the API server does not find the public half in the private one.
    std::fs::write(pki.join("sa.pub"), tokens.public_key_pem())?;

    for user in ["admin", "controllers", "scheduler", "proxy", "kubelet"] {
        let pki = pki.display();
        let text = format!(
            "apiVersion: v1
kind: Config
current-context: test
clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: '{pki}/ca.crt'}}}}]
users: [{{name: test, user: {{client-certificate: '{pki}/{user}.crt', client-key: '{pki}/{user}.key'}}}}]
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
"
        );
        std::fs::write(state.join(format!("{user}.conf")), text)?;
    }
    Ok(())
}

fn named(common: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}
