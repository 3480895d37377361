//! A `RouteConfiguration` by its virtual hosts. Of thousands mostly one changes: a host that is written, byte for byte,
//! as it was in the version before is not compiled again.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use pontoon_xds::messages::Coded as _;
use pontoon_xds::wire;
use twox_hash::XxHash64;

use super::{Around, Clusters, compile_host, route_configuration};
use crate::config::differing::{Met, note_again, noting};
use crate::config::problem::{Problem, Under};
use crate::route as compiled;

/// The number of `virtual_hosts` in a `RouteConfiguration`.
const VIRTUAL_HOSTS: u32 = 2;

/// A resource, taken apart.
#[derive(Debug)]
pub(in crate::config) struct Parts {
    body: Bytes,
    hosts: Vec<Range<usize>>,
    /// All but the hosts, as it is written.
    rest: Vec<u8>,
    pub(in crate::config) message: RouteConfiguration,
}

/// What was compiled of one version, for the next.
#[derive(Debug)]
pub(in crate::config) struct Earlier {
    body: Bytes,
    rest: Vec<u8>,
    /// By the hash of what is written.
    hosts: Vec<(u64, Range<usize>, Host)>,
}

/// A host, and what stands in it that is passed over: mostly nothing.
type Host = (Arc<compiled::VirtualHost>, Option<Arc<Met>>);

impl Parts {
    /// Takes a resource apart; what is in the hosts is not looked at.
    pub(in crate::config) fn of(body: &Bytes) -> Result<Parts, Problem> {
        let Some((hosts, rest)) = split(body) else {
            // The message's own reader says what is wrong.
            let message = RouteConfiguration::decoded(body).map(drop);
            let reason = message.err().map_or_else(|| "it has a group".to_owned(), |error| error.to_string());
            return Err(Problem::new("", format!("cannot be decoded: {reason}")));
        };
        let message = RouteConfiguration::decoded(&rest).map_err(|error| undecodable(&error))?;
        Ok(Parts { body: body.clone(), hosts, rest, message })
    }

    /// Compiles it; with what there is of the version before.
    pub(in crate::config) fn compile(
        self,
        version: Arc<str>,
        earlier: Option<&Earlier>,
        clusters: &Clusters<'_>,
    ) -> Result<(compiled::RouteTable, Earlier), Problem> {
        route_configuration(&self.message)?;
        let around = Around::of(&self.message, clusters)?;
        // What is around a host is in its routes.
        let earlier = earlier.filter(|earlier| earlier.rest == self.rest);
        let mut hosts = Vec::with_capacity(self.hosts.len());
        let mut table = Vec::with_capacity(self.hosts.len());
        for (position, range) in self.hosts.into_iter().enumerate() {
            let written = self.body.get(range.clone()).unwrap_or_default();
            let hash = XxHash64::oneshot(0, written);
            let host = match earlier.and_then(|earlier| earlier.find(hash, written)) {
                Some(host) => host,
                None => {
                    let message = VirtualHost::decoded(written).map_err(|error| undecodable(&error))?;
                    let (host, met) = noting(|| compile_host(&message, &around));
                    let host = host.under(|| format!("virtual_hosts[{position}]"))?;
                    (Arc::new(host), (!met.is_empty()).then(|| Arc::new(met)))
                }
            };
            if let Some(met) = &host.1 {
                note_again(met);
            }
            table.push(host.0.clone());
            hosts.push((hash, range, host));
        }
        hosts.sort_unstable_by_key(|(hash, ..)| *hash);
        let ignore_port = self.message.ignore_port_in_host_matching;
        let table = compiled::RouteTable::of(self.message.name.as_str().into(), version, ignore_port, table)
            .map_err(|e| Problem::new("virtual_hosts.domains", e.to_string()))?;
        Ok((table, Earlier { body: self.body, rest: self.rest, hosts }))
    }
}

impl Earlier {
    fn find(&self, hash: u64, written: &[u8]) -> Option<Host> {
        let first = self.hosts.partition_point(|(other, ..)| *other < hash);
        let same = self.hosts.get(first..)?.iter().take_while(|(other, ..)| *other == hash);
        let mut same = same.filter(|(_, range, _)| self.body.get(range.clone()) == Some(written));
        same.next().map(|(.., host)| host.clone())
    }
}

fn undecodable(error: &prost::DecodeError) -> Problem {
    Problem::new("", format!("cannot be decoded: {error}"))
}

/// Where the hosts are, and all else. `None`: it is not a message, or has what nobody writes any more.
fn split(body: &[u8]) -> Option<(Vec<Range<usize>>, Vec<u8>)> {
    let (mut hosts, mut rest) = (Vec::new(), Vec::new());
    wire::each_field(body, |field| match field.content {
        Some(host) if field.number == VIRTUAL_HOSTS => hosts.push(host),
        _ => rest.extend_from_slice(body.get(field.whole).unwrap_or_default()),
    })?;
    Some((hosts, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::cluster::Cluster;

    fn body(hosts: &[(&str, &str)], ignore_port: bool) -> Bytes {
        use envoy_types::pb::envoy::config::route::v3::route::Action;
        use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
        use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
        use envoy_types::pb::envoy::config::route::v3::{Route, RouteAction, RouteMatch};
        let host = |&(domain, cluster): &(&str, &str)| VirtualHost {
            name: domain.into(),
            domains: vec![domain.into()],
            routes: vec![Route {
                r#match: Some(RouteMatch {
                    path_specifier: Some(PathSpecifier::Prefix("/".into())),
                    ..RouteMatch::default()
                }),
                action: Some(Action::Route(RouteAction {
                    cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
                    ..RouteAction::default()
                })),
                ..Route::default()
            }],
            ..VirtualHost::default()
        };
        let message = RouteConfiguration {
            name: "r".into(),
            virtual_hosts: hosts.iter().map(host).collect(),
            ignore_port_in_host_matching: ignore_port,
            ..RouteConfiguration::default()
        };
        message.encoded().into()
    }

    fn compiled(body: &Bytes, earlier: Option<&Earlier>) -> (compiled::RouteTable, Earlier) {
        let clusters = |name: &str| Ok(Arc::new(Cluster::named(name.into())));
        Parts::of(body).unwrap().compile("1".into(), earlier, &clusters).unwrap()
    }

    fn kept(before: &compiled::RouteTable, now: &compiled::RouteTable) -> Vec<bool> {
        let is_kept = |host| before.virtual_hosts.iter().any(|other| Arc::ptr_eq(host, other));
        now.virtual_hosts.iter().map(is_kept).collect()
    }

    #[test]
    fn only_hosts_that_are_written_otherwise_are_compiled_again() {
        let (first, earlier) = compiled(&body(&[("a", "1"), ("b", "1"), ("c", "1")], true), None);
        let (second, earlier) =
            compiled(&body(&[("c", "1"), ("a", "1"), ("b", "2"), ("d", "1")], true), Some(&earlier));
        assert_eq!(kept(&first, &second), [true, true, false, false]);
        assert_eq!(&*second.virtual_hosts[0].name, "c");
        // What is around them is in them.
        let (third, _) = compiled(&body(&[("c", "1"), ("a", "1")], false), Some(&earlier));
        assert_eq!(kept(&second, &third), [false, false]);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let whole = body(&[("a", "1"), ("b", "1")], true);
        for length in 1..whole.len() {
            let cut = whole.slice(..length);
            let is_whole = RouteConfiguration::decoded(&cut).is_ok();
            let clusters = |name: &str| Ok(Arc::new(Cluster::named(name.into())));
            let parts = Parts::of(&cut).and_then(|parts| parts.compile("1".into(), None, &clusters));
            assert!(is_whole || parts.is_err(), "{length}");
        }
    }
}
