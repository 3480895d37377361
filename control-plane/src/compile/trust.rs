//! Whose certificates are believed: clients' on listeners (the frontend TLS of a `Gateway`), and endpoints'
//! (`BackendTLSPolicy`). Authorities are in `ConfigMap`s, under `ca.crt`.

use gateway_api::gateways::{
    GatewayTlsFrontendDefaultValidation as OnAllPorts,
    GatewayTlsFrontendDefaultValidationMode as ModeOnAllPorts,
    GatewayTlsFrontendPerPortTlsValidation as OnPort,
    GatewayTlsFrontendPerPortTlsValidationMode as ModeOnPort,
};

use pontoon_proxy::tls::material;

use super::listener::{Aspect, ClientTrust, Parsed, Protocol};
use super::reference::permitted;
use crate::objects::config_map::CA;
use crate::objects::problem::FieldError;
use crate::objects::{DEFAULT_NAMESPACE, Gateway, Kind, ObjectName, Objects};

/// A reference to certificates of authorities.
#[derive(Debug, Clone, Copy)]
pub(super) struct Authority<'o> {
    pub(super) group: &'o str,
    pub(super) kind: &'o str,
    pub(super) name: &'o str,
    pub(super) namespace: Option<&'o str>,
}

/// How clients' certificates are checked, as it is written.
struct Validation<'o> {
    field: String,
    authorities: Vec<Authority<'o>>,
    insecure: bool,
}

macro_rules! validations {
    ($($name:ident, $written:ty, $insecure:path);*) => {$(
        fn $name(field: String, written: &$written) -> Validation<'_> {
            let authorities = written.ca_certificate_refs.iter().map(|reference| Authority {
                group: &reference.group,
                kind: &reference.kind,
                name: &reference.name,
                namespace: reference.namespace.as_deref(),
            });
            let authorities = authorities.collect();
            Validation { field, authorities, insecure: written.mode == Some($insecure) }
        }
    )*};
}

validations!(
    on_all_ports, OnAllPorts, ModeOnAllPorts::AllowInsecureFallback;
    on_port, OnPort, ModeOnPort::AllowInsecureFallback
);

/// Finds out what clients' certificates are checked by, for each listener that terminates HTTPS.
pub(super) fn clients(objects: &Objects, gateway: &Gateway, parsed: &mut Parsed) {
    let Some(frontend) = gateway.spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref()) else { return };
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    for served in parsed.listeners.iter_mut().filter(|served| served.protocol == Protocol::Https) {
        let mut ports = frontend.per_port.iter().flatten().enumerate();
        let own = ports.find(|(_, of)| of.port == i32::from(served.port));
        let validation = match own {
            Some((index, of)) => of.tls.validation.as_ref().map(|written| {
                on_port(format!("spec.tls.frontend.perPort[{index}].tls.validation"), written)
            }),
            None => {
                let validation = frontend.default.validation.as_ref();
                validation
                    .map(|written| on_all_ports("spec.tls.frontend.default.validation".to_owned(), written))
            }
        };
        let Some(validation) = validation else { continue };
        let (found, errors) =
            authorities(objects, (Kind::Gateway, namespace), &validation.authorities, &validation.field);
        served.faults.extend(errors.into_iter().map(|error| (Aspect::ResolvedRefs, error)));
        match found {
            Some(authorities) => {
                served.clients = Some(ClientTrust { authorities, insecure: validation.insecure });
            }
            None => {
                let message = "clients' certificates cannot be checked, so no client is let in";
                let error = FieldError::new(validation.field, "NoValidCACertificate", message);
                served.faults.push((Aspect::Accepted, error));
            }
        }
    }
}

/// The certificates of all authorities that can be used, as one PEM, and what is wrong with the others.
pub(super) fn authorities(
    objects: &Objects,
    from: (Kind, &str),
    references: &[Authority<'_>],
    field: &str,
) -> (Option<String>, Vec<FieldError>) {
    let (mut all, mut errors) = (String::new(), Vec::new());
    for (index, reference) in references.iter().enumerate() {
        match authority(objects, from, reference, &format!("{field}.caCertificateRefs[{index}]")) {
            Ok(certificates) => {
                all.push_str(certificates.trim());
                all.push('\n');
            }
            Err(error) => errors.push(error),
        }
    }
    ((!all.is_empty()).then_some(all), errors)
}

fn authority<'o>(
    objects: &'o Objects,
    from: (Kind, &str),
    reference: &Authority<'_>,
    field: &str,
) -> Result<&'o str, FieldError> {
    // The API has a word for each of its two places.
    let wrong_kind = if from.0 == Kind::Gateway { "InvalidCACertificateKind" } else { "InvalidKind" };
    if !reference.group.is_empty() || reference.kind != "ConfigMap" {
        return Err(FieldError::new(format!("{field}.kind"), wrong_kind, "expected a ConfigMap"));
    }
    let name = ObjectName::new(reference.namespace.unwrap_or(from.1), reference.name);
    permitted(objects, from, ("", "ConfigMap", &name), field)?;
    let wrong = |message: String| FieldError::new(field, "InvalidCACertificateRef", message);
    let map = objects.config_maps.get(&name);
    let map = map.ok_or_else(|| wrong(objects.why_missing(Kind::ConfigMap, &name)))?;
    let text = map.data.get(CA);
    let text = text.ok_or_else(|| wrong(format!("ConfigMap {name} has no {CA}")))?;
    let source = material::Source::Inline(text.as_bytes().into());
    let trust = material::Trust { authorities: Some(source), ..material::Trust::default() };
    trust.roots().map_err(|unusable| wrong(format!("ConfigMap {name}: {CA}: {}", unusable.0)))?;
    Ok(text)
}
