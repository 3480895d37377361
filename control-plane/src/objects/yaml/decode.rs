//! From a tree to a type, over serde. Fields that the type does not have are refused, all of them at once,
//! also in types (Gateway API's) that would let them pass.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::{Key, Node, Value};
use crate::objects::problem::{Position, UNKNOWN_FIELD, did_you_mean};

/// What is wrong with a value, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    /// Where it is written.
    pub at: Position,
    /// Its field; empty: the whole document.
    pub field: String,
    /// What is written there, where it is short.
    pub value: Option<String>,
    /// A stable word.
    pub reason: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Reads a `T`. `without` names keys of the outermost map that are not `T`'s to read.
pub fn decode<T: DeserializeOwned>(root: &Node, without: &[&str]) -> Result<T, Vec<DecodeError>> {
    let errors = RefCell::new(Vec::new());
    let path = Path { parent: None, segment: Segment::Root };
    let result = T::deserialize(NodeDeserializer { node: root, path: &path, errors: &errors, without });
    let mut errors = errors.into_inner();
    match result {
        Ok(value) if errors.is_empty() => Ok(value),
        Ok(_) => Err(errors),
        Err(error) => {
            errors.push(error.at(root, &path));
            Err(errors)
        }
    }
}

/// The way from the root to a node, kept on the stack and written out only for an error.
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

enum Segment<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            match self.segment {
                Segment::Key(key) if matches!(parent.segment, Segment::Root) => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Root => {}
            }
        }
        Ok(())
    }
}

/// serde's errors know no place; the innermost value that they pass on their way up gives it to them.
#[derive(Debug)]
struct Error {
    reason: &'static str,
    message: String,
    located: Option<(Position, String, Option<String>)>,
}

impl Error {
    fn new(reason: &'static str, message: String) -> Self {
        Self { reason, message, located: None }
    }

    fn within(mut self, node: &Node, path: &Path<'_>) -> Self {
        self.located.get_or_insert_with(|| (node.at, path.to_string(), node.shown()));
        self
    }

    fn at(self, node: &Node, path: &Path<'_>) -> DecodeError {
        let Self { reason, message, located } = self.within(node, path);
        let (at, field, value) = located.unwrap_or_default();
        DecodeError { at, field, value, reason, message }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new("invalid_value", message.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let wanted = expectation(expected);
        let hint = match unexpected {
            Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) | Unexpected::Bool(_)
                if wanted.contains("string") =>
            {
                "; put it in quotes"
            }
            _ => "",
        };
        Self::new("wrong_type", format!("expected {wanted}{hint}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new("invalid_value", format!("expected {}", expectation(expected)))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let hint = match did_you_mean(variant, expected.iter().copied()) {
            Some(meant) => format!("; did you mean {meant}?"),
            None => String::new(),
        };
        Self::new("invalid_value", format!("expected one of {}{hint}", expected.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("missing_field", format!("{field} is missing"))
    }
}

/// Rust's names for types, in words.
fn expectation(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u8" => "a whole number from 0 to 255".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" | "usize" => "a whole number that is not negative".into(),
        "i32" => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        "i64" => "a whole number".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        _ => text,
    }
}

struct NodeDeserializer<'a> {
    node: &'a Node,
    path: &'a Path<'a>,
    errors: &'a RefCell<Vec<DecodeError>>,
    without: &'a [&'a str],
}

impl<'a> NodeDeserializer<'a> {
    fn seq<'de, V: Visitor<'de>>(self, items: &'a [Node], visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Items { items, next: 0, path: self.path, errors: self.errors })
    }

    fn map<'de, V: Visitor<'de>>(
        self,
        entries: &'a [(Key, Node)],
        fields: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let entries = entries
            .iter()
            .filter(|(key, node)| {
                if self.without.contains(&key.text.as_str()) {
                    return false;
                }
                let Some(fields) = fields else { return true };
                let known = fields.contains(&key.text.as_str());
                if !known {
                    self.refuse_field(key, node, fields);
                }
                known
            })
            .collect::<Vec<_>>();
        visitor.visit_map(Entries { entries, next: 0, path: self.path, errors: self.errors })
    }

    fn refuse_field(&self, key: &Key, node: &Node, fields: &'static [&'static str]) {
        let path = Path { parent: Some(self.path), segment: Segment::Key(&key.text) };
        let hint = match did_you_mean(&key.text, fields.iter().copied()) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("known here: {}", fields.join(", ")),
        };
        self.errors.borrow_mut().push(DecodeError {
            at: key.at,
            field: path.to_string(),
            value: node.shown(),
            reason: UNKNOWN_FIELD,
            message: format!("there is no such field; {hint}"),
        });
    }
}

fn unexpected(node: &Node) -> Unexpected<'_> {
    match &node.value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Int(value) => i64::try_from(*value).map_or(Unexpected::Other("number"), Unexpected::Signed),
        Value::Float(value) => Unexpected::Float(*value),
        Value::String(text) => Unexpected::Str(text),
        Value::Seq(_) => Unexpected::Seq,
        Value::Map(_) => Unexpected::Map,
    }
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => Err(de::Error::invalid_value(Unexpected::Other("number"), &"a smaller number")),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) => visitor.visit_str(text),
            Value::Seq(items) => self.seq(items, visitor),
            Value::Map(entries) => self.map(entries, None, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(entries) => self.map(entries, Some(fields), visitor),
            _ => {
                let wanted = format!("a map of fields ({})", fields.join(", "));
                Err(de::Error::invalid_type(unexpected(self.node), &wanted.as_str()))
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(text) => {
                let text: StrDeserializer<'_, Error> = text.as_str().into_deserializer();
                visitor.visit_enum(text)
            }
            _ => {
                let wanted = format!("one of {}", variants.join(", "));
                Err(de::Error::invalid_type(unexpected(self.node), &wanted.as_str()))
            }
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'a> {
    items: &'a [Node],
    next: usize,
    path: &'a Path<'a>,
    errors: &'a RefCell<Vec<DecodeError>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.get(self.next) else { return Ok(None) };
        let path = Path { parent: Some(self.path), segment: Segment::Index(self.next) };
        self.next += 1;
        let deserializer = NodeDeserializer { node, path: &path, errors: self.errors, without: &[] };
        seed.deserialize(deserializer).map(Some).map_err(|error| error.within(node, &path))
    }
}

struct Entries<'a> {
    entries: Vec<&'a (Key, Node)>,
    next: usize,
    path: &'a Path<'a>,
    errors: &'a RefCell<Vec<DecodeError>>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, _)) = self.entries.get(self.next) else { return Ok(None) };
        let text: StrDeserializer<'_, Error> = key.text.as_str().into_deserializer();
        seed.deserialize(text).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, node)) = self.entries.get(self.next) else {
            return Err(Error::new("internal", "a value was asked for without a key".into()));
        };
        self.next += 1;
        let path = Path { parent: Some(self.path), segment: Segment::Key(&key.text) };
        let deserializer = NodeDeserializer { node, path: &path, errors: self.errors, without: &[] };
        seed.deserialize(deserializer).map_err(|error| error.within(node, &path))
    }
}
