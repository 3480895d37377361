//! What exists, as plain data: instances as registries report them, and the user's objects. No I/O here;
//! `compile` turns a [`Model`] into xDS resources, and nothing else decides what is served.

pub mod instance;
