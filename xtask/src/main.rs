//! Filled in by the following commits.
fn main() {}
