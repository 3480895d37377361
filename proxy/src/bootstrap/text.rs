//! A configuration's text, read once more when there is a mistake in it: in which line that is.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::config::problem::Problem;

/// What is written, and where each part of it begins.
pub(super) struct Text {
    name: String,
    root: Option<Spanned<Node>>,
}

enum Node {
    Mapping(Vec<(String, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Scalar(String),
}

/// A step of a path: a field's name or an element's position.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Position(usize),
}

impl Text {
    pub(super) fn new(name: &Path, text: &str) -> Text {
        Text { name: name.display().to_string(), root: serde_saphyr::from_str(text).ok() }
    }

    /// Whether it has this field at its top.
    pub(super) fn has(&self, path: &str) -> bool {
        let first = steps(path).into_iter().next();
        self.root.as_ref().zip(first).is_some_and(|(root, step)| root.value.child(&step).is_some())
    }

    /// A problem with its file and line. Resources are named as the store names them, or by their path.
    pub(super) fn place(&self, problem: &Problem) -> String {
        let path = self.path_of(&problem.path).unwrap_or_else(|| problem.path.clone());
        let at = self.deepest(&steps(&path)).map(position).unwrap_or_default();
        let path = if path.is_empty() { String::new() } else { format!(" {path}:") };
        format!("{}{at}:{path} {}", self.name, problem.reason)
    }

    /// A setting's value with its file and line, if it is from here.
    pub(super) fn place_of(&self, setting: &str, value: &str) -> Option<String> {
        let written = self.deepest(&steps(&camel_case(setting)))?;
        let found = written.value.find(value, written)?;
        Some(format!("{}{}", self.name, position(found)))
    }

    /// What the reader of YAML says of it, in the same form.
    pub(super) fn explain(&self, error: &serde_saphyr::Error) -> String {
        let said = error.without_snippet().to_string();
        let said = said.lines().next().unwrap_or_default();
        let Some(at) = error.location() else { return format!("{}: {said}", self.name) };
        let (line, column) = (at.line(), at.column());
        let said = said.strip_prefix("error: ").unwrap_or(said);
        let said = said.strip_prefix(&format!("line {line} column {column}: ")).unwrap_or(said);
        let said = said.strip_suffix(&format!(" at line {line}, column {column}")).unwrap_or(said);
        let said = said.split(", set DuplicateKeyPolicy").next().unwrap_or(said);
        let mut path = String::new();
        let root = self.root.as_ref();
        let value = root.and_then(|root| root.value.beginning(root, (line, column), &mut path));
        let value = match value {
            Some(Node::Scalar(text)) if !path.is_empty() => format!(" {path}: is {text:?}:"),
            _ => String::new(),
        };
        let expected = expected(said).map(|expected| format!("; expected {expected}")).unwrap_or_default();
        format!("{}:{line}:{column}:{value} {said}{expected}", self.name)
    }

    /// `LDS "shop".address` as the path from the text's root.
    fn path_of(&self, named: &str) -> Option<String> {
        let kinds = [("LDS", "listeners"), ("CDS", "clusters"), ("SDS", "secrets")];
        let (rest, list) = kinds
            .iter()
            .find_map(|(kind, list)| Some((named.strip_prefix(kind)?.strip_prefix(" \"")?, list)))?;
        let (name, rest) = rest.split_once('"')?;
        let at = format!("static_resources.{list}");
        if name.starts_with(&at) {
            return Some(format!("{name}{rest}"));
        }
        let Node::List(items) = &self.exactly(&steps(&at))?.value else { return None };
        let is_named = |item: &Spanned<Node>| {
            let written = item.value.child(&Step::Key("name".into()));
            matches!(written.map(|written| &written.value), Some(Node::Scalar(text)) if text == name)
        };
        Some(format!("{at}[{}]{rest}", items.iter().position(is_named)?))
    }

    fn exactly(&self, path: &[Step]) -> Option<&Spanned<Node>> {
        path.iter().try_fold(self.root.as_ref()?, |node, step| node.value.child(step))
    }

    /// As far as the path leads.
    fn deepest(&self, path: &[Step]) -> Option<&Spanned<Node>> {
        let mut node = self.root.as_ref()?;
        for step in path {
            match node.value.child(step) {
                Some(child) => node = child,
                None => break,
            }
        }
        Some(node)
    }
}

impl Node {
    fn child(&self, step: &Step) -> Option<&Spanned<Node>> {
        match (self, step) {
            (Node::Mapping(entries), Step::Key(key)) => {
                entries.iter().find(|(written, _)| same(written, key)).map(|(_, node)| node)
            }
            (Node::List(items), Step::Position(position)) => items.get(*position),
            _ => None,
        }
    }

    /// The first scalar of this text in it.
    fn find<'n>(&'n self, value: &str, here: &'n Spanned<Node>) -> Option<&'n Spanned<Node>> {
        match self {
            Node::Scalar(text) => (text == value).then_some(here),
            Node::Mapping(entries) => entries.iter().find_map(|(_, node)| node.value.find(value, node)),
            Node::List(items) => items.iter().find_map(|node| node.value.find(value, node)),
        }
    }

    /// What begins there, with `path` led to it.
    fn beginning<'n>(
        &'n self,
        here: &'n Spanned<Node>,
        at: (u64, u64),
        path: &mut String,
    ) -> Option<&'n Node> {
        let length = path.len();
        match self {
            Node::Scalar(_) => {
                let begins = (here.referenced.line(), here.referenced.column());
                return (begins == at).then_some(&here.value);
            }
            Node::Mapping(entries) => {
                for (key, node) in entries {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key);
                    if let Some(found) = node.value.beginning(node, at, path) {
                        return Some(found);
                    }
                    path.truncate(length);
                }
            }
            Node::List(items) => {
                for (position, node) in items.iter().enumerate() {
                    path.push_str(&format!("[{position}]"));
                    if let Some(found) = node.value.beginning(node, at, path) {
                        return Some(found);
                    }
                    path.truncate(length);
                }
            }
        }
        None
    }
}

fn position(node: &Spanned<Node>) -> String {
    format!(":{}:{}", node.referenced.line(), node.referenced.column())
}

/// Names of fields are written in either case.
fn same(one: &str, other: &str) -> bool {
    let plain = |name: &str| name.replace('_', "").to_ascii_lowercase();
    one == other || plain(one) == plain(other)
}

/// `--max-lag-ms` as the file has it.
fn camel_case(setting: &str) -> String {
    let mut words = setting.trim_start_matches('-').split('-');
    let mut out = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        out.push_str(&first.to_ascii_uppercase());
        out.push_str(rest);
    }
    out
}

/// The steps of `a.b[0]["c d"]`.
fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let (inside, after) = match inside.strip_prefix('"') {
                Some(quoted) => quoted.split_once("\"]").unwrap_or((quoted, "")),
                None => inside.split_once(']').unwrap_or((inside, "")),
            };
            steps.push(inside.parse().map_or_else(|_| Step::Key(inside.to_owned()), Step::Position));
            rest = after;
        } else {
            let name = rest.strip_prefix('.').unwrap_or(rest);
            let end = name.find(['.', '[']).unwrap_or(name.len());
            // Two dots in a row lead nowhere.
            if end == 0 && !name.starts_with('[') {
                break;
            }
            if end > 0 {
                steps.push(Step::Key(name[..end].to_owned()));
            }
            rest = &name[end..];
        }
    }
    steps
}

/// What the values of our own settings are like.
fn expected(said: &str) -> Option<&'static str> {
    const KINDS: [(&str, &str); 6] = [
        ("invalid u", "a whole number, not negative"),
        ("invalid i", "a whole number"),
        ("invalid bool", "true or false"),
        ("invalid socket address", "ADDRESS:PORT, as 127.0.0.1:15000 or '[::1]:15000'"),
        ("invalid IP address", "a network, as 240.0.0.0/4"),
        ("expected mapping start", "settings by name, as workers: 2, or a bootstrap of Envoy's"),
    ];
    KINDS.iter().find(|(start, _)| said.starts_with(start)).map(|(_, expected)| *expected)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        macro_rules! scalar {
            ($( $name:ident($kind:ty) ),+) => { $(
                fn $name<E>(self, value: $kind) -> Result<Node, E> {
                    Ok(Node::Scalar(value.to_string()))
                }
            )+ };
        }

        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("YAML")
            }

            scalar!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(String::new()))
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(String::new()))
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(Node::List(all))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    all.push(entry);
                }
                Ok(Node::Mapping(all))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_its_steps() {
        let key = |name: &str| Step::Key(name.into());
        assert_eq!(steps("a.b[2].c"), [key("a"), key("b"), Step::Position(2), key("c")]);
        assert_eq!(steps("a[\"x.y z\"].b"), [key("a"), key("x.y z"), key("b")]);
        assert_eq!((steps(""), steps("..a[")), (vec![], vec![]));
        assert_eq!(camel_case("--max-lag-ms"), "maxLagMs");
    }

    #[test]
    fn the_deepest_part_that_is_written_is_the_place() {
        let text = Text::new(Path::new("f"), "a:\n  bC:\n  - d: 1\n  - e: {f: x}\n");
        let place = |path: &str| text.place(&Problem::new(path, "is wrong"));
        assert_eq!(place("a.b_c[1].e.f"), "f:4:12: a.b_c[1].e.f: is wrong");
        assert_eq!(place("a.b_c[1].e.missing"), "f:4:8: a.b_c[1].e.missing: is wrong");
        assert_eq!(place(""), "f:1:1: is wrong");
        assert_eq!(text.place_of("a.bC", "x").as_deref(), Some("f:4:12"));
        assert_eq!(text.place_of("a.bC", "y"), None);
    }
}
