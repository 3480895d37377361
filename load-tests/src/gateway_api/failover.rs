//! Backend failover: of several endpoints one flips, under load: first as Kubernetes tells of it (it is not ready, and
//! is again), then without a word (connections to it are refused, and taken again).

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::StatusCode;
use tokio::time::Instant;

use super::backend::{BACKEND, Backend};
use super::client::Load;
use super::objects::{Endpoint, host, path, plain_rules, route, service, slice};
use super::rig::{Rig, Site};
use super::store::Kind;
use super::{PATIENCE, Sizes, push_times, table};
use crate::report::{Row, Table};

const SERVICE: &str = "backend";
const BACKENDS: usize = 4;
const CONNECTIONS: usize = 4;
/// Between two looks.
const POLL: Duration = Duration::from_millis(1);
/// An endpoint answers nobody when it was not seen in so many answers in a row, by turns the others' (4 endpoints).
const UNSEEN: usize = 20;

pub(super) async fn run(site: &Site, sizes: Sizes) -> anyhow::Result<Table> {
    let mut rig = site.start("backend-failover").await?;
    site.store.create(Kind::Service, service(SERVICE)).await?;
    let mut backends = Vec::new();
    for number in 0..BACKENDS {
        let backend = Backend::start(&format!("backend-{number}"))?;
        tell(site, &backend, true).await?;
        backends.push(backend);
    }
    site.store.create(Kind::Route, route(0, &plain_rules(SERVICE, None))).await?;
    rig.until_status(&host(0), &path(0), StatusCode::OK).await?;
    let mut flipping = backends.pop().context("no backends")?;
    seen_again(&rig, &flipping.name).await?;

    let mut row = Row::new("Pontoon");
    let load = Load::start(&rig.caller, vec![(host(0), path(0))], CONNECTIONS)?;
    let (mut away, mut back) = (Vec::new(), Vec::new());
    for _ in 0..sizes.flips {
        tell(site, &flipping, false).await?;
        let told = Instant::now();
        unseen(&rig, &flipping.name).await?;
        away.push(told.elapsed());
        tokio::time::sleep(sizes.flip).await;
        tell(site, &flipping, true).await?;
        let told = Instant::now();
        seen_again(&rig, &flipping.name).await?;
        back.push(told.elapsed());
        tokio::time::sleep(sizes.flip).await;
    }
    let outcome = load.finish().await;
    push_times(&mut row, "not ready: out after", away);
    push_times(&mut row, "ready: in again after", back);
    row.push("told: requests", outcome.requests as f64);
    row.push("told: errors", outcome.failed as f64);

    let load = Load::start(&rig.caller, vec![(host(0), path(0))], CONNECTIONS)?;
    let mut back = Vec::new();
    for _ in 0..sizes.flips {
        flipping.take_away().await;
        tokio::time::sleep(sizes.flip).await;
        flipping.bring_back()?;
        let brought = Instant::now();
        seen_again(&rig, &flipping.name).await?;
        back.push(brought.elapsed());
        tokio::time::sleep(sizes.flip).await;
    }
    let outcome = load.finish().await;
    push_times(&mut row, "taking connections again: in again after", back);
    row.push("refusing: requests", outcome.requests as f64);
    row.push("refusing: errors", outcome.failed as f64);
    rig.is_alive()?;
    drop(backends);
    let title = format!("Backend failover: one of {BACKENDS} endpoints flips under load");
    Ok(table("backend-failover", title, "refusing: errors", row))
}

/// Says of a backend whether it is ready. Each has a slice of its own, as each has a port of its own.
async fn tell(site: &Site, backend: &Backend, ready: bool) -> anyhow::Result<()> {
    let endpoint = Endpoint { pod: backend.name.clone(), address: backend.address(), ready };
    site.store.apply(Kind::Slice, &slice(&backend.name, SERVICE, backend.port, &[endpoint])).await
}

async fn answers(rig: &Rig) -> Option<String> {
    let answer = rig.caller.get(&host(0), &path(0)).await.ok()?;
    answer.header(BACKEND).map(str::to_owned)
}

/// Until the backend answers.
async fn seen_again(rig: &Rig, name: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while answers(rig).await.is_none_or(|backend| backend != name) {
        ensure!(Instant::now() < deadline, "waited for {name} to answer");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Until the backend does not answer any more.
async fn unseen(rig: &Rig, name: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut others = 0;
    while others < UNSEEN {
        match answers(rig).await {
            Some(backend) if backend == name => others = 0,
            _ => others += 1,
        }
        ensure!(Instant::now() < deadline, "waited for {name} to answer no more");
    }
    Ok(())
}
