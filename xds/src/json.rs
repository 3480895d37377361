//! Resources as protobuf's JSON, for people: configuration dumps and `explain`, and bootstraps the other way. Field names are those of the
//! proto files, as in Envoy's own dumps; what the proto files mark as sensitive is `[redacted]`. Costs eight
//! megabytes from the first use until it is told to [`forget`].

mod constraints;
mod mistake;
mod typed_struct;

use std::io::Read;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use flate2::read::GzDecoder;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, FieldDescriptor, MessageDescriptor, ReflectMessage,
    SerializeOptions, Value as Field,
};
use serde_json::{Map, Value, json};

pub use self::mistake::Mistake;
pub use self::typed_struct::unfold;
use crate::pb::google::protobuf::{Any, Struct, Value as ProtoValue, value::Kind};

/// Made by `cargo xtask descriptors`.
static DESCRIPTORS: &[u8] = include_bytes!("../descriptors.bin.gz");
/// `Any` in `Any` in `Any`: deeper is shown as bytes.
const MAX_DEPTH: usize = 32;
const ANY: &str = "google.protobuf.Any";
/// What stands for an extension whose fields are not known here: its type's URL, and its fields as a `Struct`.
const TYPED_STRUCT_URL: &str = "type.googleapis.com/xds.type.v3.TypedStruct";
/// The same by the name that it had before.
const OLD_TYPED_STRUCT_URL: &str = "type.googleapis.com/udpa.type.v1.TypedStruct";
const STRUCT_URL: &str = "type.googleapis.com/google.protobuf.Struct";
/// What stands for an `Any` with nothing in it, which protobuf's JSON has no form for. Envoy writes `{}`.
pub const EMPTY_URL: &str = "type.googleapis.com/google.protobuf.Empty";
/// The option that marks a secret.
const SENSITIVE: &str = "udpa.annotations.sensitive";
const REDACTED: &str = "[redacted]";
/// Without their fields, nobody can tell which bytes of these are a key.
const SECRET_TYPES: [&str; 3] = [
    "envoy.extensions.transport_sockets.tls.v3.Secret",
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
];

/// An encoded message as JSON, with its type as `@type`. A message (or an `Any` inside it) of a type that is
/// not known here, or whose bytes are not of its type, is shown as `@type`, `undecoded` (base64) and `why`.
pub fn to_json(type_url: &str, bytes: &[u8]) -> Value {
    let known = match decode(type_url, bytes) {
        Ok(known) => known,
        Err(why) => return undecoded(type_url, bytes, &why),
    };
    let mut message = known;
    tidy(&mut message, 0);
    let options = SerializeOptions::new().use_proto_field_name(true);
    match message.serialize_with_options(serde_json::value::Serializer, &options) {
        Ok(Value::Object(fields)) => {
            let mut all = Map::with_capacity(fields.len() + 1);
            all.insert(String::from("@type"), Value::from(type_url));
            all.extend(fields);
            let mut value = Value::Object(all);
            unwrap_undecoded(&mut value);
            value
        }
        Ok(value) => json!({ "@type": type_url, "value": value }),
        Err(error) => undecoded(type_url, bytes, &error.to_string()),
    }
}

/// An encoded message without what its proto file marks as sensitive, for clients of whom nobody knows whether they may
/// see that. One that cannot be read, where it may hold a key, is empty.
pub fn redacted(type_url: &str, bytes: &Bytes) -> Bytes {
    match decode(type_url, bytes) {
        Ok(mut message) => {
            tidy(&mut message, 0);
            message.encode_to_vec().into()
        }
        Err(_) if SECRET_TYPES.contains(&type_name(type_url)) => Bytes::new(),
        Err(_) => bytes.clone(),
    }
}

/// The bytes of a message written as JSON (or YAML read as such): field names as in the proto files or in
/// camelCase, extensions with their `@type`. An extension of a type that is not known here becomes an
/// `xds.type.v3.TypedStruct`: whoever reads it decides whether one may go without it.
///
/// # Errors
/// What is wrong: a field or a value that is not known here, or one that breaks a constraint of the proto files.
pub fn from_json(type_url: &str, value: &Value) -> Result<Vec<u8>, Mistake> {
    let all = |reason| Mistake { path: String::new(), reason };
    let pool = pool().map_err(all)?;
    let descriptor = pool
        .get_message_by_name(type_name(type_url))
        .ok_or_else(|| all(String::from("the type is not known here")))?;
    let mut value = value.clone();
    wrap_unknown(&pool, &descriptor, &mut value);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(descriptor.clone(), &value, &options)
        .map_err(|error| mistake::find(&descriptor, &value, error.to_string()))?;
    constraints::check(&message)?;
    Ok(message.encode_to_vec())
}

/// The type of an extension, also where it is only told by its fields.
pub fn type_of(any: &Any) -> String {
    #[derive(prost::Message)]
    struct TypedStruct {
        #[prost(string, tag = "1")]
        type_url: String,
    }
    match TypedStruct::decode(any.value.as_slice()) {
        Ok(of) if is_typed_struct(&any.type_url) => of.type_url,
        _ => any.type_url.clone(),
    }
}

fn is_typed_struct(type_url: &str) -> bool {
    [TYPED_STRUCT_URL, OLD_TYPED_STRUCT_URL].contains(&type_url)
}

/// The type's URL, and the value's bytes, of an `Any`; of a `TypedStruct`, the URL.
fn any_parts(any: &DynamicMessage) -> (String, Bytes) {
    let text = any.get_field_by_name("type_url").and_then(|value| value.as_str().map(str::to_owned));
    let bytes = any.get_field_by_name("value").and_then(|value| value.as_bytes().cloned());
    (text.unwrap_or_default(), bytes.unwrap_or_default())
}

/// Puts extensions of unknown types into `TypedStruct`s. What is not shaped as its message is left for the
/// deserializer to refuse.
fn wrap_unknown(pool: &DescriptorPool, message: &MessageDescriptor, value: &mut Value) {
    let Value::Object(fields) = value else { return };
    let any = message.full_name() == ANY;
    let of_type = fields.get("@type").filter(|_| any).and_then(Value::as_str).map(str::to_owned);
    let message = match of_type {
        None if any && fields.is_empty() => {
            *value = json!({ "@type": EMPTY_URL, "value": {} });
            return;
        }
        None if any => return,
        None => message.clone(),
        Some(url) => match pool.get_message_by_name(type_name(&url)) {
            Some(known) => known,
            None => {
                fields.remove("@type");
                let inner = Value::Object(std::mem::take(fields));
                *value = json!({ "@type": TYPED_STRUCT_URL, "type_url": url, "value": inner });
                return;
            }
        },
    };
    for (name, value) in fields {
        let field = message.get_field_by_name(name).or_else(|| message.get_field_by_json_name(name));
        let Some(field) = field else { continue };
        let inner = if field.is_map() { map_value(&field) } else { field.kind().as_message().cloned() };
        let Some(inner) = inner else { continue };
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| wrap_unknown(pool, &inner, item)),
            Value::Object(entries) if field.is_map() => {
                entries.values_mut().for_each(|entry| wrap_unknown(pool, &inner, entry));
            }
            one => wrap_unknown(pool, &inner, one),
        }
    }
}

/// The message that a map's entries hold, where they hold one.
fn map_value(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    field.kind().as_message()?.map_entry_value_field().kind().as_message().cloned()
}

/// Whether messages of this type can be shown.
pub fn is_known(type_url: &str) -> bool {
    pool().is_ok_and(|pool| pool.get_message_by_name(type_name(type_url)).is_some())
}

/// A field of a message as Rust has it: those of a `oneof` are one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The field's name, or the `oneof`'s.
    pub name: String,
    /// The field's own.
    pub field: String,
    /// The message that it holds, where it holds one.
    pub message: Option<String>,
}

/// The fields of a message, by its full name; `None` where the type is not known here.
pub fn members(message: &str) -> Option<Vec<Member>> {
    let descriptor = pool().ok()?.get_message_by_name(message)?;
    // Of a map, the messages are its values.
    let inner = |field: &FieldDescriptor| match field.is_map() {
        true => map_value(field),
        false => field.kind().as_message().cloned(),
    };
    let member = |field: FieldDescriptor| {
        let oneof = field.containing_oneof().filter(|oneof| !oneof.is_synthetic());
        Member {
            name: oneof.map_or_else(|| field.name().to_owned(), |oneof| oneof.name().to_owned()),
            field: field.name().to_owned(),
            message: inner(&field).map(|message| message.full_name().to_owned()),
        }
    };
    Some(descriptor.fields().map(member).collect())
}

static POOL: Mutex<Option<DescriptorPool>> = Mutex::new(None);

fn pool() -> Result<DescriptorPool, String> {
    let mut kept = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = &*kept {
        return Ok(pool.clone());
    }
    let mut unpacked = Vec::new();
    GzDecoder::new(DESCRIPTORS).read_to_end(&mut unpacked).map_err(|e| e.to_string())?;
    let pool = DescriptorPool::decode(Bytes::from(unpacked)).map_err(|e| e.to_string())?;
    *kept = Some(pool.clone());
    Ok(pool)
}

/// Gives back what the use of this module keeps, which is eight megabytes. It is made anew when it is used again.
pub fn forget() {
    POOL.lock().unwrap_or_else(PoisonError::into_inner).take();
}

fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

fn decode(type_url: &str, bytes: &[u8]) -> Result<DynamicMessage, String> {
    let descriptor = pool()?
        .get_message_by_name(type_name(type_url))
        .ok_or_else(|| String::from("the type is not known here"))?;
    DynamicMessage::decode(descriptor, bytes).map_err(|error| error.to_string())
}

fn undecoded(type_url: &str, bytes: &[u8], why: &str) -> Value {
    json!({ "@type": type_url, "undecoded": shown(type_url, bytes), "why": why })
}

/// What is left of bytes that cannot be read. Of a type that holds private keys it is nothing.
fn shown(type_url: &str, bytes: &[u8]) -> String {
    if SECRET_TYPES.contains(&type_name(type_url)) { REDACTED.to_owned() } else { BASE64.encode(bytes) }
}

/// Makes a message fit to be shown: no secrets, and no `Any` that the serializer would fail on.
fn tidy(message: &mut DynamicMessage, depth: usize) {
    if message.descriptor().full_name() == ANY {
        tidy_any(message, depth);
        return;
    }
    for (field, value) in message.fields_mut() {
        if is_sensitive(&field) {
            redact(value);
        } else {
            each_message(value, &mut |inner| tidy(inner, depth));
        }
    }
}

fn tidy_any(any: &mut DynamicMessage, depth: usize) {
    let (type_url, value) = any_parts(any);
    if type_url.is_empty() && value.is_empty() {
        any.set_field_by_name("type_url", Field::String(EMPTY_URL.to_owned()));
        return;
    }
    let inner =
        if depth < MAX_DEPTH { decode(&type_url, &value) } else { Err(String::from("nested too deep")) };
    match inner {
        Ok(mut inner) => {
            // Of a type that is not known here, nobody can tell which of its fields are secret.
            if is_typed_struct(&type_url) {
                inner.clear_field_by_name("value");
            }
            tidy(&mut inner, depth + 1);
            any.set_field_by_name("value", Field::Bytes(inner.encode_to_vec().into()));
        }
        Err(why) => {
            let bytes = shown(&type_url, &value);
            let fields = [("@type", type_url), ("undecoded", bytes), ("why", why)];
            let fields = fields
                .map(|(key, text)| (key.to_owned(), ProtoValue { kind: Some(Kind::StringValue(text)) }));
            let shown = Struct { fields: fields.into_iter().collect() };
            any.set_field_by_name("type_url", Field::String(STRUCT_URL.to_owned()));
            any.set_field_by_name("value", Field::Bytes(shown.encode_to_vec().into()));
        }
    }
}

/// Takes the detour over `Struct` back.
fn unwrap_undecoded(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let stands_in = fields.get("@type").is_some_and(|url| url == STRUCT_URL)
                && fields.get("value").is_some_and(|inner| inner.get("undecoded").is_some());
            if stands_in && let Some(inner) = fields.remove("value") {
                *value = inner;
                return;
            }
            if fields.get("@type").is_some_and(|url| url == EMPTY_URL) {
                fields.clear();
            }
            fields.values_mut().for_each(unwrap_undecoded);
        }
        Value::Array(items) => items.iter_mut().for_each(unwrap_undecoded),
        _ => {}
    }
}

fn is_sensitive(field: &FieldDescriptor) -> bool {
    let options = field.options();
    let extension = options.extensions().find(|(extension, _)| extension.full_name() == SENSITIVE);
    extension.is_some_and(|(_, value)| value.as_bool() == Some(true))
}

/// Keeps the shape, so that one still sees which kind of source a secret comes from.
fn redact(value: &mut Field) {
    match value {
        Field::String(text) => *text = REDACTED.to_owned(),
        Field::Bytes(bytes) => *bytes = Bytes::from_static(REDACTED.as_bytes()),
        Field::List(items) => items.iter_mut().for_each(redact),
        Field::Map(entries) => entries.values_mut().for_each(redact),
        Field::Message(message) => message.fields_mut().for_each(|(_, inner)| redact(inner)),
        _ => {}
    }
}

fn each_message(value: &mut Field, act: &mut impl FnMut(&mut DynamicMessage)) {
    match value {
        Field::Message(message) => act(message),
        Field::List(items) => items.iter_mut().for_each(|item| each_message(item, act)),
        Field::Map(entries) => entries.values_mut().for_each(|entry| each_message(entry, act)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
