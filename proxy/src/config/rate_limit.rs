//! Envoy's local rate limit, of a listener's filter and of what routes say of it: a bucket for all, and one for each
//! client's address.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3::RateLimit as RateLimitMessage;
use envoy_types::pb::envoy::config::route::v3::rate_limit::{Action, action};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::r#type::v3::TokenBucket;

use super::hcm::duration;
use super::problem::{Problem, Under, each};
use super::rds::millionths;
use super::support::{Message, support};
use crate::route::rate_limit::{Rate, RateLimit};

pub(super) const MESSAGES: &[Message] =
    &[LOCAL_RATE_LIMIT, TOKEN_BUCKET, DESCRIPTOR, ENTRY, RATE_LIMIT, ACTION];

support! {
    LOCAL_RATE_LIMIT, local_rate_limit: LocalRateLimit = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
    read: token_bucket, filter_enabled, filter_enforced, descriptors, rate_limits, max_dynamic_descriptors, always_consume_default_token_bucket, status;
    ignored:
        stat_prefix => "it only names statistics",
        request_headers_to_add_when_not_enforced => "what is enabled is enforced";
    differs: enable_retry_after_header => "no answer has a Retry-After";
    refused: response_headers_to_add, stage, local_rate_limit_per_downstream_connection, local_cluster_rate_limit, enable_x_ratelimit_headers, vh_rate_limits, rate_limited_as_resource_exhausted;
}

support! {
    TOKEN_BUCKET, token_bucket: TokenBucket = "envoy.type.v3.TokenBucket";
    read: max_tokens, tokens_per_fill, fill_interval;
    ignored:;
    refused: ;
}

support! {
    DESCRIPTOR, descriptor: LocalRateLimitDescriptor = "envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor";
    read: entries, token_bucket;
    ignored:;
    refused: shadow_mode;
}

support! {
    ENTRY, entry: Entry = "envoy.extensions.common.ratelimit.v3.RateLimitDescriptor.Entry";
    read: key;
    ignored:;
    refused: value;
}

support! {
    RATE_LIMIT, rate_limit: RateLimitMessage = "envoy.config.route.v3.RateLimit";
    read: actions;
    ignored:;
    refused: stage, disable_key, limit, hits_addend, apply_on_stream_done, x_ratelimit_option;
}

support! {
    ACTION, rate_limit_action: Action = "envoy.config.route.v3.RateLimit.Action";
    read: action_specifier;
    ignored:;
    refused: ;
}

/// What the client's address is called in descriptors.
const REMOTE_ADDRESS: &str = "remote_address";
/// Envoy's smallest interval.
const SHORTEST: Duration = Duration::from_millis(50);
/// Clients that buckets are kept for, where nothing is said.
const CLIENTS: u32 = 20;
/// 16 MiB of buckets.
const MOST_CLIENTS: u32 = 1 << 20;

/// None where it limits nothing: it has no bucket, or is for no request.
pub(super) fn compile(message: &LocalRateLimit) -> Result<Option<RateLimit>, Problem> {
    local_rate_limit(message)?;
    match message.status.as_ref().map_or(0, |status| status.code) {
        0 | 429 => {}
        code => return Err(Problem::new("status.code", format!("is {code}; the answer here is 429"))),
    }
    let enabled = is_whole("filter_enabled", message.filter_enabled.as_ref())?;
    let enforced = is_whole("filter_enforced", message.filter_enforced.as_ref())?;
    let all = message.token_bucket.as_ref().map(rate).transpose().under(|| "token_bucket".into())?;
    let of_client = clients(message)?;
    let Some(all) = all.filter(|_| enabled && enforced) else { return Ok(None) };
    let limit = RateLimit::new(all);
    let Some(rate) = of_client else { return Ok(Some(limit)) };
    let most = message.max_dynamic_descriptors.map_or(CLIENTS, |most| most.value);
    if !(1..=MOST_CLIENTS).contains(&most) {
        let reason = format!("is {most}; must be 1 to {MOST_CLIENTS}");
        return Err(Problem::new("max_dynamic_descriptors", reason));
    }
    let also_all = message.always_consume_default_token_bucket.is_none_or(|flag| flag.value);
    Ok(Some(limit.of_each_client(rate, most as usize, also_all)))
}

/// A share that is all or nothing; nothing where it is not said, as in Envoy.
fn is_whole(field: &str, message: Option<&RuntimeFractionalPercent>) -> Result<bool, Problem> {
    match message.map(millionths).transpose().under(|| field.into())? {
        None | Some(0) => Ok(false),
        Some(1_000_000) => Ok(true),
        Some(millionths) => {
            let percent = f64::from(millionths) / 10_000.0;
            Err(Problem::new(
                field,
                format!("is {percent} %; a limit is for all requests (100 %) or none (0 %)"),
            ))
        }
    }
}

/// The rate of each client's own bucket.
fn clients(message: &LocalRateLimit) -> Result<Option<Rate>, Problem> {
    each("rate_limits", &message.rate_limits, |limit| {
        rate_limit(limit)?;
        each("actions", &limit.actions, |action| {
            rate_limit_action(action)?;
            match &action.action_specifier {
                Some(action::ActionSpecifier::RemoteAddress(_)) => Ok(()),
                _ => Err(Problem::new("", "is another than remote_address, the one that this proxy has")),
            }
        })?;
        match limit.actions.len() {
            1 => Ok(()),
            count => Err(Problem::new("actions", format!("are {count}; must be one"))),
        }
    })?;
    let rates = each("descriptors", &message.descriptors, |of| {
        descriptor(of)?;
        each("entries", &of.entries, entry)?;
        let keys: Vec<&str> = of.entries.iter().map(|one| one.key.as_str()).collect();
        if keys != [REMOTE_ADDRESS] {
            let reason = format!("are {keys:?}; must be one, {REMOTE_ADDRESS}, without a value");
            return Err(Problem::new("entries", reason));
        }
        let Some(bucket) = &of.token_bucket else { return Err(Problem::new("token_bucket", "is missing")) };
        rate(bucket).under(|| "token_bucket".into())
    })?;
    match (message.rate_limits.len(), rates.as_slice()) {
        (0, _) | (_, []) => Ok(None),
        (1, [rate]) => Ok(Some(*rate)),
        _ => Err(Problem::new("descriptors", "and rate_limits have several; must be one of each")),
    }
}

fn rate(message: &TokenBucket) -> Result<Rate, Problem> {
    token_bucket(message)?;
    let per_interval = message.tokens_per_fill.map_or(1, |tokens| tokens.value);
    for (field, count) in [("max_tokens", message.max_tokens), ("tokens_per_fill", per_interval)] {
        if count == 0 {
            return Err(Problem::new(field, "is 0; must be greater than 0"));
        }
    }
    match duration("fill_interval", message.fill_interval)? {
        Some(interval) if interval >= SHORTEST => Ok(Rate::new(message.max_tokens, per_interval, interval)),
        _ => Err(Problem::new("fill_interval", "is missing or too short; must be at least 0.05s")),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, HttpStatus};
    use envoy_types::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};
    use tokio::time::Instant;

    use super::*;

    fn bucket(max_tokens: u32) -> Option<TokenBucket> {
        let fill_interval = Some(ProtoDuration { seconds: 3600, nanos: 0 });
        Some(TokenBucket { max_tokens, tokens_per_fill: None, fill_interval })
    }

    fn percent(numerator: u32) -> Option<RuntimeFractionalPercent> {
        let default_value = Some(FractionalPercent { numerator, denominator: 0 });
        Some(RuntimeFractionalPercent { default_value, ..RuntimeFractionalPercent::default() })
    }

    fn all(max_tokens: u32) -> LocalRateLimit {
        LocalRateLimit {
            stat_prefix: "x".into(),
            token_bucket: bucket(max_tokens),
            filter_enabled: percent(100),
            filter_enforced: percent(100),
            ..LocalRateLimit::default()
        }
    }

    fn of_clients(max_tokens: u32) -> LocalRateLimit {
        let remote = action::ActionSpecifier::RemoteAddress(action::RemoteAddress {});
        LocalRateLimit {
            rate_limits: vec![RateLimitMessage {
                actions: vec![Action { action_specifier: Some(remote) }],
                ..RateLimitMessage::default()
            }],
            descriptors: vec![LocalRateLimitDescriptor {
                entries: vec![Entry { key: REMOTE_ADDRESS.into(), value: String::new() }],
                token_bucket: bucket(max_tokens),
                ..LocalRateLimitDescriptor::default()
            }],
            ..all(1_000)
        }
    }

    fn taken(message: &LocalRateLimit) -> Option<usize> {
        let limit = compile(message).unwrap()?;
        let now = Instant::now();
        Some((0..100).filter(|n| limit.takes([192, 0, 2, n % 2].into(), now)).count())
    }

    #[test]
    fn a_bucket_for_all_and_one_for_each_client() {
        assert_eq!(taken(&all(5)), Some(5));
        assert_eq!(taken(&of_clients(5)), Some(10));
        assert_eq!(taken(&LocalRateLimit { token_bucket: bucket(7), ..of_clients(5) }), Some(7));
        let none = LocalRateLimit::default();
        for off in [
            none,
            LocalRateLimit { filter_enforced: None, ..all(5) },
            LocalRateLimit { filter_enabled: percent(0), ..all(5) },
        ] {
            assert_eq!(taken(&off), None);
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_its_path() {
        let at = |message: LocalRateLimit| compile(&message).unwrap_err().path;
        assert_eq!(at(LocalRateLimit { filter_enforced: percent(50), ..all(5) }), "filter_enforced");
        assert_eq!(at(LocalRateLimit { status: Some(HttpStatus { code: 503 }), ..all(5) }), "status.code");
        assert_eq!(at(all(0)), "token_bucket.max_tokens");
        let short = TokenBucket {
            fill_interval: Some(ProtoDuration { seconds: 0, nanos: 1_000 }),
            ..bucket(1).unwrap()
        };
        assert_eq!(at(LocalRateLimit { token_bucket: Some(short), ..all(1) }), "token_bucket.fill_interval");
        let most = Some(UInt32Value { value: 1 << 30 });
        assert_eq!(
            at(LocalRateLimit { max_dynamic_descriptors: most, ..of_clients(1) }),
            "max_dynamic_descriptors"
        );
        let mut other = of_clients(1);
        other.descriptors[0].entries[0].key = "path".into();
        assert_eq!(at(other), "descriptors[0].entries");
        let mut other = of_clients(1);
        other.rate_limits[0].actions[0].action_specifier = None;
        assert_eq!(at(other), "rate_limits[0].actions[0]");
    }
}
