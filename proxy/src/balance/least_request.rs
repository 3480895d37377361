//! The less loaded of two taken at random (P2C): near the best choice without looking at all, and without the
//! herd that always taking the best makes of several workers.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::upstream::cluster::Endpoint;

/// The index chosen by one random number; `None` without endpoints.
pub(super) fn choose(endpoints: &[Arc<Endpoint>], random: u64) -> Option<usize> {
    let count = endpoints.len() as u64;
    if count < 2 {
        return (count == 1).then_some(0);
    }
    let first = (random >> 32) % count;
    // One of the others, never the same twice.
    let second = (first + 1 + (random & 0xffff_ffff) % (count - 1)) % count;
    let (first, second) = (first as usize, second as usize);
    Some(if load(&endpoints[second], &endpoints[first]) < load(&endpoints[first], &endpoints[second]) {
        second
    } else {
        first
    })
}

/// In flight per weight, over the common denominator.
fn load(endpoint: &Endpoint, other: &Endpoint) -> u64 {
    (u64::from(endpoint.active.load(Relaxed)) + 1) * u64::from(other.weight)
}
