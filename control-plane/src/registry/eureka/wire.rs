//! Eureka's two formats. Reading is tolerant of what the recorded clients send (numbers as strings, booleans as
//! strings, nulls); writing is exact, because clients decode by type. What cannot be kept is refused here, so
//! the registry behind holds nothing that one of the formats could not show.

pub mod incoming;
pub mod json;
pub(super) mod telling;
pub mod xml;

use std::sync::Arc;

use super::instance::InstanceInfo;

/// A format that a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// What the recorded clients use.
    Json,
    /// What a client gets that asks for nothing.
    Xml,
}

impl Format {
    /// For `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Xml => "application/xml",
        }
    }
}

/// Whether a client wants instances whole (`X-Eureka-Accept: compact` does not).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Detail {
    /// Everything.
    Full,
    /// Without lease, metadata, links, hash code and version.
    Compact,
}

/// One instance in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The instance.
    pub info: Arc<InstanceInfo>,
    /// When it last renewed, by the server's clock.
    pub last_renewal_ms: u64,
}

/// One application in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedApplication {
    /// In upper case.
    pub name: Arc<str>,
    /// By instance id.
    pub instances: Vec<Listed>,
}

/// The content of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// `versions__delta`.
    pub version: String,
    /// `apps__hashcode`.
    pub hash: String,
    /// By name.
    pub applications: Vec<ListedApplication>,
}

#[cfg(test)]
mod tests;
