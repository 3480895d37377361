//! One instance as Eureka describes it. It is never changed in place: a change makes a new one, so that an
//! answer under way and the registry may share it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::instance::{Instance, InstanceStatus};

/// Eureka's `InstanceInfo`. Times are the server's unless said otherwise, in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// Opaque, unique within the application.
    pub id: Arc<str>,
    /// In upper case.
    pub app: Arc<str>,
    /// A word that nobody here looks at.
    pub app_group: Option<String>,
    /// Need not resolve.
    pub host_name: String,
    /// As sent.
    pub ip: String,
    /// The status in force, an override included.
    pub status: InstanceStatus,
    /// The override, `UNKNOWN` where there is none.
    pub overridden: InstanceStatus,
    /// The plain port.
    pub port: Port,
    /// The TLS port.
    pub secure_port: Port,
    /// Always 1 in practice.
    pub country_id: i64,
    /// Kept for those who sent it.
    pub data_center: DataCenter,
    /// The lease as shown; what decides is with the [`Registry`](super::state::Registry).
    pub lease: LeaseInfo,
    /// What the client attached.
    pub metadata: BTreeMap<String, String>,
    /// The four links, none of which is called.
    pub urls: Urls,
    /// `vipAddress`: one name or several, comma-separated.
    pub vip: Option<String>,
    /// `secureVipAddress`.
    pub secure_vip: Option<String>,
    /// Of a Eureka server itself.
    pub coordinating: bool,
    /// When this form of it was made.
    pub last_updated_ms: u64,
    /// The client's clock. Orders the words of one client, and is used for nothing else.
    pub last_dirty_ms: u64,
    /// An AWS word.
    pub asg_name: Option<String>,
    /// What was last done to it.
    pub action: Action,
}

/// A port and whether it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The number.
    pub number: u16,
    /// A port that is not enabled is shown and not called.
    pub enabled: bool,
}

/// `dataCenterInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataCenter {
    /// A Java class that clients decode by.
    pub class: String,
    /// `MyOwn` or `Amazon`.
    pub name: String,
    /// Amazon's.
    pub metadata: BTreeMap<String, String>,
}

/// `leaseInfo`, the two spans in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// Between renewals, says the client.
    pub renewal_interval_s: u32,
    /// Without a renewal for that long, the lease has run out.
    pub duration_s: u32,
    /// Of the last registration.
    pub registration_ms: u64,
    /// Filled in when shown.
    pub last_renewal_ms: u64,
    /// When it was cancelled or ran out; 0 before.
    pub eviction_ms: u64,
    /// When it was first `UP`.
    pub service_up_ms: u64,
}

/// The links of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Urls {
    /// `homePageUrl`.
    pub home_page: Option<String>,
    /// `statusPageUrl`.
    pub status_page: Option<String>,
    /// `healthCheckUrl`.
    pub health_check: Option<String>,
    /// `secureHealthCheckUrl`.
    pub secure_health_check: Option<String>,
}

/// `actionType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Registered, again or for the first time.
    Added,
    /// Status or metadata changed.
    Modified,
    /// Cancelled or run out.
    Deleted,
}

impl Action {
    /// As it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Added => "ADDED",
            Action::Modified => "MODIFIED",
            Action::Deleted => "DELETED",
        }
    }
}

impl Default for DataCenter {
    fn default() -> Self {
        DataCenter {
            class: "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo".to_owned(),
            name: "MyOwn".to_owned(),
            metadata: BTreeMap::new(),
        }
    }
}

impl InstanceInfo {
    /// As the model sees it.
    pub fn to_model(&self) -> Instance {
        let port = |port: Port| (port.enabled && port.number != 0).then_some(port.number);
        Instance {
            id: self.id.clone(),
            application: self.app.clone(),
            vip: self.vip.as_deref().unwrap_or_default().into(),
            host_name: self.host_name.as_str().into(),
            // Some clients write an IPv6 address in brackets, as in a URL.
            ip: match self.ip.trim_matches(['[', ']']).parse::<IpAddr>() {
                Ok(ip) => ip.to_string().into(),
                Err(_) => self.ip.as_str().into(),
            },
            port: port(self.port),
            secure_port: port(self.secure_port),
            status: self.status,
            metadata: self.metadata.clone(),
        }
    }

    /// Roughly what it takes in memory.
    pub fn size_bytes(&self) -> usize {
        let map =
            |map: &BTreeMap<String, String>| map.iter().map(|(k, v)| k.len() + v.len() + 64).sum::<usize>();
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let urls = &self.urls;
        let texts = [&self.app_group, &self.vip, &self.secure_vip, &self.asg_name, &urls.home_page];
        let links = [&urls.status_page, &urls.health_check, &urls.secure_health_check];
        // Once here and once in the model.
        size_of::<InstanceInfo>()
            + size_of::<Instance>()
            + 2 * (map(&self.metadata) + self.id.len() + self.host_name.len() + self.ip.len())
            + map(&self.data_center.metadata)
            + texts.into_iter().chain(links).map(text).sum::<usize>()
    }
}
