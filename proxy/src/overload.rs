//! What is let in: connections in all, of one source, of one listener, and whether there is memory for more. Decided
//! when a connection arrives, under a lock of its source's shard; a request only reads one atomic.
//!
//! Refusal is fair: near the limit, a source that already holds more than its share is refused, so that one greedy
//! client cannot keep all others out.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;

/// Locks over the sources: accepting workers seldom meet at one.
const SHARDS: usize = 32;
/// Of all connections, one in so many is kept free where it can be: with less room than that, nobody may hold more
/// than a share, and idle connections make room.
const KEPT_FREE: usize = 10;
/// One in so many is for sources that have few.
const LEFT_FREE: usize = 100;
/// Of handshakes, in nanoseconds of their rate.
const BURST: u64 = 100_000_000;

/// The settings; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one source: an IPv4 address, or the /64 of an IPv6 address.
    pub connections_per_source: usize,
    /// Resident memory, in bytes.
    pub memory: u64,
    /// What becomes of requests as it fills up.
    pub shares: Shares,
    /// How long work may wait for its worker.
    pub lag: Duration,
    /// TLS handshakes with clients in a second.
    pub handshakes: u32,
    /// What a client's body brings at least.
    pub body_rate: BodyRate,
}

/// Parts of the memory limit, in thousandths; `None` is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// From which answers close their connections.
    pub no_keep_alive: Option<u32>,
    /// From which nothing new is taken.
    pub shed: Option<u32>,
}

impl Default for Shares {
    /// Envoy's guide for the edge has 95 and 98 hundredths of the heap; resident memory is known later.
    fn default() -> Self {
        Self { no_keep_alive: Some(900), shed: Some(950) }
    }
}

/// How slowly the body of a request may come: whoever is waited for has the grace, and a second more for each so many
/// bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BodyRate {
    /// 0: as slowly as it likes.
    pub bytes_per_second: u32,
    /// Before anything counts.
    pub grace: Duration,
}

/// Whether a worker keeps up: how late its clock's ticks come, for they wait in the same queue as all its work.
#[derive(Debug, Default)]
pub(crate) struct Lag {
    late: bool,
    shedding: bool,
}

impl Lag {
    /// Takes note of how late a tick was; says whether new work is refused. One late tick is a pause of the machine's;
    /// two in a row are work that waits. It is over when a tick is less than half as late as it may be.
    pub(crate) fn observe(&mut self, lateness: Duration, limit: Duration) -> bool {
        let late = !limit.is_zero() && lateness >= limit;
        self.shedding =
            if self.shedding { lateness >= limit / 2 && !limit.is_zero() } else { late && self.late };
        self.late = late;
        self.shedding
    }
}

/// How scarce memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pressure {
    /// Enough.
    None,
    /// Each answer closes its connection.
    NoKeepAlive,
    /// New requests and connections are refused.
    Shed,
}

impl Pressure {
    /// What it does, in words.
    pub(crate) fn means(self) -> &'static str {
        match self {
            Pressure::None => "nothing is refused",
            Pressure::NoKeepAlive => "each answer closes its connection",
            Pressure::Shed => "nothing new is taken",
        }
    }
}

/// What all workers ask.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    open: AtomicUsize,
    /// Sources that have connections.
    sources: AtomicUsize,
    shards: Vec<Mutex<HashMap<IpAddr, usize>>>,
    hasher: RandomState,
    listeners: Mutex<HashMap<Arc<str>, Arc<AtomicUsize>>>,
    pressure: AtomicU8,
    memory: AtomicU64,
    begun: Instant,
    /// When the next handshake may begin, in nanoseconds since `begun`.
    next_handshake: AtomicU64,
}

/// A connection that was let in. Dropped with it.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    source: IpAddr,
    of_listener: Arc<AtomicUsize>,
}

impl Admission {
    /// With nobody in it.
    pub fn new(limits: Limits) -> Arc<Admission> {
        Arc::new(Admission {
            limits,
            open: AtomicUsize::new(0),
            sources: AtomicUsize::new(0),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            listeners: Mutex::default(),
            pressure: AtomicU8::new(Pressure::None as u8),
            memory: AtomicU64::new(0),
            begun: Instant::now(),
            next_handshake: AtomicU64::new(0),
        })
    }

    /// The count of a listener's connections over all workers.
    pub(crate) fn of_listener(&self, name: &Arc<str>) -> Arc<AtomicUsize> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|_, count| Arc::strong_count(count) > 1);
        Arc::clone(listeners.entry(Arc::clone(name)).or_default())
    }

    /// Takes a connection in, or says why not. `listener_limit` 0 is none.
    pub(crate) fn admit(
        self: &Arc<Self>,
        peer: IpAddr,
        of_listener: &Arc<AtomicUsize>,
        listener_limit: usize,
    ) -> Result<Permit, Error> {
        if self.pressure() == Pressure::Shed {
            return Err(Error::Overload);
        }
        let source = source(peer);
        let of_all = Reserved::new(&self.open, self.limits.connections).ok_or(Error::ConnectionLimit)?;
        let of_this = Reserved::new(of_listener, listener_limit).ok_or(Error::ListenerConnectionLimit)?;
        {
            let mut held = self.shard(source);
            let has = held.get(&source).copied().unwrap_or(0);
            if self.limits.connections_per_source > 0 && has >= self.limits.connections_per_source {
                return Err(Error::SourceConnectionLimit);
            }
            if self.is_unfair(has) {
                return Err(Error::ConnectionLimit);
            }
            if has == 0 {
                self.sources.fetch_add(1, Relaxed);
            }
            held.insert(source, has + 1);
        }
        of_all.keep();
        of_this.keep();
        Ok(Permit { admission: Arc::clone(self), source, of_listener: Arc::clone(of_listener) })
    }

    /// Whether a source with `has` connections has more than its share of a proxy that is nearly full.
    fn is_unfair(&self, has: usize) -> bool {
        let most = self.limits.connections;
        let sources = self.sources.load(Relaxed).max(1) + usize::from(has == 0);
        let open = self.open.load(Relaxed) - 1;
        // What a new one needs to come in, however few have all the rest.
        let left_free = most / LEFT_FREE;
        let is_left = left_free > 0 && open + left_free >= most && has >= left_free;
        is_left || sources > 1 && self.is_nearly_full(open) && has >= (most / sources).max(1)
    }

    fn is_nearly_full(&self, open: usize) -> bool {
        let most = self.limits.connections;
        most > 0 && open >= most - (most / KEPT_FREE).max(1)
    }

    /// Whether an idle connection had better end for each that comes.
    pub(crate) fn wants_room(&self) -> bool {
        self.is_nearly_full(self.open.load(Relaxed))
    }

    fn shard(&self, source: IpAddr) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        let shard = self.hasher.hash_one(source) as usize % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, source: IpAddr) {
        self.open.fetch_sub(1, Relaxed);
        let mut held = self.shard(source);
        match held.get_mut(&source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                if held.remove(&source).is_some() {
                    self.sources.fetch_sub(1, Relaxed);
                }
                // After a flood from many addresses, the room for them is given back.
                if held.capacity() > 1024 && held.len() < held.capacity() / 4 {
                    held.shrink_to_fit();
                }
            }
        }
    }

    /// Takes note of the memory in use, in bytes. Gives the pressure where it has changed.
    pub fn observe(&self, used: u64) -> Option<Pressure> {
        self.memory.store(used, Relaxed);
        let limit = self.limits.memory;
        let thousandths = used.saturating_mul(1000).checked_div(limit).unwrap_or(0);
        let reached = |share: Option<u32>| share.is_some_and(|share| thousandths >= share.into());
        let shares = self.limits.shares;
        let pressure = match (reached(shares.shed), reached(shares.no_keep_alive)) {
            (true, _) => Pressure::Shed,
            (false, true) => Pressure::NoKeepAlive,
            (false, false) => Pressure::None,
        };
        let before = self.pressure.swap(pressure as u8, Relaxed);
        (before != pressure as u8).then_some(pressure)
    }

    /// How long a handshake is to wait for its turn, which it takes; `None`: for longer than `most`.
    pub(crate) fn handshake(&self, now: Instant, most: Duration) -> Option<Duration> {
        let each = 1_000_000_000_u64.checked_div(u64::from(self.limits.handshakes)).unwrap_or(0);
        if each == 0 {
            return Some(Duration::ZERO);
        }
        let now = now.saturating_duration_since(self.begun).as_nanos() as u64;
        // Those of the last tenth of a second that nobody used may come at once.
        let begins = |next: u64| next.max(now.saturating_sub(BURST));
        let wait = |next| Duration::from_nanos(begins(next).saturating_sub(now));
        let take = |next| (wait(next) <= most).then(|| begins(next) + each);
        self.next_handshake.fetch_update(Relaxed, Relaxed, take).ok().map(wait)
    }

    /// How scarce memory was when last looked at.
    pub fn pressure(&self) -> Pressure {
        match self.pressure.load(Relaxed) {
            0 => Pressure::None,
            1 => Pressure::NoKeepAlive,
            _ => Pressure::Shed,
        }
    }

    /// The memory in use when last looked at, in bytes.
    pub fn memory(&self) -> u64 {
        self.memory.load(Relaxed)
    }

    /// The settings.
    pub fn limits(&self) -> Limits {
        self.limits
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.leave(self.source);
        self.of_listener.fetch_sub(1, Relaxed);
    }
}

/// One more of a count, given back unless kept.
struct Reserved<'a> {
    count: &'a AtomicUsize,
    kept: bool,
}

impl<'a> Reserved<'a> {
    fn new(count: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let reserved = Self { count, kept: false };
        let before = count.fetch_add(1, Relaxed);
        (limit == 0 || before < limit).then_some(reserved)
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.count.fetch_sub(1, Relaxed);
        }
    }
}

/// Whom an address counts for. Whoever has one address of an IPv6 /64 has them all.
pub(crate) fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
    }
}

/// The memory of this process that is resident, in bytes; `None` where the system does not say.
pub fn resident_memory() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// The memory that the control group allows, in bytes; `None` where nothing limits it.
pub fn memory_allowed() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_of(&groups, |file| std::fs::read_to_string(file).ok())
}

/// The least that the groups of a process allow it, each of which is in the next: a container's are all its own, a
/// systemd unit's is far down in the system's.
fn limit_of(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let of_group = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            one if one.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let said = |group: &Path| {
            let file = Path::new(root).join(group.strip_prefix("/").ok()?).join(file);
            read(&file)?.trim().parse().ok()
        };
        Path::new(group).ancestors().filter_map(said).min()
    };
    // Version 1 says "none" by a number that no machine has.
    groups.lines().filter_map(of_group).filter(|bytes| *bytes < 1 << 60).min()
}

/// Raises the limit of open files as far as the system lets us. Gives what it is then.
pub fn raise_open_files() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limits.maximum,
        Err(_) => limits.current,
    };
    now.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_least_of_all_groups_counts() {
        let files = |file: &Path| {
            let text = match file.to_str()? {
                "/sys/fs/cgroup/memory.max" => "900",
                "/sys/fs/cgroup/system.slice/memory.max" => "max",
                "/sys/fs/cgroup/system.slice/proxy.service/memory.max" => "700\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes" => "9223372036854771712",
                "/sys/fs/cgroup/memory/user/memory.limit_in_bytes" => "800",
                _ => return None,
            };
            Some(text.to_owned())
        };
        for (groups, least) in [
            ("0::/\n", Some(900)),
            ("0::/system.slice/proxy.service\n", Some(700)),
            ("0::/system.slice/other.service\n", Some(900)),
            ("0::/../../other\n", Some(900)),
            ("4:cpu,memory:/user\n1:name=systemd:/user\n", Some(800)),
            ("4:memory:/\n", None),
            ("nonsense", None),
        ] {
            assert_eq!(limit_of(groups, files), least, "{groups}");
        }
    }

    #[test]
    fn handshakes_take_turns() {
        let limits = Limits { handshakes: 10, ..Limits::default() };
        let admission = Admission::new(limits);
        let at = |ms| admission.begun + Duration::from_millis(ms);
        let turn = |ms| admission.handshake(at(ms), Duration::from_millis(250)).map(|wait| wait.as_millis());
        // One that nobody used, and then one each tenth of a second.
        assert_eq!(
            [turn(1000), turn(1000), turn(1000), turn(1000)],
            [Some(0), Some(0), Some(100), Some(200)]
        );
        assert_eq!([turn(1000), turn(1000)], [None, None], "who would wait too long takes no turn");
        assert_eq!([turn(1200), turn(3000)], [Some(100), Some(0)]);
        let unlimited = Admission::new(Limits::default());
        assert_eq!(unlimited.handshake(at(0), Duration::ZERO), Some(Duration::ZERO));
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn limited(connections: usize, connections_per_source: usize) -> (Arc<Admission>, Arc<AtomicUsize>) {
        let admission =
            Admission::new(Limits { connections, connections_per_source, memory: 1000, ..Limits::default() });
        let of_listener = admission.of_listener(&"edge".into());
        (admission, of_listener)
    }

    #[test]
    fn a_worker_that_is_late_twice_sheds_until_it_has_caught_up() {
        let (limit, mut lag) = (Duration::from_millis(1000), Lag::default());
        let mut after = |ms: u64| lag.observe(Duration::from_millis(ms), limit);
        let seen = [0, 5_000, 10, 1_000, 1_200, 700, 400, 1_500, 1_500].map(&mut after);
        assert_eq!(seen, [false, false, false, false, true, true, false, false, true]);
        let mut off = Lag::default();
        assert!(!(0..3).any(|_| off.observe(Duration::from_secs(9), Duration::ZERO)));
    }

    #[test]
    fn each_limit_has_its_reason_and_what_leaves_makes_room() {
        let (admission, edge) = limited(5, 2);
        let first = admission.admit(ip(1), &edge, 3).unwrap();
        let _second = admission.admit(ip(1), &edge, 3).unwrap();
        assert_eq!(admission.admit(ip(1), &edge, 3).unwrap_err(), Error::SourceConnectionLimit);
        let _third = admission.admit(ip(2), &edge, 3).unwrap();
        assert_eq!(admission.admit(ip(3), &edge, 3).unwrap_err(), Error::ListenerConnectionLimit);
        drop(first);
        let _again = admission.admit(ip(1), &edge, 3).unwrap();
        let other = admission.of_listener(&"other".into());
        let _fourth = admission.admit(ip(4), &other, 0).unwrap();
        let _fifth = admission.admit(ip(5), &other, 0).unwrap();
        assert_eq!(admission.admit(ip(6), &other, 0).unwrap_err(), Error::ConnectionLimit);
    }

    #[test]
    fn near_the_limit_nobody_takes_more_than_a_share() {
        let (admission, edge) = limited(100, 0);
        let mut held: Vec<_> = (0..90).map(|_| admission.admit(ip(1), &edge, 0).unwrap()).collect();
        held.push(admission.admit(ip(2), &edge, 0).unwrap());
        assert_eq!(admission.admit(ip(1), &edge, 0).unwrap_err(), Error::ConnectionLimit);
        held.extend((0..8).map(|_| admission.admit(ip(2), &edge, 0).unwrap()));
        assert_eq!(admission.admit(ip(2), &edge, 0).unwrap_err(), Error::ConnectionLimit);
    }

    #[test]
    fn who_is_alone_leaves_room_for_another() {
        let (admission, edge) = limited(200, 0);
        let mut held: Vec<_> = (0..198).map(|_| admission.admit(ip(1), &edge, 0).unwrap()).collect();
        assert_eq!(admission.admit(ip(1), &edge, 0).unwrap_err(), Error::ConnectionLimit);
        held.push(admission.admit(ip(2), &edge, 0).unwrap());
        // What the first one lets go of is the other's up to a share, and not its own again.
        held.drain(..10);
        assert_eq!(admission.admit(ip(1), &edge, 0).unwrap_err(), Error::ConnectionLimit);
        held.extend((0..9).map(|_| admission.admit(ip(2), &edge, 0).unwrap()));
    }

    #[test]
    fn however_few_have_all_the_rest_there_is_room_for_another() {
        let (admission, edge) = limited(200, 0);
        let mut held: Vec<_> = (0..198).map(|n| admission.admit(ip(1 + n % 2), &edge, 0).unwrap()).collect();
        for has_many in [1, 2] {
            assert_eq!(admission.admit(ip(has_many), &edge, 0).unwrap_err(), Error::ConnectionLimit);
        }
        held.extend((0..2).map(|_| admission.admit(ip(3), &edge, 0).unwrap()));
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let one: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(source(one), source("2001:db8::ffff".parse().unwrap()));
        assert_ne!(source(one), source("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(source("::ffff:10.0.0.1".parse().unwrap()), ip(1));
    }

    #[test]
    fn memory_has_two_thresholds() {
        let (admission, edge) = limited(0, 0);
        assert_eq!(admission.observe(899), None);
        assert_eq!(admission.observe(900), Some(Pressure::NoKeepAlive));
        assert!(admission.admit(ip(1), &edge, 0).is_ok());
        assert_eq!(admission.observe(950), Some(Pressure::Shed));
        assert_eq!(admission.admit(ip(1), &edge, 0).unwrap_err(), Error::Overload);
        assert_eq!(admission.observe(100), Some(Pressure::None));
        assert_eq!(Admission::new(Limits::default()).observe(u64::MAX), None, "no limit, no pressure");
    }

    proptest! {
        #[test]
        fn counts_are_never_off(steps in proptest::collection::vec((any::<bool>(), 0..4_u8), 0..200)) {
            let (admission, edge) = limited(20, 8);
            let mut held = Vec::new();
            for (enter, last) in steps {
                if enter {
                    held.extend(admission.admit(ip(last), &edge, 15));
                } else {
                    held.pop();
                }
                prop_assert!(held.len() <= 15);
                prop_assert_eq!(admission.open.load(Relaxed), held.len());
                prop_assert_eq!(edge.load(Relaxed), held.len());
            }
            held.clear();
            prop_assert_eq!(admission.sources.load(Relaxed), 0);
            prop_assert!(admission.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
        }
    }
}
