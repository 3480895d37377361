//! Where in a message that is written as JSON the mistake is, and what would be right. The library that reads it says
//! what, but not where; so it is read once more, part by part, until a part fails by itself.

use std::fmt::Write as _;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use super::{ANY, DeserializeOptions, is_sensitive, type_name};

/// What is wrong with a message written as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct Mistake {
    /// As in `static_resources.listeners[0].address`; empty where it is all of it.
    pub path: String,
    /// What is written there, and what would be right.
    pub reason: String,
}

/// The longest text that is shown of what is written.
const SHOWN: usize = 60;
/// Above it, not all names are told.
const MOST_NAMES: usize = 16;

/// `whole` is what the library says, for what is wrong with no part by itself.
pub(super) fn find(message: &MessageDescriptor, value: &Value, whole: String) -> Mistake {
    let mut path = String::new();
    let reason = in_message(message, value, &mut path, false);
    match reason {
        Some(reason) => Mistake { path, reason },
        None => Mistake { path: String::new(), reason: whole },
    }
}

/// The mistake, with `path` left at it.
fn in_message(message: &MessageDescriptor, value: &Value, path: &mut String, hidden: bool) -> Option<String> {
    let Some(fields) = value.as_object() else {
        return Some(format!("is {}; must be a mapping, {}", shown(value, hidden), message.full_name()));
    };
    if message.full_name() == ANY {
        return in_any(message, fields, path, hidden);
    }
    for (key, value) in fields {
        let length = path.len();
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        let field = message.fields().find(|field| field.name() == key || field.json_name() == key);
        let reason = match field {
            Some(field) => in_field(&field, value, path, hidden || is_sensitive(&field)),
            None => Some(unknown(message, key)),
        };
        if reason.is_some() {
            return reason;
        }
        path.truncate(length);
    }
    None
}

fn in_any(
    any: &MessageDescriptor,
    fields: &Map<String, Value>,
    path: &mut String,
    hidden: bool,
) -> Option<String> {
    let Some(url) = fields.get("@type").and_then(Value::as_str) else {
        return Some(String::from("needs an @type, as type.googleapis.com/ and a message's full name"));
    };
    let Some(inner) = any.parent_pool().get_message_by_name(type_name(url)) else {
        path.push_str(".@type");
        return Some(format!("is {url:?}, which is not known here"));
    };
    if is_leaf(&inner) {
        return None;
    }
    let mut rest = fields.clone();
    rest.remove("@type");
    in_message(&inner, &Value::Object(rest), path, hidden)
}

fn in_field(field: &FieldDescriptor, value: &Value, path: &mut String, hidden: bool) -> Option<String> {
    if value.is_null() {
        return None;
    }
    let length = path.len();
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { return None };
        let Some(entries) = value.as_object() else {
            return Some(format!("is {}; must be a mapping", shown(value, hidden)));
        };
        for (key, value) in entries {
            // Nothing fails that writes to a string.
            let _ = write!(path, "[{key:?}]");
            if let Some(reason) = in_value(&entry.map_entry_value_field(), value, path, hidden) {
                return Some(reason);
            }
            path.truncate(length);
        }
        return None;
    }
    if !field.is_list() {
        return in_value(field, value, path, hidden);
    }
    let Some(items) = value.as_array() else {
        return Some(format!("is {}; must be a list", shown(value, hidden)));
    };
    for (position, item) in items.iter().enumerate() {
        let _ = write!(path, "[{position}]");
        if let Some(reason) = in_value(field, item, path, hidden) {
            return Some(reason);
        }
        path.truncate(length);
    }
    None
}

fn in_value(field: &FieldDescriptor, value: &Value, path: &mut String, hidden: bool) -> Option<String> {
    match field.kind() {
        Kind::Message(inner) if !is_leaf(&inner) => return in_message(&inner, value, path, hidden),
        _ => {}
    }
    let written = if field.is_list() { Value::Array(vec![value.clone()]) } else { value.clone() };
    let alone = Value::Object(Map::from_iter([(field.name().to_owned(), written)]));
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    match DynamicMessage::deserialize_with_options(field.parent_message().clone(), alone, &options) {
        Ok(_) => None,
        Err(_) => Some(format!("is {}; must be {}", shown(value, hidden), expected(&field.kind()))),
    }
}

/// What is written in a form of its own, and not by its fields.
fn is_leaf(message: &MessageDescriptor) -> bool {
    message.full_name() != ANY
        && message.full_name().starts_with("google.protobuf.")
        && message.full_name() != "google.protobuf.Empty"
}

fn unknown(message: &MessageDescriptor, key: &str) -> String {
    let names: Vec<String> = message.fields().map(|field| field.name().to_owned()).collect();
    let near = names.iter().map(|name| (strsim::osa_distance(name, key), name)).min();
    match near {
        Some((distance, name)) if distance <= key.len() / 3 => {
            format!("is no field of {}; {name} is one", message.full_name())
        }
        _ if names.len() <= MOST_NAMES => {
            format!("is no field of {}, which has {}", message.full_name(), names.join(", "))
        }
        _ => format!("is no field of {}", message.full_name()),
    }
}

fn expected(kind: &Kind) -> String {
    match kind {
        Kind::Enum(of) => {
            let names: Vec<String> = of.values().map(|value| value.name().to_owned()).collect();
            let rest = if names.len() > MOST_NAMES { ", ..." } else { "" };
            let first = names.into_iter().take(MOST_NAMES).collect::<Vec<_>>();
            format!("one of {}{rest}", first.join(", "))
        }
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Duration" => {
                String::from("seconds with an s behind them, as \"5s\" or \"0.25s\"")
            }
            "google.protobuf.BoolValue" => expected(&Kind::Bool),
            "google.protobuf.UInt32Value" => expected(&Kind::Uint32),
            "google.protobuf.UInt64Value" => expected(&Kind::Uint64),
            "google.protobuf.Int32Value" | "google.protobuf.Int64Value" => expected(&Kind::Int64),
            "google.protobuf.DoubleValue" | "google.protobuf.FloatValue" => expected(&Kind::Double),
            "google.protobuf.StringValue" => expected(&Kind::String),
            "google.protobuf.Timestamp" => String::from("a time, as \"2026-01-31T12:00:00Z\""),
            other => other.to_owned(),
        },
        Kind::Bool => String::from("true or false"),
        Kind::String => String::from("a text; between quotes, where it looks like something else"),
        Kind::Bytes => String::from("bytes in base64"),
        Kind::Double | Kind::Float => String::from("a number"),
        Kind::Uint32 | Kind::Fixed32 => format!("a whole number of 0 to {}", u32::MAX),
        Kind::Uint64 | Kind::Fixed64 => String::from("a whole number, not negative"),
        _ => String::from("a whole number"),
    }
}

/// `hidden`: it is, or is in, what the proto files mark as secret.
fn shown(value: &Value, hidden: bool) -> String {
    match value {
        _ if hidden => String::from("not shown"),
        Value::Object(_) => String::from("a mapping"),
        Value::Array(_) => String::from("a list"),
        other => {
            let text = other.to_string();
            match text.char_indices().nth(SHOWN) {
                Some((at, _)) => format!("{}...", &text[..at]),
                None => text,
            }
        }
    }
}
