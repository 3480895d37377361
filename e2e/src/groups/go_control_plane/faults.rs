//! What a server does wrong: the proxies serve on, say why, and follow it again once it does right.

use std::time::Duration;

use anyhow::ensure;
use pontoon_e2e::gate::Mode;
use pontoon_e2e::report::Report;
use pontoon_e2e::wait::until;
use serde_json::Value;

use super::PATIENCE;
use super::driven::Driven;
use super::server::Server;
use super::world::CLUSTER;

/// Requests that are served while the server is away.
const REQUESTS: usize = 50;
/// For a ping to be sent and not answered: 20 s, or more where the server has asked for fewer before.
const UNANSWERED: Duration = Duration::from_secs(120);
const UNKNOWN: &str = "type.googleapis.com/shop.Order";

pub(super) async fn cases(report: &mut Report, server: &mut Server, proxies: &mut [Driven]) {
    for proxy in &mut *proxies {
        proxy.case(report, server, "a field that is refused", refused).await;
        proxy.case(report, server, "a resource that cannot be read", unreadable).await;
        proxy.case(report, server, "a type that does not exist", unknown_type).await;
    }
    report.case("a server that restarts", restarted(server, proxies)).await;
    report
        .case("a cluster that another takes the place of while there is no server", replaced(server, proxies))
        .await;
    report
        .case("a server that is another protocol's", broken(server, proxies, Mode::Nonsense, "last error: "))
        .await;
    // A server that does not answer a ping is left: after 20 s.
    report
        .case(
            "a server that accepts and is silent",
            broken(server, proxies, Mode::Silent, "nor answered a ping"),
        )
        .await;
    report
        .case(
            "a server that stops reading and writing",
            broken(server, proxies, Mode::Frozen, "nor answered a ping"),
        )
        .await;
}

/// The good ones of the same response are in force, and the last good version of the refused one.
async fn refused(server: &Server, proxy: &mut Driven) -> anyhow::Result<String> {
    let whole = proxy.world.clone();
    proxy.world.refused.extend(["b", "never"]);
    proxy.world.clusters.insert("never", Vec::new());
    proxy.world.cold.insert("never");
    proxy.world.clusters.insert("c", whole.clusters["a"].clone());
    proxy.world.routes.push(("/c", "c"));
    proxy.publish(server).await?;
    let said = proxy.says("b: outlier_detection").await?;
    proxy.answered_by("legacy", "/c").await?;
    proxy.answered_by("modern", "/b").await?;
    until("the server to be told", PATIENCE, async || {
        let told = server.requests().await?;
        let is_delta = proxy.variant == "delta";
        let of_variant = |request: &&Value| request.get("versionInfo").is_none() == is_delta;
        let mut reasons = told.iter().filter(of_variant).map(|request| &request["errorDetail"]["message"]);
        let is_told =
            |reason: &Value| reason.as_str().is_some_and(|reason| reason.contains("b: outlier_detection"));
        ensure!(reasons.any(is_told), "{} requests, none of which says so", told.len());
        Ok(())
    })
    .await?;
    for cluster in ["b", "never"] {
        let dump = proxy.admin(&dumped(cluster)).await?;
        let details = &dump["configs"][0]["error_state"]["details"];
        ensure!(details.as_str().is_some_and(|details| details.contains("outlier_detection")), "{dump:#}");
    }
    proxy.world = whole;
    // Not the version before: in state of the world go-control-plane does not send that to who has refused a later one.
    proxy.world.clusters.insert("d", Vec::new());
    proxy.publish(server).await?;
    proxy.unrouted("/c").await?;
    until("the refusal's end", PATIENCE, async || {
        for cluster in ["b", "never"] {
            let dump = proxy.admin(&dumped(cluster)).await?;
            ensure!(dump["configs"][0]["error_state"].is_null(), "{dump:#}");
        }
        Ok(())
    })
    .await?;
    Ok(said)
}

/// Where the dump has it: one that never was in force is among those that are still to be.
fn dumped(cluster: &str) -> String {
    let list = if cluster == "never" { "dynamic_warming_clusters" } else { "dynamic_active_clusters" };
    format!("config_dump?resource={list}&name_regex=^{cluster}$")
}

async fn unreadable(server: &Server, proxy: &mut Driven) -> anyhow::Result<String> {
    server.send(CLUSTER, CLUSTER, b"\xff\xff\xff\xff").await?;
    proxy.says("cannot be decoded").await?;
    server.send(CLUSTER, UNKNOWN, b"").await?;
    let said = proxy.says("holds a \"type.googleapis.com/shop.Order\"").await?;
    follows(server, proxy).await?;
    Ok(said)
}

async fn unknown_type(server: &Server, proxy: &mut Driven) -> anyhow::Result<String> {
    server.send(UNKNOWN, UNKNOWN, b"").await?;
    let said = proxy.says("was not asked for").await?;
    follows(server, proxy).await?;
    Ok(said)
}

/// What changes while there is no server comes when there is one again.
async fn restarted(server: &mut Server, proxies: &mut [Driven]) -> anyhow::Result<String> {
    server.kill()?;
    let mut said = String::new();
    for proxy in &*proxies {
        proxy.says("not connected: serving what is in force").await?;
        said = proxy.says("last error: ").await?;
        proxy.load.next(REQUESTS).await?;
        ensure!(proxy.side("http", "/b").await? == "modern", "it does not serve");
    }
    server.restart().await?;
    // As it was: nothing is to be done.
    for proxy in &*proxies {
        proxy.publish(server).await?;
        proxy.says(": connected, for").await?;
        proxy.load.next(REQUESTS).await?;
    }
    for proxy in &mut *proxies {
        follows(server, proxy).await?;
    }
    server.kill()?;
    server.restart().await?;
    for proxy in &mut *proxies {
        let route = proxy.world.routes.pop();
        proxy.publish(server).await?;
        proxy.unrouted("/b").await?;
        proxy.world.routes.extend(route);
        proxy.publish(server).await?;
        proxy.answered_by("modern", "/b").await?;
    }
    Ok(said)
}

/// In state of the world clusters go before routes are told of. What the new ones lead to is not warm for a while.
async fn replaced(server: &mut Server, proxies: &mut [Driven]) -> anyhow::Result<String> {
    server.kill()?;
    server.restart().await?;
    let mut requests = 0;
    for proxy in &mut *proxies {
        let whole = proxy.world.clone();
        let ports = proxy.world.clusters.remove("a").unwrap_or_default();
        proxy.world.clusters.insert("instead", ports);
        proxy.world.routes[0].1 = "instead";
        proxy.world.cold.insert("instead");
        proxy.publish(server).await?;
        until("the old cluster's end", PATIENCE, async || {
            let dump = proxy.admin("config_dump?resource=dynamic_active_clusters").await?;
            ensure!(!dump.to_string().contains("\"a\""), "it is there");
            Ok(())
        })
        .await?;
        requests += proxy.load.next(REQUESTS).await?.len();
        proxy.world.cold.clear();
        proxy.publish(server).await?;
        until("the old cluster's last use", PATIENCE, async || {
            let clusters = proxy.admin("clusters?format=json").await?;
            ensure!(!clusters.to_string().contains("\"a\""), "it is used");
            Ok(())
        })
        .await?;
        proxy.world = whole;
        proxy.publish(server).await?;
        proxy.load.next(REQUESTS).await?;
    }
    Ok(format!("{requests} requests when it had gone"))
}

/// All proxies at once: that a server says nothing is found out after a while.
async fn broken(server: &Server, proxies: &mut [Driven], mode: Mode, words: &str) -> anyhow::Result<String> {
    for proxy in &*proxies {
        proxy.gate.set(mode);
    }
    let mut said = String::new();
    for proxy in &mut *proxies {
        proxy.says_within(UNANSWERED, "not connected: serving what is in force").await?;
        said = proxy.says_within(UNANSWERED, words).await?;
        proxy.load.next(REQUESTS).await?;
        proxy.check_alive()?;
    }
    for proxy in &mut *proxies {
        proxy.gate.set(Mode::Pass);
        follows(server, proxy).await?;
    }
    Ok(said)
}

/// It does what it is told: a route goes and comes.
async fn follows(server: &Server, proxy: &mut Driven) -> anyhow::Result<()> {
    let Some(route) = proxy.world.routes.pop() else { return Ok(()) };
    proxy.publish(server).await?;
    proxy.unrouted(route.0).await?;
    proxy.world.routes.push(route);
    proxy.publish(server).await?;
    proxy.answered_by("modern", route.0).await
}
