//! Whether a change is in force: every proxy that follows the routes concerned has acknowledged the very versions
//! that carry it, those included that broke off and are expected back. Plain values; who has acknowledged what is asked of the xDS server.

use std::collections::BTreeMap;

use tokio::time::Instant;
use twox_hash::XxHash64;

use super::api::types::{InForce, Progress, RouteVersion};
use crate::objects::ObjectName;

/// How long each migration's last change took.
#[derive(Debug, Default)]
pub struct Tracker {
    changes: BTreeMap<ObjectName, Change>,
}

#[derive(Debug, Clone, Copy)]
struct Change {
    revision: u64,
    ordered_at: Instant,
    took_ms: Option<f64>,
}

impl Tracker {
    /// A change of `migration` to `revision` was ordered at `at`.
    pub fn ordered(&mut self, migration: &ObjectName, revision: u64, at: Instant) {
        self.changes.insert(migration.clone(), Change { revision, ordered_at: at, took_ms: None });
    }

    /// Notes how far `revision` has come, and gives how long it took, once it is in force. What was in force
    /// once stays so: a proxy that connects later does not start the clock again.
    pub fn note(
        &mut self,
        migration: &ObjectName,
        revision: u64,
        progress: Progress,
        now: Instant,
    ) -> Option<f64> {
        let change = self.changes.get_mut(migration).filter(|change| change.revision == revision)?;
        if change.took_ms.is_none() && progress == Progress::InForce {
            change.took_ms = Some(now.duration_since(change.ordered_at).as_secs_f64() * 1000.0);
        }
        change.took_ms
    }

    /// Changes that are not in force yet.
    pub fn waiting(&self) -> Vec<ObjectName> {
        self.changes.iter().filter(|(_, c)| c.took_ms.is_none()).map(|(name, _)| name.clone()).collect()
    }
}

/// Sums up the routes of one migration.
pub fn judge(routes: Vec<RouteVersion>, took_ms: Option<f64>) -> InForce {
    let progress = if routes.is_empty() {
        Progress::NoRoute
    } else if routes.iter().any(|route| !route.waiting.is_empty()) {
        Progress::Waiting
    } else if routes.iter().all(|route| route.acknowledged.is_empty()) {
        Progress::NoProxies
    } else {
        Progress::InForce
    };
    let version = version(routes.iter().map(|r| (r.name.as_str(), r.version.as_str())));
    let took_ms = took_ms.filter(|_| progress == Progress::InForce);
    InForce { progress, version, took_ms, routes }
}

/// One version for all routes of a migration: equal content has an equal one on every replica.
pub fn version<'a>(mut routes: impl Iterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let (first_name, first) = routes.next()?;
    let Some((name, second)) = routes.next() else { return Some(first.to_owned()) };
    let mut text = format!("{first_name}@{first}\n{name}@{second}\n");
    for (name, version) in routes {
        text.push_str(&format!("{name}@{version}\n"));
    }
    Some(format!("{:016x}", XxHash64::oneshot(0, text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::serve::api::types::Straggler;

    fn route(acknowledged: &[&str], waiting: &[&str]) -> RouteVersion {
        RouteVersion {
            view: "default/edge".into(),
            name: "default/edge/http".into(),
            version: "v1".into(),
            acknowledged: acknowledged.iter().map(|n| n.to_string()).collect(),
            waiting: waiting
                .iter()
                .map(|n| Straggler { node: n.to_string(), refused: None, connected: true })
                .collect(),
            lost: Vec::new(),
        }
    }

    #[test]
    fn a_change_is_in_force_when_nobody_is_left_to_acknowledge() {
        let progress = |routes| judge(routes, None).progress;
        assert_eq!(progress(vec![]), Progress::NoRoute);
        assert_eq!(progress(vec![route(&[], &[])]), Progress::NoProxies);
        assert_eq!(progress(vec![route(&["a"], &["b"])]), Progress::Waiting);
        assert_eq!(progress(vec![route(&["a"], &[]), route(&[], &["b"])]), Progress::Waiting);
        assert_eq!(progress(vec![route(&["a"], &[]), route(&[], &[])]), Progress::InForce);
    }

    #[test]
    fn one_route_gives_its_own_version() {
        assert_eq!(judge(vec![route(&[], &[])], None).version.as_deref(), Some("v1"));
        let two = version([("a", "1"), ("b", "2")].into_iter());
        assert_ne!(two, version([("a", "1"), ("b", "3")].into_iter()));
        assert_eq!(version([].into_iter()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_stops_once() {
        let name = ObjectName::new("default", "m");
        let mut tracker = Tracker::default();
        assert_eq!(tracker.note(&name, 2, Progress::InForce, Instant::now()), None);
        tracker.ordered(&name, 2, Instant::now());
        assert_eq!(tracker.note(&name, 2, Progress::Waiting, Instant::now()), None);
        assert_eq!(tracker.waiting(), std::slice::from_ref(&name));
        tokio::time::advance(Duration::from_millis(12)).await;
        // Whoever still looks at the revision before learns nothing of this one.
        assert_eq!(tracker.note(&name, 1, Progress::InForce, Instant::now()), None);
        assert_eq!(tracker.note(&name, 2, Progress::InForce, Instant::now()), Some(12.0));
        tokio::time::advance(Duration::from_millis(12)).await;
        assert_eq!(tracker.note(&name, 2, Progress::InForce, Instant::now()), Some(12.0));
        assert!(tracker.waiting().is_empty());
    }
}
