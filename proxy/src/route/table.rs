//! Look-up tables, so that ten thousand routes cost about what ten do. They only narrow down the candidates:
//! the first route in resource order whose whole match holds wins, as in a plain scan.

use std::sync::Arc;

use super::matching::PathMatcher;
use super::{Route, RouteTable, VirtualHost};

/// Its keys are the operator's, and what is looked up is not kept: nobody can choose keys that collide.
type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// Below this many routes a plain scan is cheaper than hashing.
const SCAN_BELOW: usize = 8;

/// Which virtual host takes a host name: exact, then the longest `*.suffix`, then the longest `prefix.*`, then `*`.
#[derive(Debug, Default)]
pub(crate) struct HostIndex {
    exact: HashMap<Arc<str>, usize>,
    suffixes: Affixes,
    prefixes: Affixes,
    any: Option<usize>,
}

/// Texts of some distinct lengths, longest first.
#[derive(Debug, Default)]
struct Affixes {
    by_text: HashMap<Box<str>, usize>,
    lengths: Vec<usize>,
}

impl Affixes {
    fn insert(&mut self, text: &str, value: usize) -> Option<usize> {
        if !self.lengths.contains(&text.len()) {
            self.lengths.push(text.len());
            self.lengths.sort_unstable_by(|a, b| b.cmp(a));
        }
        self.by_text.insert(text.into(), value)
    }

    /// `cut` gives the affix of a length; a wildcard stands for at least one character.
    fn find<'h>(&self, host: &'h str, cut: impl Fn(&'h str, usize) -> Option<&'h str>) -> Option<usize> {
        let shorter = self.lengths.iter().filter(|length| **length < host.len());
        shorter.filter_map(|length| cut(host, *length)).find_map(|affix| self.by_text.get(affix).copied())
    }
}

/// Two virtual hosts that want the same hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("domain {domain:?} is given twice; a domain belongs to one virtual host of a route configuration")]
pub struct DuplicateDomain {
    /// The domain.
    pub domain: String,
}

impl HostIndex {
    /// Of each virtual host's domains, in order.
    fn build(hosts: &[Arc<VirtualHost>]) -> Result<HostIndex, DuplicateDomain> {
        let mut index = HostIndex::default();
        index.exact.reserve(hosts.len());
        for (position, host) in hosts.iter().enumerate() {
            for domain in &host.domains {
                let lower = match domain.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    true => domain.to_ascii_lowercase().into(),
                    false => domain.clone(),
                };
                let earlier = if &*lower == "*" {
                    index.any.replace(position)
                } else if let Some(suffix) = lower.strip_prefix('*') {
                    index.suffixes.insert(suffix, position)
                } else if let Some(prefix) = lower.strip_suffix('*') {
                    index.prefixes.insert(prefix, position)
                } else {
                    index.exact.insert(lower, position)
                };
                if earlier.is_some() {
                    return Err(DuplicateDomain { domain: domain.to_string() });
                }
            }
        }
        Ok(index)
    }

    /// `host` must be in lower case.
    fn find(&self, host: &str) -> Option<usize> {
        self.exact
            .get(host)
            .copied()
            .or_else(|| self.suffixes.find(host, |host, length| host.get(host.len() - length..)))
            .or_else(|| self.prefixes.find(host, |host, length| host.get(..length)))
            .or(self.any)
    }
}

impl RouteTable {
    /// Builds the look-up tables over virtual hosts, each with its domains.
    ///
    /// # Errors
    /// When two virtual hosts want the same domain.
    pub fn new(
        name: Arc<str>,
        version: Arc<str>,
        ignore_port: bool,
        hosts: Vec<(Vec<String>, VirtualHost)>,
    ) -> Result<RouteTable, DuplicateDomain> {
        let hosts = hosts.into_iter().map(|(domains, host)| Arc::new(host.with_domains(&domains)));
        RouteTable::of(name, version, ignore_port, hosts.collect())
    }

    /// The same of virtual hosts that know their domains.
    ///
    /// # Errors
    /// As for [`RouteTable::new`].
    pub(crate) fn of(
        name: Arc<str>,
        version: Arc<str>,
        ignore_port: bool,
        virtual_hosts: Vec<Arc<VirtualHost>>,
    ) -> Result<RouteTable, DuplicateDomain> {
        let hosts = HostIndex::build(&virtual_hosts)?;
        Ok(RouteTable { name, version, virtual_hosts, ignore_port, hosts })
    }

    pub(super) fn virtual_host(&self, host: &str) -> Option<&VirtualHost> {
        let host = if self.ignore_port { without_port(host) } else { host };
        let index = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            self.hosts.find(&host.to_ascii_lowercase())
        } else {
            self.hosts.find(host)
        };
        self.virtual_hosts.get(index?).map(|host| &**host)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

impl VirtualHost {
    /// Builds the look-up tables over the routes.
    pub fn new(name: Arc<str>, routes: Vec<Route>) -> VirtualHost {
        let mut routes: Vec<Arc<Route>> = routes.into_iter().map(Arc::new).collect();
        // They are collected where the routes themselves were.
        routes.shrink_to_fit();
        let paths = (routes.len() >= SCAN_BELOW).then(|| Box::new(PathIndex::build(&routes)));
        VirtualHost { name, domains: Box::default(), routes, paths }
    }

    /// The same for these hosts.
    pub(crate) fn with_domains(self, domains: &[String]) -> VirtualHost {
        // Where there is one, it is mostly the name too.
        let shared = |domain: &String| match *domain == *self.name {
            true => self.name.clone(),
            false => domain.as_str().into(),
        };
        VirtualHost { domains: domains.iter().map(shared).collect(), ..self }
    }
}

/// Which routes of a virtual host can take a path. Each list is in resource order.
#[derive(Debug, Default)]
pub(crate) struct PathIndex {
    exact: HashMap<Box<str>, Vec<u32>>,
    prefix: HashMap<Box<str>, Vec<u32>>,
    prefix_lengths: Vec<usize>,
    other: Vec<u32>,
}

impl PathIndex {
    fn build(routes: &[Arc<Route>]) -> PathIndex {
        let mut index = PathIndex::default();
        for (position, route) in (0_u32..).zip(routes) {
            match &route.matcher.path {
                PathMatcher::Exact(path) => index.exact.entry(path.clone()).or_default().push(position),
                PathMatcher::Prefix(path) | PathMatcher::SeparatedPrefix(path) => {
                    if !index.prefix_lengths.contains(&path.len()) {
                        index.prefix_lengths.push(path.len());
                    }
                    index.prefix.entry(path.clone()).or_default().push(position);
                }
                PathMatcher::ExactIgnoreCase(_)
                | PathMatcher::PrefixIgnoreCase(_)
                | PathMatcher::Regex(_)
                | PathMatcher::Connect => {
                    index.other.push(position);
                }
            }
        }
        index
    }

    /// The first position in resource order that `takes`. Only candidates are asked, each at most once.
    pub(super) fn first(&self, path: &str, mut takes: impl FnMut(usize) -> bool) -> Option<usize> {
        let mut best: Option<u32> = None;
        let mut consider = |candidates: &[u32]| {
            let earlier =
                candidates.iter().copied().take_while(|position| best.is_none_or(|b| *position < b));
            if let Some(position) = earlier.into_iter().find(|position| takes(*position as usize)) {
                best = Some(position);
            }
        };
        if let Some(candidates) = self.exact.get(path) {
            consider(candidates);
        }
        for length in &self.prefix_lengths {
            if let Some(candidates) = path.get(..*length).and_then(|start| self.prefix.get(start)) {
                consider(candidates);
            }
        }
        consider(&self.other);
        best.map(|position| position as usize)
    }
}
