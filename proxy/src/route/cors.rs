//! Cross-origin requests (the Fetch standard, 3.2): which pages of other sites a browser lets read an answer. Envoy's
//! filter of that name, with one difference: where a list is `*`, the answer names what was asked for, since browsers
//! take a star by its letter when a request has credentials.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};

use super::matching::ValueMatcher;

/// A `CorsPolicy`.
#[derive(Debug)]
pub struct Cors {
    /// Whose pages may ask.
    pub origins: Vec<ValueMatcher>,
    /// What is allowed with which methods and headers; absent: only what needs no leave.
    pub methods: Option<HeaderValue>,
    /// As `methods`.
    pub headers: Option<HeaderValue>,
    /// Which headers of an answer pages may read.
    pub expose: Option<HeaderValue>,
    /// For how long the answer to a preflight holds, in seconds.
    pub max_age: Option<HeaderValue>,
    /// Whether cookies may be sent.
    pub credentials: bool,
    /// A preflight from elsewhere goes to the upstream; else it is answered without a word about it.
    pub forward_others: bool,
}

/// What a request is to a route with a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Nothing that the policy is about.
    Other,
    /// The browser asks first, on behalf of an origin that is allowed.
    Preflight(HeaderValue),
    /// The browser asks first, on behalf of one that is not.
    Refused,
    /// A request on behalf of an origin that is allowed.
    Request(HeaderValue),
}

impl Cors {
    /// What a request is.
    pub fn asked(&self, method: &Method, headers: &HeaderMap) -> Asked {
        let Some(origin) = headers.get(ORIGIN) else { return Asked::Other };
        let allowed =
            origin.to_str().is_ok_and(|text| self.origins.iter().any(|matcher| matcher.matches(text)));
        let preflight = *method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        match (preflight, allowed) {
            (true, true) => Asked::Preflight(origin.clone()),
            (true, false) if !self.forward_others => Asked::Refused,
            (false, true) => Asked::Request(origin.clone()),
            _ => Asked::Other,
        }
    }

    /// What the answer to a preflight says; `asked` are the request's headers.
    pub fn answer_preflight(&self, origin: HeaderValue, asked: &HeaderMap, answer: &mut HeaderMap) {
        self.allow(origin, answer);
        let named = [
            (&self.methods, ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_ALLOW_METHODS),
            (&self.headers, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_ALLOW_HEADERS),
        ];
        for (allowed, of, name) in named {
            let all = allowed.as_ref().is_some_and(|list| list == "*");
            let value = if all { asked.get(of).or(allowed.as_ref()) } else { allowed.as_ref() };
            if let Some(value) = value {
                answer.insert(name, value.clone());
            }
        }
        if let Some(age) = &self.max_age {
            answer.insert(ACCESS_CONTROL_MAX_AGE, age.clone());
        }
        if let Some(expose) = &self.expose {
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    /// What the answer to any other request says, whatever the upstream thinks about it.
    pub fn answer(&self, origin: HeaderValue, answer: &mut HeaderMap) {
        self.allow(origin, answer);
        if let Some(expose) = &self.expose {
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    fn allow(&self, origin: HeaderValue, answer: &mut HeaderMap) {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        // A cache is not to give the answer to another's page.
        answer.append(VARY, HeaderValue::from_static("origin"));
        match self.credentials {
            true => answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")),
            false => answer.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Cors {
        Cors {
            origins: vec![ValueMatcher::Exact("https://shop".into())],
            methods: Some(HeaderValue::from_static("*")),
            headers: Some(HeaderValue::from_static("x-a")),
            expose: None,
            max_age: Some(HeaderValue::from_static("5")),
            credentials: true,
            forward_others: false,
        }
    }

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        let of = of
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        of.collect()
    }

    #[test]
    fn what_is_asked() {
        let ours = headers(&[("origin", "https://shop"), ("access-control-request-method", "PUT")]);
        let theirs = headers(&[("origin", "https://other"), ("access-control-request-method", "PUT")]);
        let shop = HeaderValue::from_static("https://shop");
        assert_eq!(policy().asked(&Method::OPTIONS, &ours), Asked::Preflight(shop.clone()));
        assert_eq!(policy().asked(&Method::GET, &ours), Asked::Request(shop));
        assert_eq!(policy().asked(&Method::OPTIONS, &theirs), Asked::Refused);
        assert_eq!(policy().asked(&Method::GET, &theirs), Asked::Other);
        assert_eq!(policy().asked(&Method::OPTIONS, &HeaderMap::new()), Asked::Other);
        let forwards = Cors { forward_others: true, ..policy() };
        assert_eq!(forwards.asked(&Method::OPTIONS, &theirs), Asked::Other);
    }

    #[test]
    fn a_star_is_answered_with_what_was_asked_for() {
        let asked =
            headers(&[("access-control-request-method", "PUT"), ("access-control-request-headers", "x-b")]);
        let mut answer = HeaderMap::new();
        policy().answer_preflight(HeaderValue::from_static("https://shop"), &asked, &mut answer);
        assert_eq!(answer.get("access-control-allow-methods").unwrap(), "PUT");
        assert_eq!(answer.get("access-control-allow-headers").unwrap(), "x-a");
        assert_eq!(answer.get("access-control-allow-credentials").unwrap(), "true");
        assert_eq!(answer.get("access-control-max-age").unwrap(), "5");
    }
}
