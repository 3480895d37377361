//! `inventory` moves under load: shares, instances that stop and die, a control plane that restarts.

use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::load::{Load, none_failed, on_their_side};
use pontoon_e2e::moving::{CUTOVER, HALF, STEPS, Step};
use pontoon_e2e::pontoon::ControlPlane;
use pontoon_e2e::process::Process;
use pontoon_e2e::report::Report;
use pontoon_e2e::wait::{get, until};
use tokio::time::Instant;

use super::apps::{Apps, SEEN_WITHIN};
use super::registering::known_inventory;

/// Requests that are judged at each share: each of the 500 users, and some more.
const REQUESTS: usize = 600;

pub(super) async fn cases(
    report: &mut Report,
    plane: &ControlPlane,
    serving: &mut Process,
    apps: &mut Apps,
    load: &Load,
) {
    for step in STEPS {
        report.case(&step.name(), moved(plane, load, step)).await;
    }
    report.case("both sides take half", moved(plane, load, HALF)).await;
    report.case("an instance that is stopped (SIGTERM) costs no request", stopped(apps, load)).await;
    report.case("an instance that is killed (SIGKILL) costs no request", killed(apps, load)).await;
    report.case("clients lose sight of both", lost_sight(apps)).await;
    report
        .case("a restart of the control plane costs no request", restarted(plane, serving, apps, load, false))
        .await;
    report
        .case("a crash of the control plane costs no request", restarted(plane, serving, apps, load, true))
        .await;
    report.case("after the restart the migration goes on", moved(plane, load, CUTOVER)).await;
}

async fn moved(plane: &ControlPlane, load: &Load, step: Step) -> anyhow::Result<String> {
    let command = step.command("inventory");
    pontoon_e2e::moving::moved(load, REQUESTS, step.share, plane.run(&command)).await
}

/// Stops a legacy instance and follows the load until it is gone and for a while after.
async fn stopped(apps: &mut Apps, load: &Load) -> anyhow::Result<String> {
    let victim = apps.legacy.first_mut().context("no legacy instance")?;
    let port = victim.app.port.to_string();
    let from = Instant::now();
    victim.app.process.terminate()?;
    victim.app.process.ended(Duration::from_secs(60)).await?;
    let ended = from.elapsed();
    load.next(200).await?;
    ensure!(victim.tap.count(|e| e.is_cancel()) > 0, "it did not deregister");
    let (ended, unread) = (ended.as_millis(), load.forget_unread(from)?);
    summary(
        load,
        from,
        &port,
        &format!("ended after {ended} ms, {unread} answers without a look at the request"),
    )
}

async fn killed(apps: &mut Apps, load: &Load) -> anyhow::Result<String> {
    let victim = apps.modern.first_mut().context("no modern instance")?;
    let port = victim.app.port.to_string();
    let from = Instant::now();
    victim.app.process.kill()?;
    load.next(300).await?;
    let cut = load.forget_cut(from)?;
    summary(load, from, &port, &format!("killed, in {cut} answers"))
}

fn summary(load: &Load, from: Instant, port: &str, what: &str) -> anyhow::Result<String> {
    let seen = load.since(from);
    none_failed(&seen)?;
    let last = seen
        .iter()
        .filter(|sample| sample.outcome.as_ref().is_ok_and(|answer| answer.port == port))
        .map(|sample| sample.sent.duration_since(from).as_millis())
        .max();
    Ok(format!("{what}; {} requests, 0 failed; it answered last after {} ms", seen.len(), last.unwrap_or(0)))
}

async fn lost_sight(apps: &Apps) -> anyhow::Result<String> {
    let gone = [&apps.legacy[0], &apps.modern[0]].map(|one| one.app.port.to_string());
    for one in &apps.orders {
        until(one.name(), SEEN_WITHIN, async || {
            let known = known_inventory(one).await?;
            ensure!(
                !gone.iter().any(|port| known.contains(port)),
                "it knows {known:?}, and {gone:?} are gone"
            );
            ensure!(known.len() == 2, "it knows {known:?}");
            Ok(())
        })
        .await?;
    }
    Ok(String::new())
}

/// Stops or kills the control plane, looks at what passes without it, starts it again: nothing that it knew is forgotten,
/// and the gateway comes back to it.
async fn restarted(
    plane: &ControlPlane,
    serving: &mut Process,
    apps: &Apps,
    load: &Load,
    killed: bool,
) -> anyhow::Result<String> {
    let from = Instant::now();
    if killed {
        serving.kill()?;
    } else {
        serving.terminate()?;
    }
    serving.ended(Duration::from_secs(30)).await?;
    let without = load.next(150).await?;
    none_failed(&without)?;
    on_their_side(&without, 5000)?;
    *serving = plane.start().await?;
    let registry = get(&format!("http://{}/eureka/apps", plane.eureka)).await?;
    let remaining = apps.legacy[1..].iter().chain(&apps.modern[1..]).chain(&apps.orders);
    for one in remaining {
        let port = one.app.port.to_string();
        ensure!(registry.contains(&port), "{} is forgotten: {registry}", one.name());
    }
    until("the gateway to come back", Duration::from_secs(60), async || {
        let proxies = plane.run(&["proxies"]).await?;
        ensure!(proxies.contains("e2e-gateway"), "not yet: {proxies}");
        Ok(())
    })
    .await?;
    let after = load.next(REQUESTS).await?;
    none_failed(&load.since(from))?;
    on_their_side(&after, 5000)?;
    Ok(format!("{} requests, 0 failed", load.since(from).len()))
}
