//! The access log that our listeners ask for: one JSON object a line on standard output. The ready-made types
//! hold a JSON object in a hash map, whose order changes from process to process, and with it the bytes and
//! the version of the listener; so the few messages around it are written here with an ordered map.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog as Official;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

/// Key and Envoy's command for its value.
const FIELDS: [(&str, &str); 18] = [
    ("time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("status", "%RESPONSE_CODE%"),
    ("flags", "%RESPONSE_FLAGS%"),
    ("details", "%RESPONSE_CODE_DETAILS%"),
    ("duration_ms", "%DURATION%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("client", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("route", "%ROUTE_NAME%"),
    ("cluster", "%UPSTREAM_CLUSTER%"),
    ("upstream", "%UPSTREAM_HOST%"),
    ("attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
];

#[derive(Clone, PartialEq, Message)]
struct FileAccessLog {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(message, optional, tag = "5")]
    log_format: Option<SubstitutionFormatString>,
}

#[derive(Clone, PartialEq, Message)]
struct SubstitutionFormatString {
    #[prost(message, optional, tag = "2")]
    json_format: Option<Struct>,
}

#[derive(Clone, PartialEq, Message)]
struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "3")]
    string_value: String,
}

/// The logger's configuration.
pub(super) fn json_to_stdout() -> Any {
    let fields = FIELDS.map(|(key, command)| (key.to_owned(), Value { string_value: command.to_owned() }));
    let json_format = Some(Struct { fields: fields.into() });
    let log = FileAccessLog {
        path: "/dev/stdout".to_owned(),
        log_format: Some(SubstitutionFormatString { json_format }),
    };
    Any { type_url: Official::type_url(), value: log.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
    use envoy_types::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
    use envoy_types::pb::google::protobuf::value::Kind;

    use super::*;

    #[test]
    fn it_is_what_the_official_type_reads() {
        let log = Official::decode(json_to_stdout().value.as_slice()).expect("a FileAccessLog");
        assert_eq!(log.path, "/dev/stdout");
        let Some(AccessLogFormat::LogFormat(format)) = log.access_log_format else { panic!("no format") };
        let Some(Format::JsonFormat(json)) = format.format else { panic!("no JSON") };
        assert_eq!(json.fields.len(), FIELDS.len());
        let status = json.fields.get("status").and_then(|value| value.kind.clone());
        assert_eq!(status, Some(Kind::StringValue("%RESPONSE_CODE%".to_owned())));
    }
}
