//! Random histories: whatever is published, subscribed, delayed, refused or broken off, in the end the client
//! has what is published of that which it subscribes to; and whoever answers is sent no listener and no route before it
//! has answered every cluster, endpoint set and secret that there is. A failing history is printed, shrunk, by proptest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use tokio::time::Instant;

use super::*;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::RouteConfiguration;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::{GenericSecret, Secret, secret};
use crate::pb::google::rpc::Status;
use crate::resource::Resource;
use crate::server::Options;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Debug, Clone)]
enum Step {
    Publish {
        ty: ResourceType,
        name: usize,
        revision: u32,
    },
    Withdraw {
        ty: ResourceType,
        name: usize,
    },
    Subscribe {
        ty: ResourceType,
        name: usize,
    },
    Unsubscribe {
        ty: ResourceType,
        name: usize,
    },
    Wildcard {
        ty: ResourceType,
        on: bool,
    },
    /// The server sends, if it has something to send.
    Send,
    /// The client takes the oldest response and answers it.
    Answer,
    Wait,
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let ty = || (0..ResourceType::ALL.len()).prop_map(|i| ResourceType::ALL[i]);
    let name = || 0..NAMES.len();
    prop_oneof![
        6 => (ty(), name(), 0..6u32).prop_map(|(ty, name, revision)| Step::Publish { ty, name, revision }),
        3 => (ty(), name()).prop_map(|(ty, name)| Step::Withdraw { ty, name }),
        4 => (ty(), name()).prop_map(|(ty, name)| Step::Subscribe { ty, name }),
        2 => (ty(), name()).prop_map(|(ty, name)| Step::Unsubscribe { ty, name }),
        2 => (ty(), any::<bool>()).prop_map(|(ty, on)| Step::Wildcard { ty, on }),
        8 => Just(Step::Send),
        6 => Just(Step::Answer),
        1 => Just(Step::Wait),
        1 => Just(Step::Reconnect),
    ]
}

fn put(snapshot: &mut Snapshot, ty: ResourceType, name: &str, revision: u32) {
    let (name, revision) = (name.to_owned(), revision.to_string());
    match ty {
        ResourceType::Secret => {
            let generic =
                GenericSecret { secrets: [(revision, Default::default())].into(), ..Default::default() };
            snapshot.insert(&Secret { name, r#type: Some(secret::Type::GenericSecret(generic)) })
        }
        ResourceType::Cluster => {
            snapshot.insert(&Cluster { name, alt_stat_name: revision, ..Default::default() })
        }
        ResourceType::Endpoint => {
            let named_endpoints = [(revision, Default::default())].into();
            snapshot.insert(&ClusterLoadAssignment {
                cluster_name: name,
                named_endpoints,
                ..Default::default()
            })
        }
        ResourceType::Listener => {
            snapshot.insert(&Listener { name, stat_prefix: revision, ..Default::default() })
        }
        ResourceType::Route => {
            let internal_only_headers = vec![revision];
            snapshot.insert(&RouteConfiguration { name, internal_only_headers, ..Default::default() })
        }
    };
}

/// One resource in eight is one that this client refuses.
fn is_bad(resource: &Resource) -> bool {
    resource.version.ends_with(['0', '1'])
}

#[derive(Debug, Default)]
struct Subscription {
    asked: bool,
    wildcard: bool,
    names: BTreeSet<&'static str>,
    nonce: String,
    has: BTreeMap<String, Resource>,
    /// What it has acknowledged, in whatever version, and was not sent the end of.
    met: BTreeSet<String>,
    /// Versions that it has refused, alone or with all others of a state of the world.
    refused: BTreeMap<String, std::sync::Arc<str>>,
}

impl Subscription {
    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn named(&self) -> Vec<String> {
        let star = self.wildcard.then_some("*");
        star.into_iter().chain(self.names.iter().copied()).map(str::to_owned).collect()
    }
}

struct World {
    options: Options,
    variant: Variant,
    stream: Stream,
    snapshot: Snapshot,
    client: [Subscription; ResourceType::ALL.len()],
    wire: VecDeque<Response>,
    now: Instant,
}

impl World {
    fn new(variant: Variant) -> World {
        // Small, so that responses are split.
        let options = Options { max_response_bytes: 48, ..Options::new(|_| Ok(String::new())) };
        let stream = Stream::new(variant, None, &options);
        let client = ResourceType::ALL.map(|_| Subscription::default());
        let (snapshot, wire) = (Snapshot::default(), VecDeque::new());
        World { options, variant, stream, snapshot, client, wire, now: Instant::now() }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish { ty, name, revision } => put(&mut self.snapshot, ty, NAMES[name], revision),
            Step::Withdraw { ty, name } => {
                self.snapshot.remove(ty, NAMES[name]);
            }
            Step::Subscribe { ty, name } => {
                if self.client[ty.index()].names.insert(NAMES[name]) {
                    self.ask(ty, &[NAMES[name]], &[]);
                }
            }
            Step::Unsubscribe { ty, name } => {
                if self.client[ty.index()].names.remove(NAMES[name]) {
                    self.drop_unwanted(ty);
                    self.ask(ty, &[], &[NAMES[name]]);
                }
            }
            Step::Wildcard { ty, on } => {
                if std::mem::replace(&mut self.client[ty.index()].wildcard, on) != on {
                    self.drop_unwanted(ty);
                    let star: &[&str] = &["*"];
                    if on { self.ask(ty, star, &[]) } else { self.ask(ty, &[], star) }
                }
            }
            Step::Send => {
                self.send();
            }
            Step::Answer => self.answer(),
            Step::Wait => self.now += Duration::from_secs(6),
            Step::Reconnect => self.reconnect(),
        }
    }

    fn drop_unwanted(&mut self, ty: ResourceType) {
        let client = &mut self.client[ty.index()];
        let (wildcard, names) = (client.wildcard, client.names.clone());
        client.has.retain(|name, _| wildcard || names.contains(name.as_str()));
        client.met.retain(|name| wildcard || names.contains(name.as_str()));
    }

    fn ask(&mut self, ty: ResourceType, subscribe: &[&str], unsubscribe: &[&str]) {
        let client = &mut self.client[ty.index()];
        let texts = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        match self.variant {
            // An empty first request would be a wildcard.
            _ if !client.asked && subscribe.is_empty() => return,
            Variant::Sotw => {
                let (resource_names, response_nonce) = (client.named(), client.nonce.clone());
                let request = DiscoveryRequest { resource_names, response_nonce, ..Default::default() };
                self.stream.on_sotw(ty, &request).unwrap();
            }
            Variant::Delta => {
                let request = DeltaDiscoveryRequest {
                    resource_names_subscribe: texts(subscribe),
                    resource_names_unsubscribe: texts(unsubscribe),
                    ..Default::default()
                };
                self.stream.on_delta(ty, &request).unwrap();
            }
        }
        client.asked = true;
    }

    fn send(&mut self) -> bool {
        let overdue = self.stream.deadline().is_some_and(|deadline| self.now >= deadline);
        let Some(response) = self.stream.next(&self.snapshot, self.now) else { return false };
        if refers(response.ty) && !response.resources.is_empty() && !overdue {
            self.check_order(&response);
        }
        let (is_world, met) = (self.is_world(response.ty), &mut self.client[response.ty.index()].met);
        if is_world {
            met.retain(|name| response.resources.iter().any(|resource| *resource.name == **name));
        }
        for name in &response.removed {
            met.remove(&**name);
        }
        let same = self.wire.iter().filter(|other| other.ty == response.ty).count();
        assert_eq!(same, 0, "two responses of {:?} under way", response.ty);
        let splittable = self.variant == Variant::Delta || !response.ty.is_wildcard_capable();
        let bytes: usize = response.resources.iter().map(|r| r.body.len()).sum();
        assert!(!splittable || response.resources.len() == 1 || bytes <= 48, "{response:?}");
        self.wire.push_back(response);
        true
    }

    fn is_world(&self, ty: ResourceType) -> bool {
        self.variant == Variant::Sotw && ty.is_wildcard_capable()
    }

    /// What listeners and routes may name, the client has, or does not want.
    fn check_order(&self, response: &Response) {
        for ty in ResourceType::ALL.into_iter().filter(|ty| !refers(*ty)) {
            let client = &self.client[ty.index()];
            for name in NAMES.into_iter().filter(|name| client.asked && client.wants(name)) {
                let Some(resource) = self.snapshot.get(ty, name) else { continue };
                let is_told =
                    client.met.contains(name) || client.refused.get(name) == Some(&resource.version);
                assert!(is_told, "{response:?} goes before {ty:?} {name}");
            }
        }
    }

    fn answer(&mut self) {
        let Some(response) = self.wire.pop_front() else { return };
        let ty = response.ty;
        let is_world = self.is_world(ty);
        let client = &mut self.client[ty.index()];
        if is_world {
            let named: BTreeSet<&str> = response.resources.iter().map(|r| &*r.name).collect();
            client.has.retain(|name, _| named.contains(name.as_str()));
        }
        let mut refused = Vec::new();
        for resource in response.resources.iter() {
            if is_bad(resource) {
                refused.push(resource.name.to_string());
            } else if client.wants(&resource.name) {
                client.has.insert(resource.name.to_string(), resource.clone());
            }
        }
        for name in &response.removed {
            client.has.remove(&**name);
        }
        let error_detail = (!refused.is_empty()).then(|| Status {
            code: 3,
            message: refused.join(" "),
            details: Vec::new(),
        });
        let expected = if error_detail.is_some() { Outcome::Nack } else { Outcome::Ack };
        if expected == Outcome::Ack {
            let wanted = response.resources.iter().filter(|resource| client.wants(&resource.name));
            let met: Vec<String> = wanted.map(|resource| resource.name.to_string()).collect();
            client.met.extend(met);
        } else if is_world || response.resources.len() == 1 {
            let refused = response.resources.iter();
            client
                .refused
                .extend(refused.map(|resource| (resource.name.to_string(), resource.version.clone())));
        }
        client.nonce.clone_from(&response.nonce);
        let response_nonce = response.nonce;
        let outcome = match self.variant {
            Variant::Sotw => {
                let resource_names = client.named();
                let request =
                    DiscoveryRequest { resource_names, response_nonce, error_detail, ..Default::default() };
                self.stream.on_sotw(ty, &request)
            }
            Variant::Delta => {
                let request = DeltaDiscoveryRequest { response_nonce, error_detail, ..Default::default() };
                self.stream.on_delta(ty, &request)
            }
        };
        assert_eq!(outcome, Ok(expected));
    }

    fn reconnect(&mut self) {
        self.wire.clear();
        self.stream = Stream::new(self.variant, None, &self.options);
        for ty in ResourceType::ALL {
            let client = &mut self.client[ty.index()];
            client.nonce.clear();
            client.met.clear();
            let names = client.named();
            client.asked = !names.is_empty();
            if !client.asked {
                continue;
            }
            match self.variant {
                Variant::Sotw => {
                    let request = DiscoveryRequest { resource_names: names, ..Default::default() };
                    self.stream.on_sotw(ty, &request).unwrap();
                }
                Variant::Delta => {
                    client.met.extend(client.has.keys().cloned());
                    let has = client.has.values();
                    let request = DeltaDiscoveryRequest {
                        resource_names_subscribe: names,
                        initial_resource_versions: has
                            .map(|r| (r.name.to_string(), r.version.to_string()))
                            .collect(),
                        ..Default::default()
                    };
                    self.stream.on_delta(ty, &request).unwrap();
                }
            }
        }
    }

    /// Lets everything that is due arrive.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            if !self.send() && self.wire.is_empty() {
                return;
            }
            self.answer();
        }
        panic!("the server never stops sending");
    }

    /// Whether something is published that the client does not take, and that may lead to what is gone.
    fn refuses_a_referrer(&self) -> bool {
        [ResourceType::Listener, ResourceType::Route, ResourceType::Cluster].into_iter().any(|ty| {
            let wanted = |resource: &&Resource| self.client[ty.index()].wants(&resource.name);
            self.snapshot.resources(ty).values().filter(wanted).any(is_bad)
        })
    }

    fn check(&self) {
        for ty in ResourceType::ALL {
            let client = &self.client[ty.index()];
            for name in NAMES {
                let has = client.has.get(name);
                let published = self.snapshot.get(ty, name).filter(|_| client.wants(name));
                match published {
                    Some(resource) if is_bad(resource) => assert_ne!(has, Some(resource), "{ty:?} {name}"),
                    Some(resource) => {
                        assert_eq!(has, Some(resource), "{ty:?} {name}");
                        let acknowledged = self.stream.types[ty.index()].acknowledged_version(name);
                        // The good ones of a refused state of the world count as refused.
                        let whole = self.variant == Variant::Sotw && ty.is_wildcard_capable();
                        let spoiled = self.snapshot.resources(ty).values().any(is_bad);
                        if !(whole && spoiled) {
                            assert_eq!(acknowledged, Some(&resource.version), "{ty:?} {name}, acknowledged");
                        }
                    }
                    // State of the world has no words for the end of endpoints and routes.
                    None if self.variant == Variant::Sotw && !ty.is_wildcard_capable() => {}
                    None if self.stream.is_withheld(ty) => {
                        assert!(self.refuses_a_referrer(), "{ty:?} {name}")
                    }
                    None => assert_eq!(has, None, "{ty:?} {name}"),
                }
            }
        }
        assert_eq!(self.stream.deadline(), None, "something is still held back");
    }
}

fn run(variant: Variant, steps: &[Step]) {
    let mut world = World::new(variant);
    for step in steps {
        world.step(step);
    }
    world.settle();
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn in_delta_the_client_ends_with_what_is_published(steps in prop::collection::vec(step(), 0..60)) {
        run(Variant::Delta, &steps);
    }

    #[test]
    fn in_state_of_the_world_the_client_ends_with_what_is_published(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        run(Variant::Sotw, &steps);
    }
}

/// Found by a random history.
#[test]
fn a_name_that_is_dropped_under_a_wildcard_while_its_end_is_under_way_ends() {
    let (ty, name) = (ResourceType::Cluster, 0);
    let steps = [
        Step::Publish { ty, name, revision: 0 },
        Step::Subscribe { ty, name },
        Step::Send,
        Step::Wildcard { ty, on: true },
        Step::Withdraw { ty, name },
        Step::Answer,
        Step::Send,
        Step::Unsubscribe { ty, name },
    ];
    run(Variant::Sotw, &steps);
    run(Variant::Delta, &steps);
}
