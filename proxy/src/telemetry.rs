//! Metrics and the access log. Each worker writes its own shard without sharing a cache line; a scrape adds the
//! shards up. Log lines are formatted by a writer thread, behind a bounded queue whose drops are counted.

pub mod access_log;
pub mod histogram;
pub mod metrics;

pub use metrics::Metrics;
