//! What the registry says no to, and how it says it: a status that Eureka's clients act upon, and a reason in
//! JSON for the person who looks.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why a request is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not an instance, in JSON or in XML.
    #[error("cannot parse request body{0}")]
    Unparsable(Detail),
    /// A field that must be there.
    #[error("Missing {0}")]
    Missing(&'static str),
    /// The application of the path and that of the body differ.
    #[error("Mismatched appName, expecting {path} but was {body}")]
    Mismatched {
        /// Of the path.
        path: String,
        /// Of the body.
        body: String,
    },
    /// A value that cannot be kept.
    #[error("{field}: {why}")]
    Invalid {
        /// As Eureka spells it.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// No such instance or application.
    #[error("{0} is not registered")]
    NotRegistered(String),
    /// No such path.
    #[error("there is nothing at {0}; the registry's paths begin with /eureka/apps")]
    NoSuchPath(String),
    /// The path is there, the method is not.
    #[error("{0} is not done here")]
    Method(String),
    /// Neither JSON nor XML will do for the client.
    #[error("only application/json and application/xml are served")]
    NotAcceptable,
    /// The body is neither.
    #[error("the body's Content-Type must be application/json or application/xml")]
    MediaType,
    /// A compressed body: no Eureka server reads one.
    #[error("the body must not be encoded; it says Content-Encoding: {0}")]
    Encoded(String),
    /// More than is read.
    #[error("the body is larger than {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The body came too slowly or not at all.
    #[error("the body did not arrive: {0}")]
    Incomplete(String),
    /// No room for one more instance.
    #[error("the registry is full: {held}; raise the limit or find out who registers so much")]
    Full {
        /// What there is of what is allowed.
        held: String,
    },
    /// The start of this replica: what its peers know is not here yet.
    #[error("the registry is being copied from a peer; ask another replica, or again")]
    Joining,
    /// The delta log does not reach back far enough. Clients take this for "fetch everything".
    #[error("too many changes for a delta; fetch all applications")]
    NoDelta,
    /// Ours to repair.
    #[error("the answer cannot be encoded: {0}")]
    Encoding(String),
}

/// What a parser said; empty where there is no more to say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Detail(pub String);

impl std::fmt::Display for Detail {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(out, ": {}", self.0) }
    }
}

impl Refusal {
    pub(super) fn invalid(field: &str, why: impl Into<String>) -> Refusal {
        Refusal::Invalid { field: field.to_owned(), why: why.into() }
    }

    pub(super) fn unparsable(detail: impl std::fmt::Display) -> Refusal {
        Refusal::Unparsable(Detail(detail.to_string()))
    }

    /// The answer's status.
    pub fn status(&self) -> StatusCode {
        match self {
            Refusal::Unparsable(_)
            | Refusal::Missing(_)
            | Refusal::Mismatched { .. }
            | Refusal::Invalid { .. }
            | Refusal::Encoded(_) => StatusCode::BAD_REQUEST,
            Refusal::NotRegistered(_) | Refusal::NoSuchPath(_) | Refusal::NoDelta => StatusCode::NOT_FOUND,
            Refusal::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Refusal::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Refusal::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Incomplete(_) => StatusCode::REQUEST_TIMEOUT,
            Refusal::Full { .. } | Refusal::Joining => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Encoding(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// A stable word, the same in the answer and in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::Unparsable(_) => "unparsable",
            Refusal::Missing(_) => "missing_field",
            Refusal::Mismatched { .. } => "mismatched_application",
            Refusal::Invalid { .. } => "invalid_value",
            Refusal::NotRegistered(_) => "not_registered",
            Refusal::NoSuchPath(_) => "no_such_path",
            Refusal::Method(_) => "method",
            Refusal::NotAcceptable => "not_acceptable",
            Refusal::MediaType => "media_type",
            Refusal::Encoded(_) => "encoded_body",
            Refusal::TooLarge { .. } => "too_large",
            Refusal::Incomplete(_) => "incomplete_body",
            Refusal::Full { .. } => "registry_full",
            Refusal::Joining => "joining",
            Refusal::NoDelta => "no_delta",
            Refusal::Encoding(_) => "encoding",
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body =
            json!({"error": self.to_string(), "reason": self.reason(), "status": self.status().as_u16()});
        (self.status(), Json(body)).into_response()
    }
}
