//! Route scale: many Services, each with endpoints and a route, and then endpoints that come and go: what do both
//! planes hold and use, and how soon is a change in force?

use std::net::Ipv4Addr;
use std::time::Duration;

use reqwest::StatusCode;
use tokio::time::Instant;

use super::client::Load;
use super::objects::{Endpoint, host, path, plain_rules, route, service, slice};
use super::probe::{serve, until_version};
use super::rig::Site;
use super::store::Kind;
use super::{Sizes, push_times, table};
use crate::report::{Row, Table};

/// The Service that answers; the endpoints of the others are nowhere.
const SERVICE: &str = "backend";
/// What those listen on.
const PORT: u16 = 8080;
/// Slices that change in a second, and edits of a route.
const CHANGES: u32 = 50;
const EDITS: u32 = 2;
const CONNECTIONS: usize = 2;
/// How long it is looked at when nothing changes.
const QUIET: Duration = Duration::from_secs(10);

pub(super) async fn run(site: &Site, sizes: Sizes) -> anyhow::Result<Table> {
    let mut rig = site.start("route-scale").await?;
    let _backend = serve(site, SERVICE).await?;
    let mut row = Row::new("Pontoon");
    rig.push_memory(&mut row, "with nothing")?;

    let used = rig.used()?;
    let count = sizes.services;
    let services = (0..count).map(|number| service(&name(number))).collect();
    let mut took = site.store.create_all(Kind::Service, services).await?;
    let slices = (0..count).map(|number| endpoints(sizes, number, 0)).collect();
    took += site.store.create_all(Kind::Slice, slices).await?;
    let routes = (0..count).map(|number| route(number, &plain_rules(&name(number), None))).collect();
    took += site.store.create_all(Kind::Route, routes).await?;
    row.push("making all took, s", took.as_secs_f64());
    // The last of all is one that answers.
    site.store.create(Kind::Route, route(count, &plain_rules(SERVICE, None))).await?;
    let made = Instant::now();
    rig.until_status(&host(count), &path(count), StatusCode::OK).await?;
    row.push("all in force after, ms", super::milliseconds(made.elapsed()));
    let accepted = rig.seen.until("all routes to be accepted", |state| {
        state.routes.len() == count + 1 && state.routes.values().all(|route| route.accepted)
    });
    row.push("all accepted after, s", accepted.await?.duration_since(made).as_secs_f64());
    rig.push_cpu(&mut row, used, count, "route with its Service")?;
    tokio::time::sleep(QUIET / 2).await;
    let used = rig.used()?;
    tokio::time::sleep(QUIET).await;
    rig.push_share(&mut row, used, "when nothing changes")?;
    rig.push_memory(&mut row, "with all")?;

    let load = Load::start(&rig.caller, vec![(host(count), path(count))], CONNECTIONS)?;
    let (used, began) = (rig.used()?, Instant::now());
    let (mut ticks, mut changes) = (tokio::time::interval(Duration::from_secs(1) / CHANGES), 0_u32);
    let mut times = Vec::new();
    while began.elapsed() < sizes.churn {
        ticks.tick().await;
        changes += 1;
        // Each time another of the Services has other endpoints.
        let number = (changes as usize).wrapping_mul(7919) % count;
        site.store.apply(Kind::Slice, &endpoints(sizes, number, changes)).await?;
        if changes.is_multiple_of(CHANGES / EDITS) {
            let version = changes.to_string();
            site.store.apply(Kind::Route, &route(count, &plain_rules(SERVICE, Some(&version)))).await?;
            let edited = Instant::now();
            until_version(&rig, &host(count), &path(count), &version).await?;
            times.push(edited.elapsed());
        }
    }
    rig.push_share(&mut row, used, "while endpoints change")?;
    row.push("changes of a Service's endpoints a second", f64::from(changes) / began.elapsed().as_secs_f64());
    let outcome = load.finish().await;
    push_times(&mut row, "an edit in force after", times);
    row.push("requests under way", outcome.requests as f64);
    row.push("errors", outcome.failed as f64);
    rig.push_memory(&mut row, "after")?;
    rig.push_peaks(&mut row)?;
    rig.is_alive()?;
    let title = format!(
        "Route scale: {count} routes, {count} Services, {} endpoints that come and go",
        count * sizes.endpoints
    );
    Ok(table("route-scale", title, "proxy, MiB with all", row))
}

fn name(number: usize) -> String {
    format!("service-{number}")
}

/// The endpoints of a Service; one of them is another in each round.
fn endpoints(sizes: Sizes, number: usize, round: u32) -> serde_json::Value {
    let all = (0..sizes.endpoints).map(|index| {
        let round = if index == 0 { round } else { 0 };
        let address = Ipv4Addr::from_bits(
            Ipv4Addr::new(10, 128, 0, 0).to_bits() + (number * 64 + index) as u32 + (round % 50) * 1_000_000,
        );
        Endpoint { pod: format!("{}-{index}-{round}", name(number)), address, ready: true }
    });
    slice(&name(number), &name(number), PORT, &all.collect::<Vec<_>>())
}
