//! The conformance suite of the transport protocol against our server. Against go-control-plane's it is run by
//! `cargo xtask e2e xds`, with the same expectations.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cases;
mod peer;
mod suite;
mod world;

use std::sync::Arc;
use std::time::Duration;

use pontoon_xds::pb::google::protobuf::Any;
use pontoon_xds::resource::ResourceMessage;
use pontoon_xds::server::{Options, Server, grpc_server};
use pontoon_xds::{Resource, ResourceType, Snapshot};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use peer::On;
use world::{Failed, Target};

async fn check(case: &str, on: On, run: impl AsyncFn(&Target, On) -> Result<(), Failed>) {
    let server = Server::new(Options::new(|node| Ok(node.id.clone())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = grpc_server().add_routes(server.routes());
    let serving = tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    let publish = move |resources: Vec<Any>| {
        server.publish(case_node(), snapshot(&resources));
        Box::pin(std::future::ready(())) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    };
    let node = case_node().to_owned();
    let target = Target { address, node, patience: Duration::from_secs(20), publish: Box::new(publish) };
    let outcome = run(&target, on).await;
    serving.abort();
    assert_eq!(outcome, Ok(()), "{case} {on:?}");
}

fn case_node() -> &'static str {
    "conformance"
}

fn snapshot(resources: &[Any]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for any in resources {
        let ty = ResourceType::from_type_url(&any.type_url).unwrap();
        let (name, _) = world::read(any).unwrap();
        let named = Resource { name: name.into(), version: Arc::from(""), body: any.value.clone().into() };
        snapshot.insert_encoded(ty, versioned(ty, &named));
    }
    snapshot
}

/// As the control plane makes it.
fn versioned(ty: ResourceType, resource: &Resource) -> Resource {
    use pontoon_xds::pb::envoy::config::{
        cluster::v3, endpoint::v3 as eds, listener::v3 as lds, route::v3 as rds,
    };
    use pontoon_xds::pb::envoy::extensions::transport_sockets::tls::v3 as sds;
    fn again<M: ResourceMessage>(resource: &Resource) -> Resource {
        Resource::encode(&resource.decode::<M>().unwrap())
    }
    match ty {
        ResourceType::Secret => again::<sds::Secret>(resource),
        ResourceType::Cluster => again::<v3::Cluster>(resource),
        ResourceType::Endpoint => again::<eds::ClusterLoadAssignment>(resource),
        ResourceType::Listener => again::<lds::Listener>(resource),
        ResourceType::Route => again::<rds::RouteConfiguration>(resource),
    }
}

suite::suite!(crate::check);
