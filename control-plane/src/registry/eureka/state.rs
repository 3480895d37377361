//! The registry itself: leases, overrides, what changed lately, and what of it takes traffic. It does no I/O and
//! reads no clock: every call brings its `now`. Expiry goes by the monotonic clock alone; the wall clock only fills
//! in what is shown, and clients' clocks only order the words of one client.
//!
//! Two views come out of it. Eureka's clients get all leases (and those that ran out while self-preservation
//! holds eviction back). The balancer gets [`RegistryView`]: no expired lease, except where an application has
//! nothing else left; then its last known instances stay, marked as held, because nobody said that they went.

mod expiry;
mod listing;
mod log;
mod rate;
mod types;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use self::expiry::{PRESERVE_FROM, PRESERVE_PERCENT};
use self::log::Log;
use self::rate::Rate;
pub use self::types::{Batch, Checked, Key, NotRenewed, Now, Recent, Settings, Stored, Summary};
use super::instance::{Action, InstanceInfo};
use super::refusal::Refusal;
use super::wire::incoming::metadata_fits;
use super::wire::{Listed, ListedApplication};
use crate::model::instance::{Application, Instance, InstanceStatus, RegistryView};

/// Registrations and departures remembered for the pages.
const RECENT: usize = 100;

/// Leases and what is derived from them.
#[derive(Debug)]
pub struct Registry {
    settings: Settings,
    applications: BTreeMap<Arc<str>, Leases>,
    /// Leases per status, in the order of [`InstanceStatus::ALL`].
    statuses: [usize; 5],
    departed: usize,
    bytes: usize,
    log: Log,
    /// Counts changes; what is encoded or stored is as new as its revision.
    revision: u64,
    dirty: Dirty,
    view: RegistryView,
    view_changed: bool,
    renewals: Rate,
    preserving: bool,
    recent: VecDeque<Recent>,
}

#[derive(Debug, Default)]
struct Leases {
    leases: BTreeMap<Arc<str>, Lease>,
    /// Evicted, but perhaps to be held: by id.
    departed: BTreeMap<Arc<str>, Departed>,
}

#[derive(Debug)]
struct Lease {
    info: Arc<InstanceInfo>,
    instance: Arc<Instance>,
    renewed: Instant,
    renewed_ms: u64,
    overriding: Option<InstanceStatus>,
    /// Its override was deleted and left no status behind: the next renewal is answered "register again".
    must_register: bool,
    expired: bool,
}

#[derive(Debug)]
struct Departed {
    info: Arc<InstanceInfo>,
    instance: Arc<Instance>,
    overriding: Option<InstanceStatus>,
    at: Instant,
}

#[derive(Debug, Default)]
struct Dirty {
    keys: BTreeSet<Key>,
    all: bool,
}

impl Registry {
    /// An empty one.
    pub fn new(settings: Settings, now: Now) -> Registry {
        Registry {
            settings,
            applications: BTreeMap::new(),
            statuses: [0; 5],
            departed: 0,
            bytes: 0,
            log: Log::new(settings.delta_retention),
            revision: 0,
            dirty: Dirty::default(),
            view: RegistryView::default(),
            view_changed: false,
            renewals: Rate::new(now.instant),
            preserving: false,
            recent: VecDeque::new(),
        }
    }

    /// Takes back what was stored. Every lease begins anew: until it runs out nobody is dropped.
    pub fn restore(&mut self, stored: Vec<Stored>, now: Now) {
        for one in stored.into_iter().take(self.settings.max_instances) {
            let (app, id) = (one.info.app.clone(), one.info.id.clone());
            let info = Arc::new(one.info);
            let instance = Arc::new(info.to_model());
            let overriding = one.overriding;
            self.bytes += info.size_bytes();
            let leases = self.applications.entry(app.clone()).or_default();
            if one.departed {
                leases.departed.insert(id, Departed { info, instance, overriding, at: now.instant });
                self.departed += 1;
            } else {
                let lease = Lease {
                    info: info.clone(),
                    instance,
                    renewed: now.instant,
                    renewed_ms: info.lease.last_renewal_ms,
                    overriding,
                    must_register: false,
                    expired: false,
                };
                self.statuses[slot(info.status)] += 1;
                leases.leases.insert(id, lease);
                self.log.push(Listed { last_renewal_ms: now.unix_ms, info }, now.instant);
            }
            self.refresh(&app);
        }
        self.revision += 1;
    }

    /// `POST apps/APP`, or a peer's word of it.
    pub fn register(&mut self, mut info: InstanceInfo, from_peer: bool, now: Now) -> Result<u64, Refusal> {
        let (app, id) = (info.app.clone(), info.id.clone());
        let known = self.applications.get(&app);
        let lease = known.and_then(|leases| leases.leases.get(&id));
        let departed = known.and_then(|leases| leases.departed.get(&id));

        if let Some(lease) = lease {
            // A word that was overtaken on its way: a late UP must not undo a DOWN. One that is older by more
            // than a lease was not overtaken; the client's clock has been set back.
            let older_ms = lease.info.last_dirty_ms.saturating_sub(info.last_dirty_ms);
            let lease_ms = u64::from(lease.info.lease.duration_s) * 1000;
            if older_ms > 0 && (from_peer || older_ms < lease_ms) {
                self.touch(&app, &id, now);
                return Ok(self.revision);
            }
        }
        self.room_for(&info, lease.map(|of| &of.info).or(departed.map(|of| &of.info)))?;

        let sent = Some(info.overridden).filter(|status| *status != InstanceStatus::Unknown);
        let overriding =
            lease.and_then(|of| of.overriding).or(departed.and_then(|of| of.overriding)).or(sent);
        info.overridden = overriding.unwrap_or(InstanceStatus::Unknown);
        // What the client says of its own end or beginning goes before what an operator said.
        if matches!(info.status, InstanceStatus::Up | InstanceStatus::OutOfService) {
            info.status = overriding.unwrap_or(info.status);
        }
        let up_ms = lease.map_or(0, |of| of.info.lease.service_up_ms);
        info.lease.registration_ms = now.unix_ms;
        info.lease.last_renewal_ms = now.unix_ms;
        info.lease.eviction_ms = 0;
        info.lease.service_up_ms = match (up_ms, info.status) {
            (0, InstanceStatus::Up) => now.unix_ms,
            (up_ms, _) => up_ms,
        };
        info.last_updated_ms = now.unix_ms;
        info.action = Action::Added;
        self.insert(info, overriding, now);
        self.note("registered", &app, &id, now);
        self.refresh(&app);
        Ok(self.revision)
    }

    /// `PUT apps/APP/ID`: the lease begins anew, whatever is answered.
    pub fn renew(
        &mut self,
        app: &str,
        id: &str,
        dirty_ms: Option<u64>,
        from_peer: bool,
        now: Now,
    ) -> Result<(), NotRenewed> {
        if !self.touch(app, id, now) {
            return Err(NotRenewed::Unknown);
        }
        self.renewals.count(now.instant);
        let Some(lease) = self.lease(app, id) else { return Err(NotRenewed::Unknown) };
        let ours = lease.info.last_dirty_ms;
        match dirty_ms {
            _ if lease.must_register => Err(NotRenewed::Unknown),
            Some(theirs) if theirs > ours => Err(NotRenewed::Unknown),
            Some(theirs) if theirs < ours && from_peer => Err(NotRenewed::Conflict(Box::new(lease.listed()))),
            _ => Ok(()),
        }
    }

    /// `DELETE apps/APP/ID`: gone at once. A held instance can be let go by it too.
    pub fn cancel(&mut self, app: &str, id: &str, now: Now) -> Result<u64, Refusal> {
        let held = self.forget_departed(app, id);
        let left = self.remove(app, id, now);
        let Some((app, id)) = left.as_ref().map(|info| (info.app.clone(), info.id.clone())).or(held) else {
            return Err(not_registered(app, id));
        };
        self.forget_departed(&app, &id);
        self.mark((app.clone(), id.clone()));
        self.note("cancelled", &app, &id, now);
        self.refresh(&app);
        Ok(self.revision)
    }

    /// `PUT apps/APP/ID/status?value=`: holds until it is deleted or the instance is cancelled.
    pub fn set_override(
        &mut self,
        app: &str,
        id: &str,
        status: InstanceStatus,
        dirty_ms: Option<u64>,
        now: Now,
    ) -> Result<u64, Refusal> {
        self.touch(app, id, now);
        self.amend(app, id, now, |lease, info| {
            lease.overriding = Some(status).filter(|status| *status != InstanceStatus::Unknown);
            lease.must_register = false;
            (info.status, info.overridden) = (status, status);
            info.last_dirty_ms = info.last_dirty_ms.max(dirty_ms.unwrap_or(0));
        })
    }

    /// `DELETE apps/APP/ID/status`. Without `value` the status is `UNKNOWN` until the client registers, to which
    /// its next renewal is answered 404.
    pub fn delete_override(
        &mut self,
        app: &str,
        id: &str,
        value: Option<InstanceStatus>,
        dirty_ms: Option<u64>,
        now: Now,
    ) -> Result<u64, Refusal> {
        let lease = self.lease(app, id).ok_or_else(|| not_registered(app, id))?;
        if lease.overriding.is_none() {
            return Ok(self.revision);
        }
        self.amend(app, id, now, |lease, info| {
            lease.overriding = None;
            lease.must_register = value.is_none();
            info.status = value.unwrap_or(InstanceStatus::Unknown);
            info.overridden = InstanceStatus::Unknown;
            info.last_dirty_ms = info.last_dirty_ms.max(dirty_ms.unwrap_or(0));
        })
    }

    /// `PUT apps/APP/ID/metadata?a=b`: merged.
    pub fn merge_metadata(
        &mut self,
        app: &str,
        id: &str,
        entries: Vec<(String, String)>,
        now: Now,
    ) -> Result<u64, Refusal> {
        let lease = self.lease(app, id).ok_or_else(|| not_registered(app, id))?;
        let mut info = InstanceInfo::clone(&lease.info);
        info.metadata.extend(entries);
        metadata_fits("metadata", &info.metadata)?;
        self.room_for(&info, Some(&lease.info))?;
        self.amend(app, id, now, |_, changed| changed.metadata = info.metadata)
    }

    /// What the balancer may use, if it has changed since it was last asked for.
    pub fn take_view(&mut self) -> Option<Arc<RegistryView>> {
        std::mem::take(&mut self.view_changed).then(|| Arc::new(self.view.clone()))
    }

    /// What the store has not seen yet.
    pub fn take_batch(&mut self) -> Option<Batch> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.all {
            let of_one = |(app, leases): (&Arc<str>, &Leases)| {
                let ids: Vec<_> = leases.leases.keys().chain(leases.departed.keys()).cloned().collect();
                ids.into_iter().map(|id| (app.clone(), id)).collect::<Vec<_>>()
            };
            let keys = self.applications.iter().flat_map(of_one);
            let writes = keys.map(|key| (key.clone(), self.stored(&key))).collect();
            return Some(Batch { rewrite: true, writes });
        }
        if dirty.keys.is_empty() {
            return None;
        }
        let writes = dirty.keys.into_iter().map(|key| (key.clone(), self.stored(&key))).collect();
        Some(Batch { rewrite: false, writes })
    }

    /// A batch could not be written: the next one writes everything.
    pub fn batch_failed(&mut self) {
        self.dirty.all = true;
        self.dirty.keys.clear();
    }

    /// Goes up with each change that an answer shows.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    fn lease(&self, app: &str, id: &str) -> Option<&Lease> {
        self.applications.get(app.to_uppercase().as_str())?.leases.get(id)
    }

    /// Renews, if there is a lease; one that had expired is back in the balancing.
    fn touch(&mut self, app: &str, id: &str, now: Now) -> bool {
        let app = app.to_uppercase();
        let leases = self.applications.get_mut(app.as_str());
        let Some(lease) = leases.and_then(|of| of.leases.get_mut(id)) else { return false };
        lease.renewed = now.instant;
        lease.renewed_ms = now.unix_ms;
        if std::mem::take(&mut lease.expired) {
            self.refresh(&app);
        }
        true
    }

    fn insert(&mut self, info: InstanceInfo, overriding: Option<InstanceStatus>, now: Now) {
        let (app, id) = (info.app.clone(), info.id.clone());
        self.forget_departed(&app, &id);
        let info = Arc::new(info);
        let lease = Lease {
            instance: Arc::new(info.to_model()),
            info: info.clone(),
            renewed: now.instant,
            renewed_ms: now.unix_ms,
            overriding,
            must_register: false,
            expired: false,
        };
        self.statuses[slot(info.status)] += 1;
        self.bytes += info.size_bytes();
        let replaced = self.applications.entry(app.clone()).or_default().leases.insert(id.clone(), lease);
        if let Some(replaced) = replaced {
            self.statuses[slot(replaced.info.status)] -= 1;
            self.bytes -= replaced.info.size_bytes();
        }
        self.record(info, now);
    }

    /// Changes one instance in place, with all that hangs on it.
    fn amend(
        &mut self,
        app: &str,
        id: &str,
        now: Now,
        change: impl FnOnce(&mut Lease, &mut InstanceInfo),
    ) -> Result<u64, Refusal> {
        let app = app.to_uppercase();
        let leases = self.applications.get_mut(app.as_str());
        let lease = leases.and_then(|of| of.leases.get_mut(id)).ok_or_else(|| not_registered(&app, id))?;
        let before = lease.info.clone();
        let mut info = InstanceInfo::clone(&before);
        change(lease, &mut info);
        info.action = Action::Modified;
        info.last_updated_ms = now.unix_ms;
        let info = Arc::new(info);
        lease.info = info.clone();
        lease.instance = Arc::new(info.to_model());
        self.statuses[slot(before.status)] -= 1;
        self.statuses[slot(info.status)] += 1;
        self.bytes = self.bytes - before.size_bytes() + info.size_bytes();
        self.record(info, now);
        self.refresh(&app);
        Ok(self.revision)
    }

    /// Takes a lease out and logs its end; gives what it was.
    fn remove(&mut self, app: &str, id: &str, now: Now) -> Option<Arc<InstanceInfo>> {
        let leases = self.applications.get_mut(app.to_uppercase().as_str())?;
        let lease = leases.leases.remove(id)?;
        self.statuses[slot(lease.info.status)] -= 1;
        self.bytes -= lease.info.size_bytes();
        let mut gone = InstanceInfo::clone(&lease.info);
        gone.status = InstanceStatus::Down;
        gone.action = Action::Deleted;
        gone.lease.eviction_ms = now.unix_ms;
        gone.last_updated_ms = now.unix_ms;
        self.record(Arc::new(gone), now);
        Some(lease.info)
    }

    fn forget_departed(&mut self, app: &str, id: &str) -> Option<Key> {
        let leases = self.applications.get_mut(app.to_uppercase().as_str())?;
        let departed = leases.departed.remove(id)?;
        self.departed -= 1;
        self.bytes -= departed.info.size_bytes();
        self.revision += 1;
        Some((departed.info.app.clone(), departed.info.id.clone()))
    }

    fn record(&mut self, info: Arc<InstanceInfo>, now: Now) {
        self.revision += 1;
        self.mark((info.app.clone(), info.id.clone()));
        self.log.push(Listed { last_renewal_ms: now.unix_ms, info }, now.instant);
    }

    /// Keys are bounded though a store may be stuck: beyond as many as there may be instances, all is written.
    fn mark(&mut self, key: Key) {
        if !self.settings.durable || self.dirty.all {
            return;
        }
        self.dirty.keys.insert(key);
        if self.dirty.keys.len() > self.settings.max_instances {
            self.batch_failed();
        }
    }

    fn note(&mut self, what: &'static str, app: &Arc<str>, id: &Arc<str>, now: Now) {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent { unix_ms: now.unix_ms, app: app.clone(), id: id.clone(), what });
    }

    fn room_for(&self, info: &InstanceInfo, replaces: Option<&Arc<InstanceInfo>>) -> Result<(), Refusal> {
        let held = self.instances() + self.departed;
        if replaces.is_none() && held >= self.settings.max_instances {
            let held = format!("{held} of {} instances", self.settings.max_instances);
            return Err(Refusal::Full { held });
        }
        let bytes = self.bytes - replaces.map_or(0, |info| info.size_bytes()) + info.size_bytes();
        if bytes > self.settings.max_bytes {
            return Err(Refusal::Full { held: format!("{bytes} of {} bytes", self.settings.max_bytes) });
        }
        Ok(())
    }

    fn stored(&self, key: &Key) -> Option<Stored> {
        let leases = self.applications.get(&key.0)?;
        let of = |info: &Arc<InstanceInfo>, overriding, departed| {
            Some(Stored { info: InstanceInfo::clone(info), overriding, departed })
        };
        if let Some(lease) = leases.leases.get(&key.1) {
            return of(&lease.info, lease.overriding, false);
        }
        let departed = leases.departed.get(&key.1)?;
        of(&departed.info, departed.overriding, true)
    }

    /// Brings one application of the balancer's view up to date.
    fn refresh(&mut self, app: &str) {
        let Some((name, leases)) = self.applications.get_key_value(app) else { return };
        let name = name.clone();
        match leases.balanced() {
            Some(application) => {
                if self.view.applications.get(&name).is_none_or(|before| **before != application) {
                    self.view.applications.insert(name.clone(), Arc::new(application));
                    self.view_changed = true;
                }
            }
            None => self.view_changed |= self.view.applications.remove(&name).is_some(),
        }
        if leases.leases.is_empty() && leases.departed.is_empty() {
            self.applications.remove(&name);
        }
    }
}

impl Leases {
    fn listed(&self, name: &Arc<str>) -> ListedApplication {
        ListedApplication { name: name.clone(), instances: self.leases.values().map(Lease::listed).collect() }
    }

    fn balanced(&self) -> Option<Application> {
        let of = |(id, lease): (&Arc<str>, &Lease)| (id.clone(), lease.instance.clone());
        let live = self.leases.iter().filter(|(_, lease)| !lease.expired);
        let mut instances: BTreeMap<_, _> = live.map(of).collect();
        let held = instances.is_empty();
        if held {
            instances.extend(self.departed.iter().map(|(id, of)| (id.clone(), of.instance.clone())));
            instances.extend(self.leases.iter().map(of));
        }
        (!instances.is_empty()).then_some(Application { instances, held })
    }
}

impl Lease {
    fn duration(&self) -> Duration {
        Duration::from_secs(u64::from(self.info.lease.duration_s))
    }

    fn listed(&self) -> Listed {
        Listed { info: self.info.clone(), last_renewal_ms: self.renewed_ms }
    }
}

fn not_registered(app: &str, id: &str) -> Refusal {
    Refusal::NotRegistered(format!("{}/{id}", app.to_uppercase()))
}

fn slot(status: InstanceStatus) -> usize {
    match status {
        InstanceStatus::Down => 0,
        InstanceStatus::OutOfService => 1,
        InstanceStatus::Starting => 2,
        InstanceStatus::Unknown => 3,
        InstanceStatus::Up => 4,
    }
}

fn hash_of(statuses: [usize; 5]) -> String {
    let counted = InstanceStatus::ALL.into_iter().zip(statuses).filter(|(_, count)| *count > 0);
    counted.map(|(status, count)| format!("{}_{count}_", status.as_str())).collect()
}

#[cfg(test)]
mod tests;
