//! What a route says of the filters of its listener, by their names, as Envoy looks it up: of a filter that the listener
//! has not, or has under another name, nothing counts.

type Entries<T> = Box<[(Box<str>, T)]>;

/// What is said of filters of one kind. Mostly nothing, and each route has several of these: one pointer is enough.
#[derive(Debug, Clone)]
pub struct ByFilter<T>(Option<Box<Entries<T>>>);

impl<T> Default for ByFilter<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> FromIterator<(Box<str>, T)> for ByFilter<T> {
    fn from_iter<I: IntoIterator<Item = (Box<str>, T)>>(entries: I) -> Self {
        let entries: Entries<T> = entries.into_iter().collect();
        Self((!entries.is_empty()).then(|| Box::new(entries)))
    }
}

impl<T> ByFilter<T> {
    /// Whether nothing is said of any.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// What is said of the filter of this name.
    pub fn of(&self, name: &str) -> Option<&T> {
        self.0.as_ref()?.iter().find(|(of, _)| **of == *name).map(|(_, said)| said)
    }

    /// All that is said.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|entries| entries.iter()).map(|(_, said)| said)
    }

    /// What is said of the first of these of which anything is.
    pub fn of_any(&self, names: &[Box<str>]) -> Option<&T> {
        if self.is_empty() {
            return None;
        }
        names.iter().find_map(|name| self.of(name))
    }
}

/// A buffer filter of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Its name in the listener.
    pub name: Box<str>,
    /// The most bytes that a body may have.
    pub most: u64,
    /// It only works for routes that say something of it.
    pub disabled: bool,
}

/// The most bytes that a body may have by all of these, with what its route says of them: another number (0: the filter
/// is off), or only that the filter is on. 0 is no limit.
pub fn longest_body(buffers: &[Buffer], of_route: &ByFilter<Option<u64>>) -> u64 {
    let limits = buffers.iter().map(|buffer| match of_route.of(&buffer.name) {
        Some(said) => said.unwrap_or(buffer.most),
        None if buffer.disabled => 0,
        None => buffer.most,
    });
    limits.filter(|limit| *limit > 0).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_counts_and_what_is_said_of_other_filters_does_not() {
        let buffer = |name: &str, most, disabled| Buffer { name: name.into(), most, disabled };
        let two = [buffer("a", 10, false), buffer("b", 5, false)];
        let said =
            |name: &str, limit| -> ByFilter<Option<u64>> { [(name.into(), limit)].into_iter().collect() };
        assert_eq!(longest_body(&two, &ByFilter::default()), 5);
        assert_eq!(longest_body(&two, &said("b", Some(0))), 10);
        assert_eq!(longest_body(&two, &said("a", Some(3))), 3);
        assert_eq!(longest_body(&two, &said("c", Some(3))), 5);
        let off = [buffer("a", 10, true)];
        assert_eq!(longest_body(&off, &ByFilter::default()), 0);
        assert_eq!(longest_body(&off, &said("a", Some(20))), 20);
        assert_eq!(longest_body(&off, &said("a", None)), 10);
        assert_eq!(longest_body(&[], &said("a", Some(3))), 0);
    }
}
