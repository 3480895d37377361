//! YAML text to trees that know where each value is written. Types are read from the tree afterwards
//! ([`decode`]), so that every error, a semantic one found later too, names line, column and field.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Options, Spanned};

use super::problem::Position;

pub mod decode;

/// Deeper nesting is refused: no kind needs more than 12 levels, and the tree is walked by recursion.
const MAX_DEPTH: usize = 64;
/// Values in one file, aliases expanded: bounds what an alias bomb can cost.
const MAX_NODES: usize = 200_000;

/// A value and where it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it starts.
    pub at: Position,
    /// What it is.
    pub value: Value,
}

/// A YAML value after YAML 1.2's core rules: only `true` and `false` are booleans, `007` is text.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Text.
    String(String),
    /// A list.
    Seq(Vec<Node>),
    /// A map, in the order of the file; keys are unique.
    Map(Vec<(Key, Node)>),
}

/// A map's key and where it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Where it starts.
    pub at: Position,
    /// The key.
    pub text: String,
}

/// Text that is not YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where the reader stumbled.
    pub at: Position,
    /// Over what.
    pub message: String,
}

/// The documents of a file, empty ones left out. After text that is no YAML the reader goes on at the next
/// document where it can.
pub fn documents(text: &str) -> Vec<Result<Node, SyntaxError>> {
    let mut bytes = text.as_bytes();
    serde_saphyr::read_with_options::<_, Spanned<Value>>(&mut bytes, options())
        .filter_map(|document| match document {
            Ok(Spanned { value: Value::Null, .. }) => None,
            Ok(document) => Some(Ok(Node::from(document))),
            Err(error) => Some(Err(syntax_error(&error))),
        })
        .collect()
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: MAX_DEPTH, max_nodes: MAX_NODES, max_events: 2 * MAX_NODES },
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
    }
}

fn syntax_error(error: &serde_saphyr::Error) -> SyntaxError {
    let at = error
        .location()
        .map_or(Position { line: 1, column: 1 }, |at| Position { line: at.line(), column: at.column() });
    let text = error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
    let message = text.split(" at line ").next().unwrap_or(&text).to_owned();
    SyntaxError { at, message }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        let at = Position { line: spanned.referenced.line(), column: spanned.referenced.column() };
        Self { at, value: spanned.value }
    }
}

impl Node {
    /// The value of a key, where this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text, where this is text.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Where `field` (as in `spec.rules[0].name`) is written, and the node itself. Where it is not written at
    /// all: the innermost of its parents that is, without the node.
    pub fn locate(&self, field: &str) -> (Position, Option<&Node>) {
        let (mut at, mut node) = (self.at, self);
        for segment in field.split('.').filter(|s| !s.is_empty()) {
            let (key, indices) = segment.split_once('[').map_or((segment, ""), |(key, rest)| (key, rest));
            let entry = match &node.value {
                Value::Map(entries) => entries.iter().find(|(k, _)| k.text == key),
                _ => None,
            };
            let Some((key, value)) = entry else { return (at, None) };
            (at, node) = (key.at, value);
            for index in indices.split(['[', ']']).filter_map(|digits| digits.parse::<usize>().ok()) {
                let Value::Seq(items) = &node.value else { return (at, None) };
                let Some(item) = items.get(index) else { return (at, None) };
                (at, node) = (item.at, item);
            }
        }
        (at, Some(node))
    }

    /// The value for a message: a scalar as written, shortened; `None` for lists and maps.
    pub fn shown(&self) -> Option<String> {
        const SHOWN: usize = 80;
        let text = match &self.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::String(text) => format!("{text:?}"),
            Value::Seq(_) | Value::Map(_) => return None,
        };
        Some(match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(i128::try_from(value).map_or(Value::Float(f64::MAX), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Spanned<Value>>()? {
            items.push(Node::from(item));
        }
        Ok(Value::Seq(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = access.next_entry::<Spanned<String>, Spanned<Value>>()? {
            let at = Position { line: key.referenced.line(), column: key.referenced.column() };
            entries.push((Key { at, text: key.value }, Node::from(value)));
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests;
