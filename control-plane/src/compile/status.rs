//! What the compiler has to say about each object. Nothing is refused in silence: what is not served as
//! written has a condition that is not true, with its field, a reason and what would be right.

use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use serde::Serialize;

use crate::objects::ObjectRef;
use crate::objects::problem::FieldError;

/// What is said about one aspect of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// The aspect.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether all is well with it.
    pub status: bool,
    /// A stable word, spelled as the Gateway API spells its reasons.
    pub reason: &'static str,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The field that is meant, as in `spec.rules[0].filters[1]`; empty: the whole object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// The aspects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ConditionType {
    /// Understood and supported.
    Accepted,
    /// What it refers to exists and may be referred to.
    ResolvedRefs,
    /// Has an effect. Not true is a hint, not an error.
    Effective,
}

/// The conditions of all objects. Clones share what they have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statuses(OrdMap<ObjectRef, Arc<Vec<Condition>>>);

impl Statuses {
    /// In order of kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectRef, &[Condition])> {
        self.0.iter().map(|(object, conditions)| (object, conditions.as_slice()))
    }

    /// An object's conditions; empty where it is unknown.
    pub fn of(&self, object: &ObjectRef) -> &[Condition] {
        self.0.get(object).map_or(&[], |conditions| conditions.as_slice())
    }

    /// The objects that something else is said of than before. What both share is not looked at.
    pub fn changed<'s>(&'s self, before: &'s Statuses) -> impl Iterator<Item = &'s ObjectRef> {
        before.0.diff(&self.0).map(|item| match item {
            DiffItem::Add(object, _) | DiffItem::Remove(object, _) => object,
            DiffItem::Update { new: (object, _), .. } => object,
        })
    }

    /// Takes back all that was said of an object.
    pub(super) fn forget(&mut self, object: &ObjectRef) {
        self.0.remove(object);
    }

    /// Takes back what was said of an object for a reason.
    pub(super) fn retract(&mut self, object: &ObjectRef, reason: &str) {
        let is_it = |condition: &Condition| condition.reason == reason;
        if self.of(object).iter().any(is_it)
            && let Some(conditions) = self.0.get_mut(object)
        {
            Arc::make_mut(conditions).retain(|condition| !is_it(condition));
        }
    }

    /// Notes that something is not as written.
    pub(super) fn refuse(&mut self, object: &ObjectRef, kind: ConditionType, error: FieldError) {
        let FieldError { field, reason, message } = error;
        let condition = Condition { kind, status: false, reason, message, field };
        let conditions = self.0.entry(object.clone()).or_default();
        if !conditions.contains(&condition) {
            Arc::make_mut(conditions).push(condition);
        }
    }

    /// Says of an object all that was not refused: to be called last.
    pub(super) fn settle(&mut self, object: ObjectRef) {
        let conditions = Arc::make_mut(self.0.entry(object).or_default());
        for (kind, reason) in
            [(ConditionType::ResolvedRefs, "ResolvedRefs"), (ConditionType::Accepted, "Accepted")]
        {
            if !conditions.iter().any(|condition| condition.kind == kind) {
                let (message, field) = (String::new(), String::new());
                conditions.insert(0, Condition { kind, status: true, reason, message, field });
            }
        }
    }
}
