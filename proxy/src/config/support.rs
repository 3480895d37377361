//! Which fields of which messages are read, which have no effect here and may be set, and which are refused when
//! set. The lists are held against the messages by the compiler: a field in none of them, as a newer version of
//! the types may bring, does not compile.

#[cfg(test)]
mod read;

use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;

use super::problem::Problem;
use super::{
    authz, bootstrap, cds, eds, filters, hcm, in_place, keepalive, lds, matching, overload, proxy_protocol,
    rate_limit, rbac, rds, secrets, session, stream_log, tcp_proxy, tls, tls_upstream,
};

/// The treatment of one message's fields.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// Full protobuf name.
    pub name: &'static str,
    /// Read and obeyed.
    pub read: &'static [&'static str],
    /// Set without effect, and why that changes nothing for traffic.
    pub ignored: &'static [(&'static str, &'static str)],
    /// Set without effect here, though not in Envoy, and what is done in its place: control planes send these, and to
    /// refuse them would refuse all that comes with them.
    pub differs: &'static [(&'static str, &'static str)],
    /// Refused when set to anything but the default.
    pub refused: &'static [&'static str],
}

/// Every message that is read.
pub const MESSAGES: &[&[Message]] = &[
    bootstrap::MESSAGES,
    overload::MESSAGES,
    lds::MESSAGES,
    keepalive::MESSAGES,
    lds::CHAIN_MESSAGES,
    tls::MESSAGES,
    tls_upstream::MESSAGES,
    secrets::MESSAGES,
    hcm::MESSAGES,
    stream_log::MESSAGES,
    filters::MESSAGES,
    rbac::MESSAGES,
    rate_limit::MESSAGES,
    authz::MESSAGES,
    session::MESSAGES,
    tcp_proxy::MESSAGES,
    proxy_protocol::MESSAGES,
    rds::MESSAGES,
    matching::MESSAGES,
    cds::MESSAGES,
    eds::MESSAGES,
    in_place::MESSAGES,
];

/// All that has a source comes on the one ADS stream.
pub(super) fn from_ads(field: &'static str, source: Option<&ConfigSource>) -> Result<(), Problem> {
    if let Some(source) = source {
        in_place::note_config_source(source);
    }
    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        None | Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(()),
        Some(_) => Err(Problem::new(field, "must be ads or self: all resources come on one ADS stream")),
    }
}

/// Refuses a field that is set.
pub(super) fn refuse<T: Default + PartialEq>(field: &'static str, value: &T) -> Result<(), Problem> {
    if *value == T::default() {
        return Ok(());
    }
    Err(Problem::new(field.trim_start_matches("r#"), "is set, but this proxy does not support it"))
}

/// Declares a message's table and the function that refuses what the table refuses.
macro_rules! support {
    (
        $table:ident, $check:ident: $message:ident = $name:literal;
        read: $($read:ident),*;
        ignored: $($ignored:ident => $why:literal),*;
        $(differs: $($differs:ident => $how:literal),*;)?
        refused: $($refused:ident),*;
    ) => {
        const $table: crate::config::support::Message = crate::config::support::Message {
            name: $name,
            read: &[$(stringify!($read)),*],
            ignored: &[$((stringify!($ignored), $why)),*],
            differs: &[$($((stringify!($differs), $how)),*)?],
            refused: &[$(stringify!($refused)),*],
        };

        #[allow(deprecated, reason = "a deprecated field is refused too")]
        fn $check(message: &$message) -> Result<(), crate::config::problem::Problem> {
            let $message { $($read: _,)* $($ignored: _,)* $($($differs,)*)? $($refused,)* } = message;
            $(crate::config::support::refuse(stringify!($refused), $refused)?;)*
            $($(crate::config::differing::note($name, (stringify!($differs), $how), $differs);)*)?
            Ok(())
        }
    };
}
pub(super) use support;

/// The table of the reference, in Markdown.
pub fn markdown() -> String {
    let mut text = String::from(concat!(
        "# Supported fields\n\n",
        "Made from the code that reads them (`UPDATE=1 cargo test -p pontoon-proxy supported_fields`). A field ",
        "that is *refused* makes its resource a NACK with the field's path when it is set; one that is *ignored* ",
        "changes nothing that the proxy would do, for the reason given. One that is *ignored, unlike Envoy* does have ",
        "an effect there that it has not here. There are few of these, and each is sent as a matter of course by a ",
        "control plane (Istio, Envoy Gateway, Contour, Consul) or stands in most bootstraps, whatever is in it: to ",
        "refuse it would be to refuse the control plane. What is done in its place is said: here, and where one is ",
        "set, by a warning in the log, by `/ready?verbose` and by `--mode validate`.\n",
    ));
    for message in MESSAGES.iter().copied().flatten() {
        text.push_str(&format!("\n## {}\n\n| field | |\n|---|---|\n", message.name));
        for field in message.read {
            text.push_str(&format!("| {} | supported |\n", field.trim_start_matches("r#")));
        }
        for (field, why) in message.ignored {
            text.push_str(&format!("| {field} | ignored: {why} |\n"));
        }
        for (field, how) in message.differs {
            text.push_str(&format!("| {field} | ignored, unlike Envoy: {how} |\n"));
        }
        for field in message.refused {
            text.push_str(&format!("| {} | refused |\n", field.trim_start_matches("r#")));
        }
    }
    text.push_str("\n## Refused whole\n\n");
    for name in in_place::REFUSED {
        text.push_str(&format!("- {name}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use pontoon_xds::json::members;

    use super::*;

    #[test]
    fn what_is_inside_of_a_message_that_is_read_is_listed_too() {
        let all: BTreeMap<&str, &Message> =
            MESSAGES.iter().copied().flatten().map(|message| (message.name, message)).collect();
        let (mut missing, mut met) = (BTreeSet::new(), BTreeSet::new());
        for message in all.values() {
            let Some(members) = members(message.name) else {
                missing.insert(format!("{} is not among the descriptors", message.name));
                continue;
            };
            let treated: BTreeSet<&str> = (message.read.iter().chain(message.refused).copied())
                .chain(message.ignored.iter().chain(message.differs).map(|(field, _)| *field))
                .map(|field| field.trim_start_matches("r#"))
                .collect();
            let there: BTreeSet<&str> = members.iter().map(|member| &*member.name).collect();
            assert_eq!(treated, there, "{}", message.name);
            for member in members {
                let is_read = message.read.iter().any(|read| read.trim_start_matches("r#") == member.name);
                let Some(inner) = member.message.filter(|_| is_read) else { continue };
                if let Some(refused) = in_place::REFUSED.iter().find(|name| **name == inner) {
                    met.insert(*refused);
                } else if !inner.starts_with("google.protobuf.") && !all.contains_key(&*inner) {
                    missing.insert(format!(
                        "{inner} is in none of the tables: {}.{}",
                        message.name, member.field
                    ));
                }
            }
        }
        assert!(missing.is_empty(), "{missing:#?}");
        let refused: BTreeSet<&str> = in_place::REFUSED.iter().copied().collect();
        assert_eq!(refused, met, "listed as refused, and in no message that is read");
    }

    /// Also what stands in an `Any`, which no field leads to.
    #[test]
    fn what_is_decoded_is_listed() {
        let listed: BTreeSet<&str> = MESSAGES.iter().copied().flatten().map(|message| message.name).collect();
        let names = pontoon_xds::messages::names();
        let missing: Vec<&String> = names
            .iter()
            // Those are written for people, not read.
            .filter(|name| !name.ends_with("ConfigDump") && !listed.contains(name.as_str()))
            .collect();
        assert!(missing.is_empty(), "{missing:#?}");
    }

    #[test]
    fn the_reference_lists_the_supported_fields() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/supported-fields.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == markdown(),
            "docs/reference/supported-fields.md is old: run this test with UPDATE=1"
        );
    }
}
