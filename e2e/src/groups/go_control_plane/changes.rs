//! What a server changes, in both variants.

use std::sync::Arc;

use anyhow::ensure;
use pontoon_e2e::inventory::Instance;
use pontoon_e2e::load::{by_side, none_failed};
use pontoon_e2e::ports;
use pontoon_e2e::report::Report;
use pontoon_e2e::wait::until;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::PATIENCE;
use super::driven::Driven;
use super::server::Server;

/// Changes in a row, under load.
const ROUNDS: usize = 20;
/// Requests that a cluster without endpoints must not meet: one second of them.
const REQUESTS: usize = 40;

pub(super) async fn cases(
    report: &mut Report,
    server: &Server,
    proxies: &mut [Driven],
    instances: &[Instance; 2],
) {
    for proxy in proxies {
        proxy.case(report, server, "a certificate comes by SDS, and its renewal", secret).await;
        proxy.case(report, server, "20 changes of routes and endpoints under load", changes).await;
        let warming = async |server: &Server, proxy: &mut Driven| warming(server, proxy, instances).await;
        proxy.case(report, server, "a cluster is not used before its endpoints have come", warming).await;
        proxy.case(report, server, "clusters, routes and endpoints go, and come again", removal).await;
        proxy.case(report, server, "a listener goes, and comes again", listener).await;
        proxy.case(report, server, "a listener moves to another port", moved).await;
    }
}

async fn secret(server: &Server, proxy: &mut Driven) -> anyhow::Result<String> {
    for round in ["first", "renewed"] {
        let certified = rcgen::generate_simple_self_signed(vec!["shop.example".to_owned()])?;
        proxy.world.certified(&certified);
        proxy.publish(server).await?;
        let mut roots = RootCertStore::empty();
        roots.add(certified.cert.der().clone())?;
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        until(&format!("a handshake with the {round} certificate"), PATIENCE, async || {
            let stream = TcpStream::connect(("127.0.0.1", proxy.world.https)).await?;
            connector.connect(ServerName::try_from("shop.example")?, stream).await?;
            Ok(())
        })
        .await?;
    }
    proxy.world.certificate = None;
    proxy.publish(server).await?;
    until("the listener's end", PATIENCE, async || {
        ensure!(TcpStream::connect(("127.0.0.1", proxy.world.https)).await.is_err(), "it listens");
        Ok(())
    })
    .await?;
    Ok("LDS, SDS".to_owned())
}

async fn changes(server: &Server, proxy: &mut Driven) -> anyhow::Result<String> {
    let from = Instant::now();
    let first = proxy.world.clusters.clone();
    for round in 0..ROUNDS {
        let side = if round % 2 == 0 { "modern" } else { "legacy" };
        if round % 4 < 2 {
            proxy.world.routes[0].1 = if side == "modern" { "b" } else { "a" };
        } else if let [a, b] = ["a", "b"].map(|name| proxy.world.clusters.get(name).cloned())
            && let (Some(a), Some(b)) = (a, b)
        {
            proxy.world.clusters.extend([("a", b), ("b", a)]);
        }
        proxy.publish(server).await?;
        proxy.answered_by(side, "/stock").await?;
    }
    ensure!(proxy.world.clusters == first && proxy.world.routes[0].1 == "a", "not as it was");
    let samples = proxy.load.next_since(from, REQUESTS).await?;
    none_failed(&samples)?;
    Ok(format!("0 of {} failed", samples.len()))
}

/// The server sends the route and the cluster at once, and the endpoints when a second of requests has passed.
async fn warming(server: &Server, proxy: &mut Driven, [_, modern]: &[Instance; 2]) -> anyhow::Result<String> {
    let from = Instant::now();
    let earlier = proxy.world.routes[0];
    proxy.world.clusters.insert("new", vec![modern.address.port()]);
    proxy.world.cold.insert("new");
    proxy.world.routes[0].1 = "new";
    proxy.publish(server).await?;
    proxy.says("cluster new is not warm").await?;
    let cold = proxy.load.next(REQUESTS).await?;
    ensure!(by_side(&cold).keys().eq(["legacy"].iter()), "{:?}", by_side(&cold));
    proxy.world.cold.clear();
    proxy.publish(server).await?;
    proxy.answered_by("modern", "/stock").await?;
    none_failed(&proxy.load.since(from))?;
    proxy.world.routes[0] = earlier;
    proxy.publish(server).await?;
    proxy.answered_by("legacy", "/stock").await?;
    proxy.world.clusters.remove("new");
    proxy.publish(server).await?;
    none_failed(&proxy.load.since(from))?;
    Ok(format!("{} requests while it was not warm", cold.len()))
}

async fn removal(server: &Server, proxy: &mut Driven) -> anyhow::Result<String> {
    let whole = proxy.world.clone();
    for _ in 0..2 {
        proxy.world.routes.retain(|(_, cluster)| *cluster == "a");
        proxy.world.clusters.remove("b");
        proxy.publish(server).await?;
        proxy.unrouted("/b").await?;
        until("the cluster's end", PATIENCE, async || {
            let clusters = proxy.admin("clusters?format=json").await?;
            ensure!(!clusters.to_string().contains("\"b\""), "{clusters}");
            Ok(())
        })
        .await?;
        proxy.world = whole.clone();
        proxy.publish(server).await?;
        proxy.answered_by("modern", "/b").await?;
    }
    // An endpoint that goes: the cluster stays, and has none.
    proxy.world.clusters.insert("b", Vec::new());
    proxy.publish(server).await?;
    until("an answer for a cluster without endpoints", PATIENCE, async || {
        let answer = proxy.side("http", "/b").await;
        ensure!(answer.as_ref().is_err_and(|error| error.to_string().contains("503")), "{answer:?}");
        Ok(())
    })
    .await?;
    proxy.world = whole;
    proxy.publish(server).await?;
    proxy.answered_by("modern", "/b").await?;
    Ok("twice".to_owned())
}

async fn listener(server: &Server, proxy: &mut Driven) -> anyhow::Result<String> {
    for _ in 0..2 {
        ensure!(proxy.side("other", "/b").await? == "modern", "it does not serve");
        let port = proxy.world.listeners.remove("other").unwrap_or_default();
        proxy.publish(server).await?;
        until("the listener's end", PATIENCE, async || {
            ensure!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "it listens");
            Ok(())
        })
        .await?;
        proxy.world.listeners.insert("other", port);
        proxy.publish(server).await?;
        until("the listener to serve again", PATIENCE, async || proxy.side("other", "/b").await).await?;
    }
    Ok("twice".to_owned())
}

async fn moved(server: &Server, proxy: &mut Driven) -> anyhow::Result<String> {
    let old = proxy.world.listeners.insert("other", ports::free()?).unwrap_or_default();
    proxy.publish(server).await?;
    until("the listener to serve at its new port", PATIENCE, async || proxy.side("other", "/b").await)
        .await?;
    until("the old port's end", PATIENCE, async || {
        ensure!(TcpStream::connect(("127.0.0.1", old)).await.is_err(), "it listens");
        Ok(())
    })
    .await?;
    proxy.check_alive()?;
    Ok(String::new())
}
