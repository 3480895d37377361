//! The decision itself.

use std::sync::Arc;

use super::matching::Mismatch;
use super::trace::{Arm, Step, Trace};
use super::{
    Action, Chosen, Decision, Forward, NoRoute, RequestHead, Route, RouteTable, Targets, VirtualHost,
    WeightedBy, WeightedCluster, hash,
};

impl RouteTable {
    /// What becomes of a request. The same request, table and random number give the same decision.
    ///
    /// # Errors
    /// When no virtual host, or none of its routes, takes the request.
    pub fn decide(&self, head: &RequestHead<'_>, trace: &mut impl Trace) -> Result<Decision<'_>, NoRoute> {
        let virtual_host = self.virtual_host(head.host);
        trace.step(|| Step::VirtualHost {
            host: head.host.to_owned(),
            virtual_host: virtual_host.map(|v| v.name.to_string()),
        });
        let virtual_host = virtual_host.ok_or(NoRoute::VirtualHost)?;
        let route = virtual_host.route(head, trace).ok_or(NoRoute::Route)?;
        trace.step(|| Step::RouteMatched { route: route.name.to_string() });

        let mut decision = Decision {
            virtual_host,
            route,
            target: None,
            set_cookie: None,
            matched_prefix: route.matcher.path.matched_prefix(head.uri.path()),
        };
        if let Action::Forward(forward) = &route.action {
            decision.choose(forward, head, trace);
        }
        Ok(decision)
    }
}

impl VirtualHost {
    fn route(&self, head: &RequestHead<'_>, trace: &mut impl Trace) -> Option<&Arc<Route>> {
        let path = head.uri.path();
        if !TraceOn::of(trace) {
            let takes = |route: &&Arc<Route>| route.matcher.mismatch(head).is_none();
            let Some(paths) = &self.paths else { return self.routes.iter().find(takes) };
            let found = paths.first(path, |position| self.routes.get(position).as_ref().is_some_and(takes));
            return self.routes.get(found?);
        }
        // Every candidate's reason is wanted: a plain scan, which finds the same route.
        self.routes.iter().find(|route| {
            let mismatch = route.matcher.mismatch(head);
            if let (Some(millionths), None | Some(Mismatch::Fraction)) = (route.matcher.fraction, &mismatch) {
                let drawn = mismatch.is_none();
                trace.step(|| Step::Lot { route: route.name.to_string(), millionths, drawn });
                return drawn;
            }
            if let Some(mismatch) = &mismatch {
                let because = describe(mismatch);
                trace.step(|| Step::RouteSkipped { route: route.name.to_string(), because });
            }
            mismatch.is_none()
        })
    }
}

/// Reads a trace's constant through a reference to it.
struct TraceOn;

impl TraceOn {
    #[inline]
    fn of<T: Trace>(_trace: &T) -> bool {
        T::ON
    }
}

fn describe(mismatch: &Mismatch<'_>) -> String {
    match mismatch {
        Mismatch::Path => String::from("the path does not match"),
        Mismatch::Header(source) => format!("header {source} does not match"),
        Mismatch::Query(name) => format!("query parameter {name} does not match"),
        Mismatch::Fraction => String::from("it takes others at random"),
    }
}

impl<'t> Decision<'t> {
    fn choose(&mut self, forward: &'t Forward, head: &RequestHead<'_>, trace: &mut impl Trace) {
        match &forward.targets {
            Targets::One(cluster) => {
                self.target = Some(Chosen { cluster, arm: None, bucket: None, hash: None });
            }
            Targets::Weighted { clusters, total, by } => {
                let hashed = hash::combine(&forward.hash, head, trace);
                let (number, from) = match by {
                    WeightedBy::Hash => match hashed.hash {
                        Some(hash) => (hash, "hash"),
                        None => (head.random, "random: no hash policy found anything"),
                    },
                    WeightedBy::Random => (head.random, "random"),
                    WeightedBy::Header(name) => {
                        let sent = head.headers.get(&**name).and_then(|v| v.to_str().ok()?.parse().ok());
                        (sent.unwrap_or(head.random), if sent.is_some() { "header" } else { "random" })
                    }
                };
                let bucket = (number % u64::from((*total).max(1))) as u32;
                let arm = arm_of(clusters, bucket);
                self.target = arm.map(|arm| Chosen {
                    cluster: &arm.cluster,
                    arm: Some(arm),
                    bucket: Some(bucket),
                    hash: hashed.hash,
                });
                self.set_cookie = hashed.set_cookie;
                trace.step(|| Step::Weighted {
                    bucket,
                    total: *total,
                    by: from,
                    arms: arms(clusters),
                    cluster: arm.map(|a| a.cluster.name.to_string()).unwrap_or_default(),
                });
            }
        }
    }
}

/// The arm whose part of the running sum holds `bucket`.
fn arm_of(clusters: &[WeightedCluster], bucket: u32) -> Option<&WeightedCluster> {
    let mut sum = 0_u32;
    clusters.iter().find(|arm| {
        sum = sum.saturating_add(arm.weight);
        bucket < sum
    })
}

fn arms(clusters: &[WeightedCluster]) -> Vec<Arm> {
    let mut from = 0_u32;
    clusters
        .iter()
        .map(|arm| {
            let to = from.saturating_add(arm.weight);
            let arm = Arm { cluster: arm.cluster.name.to_string(), from, to };
            from = to;
            arm
        })
        .collect()
}
