//! Which endpoint of a cluster takes the next request. Plain and synchronous: an endpoint set, a clock reading
//! and random numbers in, an endpoint out. Each worker has its own; only load and ejection are shared.

mod least_request;
mod named;
mod round_robin;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::upstream::cluster::{BalancePolicy, Endpoint, EndpointHealth, EndpointSet, Nameable};

use named::Named;
use round_robin::RoundRobin;

/// One worker's balancer of one cluster.
#[derive(Debug)]
pub struct Balancer {
    set: Arc<EndpointSet>,
    policy: BalancePolicy,
    /// Those that take requests: the healthy ones, or, where there is none, those that drain.
    eligible: Vec<Arc<Endpoint>>,
    turns: RoundRobin,
    named: Named,
}

impl Balancer {
    /// `start` spreads the workers' first picks.
    pub fn new(set: Arc<EndpointSet>, policy: BalancePolicy, start: u32) -> Self {
        let with = |health| set.endpoints.iter().filter(|e| e.health == health).cloned().collect::<Vec<_>>();
        let mut eligible = with(EndpointHealth::Healthy);
        if eligible.is_empty() {
            eligible = with(EndpointHealth::Draining);
        }
        let turns = RoundRobin::new(eligible.iter().map(|endpoint| endpoint.weight), start);
        Self { set, policy, eligible, turns, named: Named::default() }
    }

    /// Whether it still is the balancer of this set under this policy.
    pub fn serves(&self, set: &Arc<EndpointSet>, policy: BalancePolicy) -> bool {
        self.is_of(set) && self.policy == policy
    }

    /// Whether it still is the balancer of this set.
    pub fn is_of(&self, set: &Arc<EndpointSet>) -> bool {
        Arc::ptr_eq(&self.set, set)
    }

    /// The endpoint for the next request, `None` where no endpoint takes any. `avoid` are those that have failed
    /// this request. Ejected ones and those to avoid are picked only where nothing else is left: a try that may
    /// fail is better than an answer that has.
    pub fn pick(
        &mut self,
        now_ms: u64,
        avoid: &[Arc<Endpoint>],
        random: impl Fn() -> u64,
    ) -> Option<Arc<Endpoint>> {
        let tried = |endpoint: &Arc<Endpoint>| avoid.iter().any(|other| Arc::ptr_eq(endpoint, other));
        for _ in 0..self.eligible.len() {
            let endpoint = self.propose(&random)?;
            if !tried(endpoint) && endpoint.outlier.admit(now_ms) {
                return Some(Arc::clone(endpoint));
            }
        }
        // Chance may have missed the last one that is left; then all that are ejected; then anything.
        let rest = self.eligible.iter();
        rest.clone()
            .find(|endpoint| !tried(endpoint) && endpoint.outlier.admit(now_ms))
            .or_else(|| {
                let from = if self.eligible.is_empty() { 0 } else { random() as usize % self.eligible.len() };
                rest.clone().cycle().skip(from).take(self.eligible.len()).find(|endpoint| !tried(endpoint))
            })
            .or_else(|| rest.clone().next())
            .map(Arc::clone)
    }

    /// The endpoint at an address that a request asks for, where there is one and such a one is `nameable`. An ejected one
    /// counts as unhealthy.
    pub fn named(&mut self, now_ms: u64, address: SocketAddr, nameable: Nameable) -> Option<Arc<Endpoint>> {
        let endpoint = self.named.find(&self.set, address)?;
        let takes = nameable.takes(endpoint.health) && (nameable.unhealthy || endpoint.outlier.admit(now_ms));
        takes.then(|| Arc::clone(endpoint))
    }

    fn propose(&mut self, random: impl Fn() -> u64) -> Option<&Arc<Endpoint>> {
        let index = match self.policy {
            BalancePolicy::RoundRobin => self.turns.next()?,
            BalancePolicy::LeastRequest => least_request::choose(&self.eligible, random())?,
        };
        self.eligible.get(index)
    }
}

#[cfg(test)]
mod tests;
