//! A control plane that changes its mind as fast as it can say so, sends what cannot be taken, and goes away and comes
//! back: requests do not notice.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pontoon_xds::Snapshot;
use pontoon_xds::json::from_json;
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::listener::v3::Listener;
use pontoon_xds::resource::ResourceMessage;
use pontoon_xds::server::{Limits, Options, Server, grpc_server, within};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::running::{PATIENCE, Running, Stop, cluster, listener, until};
use crate::tls::get;
use crate::upstream::Upstream;

const VIEW: &str = "edge";
const ROUNDS: usize = 200;
/// It goes away after so many.
const AWAY: usize = 70;

/// A control plane, whose connections go with it.
struct Plane {
    server: Server,
    runtime: Runtime,
}

impl Plane {
    /// On a port that has just been another's, or on any.
    fn start(port: u16, snapshot: Snapshot) -> (Self, u16) {
        let server = Server::new(Options::new(|node| Ok(node.cluster.clone())));
        server.publish(VIEW, snapshot);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut bound = None;
        until("its port", || {
            bound = runtime.block_on(TcpListener::bind(("127.0.0.1", port))).ok();
            bound.is_some()
        });
        let bound = bound.unwrap();
        let port = bound.local_addr().unwrap().port();
        let routes = server.routes();
        runtime.spawn(async move {
            grpc_server()
                .add_routes(routes)
                .serve_with_incoming(within(bound, Limits::default()))
                .await
                .unwrap();
        });
        (Self { server, runtime }, port)
    }

    fn stop(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

fn put<M: ResourceMessage>(snapshot: &mut Snapshot, value: &Value) {
    let bytes = from_json(&M::type_url(), value).unwrap();
    snapshot.insert(&M::decoded(&bytes).unwrap());
}

/// What there is: `/other` is the other's, all else belongs to these of the shop.
fn world(round: usize, shop: &[SocketAddr], other: SocketAddr) -> Snapshot {
    let mut edge = listener("edge", &json!({"match": {"prefix": "/"}, "route": {"cluster": "shop"}}));
    // A route more or less each time.
    let extra = json!({"match": {"prefix": format!("/{round}/")}, "route": {"cluster": "shop"}});
    let to_other = json!({"match": {"prefix": "/other"}, "route": {"cluster": "other"}});
    let manager = &mut edge["filter_chains"][0]["filters"][0]["typed_config"];
    let routes = manager["route_config"]["virtual_hosts"][0]["routes"].as_array_mut().unwrap();
    routes.splice(0..0, [to_other, extra]);
    let mut snapshot = Snapshot::default();
    put::<Listener>(&mut snapshot, &edge);
    put::<Cluster>(&mut snapshot, &cluster("shop", shop));
    put::<Cluster>(&mut snapshot, &cluster("other", &[other]));
    snapshot
}

/// The same with what cannot be taken in the place of what can.
fn garbage(mut snapshot: Snapshot, round: usize) -> Snapshot {
    let mut shop = cluster("shop", &[]);
    shop["lb_policy"] = json!("MAGLEV");
    shop["alt_stat_name"] = json!(round.to_string());
    put::<Cluster>(&mut snapshot, &shop);
    put::<Listener>(&mut snapshot, &json!({"name": "edge", "stat_prefix": round.to_string()}));
    snapshot
}

fn client(proxy: SocketAddr, number: usize, answered: &AtomicUsize, stop: &AtomicBool) {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let other = number.is_multiple_of(2);
        let (status, body) = get(&mut stream, if other { "/other" } else { "/" }).expect("an answer");
        let right: &[&str] = if other { &["other"] } else { &["a", "b"] };
        assert!(status == 200 && right.contains(&&*body), "{status} {body}");
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn chaos_of_a_control_plane_that_flaps() {
    let upstreams = ["a", "b", "other"].map(Upstream::start);
    let [a, b, other] = [0, 1, 2].map(|which: usize| upstreams[which].address);
    let (mut plane, port) = Plane::start(0, world(0, &[a], other));
    let proxy = Running::start(|command| {
        command.args([
            "--workers",
            "2",
            "--cluster",
            VIEW,
            "--xds-server",
            &format!("http://127.0.0.1:{port}"),
        ]);
    });
    proxy.until_ready();
    let (edge, at_start) = (proxy.listener("edge"), proxy.files());
    let shops = [vec![a], vec![b], vec![a, b], vec![b, a]];
    let (answered, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let count = || answered.load(Ordering::Relaxed);
    let connected = || proxy.metric("pontoon_xds_connected") == 1;
    std::thread::scope(|scope| {
        let ended = Stop(&stop);
        for number in 0..8 {
            let (answered, stop) = (&answered, &stop);
            scope.spawn(move || client(edge, number, answered, stop));
        }
        for round in 1..=ROUNDS {
            let good = world(round, &shops[round % 4], other);
            let now = if round % 5 == 0 { garbage(good, round) } else { good };
            if round % AWAY == 0 {
                plane.stop();
                until("it is gone", || !connected());
                (plane, _) = Plane::start(port, now);
            } else {
                plane.server.publish(VIEW, now);
            }
            let before = count();
            until("requests go on", || count() > before + 20);
        }
        plane.server.publish(VIEW, world(ROUNDS + 1, &[b], other));
        until("it is back", connected);
        let mut stream = TcpStream::connect(edge).unwrap();
        until("the last word counts", || get(&mut stream, "/").unwrap() == (200, "b".into()));
        drop(ended);
    });
    let refused = proxy.metric("pontoon_xds_nacks_total");
    println!("{} answered, {refused} updates refused", count());
    assert!(refused > 0, "nothing was refused");
    upstreams.iter().for_each(Upstream::close_all);
    until("all files are back", || proxy.files() <= at_start);
}
