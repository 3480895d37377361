//! What is wrong with a resource: where, and what would be right.

/// A field that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct Problem {
    /// From the resource's root, as in `virtual_hosts[0].routes[2].match.safe_regex`.
    pub path: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Problem {
    /// A problem with the field of this name.
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Problem {
        Problem { path: path.into(), reason: reason.into() }
    }
}

/// Refuses a name that is empty where Envoy wants one.
///
/// # Errors
/// The field, if it is empty.
pub fn filled(field: &str, text: &str) -> Result<(), Problem> {
    if text.is_empty() { Err(Problem::new(field, "is missing or empty; must be a name")) } else { Ok(()) }
}

/// Puts what contains a field before its path.
pub trait Under<T> {
    /// `container` is made only when there is a problem.
    ///
    /// # Errors
    /// The same problem, with the longer path.
    fn under(self, container: impl FnOnce() -> String) -> Result<T, Problem>;
}

impl<T> Under<T> for Result<T, Problem> {
    fn under(self, container: impl FnOnce() -> String) -> Result<T, Problem> {
        self.map_err(|problem| {
            let container = container();
            let path =
                if problem.path.is_empty() { container } else { format!("{container}.{}", problem.path) };
            Problem { path, reason: problem.reason }
        })
    }
}

/// Translates each element, with its position in the path.
///
/// # Errors
/// The first element's problem.
pub fn each<T, U>(
    field: &str,
    elements: &[T],
    mut translate: impl FnMut(&T) -> Result<U, Problem>,
) -> Result<Vec<U>, Problem> {
    elements.iter().enumerate().map(|(i, e)| translate(e).under(|| format!("{field}[{i}]"))).collect()
}
