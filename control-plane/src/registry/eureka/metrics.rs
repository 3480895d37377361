//! The registry's metrics. No label holds a name: what can register itself could fill the memory by it.

use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry as Metrics;

use super::refusal::Refusal;
use super::{Eureka, now};

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counters {
    registrations: AtomicU64,
    renewals: AtomicU64,
    renewals_refused: AtomicU64,
    cancellations: AtomicU64,
    full_fetches: AtomicU64,
    delta_fetches: AtomicU64,
    replicated: AtomicU64,
    told: AtomicU64,
    evictions: AtomicU64,
    stored_late: AtomicU64,
    store_failing: AtomicBool,
    /// By reason, of which there are a dozen.
    refusals: Mutex<std::collections::BTreeMap<&'static str, u64>>,
}

fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn registered(&self) {
        one(&self.registrations);
    }
    pub(super) fn renewed(&self, taken: bool) {
        one(if taken { &self.renewals } else { &self.renewals_refused });
    }
    pub(super) fn cancelled(&self) {
        one(&self.cancellations);
    }
    pub(super) fn fetched_full(&self) {
        one(&self.full_fetches);
    }
    pub(super) fn fetched_delta(&self) {
        one(&self.delta_fetches);
    }
    pub(super) fn replicated(&self) {
        one(&self.replicated);
    }
    pub(super) fn told(&self) {
        one(&self.told);
    }
    pub(super) fn evicted(&self, count: usize) {
        self.evictions.fetch_add(count as u64, Ordering::Relaxed);
    }
    pub(super) fn stored_late(&self) {
        one(&self.stored_late);
    }
    pub(super) fn store_failing(&self, failing: bool) {
        self.store_failing.store(failing, Ordering::Relaxed);
    }
    pub(super) fn is_store_failing(&self) -> bool {
        self.store_failing.load(Ordering::Relaxed)
    }
    pub(super) fn refused(&self, refusal: &Refusal) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(refusal.reason()).or_default() += 1;
    }
}

impl Eureka {
    /// Adds the present figures to a scrape's registry, each name beginning with `eureka_`.
    pub fn register_metrics(&self, metrics: &mut Metrics) {
        let metrics = metrics.sub_registry_with_prefix("eureka");
        let summary = self.registry().summary(now());
        for (name, help, value) in [
            ("instances", "Leases", summary.instances),
            ("applications", "Applications with a lease", summary.applications),
            (
                "applications_held",
                "Applications whose leases all ran out, kept in the balancing",
                summary.held,
            ),
            ("instances_expired", "Leases that ran out and are still listed", summary.expired),
            ("memory_bytes", "What the instances take in memory, roughly", summary.bytes),
            (
                "self_preservation_enabled",
                "Whether eviction may be held back",
                summary.self_preservation.into(),
            ),
            ("self_preservation_active", "Whether eviction is held back", summary.preserving.into()),
            ("peers", "Peers that are told what happens here", self.shared.peers.count()),
            ("peers_untold", "Instances of which some peer is still to be told", self.shared.peers.untold()),
            (
                "store_failing",
                "Whether the last write to disk failed",
                self.counters().is_store_failing().into(),
            ),
        ] {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            metrics.register(name, help, gauge);
        }
        let rates = [
            (
                "renewals_per_minute_expected",
                "Renewals that the leases' intervals promise",
                summary.renewals_expected_per_minute,
            ),
            ("renewals_per_minute", "Renewals in the last minute", summary.renewals_per_minute as f64),
        ];
        for (name, help, value) in rates {
            let gauge: Gauge<f64, AtomicU64> = Gauge::default();
            gauge.set(value);
            metrics.register(name, help, gauge);
        }
        let counters = self.counters();
        for (name, help, value) in [
            ("registrations", "Registrations taken", &counters.registrations),
            ("renewals", "Renewals taken", &counters.renewals),
            ("renewals_refused", "Renewals answered 404 or 409", &counters.renewals_refused),
            ("cancellations", "Instances that said they go", &counters.cancellations),
            ("fetches_full", "Full lists given", &counters.full_fetches),
            ("fetches_delta", "Deltas given", &counters.delta_fetches),
            ("replicated", "Items taken from peers", &counters.replicated),
            ("told", "Items that peers have taken or refused", &counters.told),
            ("evictions", "Instances taken out because their lease ran out", &counters.evictions),
            ("stored_late", "Answers given before the disk had it", &counters.stored_late),
        ] {
            let counter: Counter = Counter::default();
            counter.inc_by(value.load(Ordering::Relaxed));
            metrics.register(name, help, counter);
        }
        let refusals = Family::<Vec<(&'static str, &'static str)>, Counter>::default();
        for (reason, count) in counters.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            refusals.get_or_create(&vec![("reason", *reason)]).inc_by(*count);
        }
        metrics.register("refusals", "Requests refused, by reason", refusals);
    }

    /// The same as text, for a scrape of the registry alone.
    pub fn metrics(&self) -> Result<String, fmt::Error> {
        let mut metrics = Metrics::with_prefix("pontoon");
        self.register_metrics(&mut metrics);
        let mut text = String::new();
        encode(&mut text, &metrics)?;
        Ok(text)
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}
