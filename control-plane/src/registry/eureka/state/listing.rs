//! What the registry shows: to Eureka's clients, to pages and to metrics.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::types::{Now, Recent, Summary};
use super::{Lease, Registry, hash_of, slot};
use crate::model::instance::RegistryView;
use crate::registry::eureka::instance::InstanceInfo;
use crate::registry::eureka::wire::{Listed, ListedApplication, Listing};

impl Registry {
    /// `GET apps`.
    pub fn full(&self) -> Listing {
        let applications = self.applications.iter().filter(|(_, of)| !of.leases.is_empty());
        Listing {
            version: "1".to_owned(),
            hash: self.hash(),
            applications: applications.map(|(name, of)| of.listed(name)).collect(),
        }
    }

    /// `GET apps/delta`; `None` when too much has changed to tell.
    pub fn delta(&self, now: Now) -> Option<Listing> {
        let mut applications: BTreeMap<Arc<str>, Vec<Listed>> = BTreeMap::new();
        for listed in self.log.entries(now.instant)? {
            applications.entry(listed.info.app.clone()).or_default().push(listed.clone());
        }
        let applications = applications.into_iter();
        Some(Listing {
            version: self.revision.to_string(),
            hash: self.hash(),
            applications: applications
                .map(|(name, instances)| ListedApplication { name, instances })
                .collect(),
        })
    }

    /// `GET apps/APP`; the name in any case.
    pub fn application(&self, app: &str) -> Option<ListedApplication> {
        let (name, of) = self.applications.get_key_value(app.to_uppercase().as_str())?;
        (!of.leases.is_empty()).then(|| of.listed(name))
    }

    /// `GET apps/APP/ID`.
    pub fn instance(&self, app: &str, id: &str) -> Option<Listed> {
        self.lease(app, id).map(Lease::listed)
    }

    /// `GET instances/ID`: the first of that id, whatever its application.
    pub fn by_id(&self, id: &str) -> Option<Listed> {
        self.applications.values().find_map(|of| of.leases.get(id)).map(Lease::listed)
    }

    /// `GET vips/NAME` and `svips/NAME`; an instance may have several names, comma-separated.
    pub fn by_vip(&self, name: &str, secure: bool) -> Listing {
        let named = |info: &InstanceInfo| {
            let names = if secure { &info.secure_vip } else { &info.vip };
            let mut names = names.as_deref().unwrap_or_default().split(',');
            names.any(|one| one.trim().eq_ignore_ascii_case(name))
        };
        let mut statuses = [0; 5];
        let mut applications = Vec::new();
        for (app, of) in &self.applications {
            let found = of.leases.values().filter(|lease| named(&lease.info));
            let instances: Vec<Listed> = found.map(Lease::listed).collect();
            for listed in &instances {
                statuses[slot(listed.info.status)] += 1;
            }
            if !instances.is_empty() {
                applications.push(ListedApplication { name: app.clone(), instances });
            }
        }
        Listing { version: "-1".to_owned(), hash: hash_of(statuses), applications }
    }

    /// The balancer's view at this moment.
    pub fn view(&self) -> &RegistryView {
        &self.view
    }

    /// What happened lately, the newest first.
    pub fn recent(&self) -> impl Iterator<Item = &Recent> {
        self.recent.iter().rev()
    }

    /// Leases.
    pub fn instances(&self) -> usize {
        self.statuses.iter().sum()
    }

    /// Walks all leases: for pages and metrics, not for requests.
    pub fn summary(&mut self, now: Now) -> Summary {
        let leases = || self.applications.values().flat_map(|of| of.leases.values());
        let expected = leases().map(|lease| 60.0 / f64::from(lease.info.lease.renewal_interval_s.max(1)));
        Summary {
            instances: self.instances(),
            applications: self.applications.values().filter(|of| !of.leases.is_empty()).count(),
            held: self.view.applications.values().filter(|of| of.held).count(),
            bytes: self.bytes,
            renewals_expected_per_minute: expected.sum(),
            expired: leases().filter(|lease| lease.expired).count(),
            renewals_per_minute: self.renewals.last_minute(now.instant),
            preserving: self.preserving,
            self_preservation: self.settings.self_preservation,
        }
    }

    /// Eureka's hash code: how many instances there are of each status.
    pub fn hash(&self) -> String {
        hash_of(self.statuses)
    }
}
