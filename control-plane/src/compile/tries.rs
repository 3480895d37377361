//! How long a request may take, and what of it is tried again.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::RetryPolicy;
use envoy_types::pb::envoy::config::route::v3::retry_policy::RetryBackOff;
use gateway_api::experimental::httproutes::{HttpRouteRulesRetry, HttpRouteRulesTimeouts};

use super::INVALID;
use super::wire;
use crate::objects::problem::FieldError;

/// What nothing was sent of, or what the upstream says it did not look at, is tried once more.
const RETRY_ON: &str = "connect-failure,refused-stream,reset-before-request";
/// More would only add to an outage.
const MAX_RETRIES: u32 = 20;

/// How long a request may take.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timeouts {
    pub(super) request: Option<Duration>,
    pub(super) per_try: Option<Duration>,
}

/// Where a rule says nothing.
pub(super) fn usual() -> RetryPolicy {
    RetryPolicy { retry_on: RETRY_ON.to_owned(), num_retries: wire::number(1), ..RetryPolicy::default() }
}

/// What is tried again, and how often: what nothing came of always, and what the rule says.
pub(super) fn retry(written: Option<&HttpRouteRulesRetry>, field: &str) -> Result<RetryPolicy, FieldError> {
    let Some(written) = written else { return Ok(usual()) };
    let wrong =
        |name: &str, message: String| FieldError::new(format!("{field}.retry.{name}"), INVALID, message);
    let attempts =
        u32::try_from(written.attempts.unwrap_or(1)).ok().filter(|attempts| *attempts <= MAX_RETRIES);
    let attempts =
        attempts.ok_or_else(|| wrong("attempts", format!("expected 0 to {MAX_RETRIES} further tries")))?;
    let mut codes = Vec::new();
    for (index, code) in written.codes.iter().flatten().enumerate() {
        let fits = u32::try_from(*code).ok().filter(|code| (400..=599).contains(code));
        codes.push(
            fits.ok_or_else(|| {
                wrong(&format!("codes[{index}]"), "expected a status, 400 to 599".to_owned())
            })?,
        );
    }
    let backoff = written.backoff.as_deref().map(crate::objects::duration::parse).transpose();
    let backoff = backoff.map_err(|message| wrong("backoff", message.to_string()))?;
    let retry_on =
        if codes.is_empty() { RETRY_ON.to_owned() } else { format!("{RETRY_ON},retriable-status-codes") };
    Ok(RetryPolicy {
        retry_on,
        num_retries: wire::number(attempts),
        retriable_status_codes: codes,
        retry_back_off: backoff.filter(|backoff| !backoff.is_zero()).map(|backoff| RetryBackOff {
            base_interval: Some(wire::duration(backoff)),
            ..RetryBackOff::default()
        }),
        ..usual()
    })
}

/// What a rule says of how long its requests may take.
pub(super) fn timeouts(written: &HttpRouteRulesTimeouts, field: &str) -> Result<Timeouts, FieldError> {
    let read = |text: &Option<String>, name: &str| {
        let at = || format!("{field}.timeouts.{name}");
        text.as_deref()
            .map(crate::objects::duration::parse)
            .transpose()
            .map_err(|message| FieldError::new(at(), INVALID, message))
    };
    let timeouts = Timeouts {
        request: read(&written.request, "request")?,
        per_try: read(&written.backend_request, "backendRequest")?.filter(|timeout| !timeout.is_zero()),
    };
    if let (Some(request), Some(per_try)) = (timeouts.request, timeouts.per_try)
        && !request.is_zero()
        && per_try > request
    {
        let at = format!("{field}.timeouts.backendRequest");
        return Err(FieldError::new(at, INVALID, "expected no more than timeouts.request"));
    }
    Ok(timeouts)
}
