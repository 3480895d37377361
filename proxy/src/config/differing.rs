//! Fields that are set, and have an effect in Envoy that they do not have here. The tables of [`super::support`] say which
//! those are; what looks at a message notes those that it meets, on its thread, and who compiles a resource collects them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pontoon_xds::ResourceType;

/// Of the resources that have such a field, so many are named.
const NAMED: usize = 3;

/// A field of a message, and what is done in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Differs {
    /// The message's full protobuf name.
    pub message: &'static str,
    /// Its field.
    pub field: &'static str,
    /// What is done in its place.
    pub how: &'static str,
}

impl std::fmt::Display for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Differs { message, field, how } = self;
        write!(f, "{message}.{} is ignored, unlike in Envoy: {how}", field.trim_start_matches("r#"))
    }
}

/// Some of them: at most all that the tables have.
pub type Met = BTreeSet<Differs>;

thread_local! {
    static MET: RefCell<Met> = const { RefCell::new(Met::new()) };
}

/// Notes a field that is set.
pub(super) fn note<T: Default + PartialEq>(
    message: &'static str,
    (field, how): (&'static str, &'static str),
    value: &T,
) {
    if *value != T::default() {
        MET.with_borrow_mut(|met| met.insert(Differs { message, field, how }));
    }
}

/// Notes what was met earlier, or on another thread.
pub(crate) fn note_again(met: &Met) {
    MET.with_borrow_mut(|all| all.extend(met));
}

/// Does something, and gives what was noted meanwhile.
pub fn noting<T>(does: impl FnOnce() -> T) -> (T, Met) {
    let outside = MET.take();
    let done = does();
    (done, MET.replace(outside))
}

/// Which resources have which of them.
#[derive(Debug, Default)]
pub(super) struct Differing(BTreeMap<Differs, BTreeSet<(ResourceType, Arc<str>)>>);

impl Differing {
    /// Takes up what a resource has now. The first of each field is told.
    pub(super) fn put(&mut self, ty: ResourceType, name: &Arc<str>, met: Met) {
        let resource = (ty, name.clone());
        self.0.retain(|differs, having| {
            if !met.contains(differs) {
                having.remove(&resource);
            }
            !having.is_empty()
        });
        for differs in met {
            let having = self.0.entry(differs).or_default();
            if having.is_empty() {
                tracing::warn!(ty = ty.short_name(), %name, "{differs}");
            }
            having.insert(resource.clone());
        }
    }

    /// In words: a line for each field.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(differs, having)| {
            let named = having.iter().take(NAMED).map(|(ty, name)| format!("{} {name}", ty.short_name()));
            let mut named = named.collect::<Vec<String>>().join(", ");
            if having.len() > NAMED {
                named.push_str(&format!(" and {} more", having.len() - NAMED));
            }
            format!("{named}: {differs}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_met_is_told_to_who_asks_for_it() {
        let ((), met) = noting(|| {
            let (inner, hidden) = noting(|| note("m", ("unseen", "it is not told"), &1));
            assert_eq!(hidden.len(), 1);
            note("m", ("unset", "it is not set"), &0);
            note("m", ("set", "another is used"), &1);
            inner
        });
        let said: Vec<String> = met.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["m.set is ignored, unlike in Envoy: another is used"]);
        assert_eq!(noting(|| note_again(&met)).1, met);
        assert_eq!(noting(|| ()).1, Met::new());
    }

    #[test]
    fn many_resources_are_one_line() {
        let mut differing = Differing::default();
        let met: Met = [Differs { message: "m", field: "f", how: "h" }].into();
        for name in ["a", "b", "c", "d", "e"] {
            differing.put(ResourceType::Cluster, &name.into(), met.clone());
        }
        let lines = |differing: &Differing| differing.lines().collect::<Vec<String>>();
        assert_eq!(lines(&differing), ["CDS a, CDS b, CDS c and 2 more: m.f is ignored, unlike in Envoy: h"]);
        for name in ["a", "b", "c", "d"] {
            differing.put(ResourceType::Cluster, &name.into(), Met::new());
        }
        assert_eq!(lines(&differing), ["CDS e: m.f is ignored, unlike in Envoy: h"]);
        differing.put(ResourceType::Cluster, &"e".into(), Met::new());
        assert!(differing.0.is_empty());
    }
}
