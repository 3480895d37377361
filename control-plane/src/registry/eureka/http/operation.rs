//! Which operation a method and a path mean. Both prefixes, with and without a slash at the end; segments are
//! split before they are decoded, so that an escaped slash stays part of an id.

use axum::http::{Method, Uri};
use percent_encoding::percent_decode_str;

use crate::model::instance::InstanceStatus;
use crate::registry::eureka::refusal::Refusal;
use crate::registry::eureka::wire::incoming::{ID_BYTES, NAME_BYTES, name};

/// All that Eureka can be asked. Application names are in upper case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    Applications,
    Delta,
    Application(String),
    Instance(String, String),
    ById(String),
    ByVip { name: String, secure: bool },
    Register(String),
    Renew(String, String),
    Cancel(String, String),
    SetOverride(String, String),
    DeleteOverride(String, String),
    MergeMetadata(String, String),
    Batch,
    Status,
    Lately,
}

pub(super) fn of(method: &Method, path: &str) -> Result<Operation, Refusal> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let rest = match segments.as_slice() {
        ["eureka", "v2", rest @ ..] | ["eureka", rest @ ..] => rest,
        _ => return Err(Refusal::NoSuchPath(path.to_owned())),
    };
    let get = matches!(*method, Method::GET | Method::HEAD);
    let wrong = || Err(Refusal::Method(method.to_string()));
    let read = |operation: Operation| if get { Ok(operation) } else { wrong() };
    match rest {
        ["apps"] => read(Operation::Applications),
        ["apps", "delta"] if get => Ok(Operation::Delta),
        ["apps", app] => match *method {
            _ if get => Ok(Operation::Application(application(app)?)),
            Method::POST => Ok(Operation::Register(application(app)?)),
            _ => wrong(),
        },
        ["apps", app, instance] => {
            let (app, instance) = (application(app)?, id(instance)?);
            match *method {
                _ if get => Ok(Operation::Instance(app, instance)),
                Method::PUT => Ok(Operation::Renew(app, instance)),
                Method::DELETE => Ok(Operation::Cancel(app, instance)),
                _ => wrong(),
            }
        }
        ["apps", app, instance, "status"] => {
            let (app, instance) = (application(app)?, id(instance)?);
            match *method {
                Method::PUT => Ok(Operation::SetOverride(app, instance)),
                Method::DELETE => Ok(Operation::DeleteOverride(app, instance)),
                _ => wrong(),
            }
        }
        ["apps", app, instance, "metadata"] => match *method {
            Method::PUT => Ok(Operation::MergeMetadata(application(app)?, id(instance)?)),
            _ => wrong(),
        },
        ["instances", instance] => read(Operation::ById(id(instance)?)),
        ["vips", vip] => read(Operation::ByVip { name: decode("vip", vip)?, secure: false }),
        ["svips", vip] => read(Operation::ByVip { name: decode("svip", vip)?, secure: true }),
        ["peerreplication", "batch"] => match *method {
            Method::POST => Ok(Operation::Batch),
            _ => wrong(),
        },
        ["status"] => read(Operation::Status),
        ["lastn"] => read(Operation::Lately),
        _ => Err(Refusal::NoSuchPath(path.to_owned())),
    }
}

fn application(segment: &str) -> Result<String, Refusal> {
    let app = decode("appName", segment)?;
    name("appName", &app, NAME_BYTES)?;
    Ok(app.to_uppercase())
}

fn id(segment: &str) -> Result<String, Refusal> {
    let id = decode("instanceId", segment)?;
    name("instanceId", &id, ID_BYTES)?;
    Ok(id)
}

fn decode(field: &str, segment: &str) -> Result<String, Refusal> {
    let decoded = percent_decode_str(segment).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| Refusal::invalid(field, "is not UTF-8 in the path"))
}

/// A request's query, decoded, in order.
#[derive(Debug, Default)]
pub(super) struct Query(pub(super) Vec<(String, String)>);

impl Query {
    pub(super) fn of(uri: &Uri) -> Query {
        let query = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        Query(query.map(|pairs| pairs.0).unwrap_or_default())
    }

    pub(super) fn status(&self) -> Result<Option<InstanceStatus>, Refusal> {
        status(self.get("value"))
    }

    pub(super) fn dirty_ms(&self) -> Result<Option<u64>, Refusal> {
        dirty_ms(self.get("lastDirtyTimestamp"))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

pub(super) fn status(word: Option<&str>) -> Result<Option<InstanceStatus>, Refusal> {
    let Some(word) = word.filter(|word| !word.is_empty()) else { return Ok(None) };
    let status = InstanceStatus::from_word(word);
    status
        .map(Some)
        .ok_or_else(|| Refusal::invalid("status", "must be UP, DOWN, STARTING, OUT_OF_SERVICE or UNKNOWN"))
}

pub(super) fn dirty_ms(word: Option<&str>) -> Result<Option<u64>, Refusal> {
    let Some(word) = word.filter(|word| !word.is_empty()) else { return Ok(None) };
    let ms: i64 = word.parse().map_err(|_| Refusal::invalid("lastDirtyTimestamp", "is not a number"))?;
    Ok(Some(u64::try_from(ms).unwrap_or(0)))
}

#[cfg(test)]
mod tests;
