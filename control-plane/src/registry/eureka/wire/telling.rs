//! A batch to a peer, and its answer: the other side of what [`json`](super::json) takes from one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::incoming::Incoming;
use super::json::{Served, encode};
use super::{Detail, Listed};
use crate::model::instance::InstanceStatus;
use crate::registry::eureka::peers::Deed;
use crate::registry::eureka::refusal::Refusal;

/// One thing that happened here, and the instance as it is now.
#[derive(Debug)]
pub(in super::super) struct Telling {
    pub(in super::super) app: Arc<str>,
    pub(in super::super) id: Arc<str>,
    pub(in super::super) deed: Deed,
    instance: Option<Listed>,
}

impl Telling {
    /// `None`: there is nothing to tell any more, as the instance has gone since.
    pub(in super::super) fn new(
        app: Arc<str>,
        id: Arc<str>,
        deed: Deed,
        instance: Option<Listed>,
    ) -> Option<Telling> {
        (instance.is_some() || deed == Deed::Cancel).then_some(Telling { app, id, deed, instance })
    }

    /// Of its item in a batch, roughly.
    pub(in super::super) fn size_bytes(&self) -> usize {
        let described = self.instance.as_ref().filter(|_| self.deed == Deed::Register);
        512 + described.map_or(0, |listed| 2 * listed.info.size_bytes())
    }

    fn item(&self) -> Item<'_> {
        let info = self.instance.as_ref().map(|listed| &listed.info);
        let status = info.map(|info| info.status);
        let (action, status) = match self.deed {
            Deed::Register => ("Register", status),
            Deed::Renew => ("Heartbeat", status),
            Deed::Cancel => ("Cancel", None),
            Deed::Override(given) => ("StatusUpdate", Some(given)),
            Deed::EndOverride(left) => {
                ("DeleteStatusOverride", Some(left.unwrap_or(InstanceStatus::Unknown)))
            }
        };
        Item {
            app_name: &self.app,
            id: &self.id,
            last_dirty_timestamp: info.map(|info| info.last_dirty_ms).filter(|_| self.deed != Deed::Cancel),
            status: status.map(InstanceStatus::as_str),
            instance_info: self
                .instance
                .as_ref()
                .filter(|_| self.deed == Deed::Register)
                .map(|listed| Served::new(listed, Detail::Full)),
            action,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item<'a> {
    app_name: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_dirty_timestamp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_info: Option<Served<'a>>,
    action: &'static str,
}

/// `{"replicationList":[...]}`.
pub(in super::super) fn batch(tellings: &[Telling]) -> Result<Vec<u8>, Refusal> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        replication_list: Vec<Item<'a>>,
    }
    encode(&Body { replication_list: tellings.iter().map(Telling::item).collect() })
}

/// A peer's answer to one item.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in super::super) struct Reply {
    /// As the single call would have been answered.
    pub(in super::super) status_code: u16,
    #[serde(default)]
    response_entity: serde_json::Value,
}

impl Reply {
    /// With 409: the peer's own copy, where it can be read.
    pub(in super::super) fn theirs(self) -> Option<Incoming> {
        serde_json::from_value(self.response_entity).ok()
    }
}

/// Reads `{"responseList":[...]}`.
pub(in super::super) fn replies(body: &[u8]) -> Result<Vec<Reply>, Refusal> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        response_list: Vec<Reply>,
    }
    let body: Body = serde_json::from_slice(body).map_err(Refusal::unparsable)?;
    Ok(body.response_list)
}
