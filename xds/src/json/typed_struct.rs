//! Extensions that are told by their fields, as control planes do that do not have their types.

use prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage, Value as Field};
use serde::Serialize as _;
use serde_json::json;

use super::{
    ANY, MAX_DEPTH, Mistake, TYPED_STRUCT_URL, any_parts, decode, from_json, is_known, is_typed_struct,
};

/// The message with each extension that is told by its fields, as a `TypedStruct`, and is of a type that is known here
/// as a message of that type. `None`: it has none told so.
///
/// # Errors
/// What is wrong: bytes that are not of their type, or a field or a value that is not known here.
pub fn unfold(type_url: &str, bytes: &[u8]) -> Result<Option<Vec<u8>>, Mistake> {
    if memchr::memmem::find(bytes, b".TypedStruct").is_none() {
        return Ok(None);
    }
    let mut message = decode(type_url, bytes).map_err(|reason| Mistake { path: String::new(), reason })?;
    unfold_in(&mut message, &mut String::new(), 0)?;
    Ok(Some(message.encode_to_vec()))
}

/// `path` is the message's.
fn unfold_in(message: &mut DynamicMessage, path: &mut String, depth: usize) -> Result<(), Mistake> {
    if message.descriptor().full_name() == ANY {
        return unfold_any(message, path, depth);
    }
    for (field, value) in message.fields_mut() {
        let outer = path.len();
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(field.name());
        let inner = path.len();
        let mut messages: Vec<(String, &mut DynamicMessage)> = Vec::new();
        match value {
            Field::Message(one) => messages.push((String::new(), one)),
            Field::List(items) => {
                let each = items.iter_mut().enumerate();
                messages
                    .extend(each.filter_map(|(i, item)| Some((format!("[{i}]"), item.as_message_mut()?))));
            }
            Field::Map(entries) => {
                let each = entries.iter_mut();
                messages.extend(
                    each.filter_map(|(key, entry)| Some((format!("[{key:?}]"), entry.as_message_mut()?))),
                );
            }
            _ => {}
        }
        for (at, one) in messages {
            path.push_str(&at);
            unfold_in(one, path, depth)?;
            path.truncate(inner);
        }
        path.truncate(outer);
    }
    Ok(())
}

fn unfold_any(any: &mut DynamicMessage, path: &mut String, depth: usize) -> Result<(), Mistake> {
    let (mut type_url, mut bytes) = any_parts(any);
    if is_typed_struct(&type_url)
        // The old one has the same fields.
        && let Ok(told) = decode(TYPED_STRUCT_URL, &bytes)
        && let (of, _) = any_parts(&told)
        && is_known(&of)
    {
        let fields = told.get_field_by_name("value").and_then(|value| value.as_message().cloned());
        let fields = fields.map(|fields| fields.serialize(serde_json::value::Serializer)).transpose();
        let fields = fields.ok().flatten().unwrap_or_else(|| json!({}));
        let under = |mistake: Mistake| {
            let dot = if mistake.path.is_empty() { "" } else { "." };
            Mistake { path: format!("{path}{dot}{}", mistake.path), reason: mistake.reason }
        };
        bytes = from_json(&of, &fields).map_err(under)?.into();
        type_url = of;
    }
    // What cannot be read is for those who need it to refuse.
    if depth < MAX_DEPTH
        && let Ok(mut inner) = decode(&type_url, &bytes)
    {
        unfold_in(&mut inner, path, depth + 1)?;
        bytes = inner.encode_to_vec().into();
    }
    any.set_field_by_name("type_url", Field::String(type_url));
    any.set_field_by_name("value", Field::Bytes(bytes));
    Ok(())
}
