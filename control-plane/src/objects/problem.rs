//! What is wrong with a file or an object, where, and what would be right. One type for `pontoon validate`,
//! the log and the status.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::ObjectRef;

/// A place in a file, both counted from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, relative to the directory.
    pub file: Arc<str>,
    /// Where in it; `None` where the file as a whole is meant.
    #[serde(flatten)]
    pub at: Option<Position>,
    /// The object, where its document says which it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectRef>,
    /// The field, as in `spec.rules[0].matches[1].path.value`; empty: the whole document.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is written there, shortened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// A stable word for the kind of problem.
    pub reason: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
    /// Whether it keeps the object, or a part of it, from being served; a warning does not.
    pub severity: Severity,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something is not served as written.
    Error,
    /// Served as written, but probably not as meant.
    Warning,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(at) = self.at {
            write!(f, ":{}:{}", at.line, at.column)?;
        }
        if self.severity == Severity::Warning {
            f.write_str(": warning")?;
        }
        write!(f, ": {}", self.words())
    }
}

impl Problem {
    /// What is wrong, in a few words, for those that refer to the object.
    pub(crate) fn why(&self) -> String {
        at_field(&self.field, &self.message)
    }

    /// As it is printed, but for the file and the place in it.
    pub fn words(&self) -> String {
        let object = self.object.as_ref().map(ToString::to_string);
        let field = (!self.field.is_empty()).then(|| self.field.clone());
        let said = format!("{} ({})", self.message, self.reason);
        let parts = [object, field, self.value.clone(), Some(said)];
        parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
    }
}

/// The reason of a field that a type does not have: a mistake, or of a newer version.
pub const UNKNOWN_FIELD: &str = "unknown_field";

/// What is wrong with a field, before it is known where in a file the field is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// As [`Problem::field`].
    pub field: String,
    /// As [`Problem::reason`].
    pub reason: &'static str,
    /// As [`Problem::message`].
    pub message: String,
}

impl FieldError {
    /// An error at a field.
    pub fn new(field: impl Into<String>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { field: field.into(), reason, message: message.into() }
    }

    /// The field and the message, as others say it.
    pub(crate) fn words(&self) -> String {
        at_field(&self.field, &self.message)
    }
}

/// What is said of a field; an empty one is the whole.
pub(crate) fn at_field(field: &str, message: &str) -> String {
    match field {
        "" => message.to_owned(),
        field => format!("{field}: {message}"),
    }
}

/// The one of `known` that was probably meant by `word`. A route may name hundreds of Services that are not there, each of
/// which is compared anew whenever any Service changes: long words, and all but the first of many, are not looked at.
pub(crate) fn did_you_mean<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    const LONGEST: usize = 63;
    const MOST: usize = 200;
    let allowed = |candidate: &str| 1.max(candidate.len() / 3);
    let is_near = |candidate: &&str| {
        candidate.len() <= LONGEST && candidate.len().abs_diff(word.len()) <= allowed(candidate)
    };
    if word.len() > LONGEST {
        return None;
    }
    let word = word.to_lowercase();
    let near = known.into_iter().filter(is_near).take(MOST);
    near.map(|candidate| (strsim::osa_distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= allowed(candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_looked_for_among_few() {
        assert_eq!(did_you_mean("ordres", ["payments", "orders"]), Some("orders"));
        assert_eq!(did_you_mean("Orders", ["orders"]), Some("orders"));
        assert_eq!(did_you_mean("carts", ["payments", "orders"]), None);
        let long = "a".repeat(64);
        assert_eq!(did_you_mean(&long, [long.as_str()]), None);
        let many = std::iter::repeat_n("others", 1000);
        assert_eq!(did_you_mean("orders", many.chain(["orders"])), Some("others"));
    }
}
