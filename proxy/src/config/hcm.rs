//! `HttpConnectionManager`: what is done with the requests of a listener.

use std::collections::BTreeSet;
use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog as AccessLogMessage, access_log};
use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use envoy_types::pb::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions};
use envoy_types::pb::envoy::config::core::v3::{SubstitutionFormatString, substitution_format_string};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::config::trace::v3::tracing::http::ConfigType as TracerConfig;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, ForwardClientCertFormat, InternalAddressConfig, PathWithEscapedSlashesAction, RouteSpecifier, SetCurrentClientCertDetails, StripPortMode, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpConnectionManager, Rds};
use envoy_types::pb::envoy::extensions::http::header_validators::envoy_default::v3::HeaderValidatorConfig;
use envoy_types::pb::envoy::extensions::http::header_validators::envoy_default::v3::header_validator_config;
use pontoon_xds::json::type_of;

use super::differing::noting;
use super::filters;
use super::lds::{network, unpack};
use super::listener::{
    AccessLog, AccessLogFormat, CertificateDetails, ClientCertificates, Codec, DownstreamTimeouts,
    ForwardedTrust, Limits, PathOptions, Underscores,
};
use super::problem::{Problem, Under, each};
use super::stream_log;
use super::support::{Message, from_ads, support};
use crate::route::filters::{Buffer, ByFilter, longest_body};
use crate::route::rbac::Filter;
use crate::route::{authz, rate_limit, session};

pub(super) const MESSAGES: &[Message] = &[
    MANAGER,
    UPGRADE,
    RDS,
    INTERNAL_ADDRESSES,
    CERTIFICATE_DETAILS,
    ACCESS_LOG,
    FILE_ACCESS_LOG,
    FORMAT_STRING,
    COMMON_OPTIONS,
    HTTP2_OPTIONS,
    HTTP1_OPTIONS,
    VALIDATOR,
];

support! {
    MANAGER, manager: HttpConnectionManager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    read: codec_type, http_filters, common_http_protocol_options, http_protocol_options, http2_protocol_options, server_name, max_request_headers_kb, stream_idle_timeout, request_headers_timeout, drain_timeout, access_log, use_remote_address, xff_num_trusted_hops, internal_address_config, generate_request_id, preserve_external_request_id, upgrade_configs, normalize_path, merge_slashes, request_timeout, skip_xff_append, forward_client_cert_details, set_current_client_cert_details, http1_safe_max_connection_duration, path_with_escaped_slashes_action, strip_port_mode, route_specifier, typed_header_validation_config;
    ignored:
        stat_prefix => "it only names statistics",
        append_local_overload => "an answer says by x-pontoon-reason that it is for overload",
        add_proxy_protocol_connection_state => "it only adds to what filters can ask for, and none here does",
        proxy_100_continue => "100 Continue always comes from the endpoint";
    differs:
        tracing => "spans are not reported",
        delayed_close_timeout => "a connection is closed once its last answer is flushed";
    refused: add_user_agent, http3_protocol_options, server_header_transformation, scheme_header_transformation, stream_flush_timeout, drain_timeout_jitter, original_ip_detection_extensions, early_header_mutation_extensions, via, forward_client_cert_matcher, represent_ipv4_remote_address_as_ipv4_mapped_ipv6, request_id_extension, local_reply_config, stream_error_on_invalid_http_message, path_normalization_options, strip_trailing_host_dot, proxy_status_config, append_x_forwarded_port, forward_proto_config, access_log_flush_interval, flush_access_log_on_new_request, access_log_options, always_set_request_id_in_response, strip_matching_host_port;
}

support! {
    UPGRADE, upgrade: UpgradeConfig = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig";
    read: upgrade_type, enabled;
    ignored:;
    refused: filters;
}

support! {
    RDS, rds: Rds = "envoy.extensions.filters.network.http_connection_manager.v3.Rds";
    read: config_source, route_config_name;
    ignored:;
    refused: ;
}

support! {
    INTERNAL_ADDRESSES, internal_addresses: InternalAddressConfig = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.InternalAddressConfig";
    read: cidr_ranges;
    ignored:
        unix_sockets => "listeners have addresses";
    refused: ;
}

support! {
    CERTIFICATE_DETAILS, certificate_details: SetCurrentClientCertDetails = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails";
    read: subject, cert, chain, dns, uri, issuer, format;
    ignored:;
    refused: ;
}

support! {
    ACCESS_LOG, access_log_fields: AccessLogMessage = "envoy.config.accesslog.v3.AccessLog";
    read: config_type;
    ignored:
        name => "the type says what it is";
    refused: filter;
}

support! {
    FILE_ACCESS_LOG, file_access_log_fields: FileAccessLog = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
    read: path;
    ignored:;
    differs:
        access_log_format => "it says which of the proxy’s own two forms lines have, text or JSON, and nothing else";
    refused: ;
}

support! {
    FORMAT_STRING, format_string: SubstitutionFormatString = "envoy.config.core.v3.SubstitutionFormatString";
    read: ;
    ignored:;
    differs:
        format => "it says which of the proxy’s own two forms lines have, text or JSON, and nothing else",
        omit_empty_values => "the form of lines is the proxy’s own",
        json_format_options => "the form of lines is the proxy’s own";
    refused: formatters, content_type;
}

support! {
    COMMON_OPTIONS, common_options: HttpProtocolOptions = "envoy.config.core.v3.HttpProtocolOptions";
    read: idle_timeout, max_connection_duration, max_headers_count, max_stream_duration, headers_with_underscores_action, max_requests_per_connection;
    ignored:;
    refused: max_connection_duration_jitter, max_response_headers_kb;
}

support! {
    HTTP2_OPTIONS, http2_options: Http2ProtocolOptions = "envoy.config.core.v3.Http2ProtocolOptions";
    read: max_concurrent_streams, allow_connect;
    ignored:
        use_oghttp2_codec => "it only changes how frames are coded",
        enable_huffman_encoding => "it only changes how frames are coded";
    differs:
        initial_stream_window_size => "a fixed limit of the proxy’s own",
        initial_connection_window_size => "a fixed limit of the proxy’s own",
        connection_keepalive => "a fixed limit of the proxy’s own",
        override_stream_error_on_invalid_http_message => "a fixed limit of the proxy’s own";
    refused: allow_metadata, custom_settings_parameters, disallow_obs_text, max_header_field_size_kb, stream_reset_burst, stream_reset_rate, hpack_table_size, max_outbound_frames, max_outbound_control_frames, max_consecutive_inbound_frames_with_empty_payload, max_inbound_priority_frames_per_stream, max_inbound_window_update_frames_per_data_frame_sent, max_metadata_size, stream_error_on_invalid_http_messaging;
}

support! {
    HTTP1_OPTIONS, http1_options: Http1ProtocolOptions = "envoy.config.core.v3.Http1ProtocolOptions";
    read: accept_http_10;
    ignored:
        use_balsa_parser => "the parser is hyper’s",
        allow_absolute_url => "the absolute form is always taken",
        allow_custom_methods => "any token is a method";
    differs:
        enable_trailers => "trailers that client and endpoint agree on always pass",
        override_stream_error_on_invalid_http_message => "an invalid message always ends its connection";
    refused: default_host_for_http_10, header_key_format, allow_chunked_length, send_fully_qualified_url, ignore_http_11_upgrade;
}

support! {
    VALIDATOR, header_validator: HeaderValidatorConfig = "envoy.extensions.http.header_validators.envoy_default.v3.HeaderValidatorConfig";
    read: headers_with_underscores_action;
    ignored:
        strip_fragment_from_path => "a fragment never passes";
    refused: http1_protocol_options, uri_path_normalization_options, restrict_http_methods;
}

/// Of these options, what is refused wherever they are.
pub(super) fn check_common(message: &HttpProtocolOptions) -> Result<(), Problem> {
    common_options(message)
}

/// The same for HTTP/1.1.
pub(super) fn check_http1(message: &Http1ProtocolOptions) -> Result<(), Problem> {
    http1_options(message)
}

/// The same for HTTP/2.
pub(super) fn check_http2(message: &Http2ProtocolOptions) -> Result<(), Problem> {
    http2_options(message)
}

/// Envoy's, in `envoy.config.trace.v3`.
const TRACERS: [&str; 8] = [
    "DatadogConfig",
    "DynamicOtConfig",
    "LightstepConfig",
    "OpenTelemetryConfig",
    "SkyWalkingConfig",
    "TraceServiceConfig",
    "XRayConfig",
    "ZipkinConfig",
];
/// Envoy's default for all headers of a request.
const DEFAULT_HEADER_KIB: u32 = 60;
/// No listener takes more: headers are held in memory.
const LARGEST_HEADER_KIB: u32 = 1024;
/// Envoy's default number of header fields.
const DEFAULT_HEADERS: u32 = 100;
/// What Envoy's guide for the edge sets; Envoy's own default is higher.
const DEFAULT_STREAMS: u32 = 100;
/// Bounds a client that sends its headers byte by byte; Envoy's default is off.
const DEFAULT_REQUEST_HEADERS: Duration = Duration::from_secs(10);
/// Envoy's default.
const DEFAULT_IDLE: Duration = Duration::from_secs(3600);
/// Envoy's default.
const DEFAULT_STREAM_IDLE: Duration = Duration::from_secs(300);
/// Envoy's default.
const DEFAULT_DRAIN: Duration = Duration::from_secs(5);

/// A manager, before its routes are looked up.
#[derive(Debug)]
pub(super) struct Manager {
    pub(super) routes: Routes,
    pub(super) forwarded: ForwardedTrust,
    pub(super) client_certificates: ClientCertificates,
    /// From the filter before it.
    pub(super) max_connections: usize,
    pub(super) limits: Limits,
    pub(super) timeouts: DownstreamTimeouts,
    pub(super) path: PathOptions,
    pub(super) underscores: Underscores,
    pub(super) grpc_web: bool,
    pub(super) cors: Vec<Box<str>>,
    pub(super) rbac: Vec<Filter>,
    pub(super) buffers: Vec<Buffer>,
    pub(super) sessions: Vec<session::Filter>,
    pub(super) rate_limits: Vec<rate_limit::Filter>,
    pub(super) authz: Vec<authz::Filter>,
    pub(super) upgrades: Vec<Box<str>>,
    pub(super) codec: Codec,
    pub(super) http10: bool,
    pub(super) extended_connect: bool,
    pub(super) generate_request_id: bool,
    pub(super) preserve_external_request_id: bool,
    pub(super) access_log: Vec<AccessLog>,
    pub(super) server_name: Box<str>,
}

/// Where a manager's routes come from.
#[derive(Debug)]
pub(super) enum Routes {
    /// By RDS, under this name.
    Named(String),
    /// In the listener.
    Inline(Box<RouteConfiguration>),
}

pub(super) fn compile(message: &HttpConnectionManager) -> Result<Manager, Problem> {
    manager(message)?;
    tracer(message)?;
    let codec = match message.codec_type() {
        CodecType::Auto => Codec::Auto,
        CodecType::Http1 => Codec::Http1,
        CodecType::Http2 => Codec::Http2,
        CodecType::Http3 => return Err(Problem::new("codec_type", "must be AUTO, HTTP1 or HTTP2")),
    };
    let common = message.common_http_protocol_options.unwrap_or_default();
    common_options(&common).under(|| "common_http_protocol_options".into())?;
    let http1 = message.http_protocol_options.clone().unwrap_or_default();
    http1_options(&http1).under(|| "http_protocol_options".into())?;
    let http2 = message.http2_protocol_options.clone().unwrap_or_default();
    http2_options(&http2).under(|| "http2_protocol_options".into())?;
    let filters = filters::compile(&message.http_filters)?;

    let header_kib = message.max_request_headers_kb.map_or(DEFAULT_HEADER_KIB, |n| n.value);
    if header_kib == 0 || header_kib > LARGEST_HEADER_KIB {
        let reason = format!("is {header_kib}; must be 1 to {LARGEST_HEADER_KIB}");
        return Err(Problem::new("max_request_headers_kb", reason));
    }
    Ok(Manager {
        routes: routes(message)?,
        forwarded: forwarded(message)?,
        client_certificates: client_certificates(message)?,
        max_connections: 0,
        limits: Limits {
            max_header_bytes: header_kib * 1024,
            max_headers: common.max_headers_count.map_or(DEFAULT_HEADERS, |n| n.value).max(1),
            max_body_bytes: longest_body(&filters.buffers, &ByFilter::default()),
            max_concurrent_streams: http2.max_concurrent_streams.map_or(DEFAULT_STREAMS, |n| n.value).max(1),
            max_requests: common.max_requests_per_connection.map_or(0, |n| n.value),
        },
        timeouts: timeouts(message, &common)?,
        path: PathOptions {
            normalize: message.normalize_path.is_none_or(|b| b.value),
            merge_slashes: message.merge_slashes,
            reject_escaped_slashes: escaped_slashes(message)?,
        },
        underscores: underscores(message, common.headers_with_underscores_action())?,
        grpc_web: filters.grpc_web,
        cors: filters.cors,
        rbac: filters.rbac,
        buffers: filters.buffers,
        sessions: filters.sessions,
        rate_limits: filters.rate_limits,
        authz: filters.authz,
        upgrades: upgrades(message)?,
        codec,
        http10: http1.accept_http_10,
        extended_connect: http2.allow_connect,
        generate_request_id: message.generate_request_id.is_none_or(|b| b.value),
        preserve_external_request_id: message.preserve_external_request_id,
        access_log: each("access_log", &message.access_log, access_log)?,
        server_name: if message.server_name.is_empty() {
            "pontoon".into()
        } else {
            message.server_name.as_str().into()
        },
    })
}

/// Spans are not reported; but where to is said in one of the known ways.
fn tracer(message: &HttpConnectionManager) -> Result<(), Problem> {
    let provider = message.tracing.as_ref().and_then(|tracing| tracing.provider.as_ref());
    let Some(TracerConfig::TypedConfig(any)) = provider.and_then(|provider| provider.config_type.as_ref())
    else {
        return Ok(());
    };
    let of = type_of(any);
    let known = of.strip_prefix("type.googleapis.com/envoy.config.trace.v3.");
    if known.is_some_and(|name| TRACERS.contains(&name)) {
        return Ok(());
    }
    let reason = format!("is a {of}, which this proxy does not know");
    Err(Problem::new("tracing.provider.typed_config", reason))
}

fn timeouts(
    message: &HttpConnectionManager,
    common: &HttpProtocolOptions,
) -> Result<DownstreamTimeouts, Problem> {
    let request = set("request_timeout", message.request_timeout)?;
    let headers = set("request_headers_timeout", message.request_headers_timeout)?;
    Ok(DownstreamTimeouts {
        // A head is a part of its request.
        request_headers: headers.unwrap_or(DEFAULT_REQUEST_HEADERS).min(request.unwrap_or(Duration::MAX)),
        idle: limit("common_http_protocol_options.idle_timeout", common.idle_timeout, DEFAULT_IDLE)?
            .unwrap_or(Duration::MAX),
        stream_idle: limit("stream_idle_timeout", message.stream_idle_timeout, DEFAULT_STREAM_IDLE)?,
        drain: duration("drain_timeout", message.drain_timeout)?.unwrap_or(DEFAULT_DRAIN),
        request,
        longest_stream: set("common_http_protocol_options.max_stream_duration", common.max_stream_duration)?,
        longest_connection: set(
            "common_http_protocol_options.max_connection_duration",
            common.max_connection_duration,
        )?,
        end_with_answer: message.http1_safe_max_connection_duration,
    })
}

fn routes(message: &HttpConnectionManager) -> Result<Routes, Problem> {
    if let Some(StripPortMode::StripAnyHostPort(true)) = message.strip_port_mode {
        return Err(Problem::new(
            "strip_any_host_port",
            "is not supported; see ignore_port_in_host_matching",
        ));
    }
    match &message.route_specifier {
        Some(RouteSpecifier::Rds(named)) => {
            rds(named).under(|| "rds".into())?;
            from_ads("rds.config_source", named.config_source.as_ref())?;
            if named.route_config_name.is_empty() {
                return Err(Problem::new("rds.route_config_name", "is empty"));
            }
            Ok(Routes::Named(named.route_config_name.clone()))
        }
        Some(RouteSpecifier::RouteConfig(config)) => Ok(Routes::Inline(Box::new(config.clone()))),
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            Err(Problem::new("scoped_routes", "is not supported; use rds"))
        }
        None => Err(Problem::new("route_specifier", "is missing; give rds or route_config")),
    }
}

fn forwarded(message: &HttpConnectionManager) -> Result<ForwardedTrust, Problem> {
    let config = message.internal_address_config.as_ref();
    config.map(internal_addresses).transpose().under(|| "internal_address_config".into())?;
    let ranges = config.map_or(&[][..], |c| &c.cidr_ranges);
    let trusted_peers = each("internal_address_config.cidr_ranges", ranges, network)?;
    Ok(ForwardedTrust {
        use_remote_address: message.use_remote_address.is_some_and(|b| b.value),
        trusted_hops: message.xff_num_trusted_hops,
        trusted_peers,
        skip_append: message.skip_xff_append,
    })
}

fn client_certificates(message: &HttpConnectionManager) -> Result<ClientCertificates, Problem> {
    let said = message.set_current_client_cert_details.unwrap_or_default();
    certificate_details(&said).under(|| "set_current_client_cert_details".into())?;
    if said.format() != ForwardClientCertFormat::Text {
        let reason = format!("is {}; must be TEXT", said.format().as_str_name());
        return Err(Problem::new("set_current_client_cert_details.format", reason));
    }
    let details = CertificateDetails {
        subject: said.subject.is_some_and(|b| b.value),
        cert: said.cert,
        chain: said.chain,
        dns: said.dns,
        uri: said.uri,
        issuer: said.issuer,
    };
    Ok(match message.forward_client_cert_details() {
        ForwardClientCertDetails::Sanitize => ClientCertificates::Sanitize,
        ForwardClientCertDetails::ForwardOnly => ClientCertificates::Forward,
        ForwardClientCertDetails::AppendForward => ClientCertificates::AppendForward(details),
        ForwardClientCertDetails::SanitizeSet => ClientCertificates::SanitizeSet(details),
        ForwardClientCertDetails::AlwaysForwardOnly => ClientCertificates::AlwaysForward,
    })
}

/// `ALLOW` is the protobuf default of `common_http_protocol_options`, where it cannot be told from a field that is
/// not set, so it means refusal there. The header validator's message is only there when somebody put it there.
fn underscores(
    message: &HttpConnectionManager,
    common: HeadersWithUnderscoresAction,
) -> Result<Underscores, Problem> {
    if let Some(config) = &message.typed_header_validation_config {
        let at = || "typed_header_validation_config".into();
        let any = config.typed_config.as_ref();
        let any = any.ok_or_else(|| Problem::new("typed_config", "is missing")).under(at)?;
        let validator: HeaderValidatorConfig = unpack(any).under(at)?;
        header_validator(&validator).under(|| "typed_header_validation_config.typed_config".into())?;
        use header_validator_config::HeadersWithUnderscoresAction as Action;
        return Ok(match validator.headers_with_underscores_action() {
            Action::Allow => Underscores::Allow,
            Action::RejectRequest => Underscores::Reject,
            Action::DropHeader => Underscores::Drop,
        });
    }
    Ok(match common {
        HeadersWithUnderscoresAction::Allow => Underscores::default(),
        HeadersWithUnderscoresAction::RejectRequest => Underscores::Reject,
        HeadersWithUnderscoresAction::DropHeader => Underscores::Drop,
    })
}

fn escaped_slashes(message: &HttpConnectionManager) -> Result<bool, Problem> {
    match message.path_with_escaped_slashes_action() {
        PathWithEscapedSlashesAction::ImplementationSpecificDefault
        | PathWithEscapedSlashesAction::KeepUnchanged => Ok(false),
        PathWithEscapedSlashesAction::RejectRequest => Ok(true),
        other => {
            let reason =
                format!("is {}; this proxy supports KEEP_UNCHANGED and REJECT_REQUEST", other.as_str_name());
            Err(Problem::new("path_with_escaped_slashes_action", reason))
        }
    }
}

fn upgrades(message: &HttpConnectionManager) -> Result<Vec<Box<str>>, Problem> {
    let mut seen = BTreeSet::new();
    let types = each("upgrade_configs", &message.upgrade_configs, |config| {
        upgrade(config)?;
        if !seen.insert(config.upgrade_type.to_ascii_lowercase()) {
            return Err(Problem::new("upgrade_type", format!("is {:?}, as one before", config.upgrade_type)));
        }
        let enabled = config.enabled.is_none_or(|b| b.value);
        Ok(enabled.then(|| config.upgrade_type.to_ascii_lowercase().into_boxed_str()))
    })?;
    Ok(types.into_iter().flatten().collect())
}

/// A file, or one of the process's streams, and in which of the two forms its lines are.
pub(super) fn access_log(message: &AccessLogMessage) -> Result<AccessLog, Problem> {
    access_log_fields(message)?;
    let Some(access_log::ConfigType::TypedConfig(any)) = &message.config_type else {
        return Err(Problem::new("typed_config", "is missing"));
    };
    let is_json = |message: &SubstitutionFormatString| -> Result<bool, Problem> {
        // Our own control plane says a form to everybody, for Envoy's sake; what lines look like is seen in them.
        noting(|| format_string(message).under(|| "typed_config.log_format".into())).0?;
        Ok(matches!(message.format, Some(substitution_format_string::Format::JsonFormat(_))))
    };
    let form = |json| if json { AccessLogFormat::Json } else { AccessLogFormat::Text };
    if let Some((path, format)) = noting(|| stream_log::read(any)).0? {
        let json = format.as_ref().map_or(Ok(false), is_json)?;
        return Ok(AccessLog { path: path.into(), format: form(json) });
    }
    let file: FileAccessLog = unpack(any)?;
    let (checked, _) = noting(|| file_access_log_fields(&file).under(|| "typed_config".into()));
    checked?;
    if file.path.is_empty() {
        return Err(Problem::new("typed_config.path", "is empty"));
    }
    use file_access_log::AccessLogFormat as Form;
    let json = match &file.access_log_format {
        #[allow(deprecated, reason = "still sent by control planes")]
        Some(Form::JsonFormat(_) | Form::TypedJsonFormat(_)) => true,
        Some(Form::LogFormat(message)) => is_json(message)?,
        _ => false,
    };
    Ok(AccessLog { path: file.path.into_boxed_str(), format: form(json) })
}

/// A duration that is not negative.
pub(super) fn duration(
    field: &str,
    message: Option<envoy_types::pb::google::protobuf::Duration>,
) -> Result<Option<Duration>, Problem> {
    let Some(message) = message else { return Ok(None) };
    match (u64::try_from(message.seconds), u32::try_from(message.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Some(Duration::new(seconds, nanos))),
        _ => Err(Problem::new(
            field,
            format!("is {} s {} ns; must not be negative", message.seconds, message.nanos),
        )),
    }
}

/// A time after which something ends: zero is never.
pub(super) fn limit(
    field: &str,
    message: Option<envoy_types::pb::google::protobuf::Duration>,
    default: Duration,
) -> Result<Option<Duration>, Problem> {
    Ok(match duration(field, message)? {
        None => Some(default),
        Some(Duration::ZERO) => None,
        some => some,
    })
}

/// A time after which something ends, which nothing does unless it is said.
pub(super) fn set(
    field: &str,
    message: Option<envoy_types::pb::google::protobuf::Duration>,
) -> Result<Option<Duration>, Problem> {
    Ok(duration(field, message)?.filter(|duration| !duration.is_zero()))
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
    use envoy_types::pb::google::protobuf::Any;
    use prost::{Message as _, Name as _};

    use super::*;

    #[test]
    fn a_limit_of_zero_is_none() {
        let is = |seconds| limit("x", Some(seconds_of(seconds)), Duration::from_secs(9)).unwrap();
        assert_eq!(limit("x", None, Duration::from_secs(9)).unwrap(), Some(Duration::from_secs(9)));
        assert_eq!((is(0), is(3)), (None, Some(Duration::from_secs(3))));
        assert!(limit("x", Some(seconds_of(-1)), Duration::ZERO).is_err());
    }

    #[test]
    fn what_bounds_connections_and_requests_is_off_unless_it_is_said() {
        let off = timeouts(&HttpConnectionManager::default(), &HttpProtocolOptions::default()).unwrap();
        assert_eq!((off.request, off.longest_stream, off.longest_connection), (None, None, None));
        let manager = HttpConnectionManager {
            request_timeout: Some(seconds_of(3)),
            ..HttpConnectionManager::default()
        };
        let common = HttpProtocolOptions {
            max_stream_duration: Some(seconds_of(4)),
            max_connection_duration: Some(seconds_of(5)),
            ..HttpProtocolOptions::default()
        };
        let on = timeouts(&manager, &common).unwrap();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(
            (on.request, on.longest_stream, on.longest_connection),
            (seconds(3), seconds(4), seconds(5))
        );
        assert_eq!(on.request_headers, Duration::from_secs(3), "a head is a part of its request");
        let negative = HttpProtocolOptions {
            max_stream_duration: Some(seconds_of(-1)),
            ..HttpProtocolOptions::default()
        };
        let problem = timeouts(&manager, &negative).unwrap_err();
        assert_eq!(problem.path, "common_http_protocol_options.max_stream_duration");
    }

    fn seconds_of(seconds: i64) -> envoy_types::pb::google::protobuf::Duration {
        envoy_types::pb::google::protobuf::Duration { seconds, nanos: 0 }
    }

    #[test]
    fn underscores_are_refused_unless_somebody_says_otherwise() {
        use HeadersWithUnderscoresAction as Common;
        use header_validator_config::HeadersWithUnderscoresAction as Own;
        let of = |common: Common, own: Option<Own>| {
            let config = own.map(|action| {
                let validator = HeaderValidatorConfig {
                    headers_with_underscores_action: action.into(),
                    ..HeaderValidatorConfig::default()
                };
                let value = validator.encode_to_vec();
                let typed_config = Some(Any { type_url: HeaderValidatorConfig::type_url(), value });
                TypedExtensionConfig { name: "x".into(), typed_config }
            });
            let manager =
                HttpConnectionManager { typed_header_validation_config: config, ..Default::default() };
            underscores(&manager, common).unwrap()
        };
        assert_eq!(of(Common::Allow, None), Underscores::Reject);
        assert_eq!(of(Common::DropHeader, None), Underscores::Drop);
        assert_eq!(of(Common::DropHeader, Some(Own::Allow)), Underscores::Allow);
        assert_eq!(of(Common::Allow, Some(Own::RejectRequest)), Underscores::Reject);
    }
}
