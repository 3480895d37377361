//! What goes into the registry and what comes out of it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::model::instance::InstanceStatus;
use crate::registry::eureka::instance::InstanceInfo;
use crate::registry::eureka::wire::Listed;

/// What the registry allows.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Instances, held ones included.
    pub max_instances: usize,
    /// What their descriptions may take in memory, roughly.
    pub max_bytes: usize,
    /// How long a change stays in the delta.
    pub delta_retention: Duration,
    /// Whether eviction stops when many leases run out at once.
    pub self_preservation: bool,
    /// Whether changes are collected for a store.
    pub durable: bool,
}

/// The present, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Decides.
    pub instant: Instant,
    /// Is shown: milliseconds since 1970.
    pub unix_ms: u64,
}

/// An application's and an instance's name.
pub type Key = (Arc<str>, Arc<str>);

/// One line of the pages' list of what happened lately.
#[derive(Debug, Clone)]
pub struct Recent {
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// The application.
    pub app: Arc<str>,
    /// The instance.
    pub id: Arc<str>,
    /// `registered`, `cancelled` or `evicted`.
    pub what: &'static str,
}

/// An instance as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The instance.
    pub info: InstanceInfo,
    /// Its override.
    pub overriding: Option<InstanceStatus>,
    /// Whether it was evicted and is kept only to be held.
    pub departed: bool,
}

/// What a store has to write to be as new as the registry was.
#[derive(Debug)]
pub struct Batch {
    /// Everything is in `writes`; what else the store has must go.
    pub rewrite: bool,
    /// `None` where the instance is gone.
    pub writes: Vec<(Key, Option<Stored>)>,
}

/// Why a renewal did not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRenewed {
    /// 404: the client is to register.
    Unknown,
    /// 409, for peers: their copy is older than ours.
    Conflict(Box<Listed>),
}

/// What a check of the leases found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Leases taken out.
    pub evicted: usize,
    /// Leases that ran out and are left in by self-preservation.
    pub preserved: usize,
}

/// Figures for metrics and pages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Leases.
    pub instances: usize,
    /// Applications with a lease.
    pub applications: usize,
    /// Applications whose instances are held.
    pub held: usize,
    /// Roughly, in memory.
    pub bytes: usize,
    /// Renewals in the last minute.
    pub renewals_per_minute: u64,
    /// What the leases' own intervals promise.
    pub renewals_expected_per_minute: f64,
    /// Leases that have run out and are still listed.
    pub expired: usize,
    /// Whether self-preservation holds eviction back.
    pub preserving: bool,
    /// Whether it may.
    pub self_preservation: bool,
}
