//! `pontoon validate`: everything that serving would say about a directory, without serving.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::catalogue::{Catalogue, Loaded, of_file};
use super::problem::{FieldError, Problem, Severity};
use super::{ObjectRef, directory};
use crate::compile::status::{Condition, ConditionType, Statuses};
use crate::model::Model;

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How many files were read.
    pub files: usize,
    /// How many objects are good enough to be served, in whole or in part.
    pub objects: usize,
    /// What is wrong, in order of file and line.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether all would be served as written. Warnings do not count.
    pub fn is_ok(&self) -> bool {
        self.errors() == 0
    }

    /// How many problems keep something from being served as written.
    pub fn errors(&self) -> usize {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error).count()
    }
}

/// One line a problem, and a line of counts.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        let warnings = self.problems.len() - self.errors();
        write!(
            f,
            "{} files, {} objects: {} errors, {warnings} warnings",
            self.files,
            self.objects,
            self.errors()
        )
    }
}

impl Report {
    /// The same of files that are for a cluster, which has more than is in them: what is not there is no more than a warning,
    /// and kinds that nobody here reads are others'. One that is nearly called as one of ours is a mistake all the same.
    #[must_use]
    pub fn for_cluster(mut self) -> Report {
        let is_others = |problem: &Problem| {
            problem.reason == "unsupported_kind" && !problem.message.contains("did you mean")
        };
        self.problems.retain(|problem| !is_others(problem));
        let is_missing = |problem: &&mut Problem| {
            problem.reason != "unknown_field" && problem.message.starts_with("there is no ")
        };
        self.problems.iter_mut().filter(is_missing).for_each(|problem| problem.severity = Severity::Warning);
        self
    }
}

/// Checks a directory, or one file, as serving would. Reads files; call it where blocking is allowed.
pub fn validate(path: &Path) -> Report {
    let (files, loaded) = match read(path) {
        Ok(read) => read,
        Err(error) => {
            let problem = of_file(&".".into(), "unreadable", error.to_string());
            return Report { files: 0, objects: 0, problems: vec![problem] };
        }
    };
    let model = Model { objects: loaded.objects.clone(), ..Model::default() };
    let statuses = crate::compile::compile(&model).statuses;
    let mut problems = loaded.problems.to_vec();
    problems.extend(semantic_problems(&loaded, &statuses));
    problems.sort();
    problems.dedup();
    Report { files, objects: loaded.len(), problems }
}

/// Reads a directory, or one file, once.
///
/// # Errors
/// When it cannot be listed. What is wrong with a file is in [`Loaded::problems`].
pub fn load(path: &Path) -> Result<Loaded, directory::ListError> {
    read(path).map(|(_, loaded)| loaded)
}

fn read(path: &Path) -> Result<(usize, Loaded), directory::ListError> {
    let listing = directory::list(path)?;
    let files = listing.iter().map(|(name, signature)| (name.clone(), directory::read(signature)));
    Ok((listing.len(), Catalogue::default().update(&files.collect())))
}

/// Reads a text as the one file of a directory, for a fuzz target.
#[cfg(feature = "fuzzing")]
pub fn load_text(file: &str, text: &str) -> Loaded {
    let file = (file.into(), super::catalogue::File::Text(text.into()));
    Catalogue::default().update(&[file].into())
}

/// What the compiler refused, with file and line: the same in `validate` and in a running control plane.
pub fn semantic_problems(loaded: &Loaded, statuses: &Statuses) -> Vec<Problem> {
    statuses.iter().flat_map(|(object, conditions)| problems_of(loaded, object, conditions)).collect()
}

/// The same of one object.
pub fn problems_of(loaded: &Loaded, object: &ObjectRef, conditions: &[Condition]) -> Vec<Problem> {
    let wrong = conditions.iter().filter(|condition| !condition.status);
    let located = wrong.filter_map(|condition| {
        let error = FieldError::new(condition.field.as_str(), condition.reason, condition.message.as_str());
        let severity = match condition.kind {
            ConditionType::Accepted | ConditionType::ResolvedRefs => Severity::Error,
            ConditionType::Effective => Severity::Warning,
        };
        loaded.locate(object, error).map(|problem| Problem { severity, ..problem })
    });
    located.collect()
}

#[cfg(test)]
mod tests;
