//! `X-Forwarded-Client-Cert`: who is told which certificate a client has shown. Form and rules are Envoy's
//! (`forward_client_cert_details`), but for a name that could be read as more of the header: it is quoted.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;

use crate::config::listener::{CertificateDetails, ClientCertificates};
use crate::tls::told;

/// The header.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// What one client has shown in its handshake, and to whom.
pub(crate) struct Shown {
    /// The client's own first.
    pub(crate) certificates: Rc<[CertificateDer<'static>]>,
    /// The URIs that our own certificate names us by.
    pub(crate) by: Arc<[Box<str>]>,
    /// Written down once for all requests that want the same of it.
    element: RefCell<Option<(CertificateDetails, Option<HeaderValue>)>>,
}

impl Shown {
    pub(crate) fn new(certificates: Rc<[CertificateDer<'static>]>, by: Arc<[Box<str>]>) -> Rc<Shown> {
        Rc::new(Shown { certificates, by, element: RefCell::default() })
    }

    fn element(&self, details: CertificateDetails) -> Option<HeaderValue> {
        let mut kept = self.element.borrow_mut();
        match &*kept {
            Some((of, value)) if *of == details => value.clone(),
            _ => {
                let value = told::element(&self.certificates, &self.by, details);
                let value = HeaderValue::try_from(value).ok();
                *kept = Some((details, value.clone()));
                value
            }
        }
    }
}

impl ClientCertificates {
    /// Whether what a request says of certificates is sent on.
    pub(crate) fn keeps(self, shown: Option<&Rc<Shown>>) -> bool {
        match self {
            ClientCertificates::Sanitize | ClientCertificates::SanitizeSet(_) => false,
            ClientCertificates::Forward | ClientCertificates::AppendForward(_) => shown.is_some(),
            ClientCertificates::AlwaysForward => true,
        }
    }

    /// Adds what we know ourselves. What may not be kept has gone.
    #[inline]
    pub(crate) fn tell(self, shown: Option<&Rc<Shown>>, headers: &mut HeaderMap) {
        let (ClientCertificates::AppendForward(details) | ClientCertificates::SanitizeSet(details)) = self
        else {
            return;
        };
        let Some(own) = shown.and_then(|shown| shown.element(details)) else { return };
        let mut all = Vec::new();
        for value in headers.get_all(HEADER) {
            all.extend_from_slice(value.as_bytes());
            all.push(b',');
        }
        if all.is_empty() {
            headers.insert(HEADER, own);
            return;
        }
        all.extend_from_slice(own.as_bytes());
        if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(all)) {
            headers.insert(HEADER, value);
        }
    }
}
