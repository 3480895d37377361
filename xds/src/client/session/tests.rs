use prost::Message;

use super::*;
use crate::client::Subscriptions;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::service::discovery::v3::Resource as WireResource;
use crate::pb::google::protobuf::{Any, Duration as ProtoDuration};
use crate::resource::{Resource, ResourceMessage};

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoint;

/// Keeps what it is given, except names that begin with `bad`.
#[derive(Default)]
struct Kept {
    refuses: Option<String>,
    held: BTreeMap<Arc<str>, Arc<str>>,
    updates: Vec<(Vec<String>, Vec<String>)>,
}

impl Handler for Kept {
    fn apply(&mut self, update: Update) -> Vec<Rejected> {
        let names = update.changed.iter().map(|resource| resource.name.to_string()).collect();
        self.updates.push((names, update.removed.iter().map(ToString::to_string).collect()));
        for name in update.removed {
            self.held.remove(&name);
        }
        let is_bad =
            |name: &str| name.starts_with("bad") || self.refuses.as_deref().is_some_and(|bad| bad == name);
        let (bad, good): (Vec<_>, Vec<_>) =
            update.changed.into_iter().partition(|resource| is_bad(&resource.name));
        self.held.extend(good.into_iter().map(|resource| (resource.name, resource.version)));
        bad.into_iter().map(|bad| Rejected { name: bad.name, reason: "is bad".into() }).collect()
    }
}

impl Kept {
    fn held(&self) -> Vec<String> {
        self.held.iter().map(|(name, version)| format!("{name}@{version}")).collect()
    }
}

/// A client without a wire.
#[derive(Default)]
struct Client {
    subscriptions: Subscriptions,
    known: Known,
    kept: Kept,
}

impl Client {
    fn wanting(ty: ResourceType, names: &[&str]) -> Client {
        let client = Client::default();
        client.set(ty, names);
        client
    }

    fn set(&self, ty: ResourceType, names: &[&str]) {
        self.subscriptions.set(ty, names.iter().map(|name| Arc::from(*name)).collect());
    }

    fn all_clusters() -> Client {
        let client = Client::default();
        client.subscriptions.wildcard(CDS);
        client
    }

    fn open(&mut self, variant: Variant) -> Open<'_> {
        let node = Node { id: "n1".into(), ..Node::default() };
        let mut session = Session::new(variant, node, &mut self.known);
        session.follow(&self.subscriptions.wanted.borrow());
        Open { session, subscriptions: &self.subscriptions, kept: &mut self.kept }
    }
}

struct Open<'c> {
    session: Session<'c>,
    subscriptions: &'c Subscriptions,
    kept: &'c mut Kept,
}

impl Open<'_> {
    fn requests(&mut self) -> Vec<Request> {
        self.session.follow(&self.subscriptions.wanted.borrow());
        std::iter::from_fn(|| self.session.next(Instant::now())).collect()
    }

    fn sotw(&mut self) -> DiscoveryRequest {
        let [request] = self.requests().try_into().unwrap();
        request.into_sotw()
    }

    fn delta(&mut self) -> DeltaDiscoveryRequest {
        let [request] = self.requests().try_into().unwrap();
        request.into_delta()
    }

    fn on_sotw(&mut self, ty: ResourceType, version: &str, resources: Vec<Any>) -> Taken {
        let response = DiscoveryResponse {
            version_info: version.into(),
            nonce: format!("nonce of {version}"),
            type_url: ty.type_url().into(),
            resources,
            ..DiscoveryResponse::default()
        };
        self.session.on_sotw(response, self.kept, Instant::now())
    }
}

fn packed<M: ResourceMessage>(message: &M) -> Any {
    Any { type_url: M::TYPE.type_url().into(), value: message.encode_to_vec() }
}

fn cluster(name: &str, revision: u32) -> Any {
    packed(&Cluster { name: name.into(), alt_stat_name: revision.to_string(), ..Cluster::default() })
}

fn endpoints(name: &str) -> Any {
    packed(&ClusterLoadAssignment { cluster_name: name.into(), ..ClusterLoadAssignment::default() })
}

fn refused(taken: &Taken) -> &str {
    match taken {
        Taken::Refused(reason) | Taken::Again(reason) => reason,
        Taken::Whole => "",
    }
}

#[test]
fn sotw_what_is_missing_of_all_clusters_is_removed_and_what_is_unchanged_is_not_taken_again() {
    let mut client = Client::all_clusters();
    let mut open = client.open(Variant::Sotw);
    let first = open.sotw();
    assert_eq!((first.resource_names.len(), &*first.version_info, &*first.response_nonce), (0, "", ""));
    assert_eq!(first.node.unwrap().id, "n1");
    open.on_sotw(CDS, "1", vec![cluster("a", 1), cluster("b", 1), cluster("c", 1)]);
    let ack = open.sotw();
    assert_eq!((&*ack.version_info, &*ack.response_nonce, ack.error_detail), ("1", "nonce of 1", None));
    assert!(ack.node.is_none());
    open.on_sotw(CDS, "2", vec![cluster("b", 1), cluster("c", 2)]);
    assert_eq!(open.kept.updates[1], (vec!["c".into()], vec!["a".into()]));
    assert_eq!(open.kept.held(), ["b@1", "c@2"]);
}

#[test]
fn sotw_what_is_missing_of_the_endpoints_stays() {
    let mut client = Client::wanting(EDS, &["a", "b"]);
    let mut open = client.open(Variant::Sotw);
    assert_eq!(open.sotw().resource_names, ["a", "b"]);
    open.on_sotw(EDS, "1", vec![endpoints("a"), endpoints("b"), endpoints("c")]);
    open.on_sotw(EDS, "2", vec![endpoints("b")]);
    assert_eq!(open.kept.held(), ["a@1", "b@1"], "and nobody asked for c");
    let wanted = open.subscriptions.names(EDS);
    let is_shared = |name: &Arc<str>| Arc::ptr_eq(name, wanted.get(name).unwrap());
    assert!(open.kept.held.keys().all(is_shared), "a name is in memory once");
}

#[test]
fn sotw_names_and_acknowledgement_travel_together() {
    let mut client = Client::wanting(EDS, &["a"]);
    let mut open = client.open(Variant::Sotw);
    open.sotw();
    open.on_sotw(EDS, "1", vec![endpoints("a")]);
    let names = ["a".into(), "b".into()];
    open.subscriptions.set(EDS, BTreeSet::from(names));
    let request = open.sotw();
    assert_eq!(request.resource_names, ["a", "b"]);
    assert_eq!((&*request.version_info, &*request.response_nonce), ("1", "nonce of 1"));
    open.subscriptions.set(EDS, BTreeSet::new());
    assert_eq!(open.sotw().resource_names, [""; 0]);
}

#[test]
fn sotw_a_refusal_keeps_the_version_the_last_good_and_the_good_ones() {
    let mut client = Client::all_clusters();
    let mut open = client.open(Variant::Sotw);
    open.sotw();
    open.on_sotw(CDS, "1", vec![cluster("a", 1), cluster("b", 1)]);
    open.sotw();
    let taken = open.on_sotw(CDS, "2", vec![cluster("a", 2), cluster("bad", 1)]);
    assert_eq!(refused(&taken), "bad: is bad");
    let nack = open.sotw();
    assert_eq!((&*nack.version_info, &*nack.response_nonce), ("1", "nonce of 2"));
    assert_eq!(nack.error_detail.unwrap().message, "bad: is bad");
    assert_eq!(open.kept.held(), ["a@2"], "a is taken, and b has gone");
    // Who has something of a refused state has no state whose name could stand for it.
    assert_eq!(client.open(Variant::Sotw).sotw().version_info, "");
}

#[test]
fn sotw_what_is_good_again_is_told_although_it_is_what_is_held() {
    let mut client = Client::all_clusters();
    let mut open = client.open(Variant::Sotw);
    open.sotw();
    open.on_sotw(CDS, "1", vec![cluster("a", 1), cluster("b", 1)]);
    open.kept.refuses = Some("b".into());
    assert_eq!(refused(&open.on_sotw(CDS, "2", vec![cluster("a", 1), cluster("b", 2)])), "b: is bad");
    open.kept.refuses = None;
    assert_eq!(open.on_sotw(CDS, "3", vec![cluster("a", 1), cluster("b", 1)]), Taken::Whole);
    assert_eq!(open.kept.updates.last().unwrap(), &(vec!["b".into()], vec![]));
    open.on_sotw(CDS, "4", vec![cluster("a", 1), cluster("b", 1)]);
    assert_eq!(open.kept.updates.last().unwrap(), &(vec![], vec![]));
}

#[test]
fn sotw_where_a_resource_has_no_name_nothing_is_removed() {
    let mut client = Client::all_clusters();
    let mut open = client.open(Variant::Sotw);
    open.sotw();
    open.on_sotw(CDS, "1", vec![cluster("a", 1), cluster("b", 1)]);
    let garbage = Any { type_url: CDS.type_url().into(), value: vec![0xff; 9] };
    for nameless in [garbage, cluster("", 1), endpoints("b"), Any::default()] {
        let taken = open.on_sotw(CDS, "2", vec![cluster("a", 2), nameless]);
        assert!(refused(&taken).starts_with("resources[1]: "), "{taken:?}");
        assert_eq!(open.kept.held(), ["a@2", "b@1"]);
    }
}

#[test]
fn sotw_wrapped_resources_are_read_and_those_that_run_out_refused() {
    let wrapped = |name: &str, ttl| {
        let resource = Some(cluster(name, 1));
        let resource = WireResource { name: name.into(), resource, ttl, ..WireResource::default() };
        let type_url = "type.googleapis.com/envoy.service.discovery.v3.Resource".into();
        Any { type_url, value: resource.encode_to_vec() }
    };
    let mut client = Client::all_clusters();
    let mut open = client.open(Variant::Sotw);
    open.sotw();
    let ttl = Some(ProtoDuration { seconds: 1, nanos: 0 });
    let taken = open.on_sotw(CDS, "1", vec![wrapped("a", None), wrapped("b", ttl), cluster("c", 1)]);
    assert!(refused(&taken).starts_with("b: ttl: "), "{taken:?}");
    assert_eq!(open.kept.held(), ["a@1", "c@1"]);
}

#[test]
fn sotw_a_new_stream_goes_on_where_the_last_one_was() {
    let mut client = Client::wanting(EDS, &["a"]);
    client.subscriptions.wildcard(CDS);
    let mut open = client.open(Variant::Sotw);
    open.requests();
    open.on_sotw(EDS, "7", vec![endpoints("a")]);
    open.on_sotw(CDS, "8", vec![cluster("a", 1), cluster("b", 1)]);
    let mut open = client.open(Variant::Sotw);
    let requests: Vec<DiscoveryRequest> = open.requests().into_iter().map(Request::into_sotw).collect();
    let versions: Vec<&str> = requests.iter().map(|request| &*request.version_info).collect();
    assert_eq!(versions, ["8", "7"]);
    assert!(requests.iter().all(|request| request.response_nonce.is_empty()));
    // What went meanwhile is missing in the first response.
    open.on_sotw(CDS, "9", vec![cluster("b", 1)]);
    assert_eq!(open.kept.updates.last().unwrap(), &(vec![], vec!["a".into()]));
    // A name that is not held yet has to be sent, so the version is not said.
    client.set(EDS, &["a", "b"]);
    let mut open = client.open(Variant::Sotw);
    assert_eq!(open.requests()[1].version, "");
}

#[test]
fn a_wildcard_beside_names_is_written_out() {
    let mut client = Client::wanting(CDS, &["a"]);
    client.subscriptions.wildcard(CDS);
    for variant in [Variant::Sotw, Variant::Delta] {
        assert_eq!(client.open(variant).requests()[0].names, ["a", "*"]);
    }
    let mut open = client.open(Variant::Sotw);
    open.requests();
    open.subscriptions.set(CDS, BTreeSet::new());
    // By now an empty list would be none.
    assert_eq!(open.sotw().resource_names, ["*"]);
}

#[test]
fn a_name_that_is_dropped_and_taken_up_again_is_asked_for_anew() {
    for variant in [Variant::Sotw, Variant::Delta] {
        let mut client = Client::wanting(EDS, &["a", "b"]);
        client.subscriptions.wildcard(EDS);
        let mut open = client.open(variant);
        open.requests();
        let wire = |name: &str| WireResource {
            name: name.into(),
            version: "1".into(),
            resource: Some(endpoints(name)),
            ..WireResource::default()
        };
        match variant {
            Variant::Sotw => {
                open.on_sotw(EDS, "1", vec![endpoints("a"), endpoints("b")]);
            }
            Variant::Delta => {
                let response = DeltaDiscoveryResponse {
                    type_url: EDS.type_url().into(),
                    resources: vec![wire("a"), wire("b")],
                    ..DeltaDiscoveryResponse::default()
                };
                open.session.on_delta(response, open.kept, Instant::now());
            }
        }
        open.requests();
        let only = |name: &str| BTreeSet::from([Arc::from(name)]);
        open.subscriptions.set(EDS, only("b"));
        open.subscriptions.set(EDS, BTreeSet::from(["a".into(), "b".into()]));
        let requests = open.requests();
        match variant {
            Variant::Sotw => {
                assert_eq!(requests[0].names, ["b", "*"]);
                assert_eq!(requests[1].names, ["a", "b", "*"]);
                open.on_sotw(EDS, "1", vec![endpoints("a"), endpoints("b")]);
                assert_eq!(open.kept.updates.last().unwrap().0, ["a"]);
            }
            Variant::Delta => assert_eq!((requests.len(), &*requests[0].names), (1, &["a".to_owned()][..])),
        }
        // The same while there is no stream: it is not said to be held, not even under a wildcard.
        client.set(EDS, &["b"]);
        client.set(EDS, &["a", "b"]);
        let again = &client.open(variant).requests()[0];
        assert!(!again.initial.contains_key("a") && again.version.is_empty(), "{again:?}");
        assert_eq!(again.initial.contains_key("b"), variant == Variant::Delta);
    }
}

#[test]
fn delta_answers_each_response_and_says_what_it_has_to_the_next_stream() {
    let mut client = Client::all_clusters();
    let mut open = client.open(Variant::Delta);
    assert_eq!(open.delta().resource_names_subscribe, ["*"]);
    let wire = |name: &str| {
        let Any { value, .. } = cluster(name, 1);
        let resource = Resource::encode(&Cluster::decode(value.as_slice()).unwrap());
        let body = Some(Any { type_url: CDS.type_url().into(), value: resource.body.to_vec() });
        WireResource { name: name.into(), version: "1".into(), resource: body, ..WireResource::default() }
    };
    for (nonce, names) in [("1", ["a", "bad"]), ("2", ["b", "b"])] {
        let response = DeltaDiscoveryResponse {
            nonce: nonce.into(),
            type_url: CDS.type_url().into(),
            resources: names.iter().map(|name| wire(name)).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        open.session.on_delta(response, open.kept, Instant::now());
    }
    assert_eq!(open.session.waiting(), 2);
    let answers: Vec<(String, Option<String>)> =
        open.requests().into_iter().map(|request| (request.nonce, request.refusal)).collect();
    let [first, second] = ["bad: is bad", "b: is in the response twice"];
    assert_eq!(answers, [("1".into(), Some(first.into())), ("2".into(), Some(second.into()))]);
    let initial = client.open(Variant::Delta).delta().initial_resource_versions;
    assert_eq!(initial, HashMap::from([("a".into(), "1".into())]));
}

#[tokio::test(start_paused = true)]
async fn the_same_refusal_is_not_told_more_often_than_once_a_second() {
    let mut client = Client::all_clusters();
    let mut open = client.open(Variant::Sotw);
    open.sotw();
    assert!(matches!(open.on_sotw(CDS, "1", vec![cluster("bad", 1)]), Taken::Refused(_)));
    open.sotw();
    for _ in 0..3 {
        assert!(matches!(open.on_sotw(CDS, "1", vec![cluster("bad", 1)]), Taken::Again(_)));
        assert_eq!(open.requests(), []);
        assert_eq!(open.session.deadline(), Some(Instant::now() + SAME_REFUSAL));
        tokio::time::advance(SAME_REFUSAL).await;
        assert!(open.sotw().error_detail.is_some());
    }
    open.on_sotw(CDS, "2", vec![cluster("a", 1)]);
    assert_eq!(open.sotw().error_detail, None);
}

#[test]
fn a_type_that_was_not_asked_for_is_not_answered() {
    let mut client = Client::all_clusters();
    let mut open = client.open(Variant::Sotw);
    open.sotw();
    let mut response = DiscoveryResponse { type_url: EDS.type_url().into(), ..DiscoveryResponse::default() };
    response.resources = vec![endpoints("a")];
    for type_url in [EDS.type_url(), "type.googleapis.com/shop.Order", ""] {
        response.type_url = type_url.into();
        let taken = open.session.on_sotw(response.clone(), open.kept, Instant::now());
        assert!(refused(&taken).contains("was not asked for"), "{taken:?}");
    }
    assert_eq!(open.requests(), []);
    assert_eq!(open.kept.updates, []);
}

#[test]
fn in_state_of_the_world_the_end_of_what_never_was_accepted_is_told_too() {
    let mut client = Client::all_clusters();
    let mut open = client.open(Variant::Sotw);
    open.requests();
    for (version, resources) in
        [("1", vec![cluster("a", 1), cluster("bad", 1)]), ("2", vec![cluster("a", 1)])]
    {
        open.on_sotw(CDS, version, resources);
        open.requests();
    }
    assert_eq!(open.kept.updates.last(), Some(&(Vec::new(), vec!["bad".to_owned()])));
    open.on_sotw(CDS, "3", vec![cluster("a", 2)]);
    assert_eq!(open.kept.updates.last(), Some(&(vec!["a".to_owned()], Vec::new())), "it is told once");
}
