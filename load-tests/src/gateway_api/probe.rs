//! Route probe: routes are added one by one, and each is called at once until it answers. Route change: with all of
//! them there, one of them is edited over and over under load.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use reqwest::StatusCode;
use tokio::time::Instant;

use super::backend::Backend;
use super::client::Load;
use super::objects::{Endpoint, VERSION, host, path, plain_rules, probed_rules, route, service, slice};
use super::rig::{Rig, Site};
use super::store::Kind;
use super::{PATIENCE, Sizes, push_times, table};
use crate::report::{Row, Table};

const SERVICE: &str = "backend";
/// After the first success: each of them must succeed, too.
const CONFIRM: usize = 3;
/// The last of the routes are told of apart: with them there is nearly all that there will be.
const LAST: usize = 10;
/// Of the load while a route is edited.
const CONNECTIONS: usize = 4;
/// Between edits.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two looks.
const POLL: Duration = Duration::from_millis(1);

pub(super) async fn run(site: &Site, sizes: Sizes) -> anyhow::Result<Vec<Table>> {
    let mut rig = site.start("route-probe").await?;
    let backend = serve(site, SERVICE).await?;
    let probed = probe(site, &mut rig, sizes.probed).await?;
    rig.is_alive()?;
    let changed = change(site, &rig, sizes).await?;
    rig.is_alive()?;
    drop(backend);
    Ok(vec![probed, changed])
}

/// A Service with one endpoint that answers.
pub(super) async fn serve(site: &Site, name: &str) -> anyhow::Result<Backend> {
    let backend = Backend::start(name)?;
    let endpoint = Endpoint { pod: backend.name.clone(), address: backend.address(), ready: true };
    site.store.create(Kind::Service, service(name)).await?;
    site.store.create(Kind::Slice, slice(name, name, backend.port, &[endpoint])).await?;
    Ok(backend)
}

async fn probe(site: &Site, rig: &mut Rig, count: usize) -> anyhow::Result<Table> {
    let mut row = Row::new("Pontoon");
    rig.push_memory(&mut row, "before")?;
    let used = rig.used()?;
    let [mut after_created, mut after_asked, mut after_told, mut told] =
        std::array::from_fn(|_| Vec::with_capacity(count));
    let (mut before_success, mut after_success) = (0, 0);
    for number in 0..count {
        let object = route(number, &probed_rules(number, SERVICE));
        let name = object["metadata"]["name"].as_str().context("no name")?.to_owned();
        let (host, path) = (host(number), path(number));
        let asked = Instant::now();
        site.store.create(Kind::Route, object).await?;
        let created = Instant::now();
        before_success += rig.until_status(&host, &path, StatusCode::OK).await?;
        let in_force = Instant::now();
        let since = rig.seen.told_of(&name).await?;
        after_created.push(in_force - created);
        after_asked.push(in_force - asked);
        after_told.push(in_force.saturating_duration_since(since));
        told.push(since.saturating_duration_since(created));
        for _ in 0..CONFIRM {
            if let Some(fault) = rig.caller.fault(&host, &path).await {
                eprintln!("after its first success: {fault}");
                after_success += 1;
            }
        }
    }
    rig.push_cpu(&mut row, used, count, "route")?;
    // None was lost on the way.
    for number in 0..count {
        if let Some(fault) = rig.caller.fault(&host(number), &path(number)).await {
            eprintln!("in the end: {fault}");
            after_success += 1;
        }
    }
    let last = count.saturating_sub(count / LAST);
    let late = after_created.get(last..).unwrap_or_default().to_vec();
    push_times(&mut row, "in force after its creation:", after_created);
    push_times(&mut row, &format!("the last {}:", late.len()), late);
    push_times(&mut row, "in force after it was asked for:", after_asked);
    push_times(&mut row, "told of by the API server after its creation:", told);
    push_times(&mut row, "in force after it was told of:", after_told);
    row.push("errors before the first success", before_success as f64);
    row.push("errors after the first success", f64::from(after_success));
    rig.push_memory(&mut row, "after")?;
    rig.push_peaks(&mut row)?;
    let title = format!("Route probe: {count} routes added one by one, each called at once");
    Ok(table("route-probe", title, "in force after its creation: p99, ms", row))
}

/// The first route, with and without a header that tells its versions apart.
async fn change(site: &Site, rig: &Rig, sizes: Sizes) -> anyhow::Result<Table> {
    let mut row = Row::new("Pontoon");
    let (host, path) = (host(0), path(0));
    let load = Load::start(&rig.caller, vec![(host.clone(), path.clone())], CONNECTIONS)?;
    let used = rig.used()?;
    let mut times = Vec::with_capacity(sizes.edits);
    for edit in 0..sizes.edits {
        let version = edit.to_string();
        let mut object = route(0, &plain_rules(SERVICE, Some(&version)));
        // To server-side apply a host is one of a set that others own, too.
        object["spec"]["hostnames"] = serde_json::json!([host]);
        site.store.apply(Kind::Route, &object).await?;
        let edited = Instant::now();
        until_version(rig, &host, &path, &version).await?;
        times.push(edited.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    rig.push_cpu(&mut row, used, sizes.edits, "edit, the load's included")?;
    let outcome = load.finish().await;
    push_times(&mut row, "in force after its edit:", times);
    row.push("requests under way", outcome.requests as f64);
    row.push("errors", outcome.failed as f64);
    let title =
        format!("Route change: one of {} routes edited {} times under load", sizes.probed, sizes.edits);
    Ok(table("route-change", title, "in force after its edit: p99, ms", row))
}

/// Asks until the answer is by this version of the route.
pub(super) async fn until_version(rig: &Rig, host: &str, path: &str, version: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = rig.caller.get(host, path).await.with_context(|| format!("{host}{path}"))?;
        if answer.header(VERSION) == Some(version) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "waited for version {version} of {host}{path}: {answer:?}");
        tokio::time::sleep(POLL).await;
    }
}
