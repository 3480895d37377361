//! `inventory` moves through three gateways at once, under load, and back.

use std::collections::BTreeMap;

use anyhow::ensure;
use pontoon_e2e::load::{Load, Sample, none_failed, on_their_side};
use pontoon_e2e::pontoon::ControlPlane;
use pontoon_e2e::report::Report;
use tokio::time::Instant;

use super::gateways::Ports;

/// Requests that are judged at each share and gateway: each of the 300 users, and some more.
const REQUESTS: usize = 350;
/// The stages in order, and the share in hundredths of a percent that the target has in each.
const STEPS: [(&[&str], u64); 8] = [
    (&["migration", "show", "inventory"], 0),
    (&["migration", "set", "inventory", "--stage", "canary"], 0),
    (&["migration", "set", "inventory", "--stage", "split", "--weight", "5%"], 500),
    (&["migration", "set", "inventory", "--weight", "33.33%"], 3333),
    (&["migration", "set", "inventory", "--stage", "cutover"], 10_000),
    (&["migration", "rollback", "inventory", "--to", "split"], 3333),
    (&["migration", "set", "inventory", "--weight", "5%"], 500),
    (&["migration", "rollback", "inventory", "--to", "observe"], 0),
];

pub(super) async fn cases(report: &mut Report, plane: &ControlPlane, ports: &Ports, loads: &[Load]) {
    for (command, share) in STEPS {
        let name =
            format!("{}: everywhere the same users are answered by the target", command[1..].join(" "));
        report.case(&name, moved(plane, ports, loads, command, share)).await;
    }
}

/// From the moment at which the command says that it is in force, each user is on the side of their bucket.
async fn moved(
    plane: &ControlPlane,
    ports: &Ports,
    loads: &[Load],
    command: &[&str],
    share: u64,
) -> anyhow::Result<String> {
    let from = Instant::now();
    plane.run(command).await?;
    let (in_force, took) = (Instant::now(), from.elapsed());
    let mut everywhere: Vec<BTreeMap<String, String>> = Vec::new();
    for load in loads {
        let seen = load.next_since(in_force, REQUESTS).await?;
        none_failed(&load.since(from))?;
        on_their_side(&seen, share)?;
        everywhere.push(sides(&seen));
    }
    let Some((first, others)) = everywhere.split_first() else { anyhow::bail!("no load") };
    ensure!(first.len() == 300, "only {} users were answered", first.len());
    for other in others {
        ensure!(first == other, "the gateways do not agree");
    }
    let canary = command.contains(&"canary");
    for (gateway, port) in ports.gateways().into_iter().filter(|_| canary) {
        let side = of_canary(port).await?;
        ensure!(side.contains("modern"), "{gateway} sent the canary's user to {side}");
    }
    let target = first.values().filter(|side| *side == "modern").count();
    Ok(format!(
        "in force after {} ms; {target} of {} users on the target's side",
        took.as_millis(),
        first.len()
    ))
}

/// The side of each user.
fn sides(samples: &[Sample]) -> BTreeMap<String, String> {
    let answered = samples.iter().filter_map(|sample| Some((sample, sample.outcome.as_ref().ok()?)));
    answered.map(|(sample, answer)| (sample.user.clone(), answer.side.clone())).collect()
}

/// What a request that matches the canary is answered with.
async fn of_canary(port: u16) -> anyhow::Result<String> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let request = client.get(format!("http://127.0.0.1:{port}/stock/1")).header("x-canary", "always");
    Ok(request.header("x-user-id", "user-0").send().await?.error_for_status()?.text().await?)
}
