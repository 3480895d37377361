//! How many requests of a client a path takes, as Envoy's local rate limit.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3::RateLimit;
use envoy_types::pb::envoy::config::route::v3::rate_limit::Action;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{ActionSpecifier, RemoteAddress};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, TokenBucket};
use envoy_types::pb::google::protobuf::BoolValue;

use crate::compile::wire;

/// Of whom it is known how much they have left. Of more, those that have most left are forgotten.
const CLIENTS: u32 = 8_192;

/// So many requests come in each `interval`, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) requests: u32,
    pub(super) burst: u32,
    pub(super) interval: Duration,
}

/// A bucket for each client's address.
pub(super) fn of_each_client(rate: Rate) -> LocalRateLimit {
    let bucket = |most, tokens| TokenBucket {
        max_tokens: most,
        tokens_per_fill: wire::number(tokens),
        fill_interval: Some(wire::duration(rate.interval)),
    };
    let all = RuntimeFractionalPercent {
        default_value: Some(FractionalPercent { numerator: 100, ..FractionalPercent::default() }),
        ..RuntimeFractionalPercent::default()
    };
    let remote = ActionSpecifier::RemoteAddress(RemoteAddress {});
    let limit =
        RateLimit { actions: vec![Action { action_specifier: Some(remote) }], ..RateLimit::default() };
    let entry = Entry { key: "remote_address".to_owned(), ..Entry::default() };
    LocalRateLimit {
        stat_prefix: "clients".to_owned(),
        // Every request has an address.
        token_bucket: Some(bucket(u32::MAX, u32::MAX)),
        always_consume_default_token_bucket: Some(BoolValue { value: false }),
        filter_enabled: Some(all.clone()),
        filter_enforced: Some(all),
        rate_limits: vec![limit],
        descriptors: vec![LocalRateLimitDescriptor {
            entries: vec![entry],
            token_bucket: Some(bucket(rate.burst, rate.requests)),
            ..LocalRateLimitDescriptor::default()
        }],
        max_dynamic_descriptors: wire::number(CLIENTS),
        ..LocalRateLimit::default()
    }
}
