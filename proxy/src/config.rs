//! From xDS resources to what the request path reads. Everything is decided here, when a resource arrives:
//! matchers built, names resolved to handles, unsupported fields refused. Nothing here runs on the path.

pub mod listener;
