//! Attached routes: many added and removed at once. When is the status right, and how often is it written?

use super::objects::{plain_rules, route, route_name, service};
use super::rig::Site;
use super::store::Kind;
use super::{Sizes, milliseconds, table};
use crate::report::{Row, Table};

const SERVICE: &str = "backend";

pub(super) async fn run(site: &Site, sizes: Sizes) -> anyhow::Result<Table> {
    let mut rig = site.start("attached-routes").await?;
    let count = sizes.attached;
    site.store.create(Kind::Service, service(SERVICE)).await?;
    let mut row = Row::new("Pontoon");

    let (used, before) = (rig.used()?, rig.seen.state().gateway_writes);
    let routes = (0..count).map(|number| route(number, &plain_rules(SERVICE, None))).collect();
    let took = site.store.create_all(Kind::Route, routes).await?;
    let made = tokio::time::Instant::now();
    row.push("adding all took, s", took.as_secs_f64());
    let is_right = |attached: Option<u64>, wanted: usize| attached == u64::try_from(wanted).ok();
    let right = rig.seen.until("all routes to be counted", |state| is_right(state.attached, count)).await?;
    row.push("added: counted after, ms", milliseconds(right.duration_since(made)));
    let said = rig.seen.until("all routes to be accepted", |state| {
        state.routes.len() == count && state.routes.values().all(|route| route.accepted)
    });
    let said = said.await?;
    row.push("added: accepted after, ms", milliseconds(said.duration_since(made)));
    rig.push_cpu(&mut row, used, count, "route added")?;
    // What is written needlessly comes with what is written next.
    tokio::time::sleep(super::rig::SETTLE).await;
    let state = rig.seen.state();
    row.push("added: writes of the Gateway", (state.gateway_writes - before) as f64);
    let writes = || state.routes.values().map(|route| route.writes);
    row.push("added: writes of a route, mean", writes().sum::<usize>() as f64 / count as f64);
    row.push("added: writes of a route, most", writes().max().unwrap_or_default() as f64);

    let (used, before) = (rig.used()?, state.gateway_writes);
    let took = site.store.delete_all(Kind::Route, (0..count).map(route_name).collect()).await?;
    let gone = tokio::time::Instant::now();
    row.push("removing all took, s", took.as_secs_f64());
    let right = rig.seen.until("no route to be counted", |state| is_right(state.attached, 0)).await?;
    row.push("removed: counted after, ms", milliseconds(right.duration_since(gone)));
    rig.push_cpu(&mut row, used, count, "route removed")?;
    tokio::time::sleep(super::rig::SETTLE).await;
    row.push("removed: writes of the Gateway", (rig.seen.state().gateway_writes - before) as f64);
    rig.is_alive()?;
    let title = format!("Attached routes: {count} added and removed");
    Ok(table("attached-routes", title, "added: accepted after, ms", row))
}
