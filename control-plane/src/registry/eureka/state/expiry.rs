//! When a lease has run out, and what then: evicted, preserved, or held for the balancer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::types::{Checked, Key, Now};
use super::{Departed, Registry};
use crate::model::instance::InstanceStatus;

/// Self-preservation never sets in below this many expired leases: in a small system every death is a large
/// share, and must still be believed.
pub const PRESERVE_FROM: usize = 3;
/// Self-preservation sets in when more than this share of the leases has expired: Eureka's own 15 %.
pub const PRESERVE_PERCENT: usize = 15;

impl Registry {
    /// Takes out leases that have run out, or holds back where too many have. To be called every few seconds.
    pub fn check(&mut self, now: Now) -> Checked {
        let mut expired: Vec<Key> = Vec::new();
        let mut turned: BTreeSet<Arc<str>> = BTreeSet::new();
        for (app, leases) in &mut self.applications {
            for (id, lease) in &mut leases.leases {
                if now.instant.saturating_duration_since(lease.renewed) < lease.duration() {
                    continue;
                }
                expired.push((app.clone(), id.clone()));
                if !std::mem::replace(&mut lease.expired, true) {
                    turned.insert(app.clone());
                }
            }
        }
        let many =
            expired.len() >= PRESERVE_FROM && expired.len() * 100 > self.instances() * PRESERVE_PERCENT;
        self.preserving = self.settings.self_preservation && many;
        let mut checked = Checked::default();
        if self.preserving {
            checked.preserved = expired.len();
        } else {
            checked.evicted = expired.len();
            for (app, id) in expired {
                self.evict(&app, &id, now);
                turned.insert(app);
            }
        }
        turned.extend(self.prune_departed(now));
        for app in turned {
            self.refresh(&app);
        }
        if self.log.prune(now.instant) {
            self.revision += 1;
        }
        checked
    }

    fn evict(&mut self, app: &Arc<str>, id: &Arc<str>, now: Now) {
        let overriding = self.lease(app, id).and_then(|lease| lease.overriding);
        let Some(info) = self.remove(app, id, now) else { return };
        self.note("evicted", app, id, now);
        // It said itself that it goes: nothing to hold.
        if info.status == InstanceStatus::Down {
            return;
        }
        let instance = Arc::new(info.to_model());
        self.bytes += info.size_bytes();
        self.departed += 1;
        let departed = Departed { info, instance, overriding, at: now.instant };
        self.applications.entry(app.clone()).or_default().departed.insert(id.clone(), departed);
    }

    /// Those that went before their siblings are kept for as long as their lease was: leases that are lost
    /// together do not run out in the same second.
    fn prune_departed(&mut self, now: Now) -> Vec<Arc<str>> {
        let mut gone: Vec<Key> = Vec::new();
        for (app, leases) in &self.applications {
            if leases.leases.values().all(|lease| lease.expired) {
                continue;
            }
            for (id, departed) in &leases.departed {
                let kept = Duration::from_secs(u64::from(departed.info.lease.duration_s));
                if now.instant.saturating_duration_since(departed.at) >= kept {
                    gone.push((app.clone(), id.clone()));
                }
            }
        }
        for key in &gone {
            self.forget_departed(&key.0, &key.1);
            self.mark(key.clone());
        }
        gone.into_iter().map(|(app, _)| app).collect()
    }
}
