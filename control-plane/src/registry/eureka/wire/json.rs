//! Eureka's JSON. Which values are strings and which are numbers is as recorded from real servers; order too,
//! though no client is known to mind it.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::incoming::{Incoming, Scalar};
use super::{Detail, Listed, ListedApplication, Listing};
use crate::registry::eureka::instance::{DataCenter, InstanceInfo, Port};
use crate::registry::eureka::refusal::Refusal;

/// The body of a registration: `{"instance":{...}}`.
pub fn read_instance(body: &[u8]) -> Result<InstanceInfo, Refusal> {
    #[derive(Deserialize)]
    struct Envelope {
        instance: Incoming,
    }
    let envelope: Envelope = serde_json::from_slice(body).map_err(Refusal::unparsable)?;
    envelope.instance.check()
}

/// All instances of a list, as `GET apps` gives it.
pub fn read_applications(body: &[u8]) -> Result<Vec<Incoming>, Refusal> {
    #[derive(Deserialize)]
    struct Body {
        applications: Applications,
    }
    #[derive(Deserialize)]
    struct Applications {
        #[serde(default)]
        application: Vec<Application>,
    }
    #[derive(Deserialize)]
    struct Application {
        #[serde(default)]
        instance: Vec<Incoming>,
    }
    let body: Body = serde_json::from_slice(body).map_err(Refusal::unparsable)?;
    Ok(body.applications.application.into_iter().flat_map(|application| application.instance).collect())
}

/// A peer's batch, its items in order.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// What happened at the peer.
    pub replication_list: Vec<Replicated>,
}

/// One thing that happened at a peer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replicated {
    /// The application.
    #[serde(default)]
    pub app_name: Scalar,
    /// The instance.
    #[serde(default)]
    pub id: Scalar,
    /// The client's clock.
    #[serde(default)]
    pub last_dirty_timestamp: Scalar,
    /// The status, with `StatusUpdate` the override.
    #[serde(default)]
    pub status: Scalar,
    /// With `Register`.
    #[serde(default)]
    pub instance_info: Option<Incoming>,
    /// `Register`, `Heartbeat`, `Cancel`, `StatusUpdate` or `DeleteStatusOverride`.
    #[serde(default)]
    pub action: Scalar,
}

/// Reads a peer's batch.
pub fn read_batch(body: &[u8]) -> Result<Batch, Refusal> {
    serde_json::from_slice(body).map_err(Refusal::unparsable)
}

/// `{"applications":{...}}`.
pub fn applications(listing: &Listing, detail: Detail) -> Result<Vec<u8>, Refusal> {
    #[derive(Serialize)]
    struct Body<'a> {
        applications: Applications<'a>,
    }
    #[derive(Serialize)]
    struct Applications<'a> {
        #[serde(rename = "versions__delta", skip_serializing_if = "Option::is_none")]
        version: Option<&'a str>,
        #[serde(rename = "apps__hashcode", skip_serializing_if = "Option::is_none")]
        hash: Option<&'a str>,
        application: Vec<Application<'a>>,
    }
    let whole = detail == Detail::Full;
    encode(&Body {
        applications: Applications {
            version: whole.then_some(&listing.version),
            hash: whole.then_some(&listing.hash),
            application: listing.applications.iter().map(|of| shown(of, detail)).collect(),
        },
    })
}

/// `{"application":{...}}`.
pub fn application(of: &ListedApplication, detail: Detail) -> Result<Vec<u8>, Refusal> {
    #[derive(Serialize)]
    struct Body<'a> {
        application: Application<'a>,
    }
    encode(&Body { application: shown(of, detail) })
}

/// `{"instance":{...}}`.
pub fn instance(of: &Listed, detail: Detail) -> Result<Vec<u8>, Refusal> {
    #[derive(Serialize)]
    struct Body<'a> {
        instance: Served<'a>,
    }
    encode(&Body { instance: Served::new(of, detail) })
}

/// The answer to one item of a peer's batch.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replied<'a> {
    /// As the single call would have been answered.
    pub status_code: u16,
    /// With 409: our own copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_entity: Option<Served<'a>>,
}

/// `{"responseList":[...]}`.
pub fn replies(list: &[Replied<'_>]) -> Result<Vec<u8>, Refusal> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        response_list: &'a [Replied<'a>],
    }
    encode(&Body { response_list: list })
}

pub(super) fn encode(body: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(body).map_err(|error| Refusal::Encoding(error.to_string()))
}

fn shown(of: &ListedApplication, detail: Detail) -> Application<'_> {
    Application {
        name: &of.name,
        instance: of.instances.iter().map(|listed| Served::new(listed, detail)).collect(),
    }
}

#[derive(Serialize)]
struct Application<'a> {
    name: &'a str,
    instance: Vec<Served<'a>>,
}

/// An instance as JSON shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Served<'a> {
    instance_id: &'a str,
    host_name: &'a str,
    app: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_group_name: Option<&'a str>,
    ip_addr: &'a str,
    status: &'static str,
    overridden_status: &'static str,
    port: ServedPort,
    secure_port: ServedPort,
    country_id: i64,
    data_center_info: ServedDataCenter<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_info: Option<ServedLease>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<ServedMetadata<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    home_page_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_page_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_check_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secure_health_check_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vip_address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secure_vip_address: Option<&'a str>,
    is_coordinating_discovery_server: &'static str,
    last_updated_timestamp: Clock,
    last_dirty_timestamp: Clock,
    #[serde(skip_serializing_if = "Option::is_none")]
    asg_name: Option<&'a str>,
    action_type: &'static str,
}

impl<'a> Served<'a> {
    /// Borrows what it shows.
    pub fn new(of: &'a Listed, detail: Detail) -> Served<'a> {
        let info = &*of.info;
        let whole = detail == Detail::Full;
        let link = |url: &'a Option<String>| url.as_deref().filter(|_| whole);
        let clock = |ms| if whole { Clock::Text(ms) } else { Clock::Number(ms) };
        Served {
            instance_id: &info.id,
            host_name: &info.host_name,
            app: &info.app,
            app_group_name: info.app_group.as_deref(),
            ip_addr: &info.ip,
            status: info.status.as_str(),
            overridden_status: info.overridden.as_str(),
            port: ServedPort::from(info.port),
            secure_port: ServedPort::from(info.secure_port),
            country_id: info.country_id,
            data_center_info: ServedDataCenter::from(&info.data_center),
            lease_info: whole.then_some(ServedLease {
                renewal_interval_in_secs: info.lease.renewal_interval_s,
                duration_in_secs: info.lease.duration_s,
                registration_timestamp: info.lease.registration_ms,
                last_renewal_timestamp: of.last_renewal_ms,
                eviction_timestamp: info.lease.eviction_ms,
                service_up_timestamp: info.lease.service_up_ms,
            }),
            metadata: whole.then_some(ServedMetadata(&info.metadata)),
            home_page_url: link(&info.urls.home_page),
            status_page_url: link(&info.urls.status_page),
            health_check_url: link(&info.urls.health_check),
            secure_health_check_url: link(&info.urls.secure_health_check),
            vip_address: info.vip.as_deref(),
            secure_vip_address: info.secure_vip.as_deref(),
            is_coordinating_discovery_server: if info.coordinating { "true" } else { "false" },
            last_updated_timestamp: clock(info.last_updated_ms),
            last_dirty_timestamp: clock(info.last_dirty_ms),
            asg_name: info.asg_name.as_deref(),
            action_type: info.action.as_str(),
        }
    }
}

#[derive(Debug, Serialize)]
struct ServedPort {
    #[serde(rename = "$")]
    number: u16,
    #[serde(rename = "@enabled")]
    enabled: &'static str,
}

impl From<Port> for ServedPort {
    fn from(port: Port) -> ServedPort {
        ServedPort { number: port.number, enabled: if port.enabled { "true" } else { "false" } }
    }
}

#[derive(Debug, Serialize)]
struct ServedDataCenter<'a> {
    #[serde(rename = "@class")]
    class: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a DataCenter> for ServedDataCenter<'a> {
    fn from(center: &'a DataCenter) -> ServedDataCenter<'a> {
        ServedDataCenter { class: &center.class, name: &center.name, metadata: &center.metadata }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServedLease {
    renewal_interval_in_secs: u32,
    duration_in_secs: u32,
    registration_timestamp: u64,
    last_renewal_timestamp: u64,
    eviction_timestamp: u64,
    service_up_timestamp: u64,
}

#[derive(Debug)]
struct ServedMetadata<'a>(&'a BTreeMap<String, String>);

impl Serialize for ServedMetadata<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if !self.0.is_empty() {
            return self.0.serialize(to);
        }
        let mut map = to.serialize_map(Some(1))?;
        map.serialize_entry("@class", "java.util.Collections$EmptyMap")?;
        map.end()
    }
}

/// Milliseconds since 1970.
#[derive(Debug)]
enum Clock {
    Text(u64),
    Number(u64),
}

impl Serialize for Clock {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Clock::Text(ms) => to.collect_str(ms),
            Clock::Number(ms) => to.serialize_u64(*ms),
        }
    }
}
