//! Eureka, both sides of it.

pub mod client;
