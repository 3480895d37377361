//! Which version of each object is in force, given what the files say. A document that is wrong leaves the
//! last good version of its object in force; a file that cannot be trusted at the moment (unreadable, being
//! written, empty, with a document that does not say whose it is) is no proof that anything was deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use super::document::{self, Document, Identity, Object};
use super::problem::{FieldError, Problem, Severity};
use super::yaml::Node;
use super::{ObjectName, ObjectRef, Objects};
use crate::migration::stage::State;

/// What was found of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum File {
    /// Its text.
    Text(Arc<str>),
    /// It is there, but its text is not to be had, or not to be relied on yet.
    Unusable {
        /// A stable word.
        reason: &'static str,
        /// What the operator should look at.
        message: String,
    },
}

/// The objects in force, and what is wrong. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The objects in force.
    pub objects: Arc<Objects>,
    /// What is wrong with files and documents, in order of file and line.
    pub problems: Arc<Vec<Problem>>,
    /// Which version of each object was looked at last, good or not, where its place counts them.
    pub generations: OrdMap<ObjectRef, i64>,
    sources: OrdMap<ObjectRef, Source>,
    /// Where the migrations stand, where it is the place of the objects that keeps this: by name, with the object's uid.
    pub states: Option<OrdMap<ObjectName, (Arc<str>, State)>>,
    unavailable: bool,
}

/// Where an object was read from.
#[derive(Debug, Clone, PartialEq)]
struct Source {
    file: Arc<str>,
    tree: Arc<Node>,
}

impl Loaded {
    /// The file that the version in force of an object was read from.
    pub fn file_of(&self, object: &ObjectRef) -> Option<&Arc<str>> {
        self.sources.get(object).map(|source| &source.file)
    }

    /// How many objects are in force.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Whether the directory as a whole could not be read when it was last looked at.
    pub(super) fn is_unavailable(&self) -> bool {
        self.unavailable
    }

    /// One more object in force, or another version of it.
    pub(super) fn put(&mut self, reference: ObjectRef, object: &Object, file: &Arc<str>, tree: &Arc<Node>) {
        Arc::make_mut(&mut self.objects).put(reference.name.clone(), object);
        self.sources.insert(reference, Source { file: file.clone(), tree: tree.clone() });
    }

    /// Takes up what is wrong with an object as it is now. True: those that refer to it have something else to say.
    pub(super) fn note_refused(&mut self, reference: &ObjectRef, problem: Option<&Problem>) -> bool {
        let why = problem.filter(|_| reference.kind.is_said_by_others()).map(Problem::why);
        if self.objects.refused.get(reference).map(|before| &**before) == why.as_deref() {
            return false;
        }
        let refused = &mut Arc::make_mut(&mut self.objects).refused;
        match why {
            Some(why) => drop(refused.insert(reference.clone(), why.into())),
            None => drop(refused.remove(reference)),
        }
        true
    }

    /// One object less.
    pub(super) fn take(&mut self, reference: &ObjectRef) {
        if self.sources.remove(reference).is_some() {
            Arc::make_mut(&mut self.objects).take(reference);
        }
    }

    /// Finds the place of a field of an object in force.
    pub(super) fn locate(&self, object: &ObjectRef, error: FieldError) -> Option<Problem> {
        let source = self.sources.get(object)?;
        Some(document::located(&source.file, &source.tree, Some(object), error))
    }
}

/// The catalogue's memory.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    in_force: BTreeMap<ObjectRef, Entry>,
    /// As [`Objects::refused`].
    refused: OrdMap<ObjectRef, Arc<str>>,
    /// Documents by file, read again only when the text changes.
    parsed: BTreeMap<Arc<str>, Parsed>,
    last: Loaded,
}

/// A file's text and the documents in it.
type Parsed = (Arc<str>, Arc<Vec<Document>>);

#[derive(Debug, Clone)]
struct Entry {
    object: Object,
    source: Source,
}

impl Catalogue {
    /// Takes over what the files say now.
    pub(super) fn update(&mut self, files: &BTreeMap<Arc<str>, File>) -> Loaded {
        self.parse(files);
        let mut problems = Vec::new();
        self.refused = OrdMap::new();
        let mut suspect = BTreeSet::new();
        let mut defined: BTreeMap<ObjectRef, Vec<(Arc<str>, usize)>> = BTreeMap::new();
        for (name, file) in files {
            match file {
                File::Unusable { reason, message } => {
                    suspect.insert(name.clone());
                    problems.push(of_file(name, reason, message.clone()));
                }
                File::Text(text) => {
                    let documents = self.documents(name);
                    if text.trim().is_empty() && self.in_force.values().any(|e| e.source.file == *name) {
                        suspect.insert(name.clone());
                        let message = "the file is empty, as one that is just being written; its objects stay as \
                                       they were. Delete the file to delete them";
                        problems.push(of_file(name, "empty", message.to_owned()));
                    }
                    for (index, document) in documents.iter().enumerate() {
                        match &document.identity {
                            Identity::Known(object) => {
                                defined.entry(object.clone()).or_default().push((name.clone(), index));
                            }
                            Identity::Unknown => {
                                suspect.insert(name.clone());
                            }
                            Identity::Foreign => {}
                        }
                        if !matches!(document.identity, Identity::Known(_)) {
                            problems.extend(document.outcome.as_ref().err().into_iter().flatten().cloned());
                        }
                    }
                }
            }
        }
        self.in_force
            .retain(|object, entry| defined.contains_key(object) || suspect.contains(&entry.source.file));
        for (object, places) in defined {
            self.define(object, &places, &mut problems);
        }
        problems.sort();
        problems.dedup();
        self.loaded(problems)
    }

    /// The directory as a whole cannot be read: everything stays, and a problem says so.
    pub(super) fn unavailable(&self, problem: Problem) -> Loaded {
        Loaded { unavailable: true, problems: Arc::new(vec![problem]), ..self.last.clone() }
    }

    fn parse(&mut self, files: &BTreeMap<Arc<str>, File>) {
        self.parsed.retain(|name, _| files.contains_key(name));
        for (name, file) in files {
            let File::Text(text) = file else { continue };
            if self.parsed.get(name).is_none_or(|(before, _)| before != text) {
                let documents = Arc::new(document::read(name, text));
                self.parsed.insert(name.clone(), (text.clone(), documents));
            }
        }
    }

    fn documents(&self, file: &str) -> Arc<Vec<Document>> {
        self.parsed.get(file).map(|(_, documents)| documents.clone()).unwrap_or_default()
    }

    /// Of several documents for one object, the one in the file that its version in force came from counts;
    /// at a start, the first by file name.
    fn define(&mut self, object: ObjectRef, places: &[(Arc<str>, usize)], problems: &mut Vec<Problem>) {
        let incumbent = self.in_force.get(&object).map(|entry| entry.source.file.clone());
        let chosen = places
            .iter()
            .position(|(file, _)| Some(file) == incumbent.as_ref())
            .or(if places.is_empty() { None } else { Some(0) });
        let Some((file, index)) = chosen.and_then(|chosen| places.get(chosen)) else { return };
        for (position, (other, other_index)) in places.iter().enumerate() {
            if Some(position) == chosen {
                continue;
            }
            let documents = self.documents(other);
            let Some(document) = documents.get(*other_index) else { continue };
            let place = self.documents(file).get(*index).map_or(0, |document| document.at.line);
            let message =
                format!("{object} is already written in {file}:{place}, which is the one that counts");
            let error = FieldError::new("metadata.name", "duplicate", message);
            if let Some(tree) = &document.tree {
                problems.push(document::located(other, tree, Some(&object), error));
            }
        }
        let documents = self.documents(file);
        let Some(Document { outcome, tree: Some(tree), .. }) = documents.get(*index) else { return };
        match outcome {
            Ok(read) => {
                // An object that says what it said keeps its identity: the compiler goes by that.
                let object_value = match self.in_force.get(&object) {
                    Some(entry) if entry.object == *read => entry.object.clone(),
                    _ => read.clone(),
                };
                let source = Source { file: file.clone(), tree: tree.clone() };
                self.in_force.insert(object, Entry { object: object_value, source });
            }
            Err(found) => {
                problems.extend(found.iter().cloned());
                if let Some(first) = found.first().filter(|_| object.kind.is_said_by_others()) {
                    self.refused.insert(object.clone(), first.why().into());
                }
                if self.in_force.contains_key(&object) {
                    let message = "the last good version stays in force".to_owned();
                    let error = FieldError::new("", "kept", message);
                    let kept = document::located(file, tree, Some(&object), error);
                    problems.push(Problem { severity: Severity::Warning, ..kept });
                }
            }
        }
    }

    fn loaded(&mut self, problems: Vec<Problem>) -> Loaded {
        let mut objects = Objects { refused: self.refused.clone(), ..Objects::default() };
        let mut sources = OrdMap::new();
        for (reference, entry) in &self.in_force {
            objects.put(reference.name.clone(), &entry.object);
            sources.insert(reference.clone(), entry.source.clone());
        }
        // As with the objects: the same set keeps its identity.
        let objects =
            if *self.last.objects == objects { self.last.objects.clone() } else { Arc::new(objects) };
        self.last = Loaded { objects, problems: Arc::new(problems), sources, ..Loaded::default() };
        self.last.clone()
    }
}

/// A problem with a file as a whole.
pub(super) fn of_file(file: &Arc<str>, reason: &'static str, message: String) -> Problem {
    Problem {
        file: file.clone(),
        at: None,
        object: None,
        field: String::new(),
        value: None,
        reason,
        message,
        severity: Severity::Error,
    }
}

#[cfg(test)]
mod tests;
