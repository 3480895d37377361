//! Whether a request that has failed may be tried once more. The rule that is never bent: not after bytes of a
//! request that is not safe may have gone out: an order must not be paid twice, and who deletes twice is told 404.

use std::time::Duration;

use http::{Method, StatusCode};

use crate::error::Error;
use crate::route::{BACK_OFF, RetryPolicy};

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// With what.
    pub error: Error,
    /// The request is whole and none of it was sent.
    pub unsent: bool,
}

/// What of the request can be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeatable {
    /// RFC 9110, 9.2.1: it asks for nothing to be done.
    pub safe: bool,
    /// It has no body.
    pub bodyless: bool,
}

/// RFC 9110, 9.2.1, for the methods it defines; an unknown one is not.
pub fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// Whether to try again after `tries` tries of which the last failed so. No answer has been seen.
pub fn again(policy: &RetryPolicy, failure: Failure, request: Repeatable, tries: u32) -> bool {
    if tries > policy.max_retries {
        return false;
    }
    match failure.error {
        error if error.is_connect() => policy.on_connect_failure && failure.unsent,
        // The endpoint says that it has not touched it; we only need to have it still.
        Error::RefusedStream => policy.on_refused_stream && (failure.unsent || request.bodyless),
        Error::UpstreamReset => {
            policy.on_broken_connection && (failure.unsent || request.safe && request.bodyless)
        }
        _ => false,
    }
}

/// Whether to try again after `tries` tries of which the last was answered so, and none of the answer was passed on.
/// Whose request it is has said that such an answer means nothing was done; a body is not kept for it.
pub fn again_after(policy: &RetryPolicy, status: StatusCode, request: Repeatable, tries: u32) -> bool {
    let named = policy.on_status.as_ref().is_some_and(|codes| codes.contains(&status));
    named && request.bodyless && tries <= policy.max_retries
}

/// What is waited for before the next try, after `tries` tries; `random` is of 0 to 1.
pub fn pause(policy: &RetryPolicy, tries: u32, random: f64) -> Duration {
    let (base, longest) = policy.back_off.as_deref().copied().unwrap_or(BACK_OFF);
    let doubled = base.saturating_mul(1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(longest).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: RetryPolicy = RetryPolicy {
        max_retries: 1,
        per_try_timeout: None,
        on_connect_failure: true,
        on_refused_stream: true,
        on_broken_connection: true,
        on_status: None,
        back_off: None,
    };

    #[test]
    fn the_matrix() {
        let get = Repeatable { safe: true, bodyless: true };
        let get_with_body = Repeatable { safe: true, bodyless: false };
        let post = Repeatable { safe: false, bodyless: false };
        let empty_post = Repeatable { safe: false, bodyless: true };
        for (error, unsent, request, expected) in [
            (Error::ConnectFailure, true, post, true),
            (Error::ConnectTimeout, true, post, true),
            (Error::NoSocket, true, get, false),
            (Error::UpstreamReset, true, post, true),
            (Error::UpstreamReset, false, get, true),
            (Error::UpstreamReset, false, get_with_body, false),
            (Error::UpstreamReset, false, post, false),
            (Error::UpstreamReset, false, empty_post, false),
            (Error::RefusedStream, false, empty_post, true),
            (Error::RefusedStream, false, post, false),
            (Error::RefusedStream, true, post, true),
            (Error::UpstreamTimeout, false, get, false),
            (Error::UpstreamProtocol, false, get, false),
            (Error::BodyTooLarge, false, get, false),
        ] {
            let failure = Failure { error, unsent };
            assert_eq!(again(&ALL, failure, request, 1), expected, "{failure:?} {request:?}");
            assert!(!again(&ALL, failure, request, 2), "one retry is one");
        }
        let none = RetryPolicy {
            on_connect_failure: false,
            on_refused_stream: false,
            on_broken_connection: false,
            ..ALL
        };
        for error in Error::ALL {
            assert!(!again(&none, Failure { error: *error, unsent: true }, get, 1));
        }
    }

    #[test]
    fn an_answer_is_tried_again_where_the_route_names_it() {
        let policy = RetryPolicy {
            max_retries: 2,
            on_status: Some([StatusCode::BAD_GATEWAY].into()),
            back_off: Some(std::sync::Arc::new((Duration::from_millis(10), Duration::from_millis(30)))),
            ..ALL
        };
        let bodyless = Repeatable { safe: false, bodyless: true };
        assert!(again_after(&policy, StatusCode::BAD_GATEWAY, bodyless, 2));
        assert!(!again_after(&policy, StatusCode::BAD_GATEWAY, bodyless, 3));
        assert!(!again_after(&policy, StatusCode::OK, bodyless, 1));
        assert!(!again_after(&ALL, StatusCode::BAD_GATEWAY, bodyless, 1));
        assert!(!again_after(
            &policy,
            StatusCode::BAD_GATEWAY,
            Repeatable { bodyless: false, ..bodyless },
            1
        ));
        let pauses = [1, 2, 3, 60].map(|tries| pause(&policy, tries, 1.0).as_millis());
        assert_eq!(pauses, [10, 20, 30, 30]);
    }
}
