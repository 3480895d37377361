//! Access logs to the process's own streams: `envoy.extensions.access_loggers.stream.v3`. They are files here, of names
//! that every process has.

use envoy_types::pb::envoy::config::core::v3::SubstitutionFormatString;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::{
    StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log,
};
use envoy_types::pb::google::protobuf::Any;
use prost::Name as _;

use super::lds::unpack;
use super::problem::{Problem, Under};
use super::support::{Message, support};

pub(super) const MESSAGES: &[Message] = &[STDOUT, STDERR];

support! {
    STDOUT, stdout: StdoutAccessLog = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog";
    read: ;
    ignored:;
    differs:
        access_log_format => "it says which of the proxy’s own two forms lines have, text or JSON, and nothing else";
    refused: ;
}

support! {
    STDERR, stderr: StderrAccessLog = "envoy.extensions.access_loggers.stream.v3.StderrAccessLog";
    read: ;
    ignored:;
    differs:
        access_log_format => "it says which of the proxy’s own two forms lines have, text or JSON, and nothing else";
    refused: ;
}

/// Where lines go and in which format; `None`: it is another kind of log.
pub(super) fn read(any: &Any) -> Result<Option<(&'static str, Option<SubstitutionFormatString>)>, Problem> {
    let at = || "typed_config".into();
    if any.type_url == StdoutAccessLog::type_url() {
        let message: StdoutAccessLog = unpack(any)?;
        stdout(&message).under(at)?;
        let format = message.access_log_format;
        let format = format.map(|stdout_access_log::AccessLogFormat::LogFormat(format)| format);
        return Ok(Some(("/dev/stdout", format)));
    }
    if any.type_url == StderrAccessLog::type_url() {
        let message: StderrAccessLog = unpack(any)?;
        stderr(&message).under(at)?;
        let format = message.access_log_format;
        let format = format.map(|stderr_access_log::AccessLogFormat::LogFormat(format)| format);
        return Ok(Some(("/dev/stderr", format)));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log as written};
    use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
    use pontoon_xds::messages::pack;

    use super::*;
    use crate::config::hcm::access_log;
    use crate::config::listener::AccessLogFormat;

    #[test]
    fn they_are_files() {
        let of = |config| {
            let log = AccessLog {
                config_type: Some(written::ConfigType::TypedConfig(config)),
                ..AccessLog::default()
            };
            let log = access_log(&log).unwrap();
            (log.path.to_string(), log.format)
        };
        let json = SubstitutionFormatString {
            format: Some(Format::JsonFormat(Default::default())),
            ..SubstitutionFormatString::default()
        };
        let json = Some(stderr_access_log::AccessLogFormat::LogFormat(json));
        assert_eq!(of(pack(&StdoutAccessLog::default())), ("/dev/stdout".into(), AccessLogFormat::Text));
        let stderr = StderrAccessLog { access_log_format: json };
        assert_eq!(of(pack(&stderr)), ("/dev/stderr".into(), AccessLogFormat::Json));
    }
}
