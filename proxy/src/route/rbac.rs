//! Who may ask, as Envoy's filter of that name decides it: each of the listener's filters in turn, by its own rules or by
//! those that the route has in their place. The first that says no ends the request.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::RequestHead;
use super::filters::ByFilter;
use super::matching::{HeaderMatcher, ValueMatcher};

/// An RBAC filter of a listener.
#[derive(Debug)]
pub struct Filter {
    /// Its name in the listener.
    pub name: Box<str>,
    /// Those of the filter itself.
    pub rules: Arc<Rules>,
    /// It only works for routes that say something of it.
    pub disabled: bool,
    /// A CORS filter, which answers preflights, comes before it.
    pub behind_cors: bool,
}

/// What a route says of a filter: which rules count in place of its own, or (`None`) only that it is on.
pub type Override = Option<Arc<Rules>>;

/// `envoy.config.rbac.v3.RBAC`. By default everybody may.
#[derive(Debug, Default)]
pub struct Rules {
    /// `ALLOW`: only what a policy holds for may. Else `DENY`: all but that.
    pub allow: bool,
    /// By name.
    pub policies: Box<[Policy]>,
}

/// One policy.
#[derive(Debug)]
pub struct Policy {
    /// Its name.
    pub name: Box<str>,
    /// Of its permissions one, and of its principals one.
    pub condition: Condition,
}

/// A permission or a principal.
#[derive(Debug)]
pub enum Condition {
    /// It always holds.
    Any,
    /// All of these hold.
    All(Box<[Condition]>),
    /// One of these holds.
    OneOf(Box<[Condition]>),
    /// This does not hold.
    Not(Box<Condition>),
    /// A header is so.
    Header(HeaderMatcher),
    /// The path, without query, is so.
    Path(ValueMatcher),
    /// `remote_ip`: the client, as the trust rules see it.
    Client(IpNet),
    /// `source_ip`: where the connection comes from, by the PROXY protocol where that is read.
    Source(IpNet),
    /// `direct_remote_ip`: the peer of the socket.
    Peer(IpNet),
}

/// A request, and where its connection comes from.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// It has the client's address.
    pub head: &'a RequestHead<'a>,
    /// The connection's client, for whom the peer may stand.
    pub source: IpAddr,
    /// The socket's peer.
    pub peer: IpAddr,
}

/// Which filter says no.
#[derive(Debug, Clone, Copy)]
pub struct Denied<'r> {
    /// The filter.
    pub filter: &'r Filter,
    /// The policy that holds; `None`: none does, and one had to.
    pub policy: Option<&'r str>,
}

/// Asks the filters; without a route they go by their own rules.
pub fn denied<'r>(
    filters: &'r [Filter],
    of_route: Option<&'r ByFilter<Override>>,
    asked: Asked<'_>,
) -> Option<Denied<'r>> {
    filters.iter().find_map(|filter| {
        let rules = match of_route.and_then(|said| said.of(&filter.name)) {
            Some(said) => said.as_ref().unwrap_or(&filter.rules),
            None if filter.disabled => return None,
            None => &filter.rules,
        };
        let found = rules.policies.iter().find(|policy| policy.condition.holds(asked));
        (found.is_some() != rules.allow).then(|| Denied { filter, policy: found.map(|policy| &*policy.name) })
    })
}

impl Condition {
    fn holds(&self, asked: Asked<'_>) -> bool {
        // Of IPv4 written as IPv6, the IPv4 counts.
        let within = |network: &IpNet, address: IpAddr| network.contains(&address.to_canonical());
        match self {
            Condition::Any => true,
            Condition::All(all) => all.iter().all(|one| one.holds(asked)),
            Condition::OneOf(all) => all.iter().any(|one| one.holds(asked)),
            Condition::Not(one) => !one.holds(asked),
            Condition::Header(header) => header.matches(asked.head),
            // CONNECT has none.
            Condition::Path(path) => {
                asked.head.uri.path_and_query().is_some_and(|target| path.matches(target.path()))
            }
            Condition::Client(network) => within(network, asked.head.client),
            Condition::Source(network) => within(network, asked.source),
            Condition::Peer(network) => within(network, asked.peer),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method, Uri};

    use super::*;
    use crate::route::matching::HeaderSource;

    fn network(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn rules(allow: bool, condition: Condition) -> Arc<Rules> {
        Arc::new(Rules { allow, policies: [Policy { name: "p".into(), condition }].into() })
    }

    fn filter(name: &str, rules: Arc<Rules>) -> Filter {
        Filter { name: name.into(), rules, disabled: false, behind_cors: false }
    }

    /// A request from 192.0.2.7, by 10.0.0.1, whose connection is of a balancer at 127.0.0.1.
    fn asking<T>(uri: &str, then: impl FnOnce(Asked<'_>) -> T) -> T {
        let uri: Uri = uri.parse().unwrap();
        let headers = HeaderMap::from_iter([(http::header::ACCEPT, HeaderValue::from_static("text/html"))]);
        let client = "::ffff:192.0.2.7".parse().unwrap();
        let head = RequestHead {
            method: &Method::GET,
            uri: &uri,
            host: "shop",
            headers: &headers,
            client,
            random: 0,
        };
        then(Asked {
            head: &head,
            source: "10.0.0.1".parse().unwrap(),
            peer: "::ffff:127.0.0.1".parse().unwrap(),
        })
    }

    #[test]
    fn conditions() {
        let holds = |condition: &Condition| asking("/a/b?c=d", |asked| condition.holds(asked));
        let (yes, no) = (|| Condition::Any, || Condition::Not(Box::new(Condition::Any)));
        let path = |text: &str| Condition::Path(ValueMatcher::Exact(text.into()));
        let header = |text: &str| {
            Condition::Header(HeaderMatcher {
                source: HeaderSource::Named(http::header::ACCEPT),
                value: Some(ValueMatcher::Prefix(text.into())),
                invert: false,
                missing_is_empty: false,
            })
        };
        for (condition, expected) in [
            (yes(), true),
            (no(), false),
            (Condition::All([yes(), yes()].into()), true),
            (Condition::All([yes(), no()].into()), false),
            (Condition::OneOf([no(), yes()].into()), true),
            (Condition::OneOf([no(), no()].into()), false),
            (path("/a/b"), true),
            (path("/a/b?c=d"), false),
            (header("text/"), true),
            (header("image/"), false),
            (Condition::Client(network("192.0.2.0/24")), true),
            (Condition::Client(network("10.0.0.1/32")), false),
            (Condition::Client(network("::/0")), false),
            (Condition::Source(network("10.0.0.0/8")), true),
            (Condition::Source(network("192.0.2.7/32")), false),
            (Condition::Peer(network("127.0.0.1/32")), true),
            (Condition::Peer(network("10.0.0.1/32")), false),
        ] {
            assert_eq!(holds(&condition), expected, "{condition:?}");
        }
        let any_path = Condition::Path(ValueMatcher::Prefix("".into()));
        assert!(!asking("shop:443", |asked| any_path.holds(asked)), "CONNECT has no path");
    }

    #[test]
    fn who_may_ask() {
        let of = |rules: Rules| {
            let filters = [filter("a", Arc::new(rules))];
            asking("/", |asked| denied(&filters, None, asked).map(|denied| denied.policy.map(str::to_owned)))
        };
        let policies = |condition| -> Box<[Policy]> {
            let other = Policy { name: "a".into(), condition: Condition::Client(network("10.0.0.0/8")) };
            [other, Policy { name: "b".into(), condition }].into()
        };
        let (here, elsewhere) = (network("192.0.2.0/24"), network("198.51.100.0/24"));
        let (here, elsewhere) = (|| Condition::Client(here), || Condition::Client(elsewhere));
        assert_eq!(of(Rules { allow: true, policies: policies(here()) }), None);
        assert_eq!(of(Rules { allow: true, policies: policies(elsewhere()) }), Some(None));
        assert_eq!(of(Rules { allow: false, policies: policies(here()) }), Some(Some("b".to_owned())));
        assert_eq!(of(Rules { allow: false, policies: policies(elsewhere()) }), None);
        assert_eq!(of(Rules { allow: true, policies: Box::default() }), Some(None), "nobody fits");
        assert_eq!(of(Rules::default()), None, "there are none");
    }

    #[test]
    fn each_filter_is_asked_with_what_the_route_says_of_it() {
        let nobody = || rules(false, Condition::Any);
        let off = |filter| Filter { disabled: true, ..filter };
        let says = |name: &str, said: Override| -> ByFilter<Override> {
            [(name.into(), said)].into_iter().collect()
        };
        let everybody = || Some(Arc::<Rules>::default());
        let nothing = || ByFilter::default();
        for (filters, of_route, expected) in [
            (vec![], says("a", Some(nobody())), None),
            (vec![filter("a", nobody())], nothing(), Some("a")),
            (vec![filter("a", Arc::default()), filter("b", nobody())], nothing(), Some("b")),
            (vec![filter("a", nobody()), filter("b", nobody())], nothing(), Some("a")),
            (vec![filter("a", nobody()), filter("b", nobody())], says("a", everybody()), Some("b")),
            (vec![filter("a", nobody())], says("a", everybody()), None),
            (vec![filter("a", nobody())], says("b", everybody()), Some("a")),
            (vec![filter("a", nobody())], says("a", None), Some("a")),
            (vec![filter("a", Arc::default())], says("a", Some(nobody())), Some("a")),
            (vec![off(filter("a", nobody()))], nothing(), None),
            (vec![off(filter("a", nobody()))], says("a", None), Some("a")),
            (vec![off(filter("a", Arc::default()))], says("a", Some(nobody())), Some("a")),
        ] {
            let denied = asking("/", |asked| denied(&filters, Some(&of_route), asked).map(|by| by.filter));
            assert_eq!(denied.map(|by| &*by.name), expected, "{filters:?} {of_route:?}");
        }
        let filters = [filter("a", nobody()), off(filter("b", nobody()))];
        let without_route = asking("/", |asked| denied(&filters, None, asked).map(|by| by.filter));
        assert_eq!(without_route.map(|by| &*by.name), Some("a"), "what no route takes is asked about, too");
    }
}
