//! Short ways to write the Envoy messages that every room of the compiler needs.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, HeaderValue, HeaderValueOption, SocketAddress,
    address, config_source, header_value_option::HeaderAppendAction, socket_address,
};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, header_matcher};
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher};
use envoy_types::pb::google::protobuf::{self, BoolValue, UInt32Value};

/// A protobuf duration. Longer than the protocol can say is never meant; it is cut.
pub(super) fn duration(value: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

/// A wrapped number.
pub(super) fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

/// A wrapped truth.
pub(super) fn yes() -> Option<BoolValue> {
    Some(BoolValue { value: true })
}

/// The resource comes on the stream that this one came on.
pub(super) fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

/// An address to connect to or to listen on.
pub(super) fn socket(address: SocketAddr) -> Address {
    named_socket(canonical(address.ip()).to_string(), address.port())
}

/// As [`socket`], for a name.
pub(super) fn named_socket(name: String, port: u16) -> Address {
    let port_specifier = Some(socket_address::PortSpecifier::PortValue(port.into()));
    let socket = SocketAddress { address: name, port_specifier, ..SocketAddress::default() };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Comparison {
    /// The whole text.
    Exact(String),
    /// The whole text matches a regular expression in RE2 syntax.
    Regex(String),
}

/// A comparison of a whole text.
pub(super) fn string(comparison: Comparison) -> StringMatcher {
    let pattern = match comparison {
        Comparison::Exact(text) => string_matcher::MatchPattern::Exact(text),
        Comparison::Regex(text) => string_matcher::MatchPattern::SafeRegex(regex(text)),
    };
    StringMatcher { ignore_case: false, match_pattern: Some(pattern) }
}

/// A regular expression over the whole text.
pub(super) fn regex(text: String) -> RegexMatcher {
    RegexMatcher { regex: text, engine_type: None }
}

/// A comparison of a header's value.
pub(super) fn header(name: &str, comparison: Comparison) -> HeaderMatcher {
    let specifier = header_matcher::HeaderMatchSpecifier::StringMatch(string(comparison));
    HeaderMatcher {
        name: name.to_ascii_lowercase(),
        header_match_specifier: Some(specifier),
        ..HeaderMatcher::default()
    }
}

/// A header to set or to add. Envoy reads `%` as the start of a command, so a literal one is doubled.
pub(super) fn header_value(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    let header = HeaderValue {
        key: name.to_ascii_lowercase(),
        value: value.replace('%', "%%"),
        ..HeaderValue::default()
    };
    HeaderValueOption {
        header: Some(header),
        append_action: action as i32,
        keep_empty_value: value.is_empty(),
        ..HeaderValueOption::default()
    }
}
