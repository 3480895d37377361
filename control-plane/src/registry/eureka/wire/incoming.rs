//! An instance as a client sends it, before anything is believed: every value a text, every field optional.
//! Both formats are read into this; [`Incoming::check`] turns it into an [`InstanceInfo`] or says what is wrong.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

use crate::model::instance::InstanceStatus;
use crate::registry::eureka::instance::{Action, DataCenter, InstanceInfo, LeaseInfo, Port, Urls};
use crate::registry::eureka::refusal::Refusal;

/// Bytes of an application's name, a host name or an address.
pub const NAME_BYTES: usize = 255;
/// Bytes of an instance id. Ids made of host, application and a random word come to about 150.
pub const ID_BYTES: usize = 1024;
/// Bytes of any other text: links, lists of VIPs, a metadata value.
pub const TEXT_BYTES: usize = 8 * 1024;
/// Metadata entries of one instance. Spring Boot with its management port and zone sends under ten.
pub const METADATA_ENTRIES: usize = 256;
/// Bytes of one instance's metadata.
pub const METADATA_BYTES: usize = 64 * 1024;
/// Where a client sends none, and what Spring sends: three missed renewals.
pub const LEASE_S: u32 = 90;
/// Where a client sends none.
pub const RENEWAL_S: u32 = 30;
/// A lease that lasts longer says that nobody watches.
pub const LEASE_LIMIT_S: u32 = 24 * 3600;

/// A text, number, boolean or nothing: clients of different ages differ in which they send.
#[derive(Debug, Clone, Default)]
pub struct Scalar(pub Option<String>);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Scalar, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Scalar;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a text, a number, a boolean or null")
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_owned())))
            }
            fn visit_string<E>(self, value: String) -> Result<Scalar, E> {
                Ok(Scalar(Some(value)))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }
            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar(None))
            }
        }
        from.deserialize_any(Any)
    }
}

/// Fields by their names on the wire. What is not named here is skipped unread.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Incoming {
    pub(super) instance_id: Scalar,
    pub(super) host_name: Scalar,
    pub(super) app: Scalar,
    pub(super) app_group_name: Scalar,
    pub(super) ip_addr: Scalar,
    pub(super) status: Scalar,
    pub(super) overridden_status: Scalar,
    /// As XML has it, and JSON of old clients.
    #[serde(rename = "overriddenstatus")]
    pub(super) overridden_lower: Scalar,
    pub(super) port: Option<IncomingPort>,
    pub(super) secure_port: Option<IncomingPort>,
    pub(super) country_id: Scalar,
    pub(super) data_center_info: Option<IncomingDataCenter>,
    pub(super) lease_info: Option<IncomingLease>,
    pub(super) metadata: Option<BTreeMap<String, Scalar>>,
    pub(super) home_page_url: Scalar,
    pub(super) status_page_url: Scalar,
    pub(super) health_check_url: Scalar,
    pub(super) secure_health_check_url: Scalar,
    pub(super) vip_address: Scalar,
    pub(super) secure_vip_address: Scalar,
    pub(super) is_coordinating_discovery_server: Scalar,
    pub(super) last_updated_timestamp: Scalar,
    pub(super) last_dirty_timestamp: Scalar,
    pub(super) asg_name: Scalar,
    pub(super) action_type: Scalar,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct IncomingPort {
    #[serde(rename = "$")]
    pub(super) number: Scalar,
    #[serde(rename = "@enabled")]
    pub(super) enabled: Scalar,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct IncomingDataCenter {
    #[serde(rename = "@class")]
    pub(super) class: Scalar,
    pub(super) name: Scalar,
    pub(super) metadata: Option<BTreeMap<String, Scalar>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct IncomingLease {
    pub(super) renewal_interval_in_secs: Scalar,
    pub(super) duration_in_secs: Scalar,
    pub(super) registration_timestamp: Scalar,
    pub(super) last_renewal_timestamp: Scalar,
    pub(super) eviction_timestamp: Scalar,
    pub(super) service_up_timestamp: Scalar,
}

impl Incoming {
    /// The instance, if it is one that can be kept and shown.
    pub fn check(self) -> Result<InstanceInfo, Refusal> {
        if self.host_name.0.is_none() && self.app.0.is_none() && self.instance_id.0.is_none() {
            return Err(Refusal::Unparsable(Default::default()));
        }
        let host_name = required("hostname", "hostName", self.host_name.clone(), NAME_BYTES)?;
        // A client that sends no id is known by its host, as Eureka has it.
        let id = match self.instance_id.0.as_deref() {
            None | Some("") => required("instanceId", "instanceId", self.host_name, ID_BYTES)?,
            Some(_) => required("instanceId", "instanceId", self.instance_id, ID_BYTES)?,
        };
        let ip = required("ip address", "ipAddr", self.ip_addr, NAME_BYTES)?;
        let app = required("appName", "app", self.app, NAME_BYTES)?;
        // Of two spellings the one that says something.
        let overridden = [self.overridden_status, self.overridden_lower]
            .into_iter()
            .map(|status| status_of(status, InstanceStatus::Unknown))
            .find(|status| *status != InstanceStatus::Unknown);
        let center = self.data_center_info.unwrap_or_default();
        let lease = self.lease_info.unwrap_or_default();
        let action = match self.action_type.0.as_deref() {
            Some("MODIFIED") => Action::Modified,
            Some("DELETED") => Action::Deleted,
            _ => Action::Added,
        };
        Ok(InstanceInfo {
            id: id.into(),
            app: app.to_uppercase().into(),
            app_group: text("appGroupName", self.app_group_name)?,
            host_name,
            ip,
            status: status_of(self.status, InstanceStatus::Up),
            overridden: overridden.unwrap_or(InstanceStatus::Unknown),
            port: port("port", self.port, 7001)?,
            secure_port: port("securePort", self.secure_port, 7002)?,
            country_id: number("countryId", &self.country_id)?.unwrap_or(1),
            data_center: data_center(center)?,
            lease: LeaseInfo {
                renewal_interval_s: span(
                    "renewalIntervalInSecs",
                    &lease.renewal_interval_in_secs,
                    RENEWAL_S,
                )?,
                duration_s: span("durationInSecs", &lease.duration_in_secs, LEASE_S)?,
                registration_ms: clock("registrationTimestamp", &lease.registration_timestamp)?,
                last_renewal_ms: clock("lastRenewalTimestamp", &lease.last_renewal_timestamp)?,
                eviction_ms: clock("evictionTimestamp", &lease.eviction_timestamp)?,
                service_up_ms: clock("serviceUpTimestamp", &lease.service_up_timestamp)?,
            },
            metadata: metadata("metadata", self.metadata)?,
            urls: Urls {
                home_page: text("homePageUrl", self.home_page_url)?,
                status_page: text("statusPageUrl", self.status_page_url)?,
                health_check: text("healthCheckUrl", self.health_check_url)?,
                secure_health_check: text("secureHealthCheckUrl", self.secure_health_check_url)?,
            },
            vip: text("vipAddress", self.vip_address)?,
            secure_vip: text("secureVipAddress", self.secure_vip_address)?,
            coordinating: flag(&self.is_coordinating_discovery_server).unwrap_or(false),
            last_updated_ms: clock("lastUpdatedTimestamp", &self.last_updated_timestamp)?,
            last_dirty_ms: clock("lastDirtyTimestamp", &self.last_dirty_timestamp)?,
            asg_name: text("asgName", self.asg_name)?,
            action,
        })
    }
}

/// A name that goes into paths, keys and pages: not empty, not long, no control characters.
pub fn name(field: &str, value: &str, limit_bytes: usize) -> Result<(), Refusal> {
    if value.trim().is_empty() {
        return Err(Refusal::invalid(field, "is empty"));
    }
    if let Some(odd) = value.chars().find(|c| c.is_control()) {
        return Err(Refusal::invalid(field, format!("holds the control character U+{:04X}", odd as u32)));
    }
    within(field, value, limit_bytes)
}

/// Checks metadata that is about to be merged or stored.
pub fn metadata_fits(field: &str, metadata: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if metadata.len() > METADATA_ENTRIES {
        return Err(Refusal::invalid(field, format!("has more than {METADATA_ENTRIES} entries")));
    }
    for (key, value) in metadata {
        name(&format!("a key of {field}"), key, NAME_BYTES)?;
        plain(&format!("{field}.{key}"), value)?;
    }
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > METADATA_BYTES {
        return Err(Refusal::invalid(field, format!("is larger than {METADATA_BYTES} bytes")));
    }
    Ok(())
}

fn within(field: &str, value: &str, limit_bytes: usize) -> Result<(), Refusal> {
    if value.len() > limit_bytes {
        return Err(Refusal::invalid(field, format!("is longer than {limit_bytes} bytes")));
    }
    Ok(())
}

/// Free text: what XML cannot hold is refused, so that both formats show the same.
fn plain(field: &str, value: &str) -> Result<(), Refusal> {
    let odd =
        |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r') || matches!(c, '\u{fffe}' | '\u{ffff}');
    if let Some(odd) = value.chars().find(|c| odd(*c)) {
        return Err(Refusal::invalid(field, format!("holds the character U+{:04X}", odd as u32)));
    }
    within(field, value, TEXT_BYTES)
}

fn required(what: &'static str, field: &str, value: Scalar, limit_bytes: usize) -> Result<String, Refusal> {
    let value = value.0.filter(|value| !value.trim().is_empty()).ok_or(Refusal::Missing(what))?;
    name(field, &value, limit_bytes)?;
    plain(field, &value)?;
    Ok(value)
}

fn text(field: &str, value: Scalar) -> Result<Option<String>, Refusal> {
    if let Some(value) = &value.0 {
        plain(field, value)?;
    }
    Ok(value.0)
}

fn status_of(value: Scalar, absent: InstanceStatus) -> InstanceStatus {
    match value.0.as_deref() {
        None | Some("") => absent,
        Some(word) => InstanceStatus::from_word(word).unwrap_or(InstanceStatus::Unknown),
    }
}

fn flag(value: &Scalar) -> Option<bool> {
    value.0.as_deref().map(|word| word.trim().eq_ignore_ascii_case("true"))
}

fn number<T: std::str::FromStr>(field: &str, value: &Scalar) -> Result<Option<T>, Refusal> {
    match value.0.as_deref().map(str::trim) {
        None | Some("") => Ok(None),
        Some(word) => match word.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Refusal::invalid(field, "is not a number that fits")),
        },
    }
}

/// A client's clock may be wrong by any amount, before 1970 included.
fn clock(field: &str, value: &Scalar) -> Result<u64, Refusal> {
    let ms = number::<i64>(field, value)?.unwrap_or(0);
    Ok(u64::try_from(ms).unwrap_or(0))
}

fn span(field: &str, value: &Scalar, absent: u32) -> Result<u32, Refusal> {
    match number::<i64>(field, value)?.unwrap_or(0) {
        ..=0 => Ok(absent),
        seconds => Ok(u32::try_from(seconds).unwrap_or(LEASE_LIMIT_S).min(LEASE_LIMIT_S)),
    }
}

fn port(field: &str, value: Option<IncomingPort>, absent: u16) -> Result<Port, Refusal> {
    let Some(value) = value else { return Ok(Port { number: absent, enabled: false }) };
    Ok(Port {
        number: number(field, &value.number)?.unwrap_or(absent),
        enabled: flag(&value.enabled).unwrap_or(true),
    })
}

fn data_center(value: IncomingDataCenter) -> Result<DataCenter, Refusal> {
    let default = DataCenter::default();
    Ok(DataCenter {
        class: text("dataCenterInfo.class", value.class)?.unwrap_or(default.class),
        name: text("dataCenterInfo.name", value.name)?.unwrap_or(default.name),
        metadata: metadata("dataCenterInfo.metadata", value.metadata)?,
    })
}

fn metadata(
    field: &str,
    value: Option<BTreeMap<String, Scalar>>,
) -> Result<BTreeMap<String, String>, Refusal> {
    let entries = value.unwrap_or_default().into_iter();
    // `@class` is Jackson's, not the user's.
    let entries = entries.filter(|(key, _)| key != "@class");
    let metadata = entries.filter_map(|(key, value)| value.0.map(|value| (key, value))).collect();
    metadata_fits(field, &metadata)?;
    Ok(metadata)
}
