//! Scratch: never committed.
use arc_swap::*;
use pontoon_proxy::{
    config::listener::*,
    route::{matching::*, *},
    upstream::cluster::*,
    worker::*,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
#[global_allocator]
static A: mimalloc::MiMalloc = mimalloc::MiMalloc;
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (port, back): (u16, u16) = (a[1].parse().unwrap(), a[2].parse().unwrap());
    let h2 = a.get(3).is_some_and(|x| x == "h2");
    let cluster = Arc::new(Cluster {
        name: "c".into(),
        settings: ArcSwapOption::from_pointee(ClusterSettings {
            version: "1".into(),
            connect_timeout: Duration::from_secs(2),
            policy: BalancePolicy::RoundRobin,
            protocol: if h2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 },
            idle_timeout: Duration::from_secs(55),
            source: EndpointSource::Static,
        }),
        endpoints: ArcSwap::from_pointee(EndpointSet {
            version: "1".into(),
            endpoints: vec![Arc::new(Endpoint::new(
                SocketAddr::from(([127, 0, 0, 1], back)),
                1,
                EndpointHealth::Healthy,
            ))],
        }),
    });
    let fwd = Forward {
        targets: Targets::One(cluster),
        hash: vec![],
        timeout: Some(Duration::from_secs(15)),
        idle_timeout: None,
        retry: RetryPolicy {
            max_retries: 1,
            per_try_timeout: None,
            on_connect_failure: true,
            on_refused_stream: true,
            on_reused_connection: true,
        },
        prefix_rewrite: None,
        host_rewrite: None,
    };
    let route = Route {
        name: "r".into(),
        matcher: RouteMatcher { path: PathMatcher::Prefix("/".into()), headers: vec![], query: vec![] },
        action: Action::Forward(fwd),
        request_headers: vec![],
        response_headers: vec![],
    };
    let table = RouteTable::new(
        "r".into(),
        "1".into(),
        true,
        vec![(vec!["*".into()], VirtualHost::new("v".into(), vec![route]))],
    )
    .unwrap();
    let http = HttpSettings {
        routes: Arc::new(RouteHandle { name: "r".into(), table: ArcSwapOption::from_pointee(table) }),
        forwarded: ForwardedTrust { use_remote_address: true, ..Default::default() },
        limits: Limits {
            max_header_bytes: 61440,
            max_headers: 100,
            max_body_bytes: 0,
            max_concurrent_streams: 100,
        },
        timeouts: DownstreamTimeouts {
            request_headers: Duration::from_secs(10),
            idle: Duration::from_secs(3600),
            stream_idle: Some(Duration::from_secs(300)),
            drain: Duration::from_secs(5),
        },
        path: PathOptions::default(),
        underscores: Underscores::Reject,
        upgrades: vec![],
        generate_request_id: true,
        preserve_external_request_id: false,
        access_log: if a.iter().any(|x| x == "log") {
            vec![AccessLog { path: "/dev/null".into(), format: AccessLogFormat::Json }]
        } else {
            vec![]
        },
        server_name: "p".into(),
    };
    let l = Arc::new(Listener {
        name: "l".into(),
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        http: ArcSwap::from_pointee(http),
    });
    let (_tx, rx) = tokio::sync::watch::channel(vec![l]);
    let w =
        Workers::start(Options { workers: 1, lame_duck: Duration::ZERO, drain: Duration::from_secs(1) }, rx)
            .unwrap();
    std::future::pending::<()>().await;
    drop(w);
}
