//! Plans the slots of services. A name's hash says which slot it tries first, so control planes without a common
//! past agree on nearly all of them; the next that is free is taken where another name was there before. Those that are
//! [`Aside`] for that are told to the others.
//!
//! A slot is never taken from a service that exists. Of those that have gone the longest gone gives its up, and
//! only once all slots are taken and it has been gone for [`GRACE`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

use crate::model::addresses::{Addresses, Ranges};

/// An application that was told an address may hold it for as long as it runs: 30 days.
pub const GRACE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// A service's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Which.
    pub slot: u32,
    /// Since when the service does not exist; `None`: it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Timestamp>,
}

/// Rows to write, by `namespace/service`; `None` is one to delete.
pub type Changes = BTreeMap<Arc<str>, Option<Row>>;

/// Services that are not where their names say. Which of two that want the same slot has it depends on who came first;
/// with these said, all slots follow from the names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// How many slots there are: it says nothing about ranges that have others.
    pub slots: u32,
    /// Their slots, by `namespace/service`.
    pub services: BTreeMap<String, u32>,
}

/// All slots that are taken.
#[derive(Debug, Clone, Default)]
pub struct Slots {
    ranges: Ranges,
    rows: BTreeMap<Arc<str>, Row>,
    taken: BTreeMap<u32, Arc<str>>,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is to be written.
    pub changes: Changes,
    /// Services for which there is no slot.
    pub without: usize,
}

impl Slots {
    /// From what was kept. A slot that the ranges do not have (they were larger once) is not one.
    pub fn new(ranges: Ranges, rows: BTreeMap<Arc<str>, Row>) -> Self {
        let mut slots = Self { ranges, ..Self::default() };
        slots.apply(&rows.into_iter().map(|(service, row)| (service, Some(row))).collect());
        slots
    }

    /// What changes where these services exist, by `namespace/service`.
    pub fn plan(&self, services: &BTreeSet<Arc<str>>, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        for (service, row) in &self.rows {
            match (services.contains(service), row.gone) {
                (true, Some(_)) => plan.changes.insert(service.clone(), Some(Row { gone: None, ..*row })),
                (false, None) => plan.changes.insert(service.clone(), Some(Row { gone: Some(now), ..*row })),
                (true, None) | (false, Some(_)) => None,
            };
        }
        let mut taken: BTreeSet<u32> = self.taken.keys().copied().collect();
        // Longest gone last, to be popped.
        let mut reclaimable: Option<Vec<(Timestamp, Arc<str>, u32)>> = None;
        for service in services.iter().filter(|service| !self.rows.contains_key(*service)) {
            let slot = self.free(service, &taken).or_else(|| {
                let all = reclaimable.get_or_insert_with(|| self.reclaimable(services, now));
                let (_, gone, slot) = all.pop()?;
                plan.changes.insert(gone, None);
                Some(slot)
            });
            match slot {
                Some(slot) => {
                    taken.insert(slot);
                    plan.changes.insert(service.clone(), Some(Row { slot, gone: None }));
                }
                None => plan.without += 1,
            }
        }
        plan
    }

    /// Which services that exist are aside.
    pub fn aside(&self) -> Aside {
        let here = self.rows.iter().filter(|(_, row)| row.gone.is_none());
        let aside = here.filter(|(service, row)| self.first(service) != Some(row.slot));
        let services = aside.map(|(service, row)| (service.to_string(), row.slot)).collect();
        Aside { slots: self.ranges.slots(), services }
    }

    /// What changes so that those are aside that are at another control plane, and there, and nobody else. A service that
    /// loses its slot by that is planned anew.
    pub fn follow(&self, theirs: &Aside) -> Changes {
        let mut changes = Changes::new();
        if theirs.slots != self.ranges.slots() {
            return changes;
        }
        let mut wanted = BTreeSet::new();
        let said = theirs.services.iter().map(|(service, slot)| (service.as_str(), *slot));
        let theirs: BTreeMap<&str, u32> =
            said.filter(|(_, slot)| *slot < theirs.slots && wanted.insert(*slot)).collect();
        let mut ours = Vec::new();
        for (service, row) in self.rows.iter().filter(|(service, _)| !theirs.contains_key(&***service)) {
            ours.push((service, row.slot));
            // Back to where its name says. One that is gone makes room there.
            if let Some(first) = self.first(service).filter(|first| row.gone.is_none() && *first != row.slot)
            {
                changes.insert(service.clone(), None);
                let by = self.taken.get(&first).and_then(|by| self.rows.get(by));
                wanted.extend(by.filter(|by| by.gone.is_some()).map(|_| first));
            }
        }
        for (service, _) in ours.into_iter().filter(|(_, slot)| wanted.contains(slot)) {
            changes.insert(service.clone(), None);
        }
        for (service, slot) in theirs {
            if self.rows.get(service).is_none_or(|row| row.slot != slot) {
                changes.insert(service.into(), Some(Row { slot, gone: None }));
            }
        }
        changes
    }

    /// Takes up what was written.
    pub fn apply(&mut self, changes: &Changes) {
        // First what goes: another service may take its slot in the same plan.
        for service in changes.keys() {
            if let Some(row) = self.rows.remove(service) {
                self.taken.remove(&row.slot);
            }
        }
        for (service, row) in changes {
            let Some(row) = row.filter(|row| row.slot < self.ranges.slots()) else { continue };
            self.taken.insert(row.slot, service.clone());
            self.rows.insert(service.clone(), row);
        }
    }

    /// As the compiler reads them: those of services that are gone are told to nobody.
    pub fn in_model(&self) -> Addresses {
        let here = self.rows.iter().filter(|(_, row)| row.gone.is_none());
        Addresses::new(self.ranges, here.map(|(service, row)| (service.clone(), row.slot)).collect())
    }

    /// The slot that a name's hash says, else the next one after it that nobody has.
    fn free(&self, service: &str, taken: &BTreeSet<u32>) -> Option<u32> {
        let slots = self.ranges.slots();
        if u32::try_from(taken.len()).is_ok_and(|taken| taken >= slots) {
            return None;
        }
        let first = self.first(service)?;
        (first..slots).chain(0..first).find(|slot| !taken.contains(slot))
    }

    fn first(&self, service: &str) -> Option<u32> {
        let hash = XxHash64::oneshot(0, service.as_bytes());
        hash.checked_rem(self.ranges.slots().into()).and_then(|slot| u32::try_from(slot).ok())
    }

    fn reclaimable(&self, services: &BTreeSet<Arc<str>>, now: Timestamp) -> Vec<(Timestamp, Arc<str>, u32)> {
        let over = self.rows.iter().filter_map(|(service, row)| {
            let gone = row.gone.filter(|_| !services.contains(service))?;
            (now.duration_since(gone) >= GRACE).then(|| (gone, service.clone(), row.slot))
        });
        let mut over: Vec<_> = over.collect();
        over.sort_by(|a, b| b.cmp(a));
        over
    }
}

#[cfg(test)]
mod tests;
