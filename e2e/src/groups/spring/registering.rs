//! What the clients ask of a registry: register, renew, fetch, delta; and what they find through it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use pontoon_e2e::load::Answer;
use pontoon_e2e::report::Report;
use pontoon_e2e::spring::Intervals;
use pontoon_e2e::wait::{get, until};

use super::apps::{Apps, SEEN_WITHIN, Tapped};

/// Renewals and deltas that are watched for a steady state.
const ROUNDS: usize = 5;

pub(super) async fn cases(report: &mut Report, apps: &mut Apps) {
    report.case("every client finds every instance", everybody_is_known(apps)).await;
    for one in &apps.orders {
        let name = format!("{} calls every inventory instance through its own balancer", one.name());
        report.case(&name, balanced(one, apps.inventory_ports())).await;
    }
    report.case("clients renew and fetch deltas, and nothing else", steady(apps)).await;
    report.case("the clients log no error", no_errors(apps)).await;
}

async fn everybody_is_known(apps: &Apps) -> anyhow::Result<String> {
    let expected = apps.inventory_ports();
    for one in &apps.orders {
        until(one.name(), SEEN_WITHIN, async || {
            let known = known_inventory(one).await?;
            ensure!(known == expected, "it knows {known:?}, not {expected:?}");
            Ok(())
        })
        .await?;
    }
    Ok(format!("{} instances, 2 clients", expected.len()))
}

/// The ports of the `inventory` instances that a client's library knows.
pub(super) async fn known_inventory(orders: &Tapped) -> anyhow::Result<BTreeSet<String>> {
    let known: serde_json::Value = serde_json::from_str(&get(&orders.app.url("/known")).await?)?;
    let instances = known["inventory"].as_array().context("it knows no inventory")?;
    Ok(instances.iter().filter_map(|one| Some(one.as_str()?.rsplit_once(':')?.1.to_owned())).collect())
}

async fn balanced(orders: &Tapped, expected: BTreeSet<String>) -> anyhow::Result<String> {
    // The balancer may have cached an earlier list.
    until("its balancer to know all", SEEN_WITHIN, async || {
        let (seen, failed) = ports_called(orders, 12).await?;
        ensure!(failed == 0 && seen == expected, "it called {seen:?} of {expected:?}, {failed} failed");
        Ok(())
    })
    .await?;
    let (seen, failed) = ports_called(orders, 100).await?;
    ensure!(failed == 0, "{failed} of 100 calls failed");
    ensure!(seen == expected, "it called {seen:?}, not {expected:?}");
    Ok("100 calls, 0 failed".to_owned())
}

async fn ports_called(orders: &Tapped, calls: usize) -> anyhow::Result<(BTreeSet<String>, usize)> {
    let (mut seen, mut failed) = (BTreeSet::new(), 0);
    for _ in 0..calls {
        match get(&orders.app.url("/plain/1")).await {
            Ok(body) => seen.insert(serde_json::from_str::<Answer>(&body)?.port),
            Err(_) => {
                failed += 1;
                false
            }
        };
    }
    Ok((seen, failed))
}

/// Each client registered, renews, and lives on deltas: after the first delta there is no full fetch, so the
/// hash codes agreed every time; and no call was refused.
async fn steady(apps: &Apps) -> anyhow::Result<String> {
    let round = Duration::from_secs(u64::from(Intervals::SHORT.fetch_s.max(Intervals::SHORT.renew_s)));
    let (mut deltas, mut renewals, mut full) = (0, 0, 0);
    for one in apps.all() {
        let before = (one.tap.count(|e| e.is_delta()), one.tap.count(|e| e.is_renew()));
        until("rounds of renewals and deltas", round * 10 * u32::try_from(ROUNDS)?, async || {
            let (d, r) =
                (one.tap.count(|e| e.is_delta()) - before.0, one.tap.count(|e| e.is_renew()) - before.1);
            ensure!(d >= ROUNDS && r >= ROUNDS, "{}: {d} deltas, {r} renewals", one.name());
            Ok(())
        })
        .await?;
        let exchanges = one.tap.exchanges();
        // A renewal may go out before the registration on a slow machine, and is rightly answered 404.
        let registered = exchanges
            .iter()
            .position(|e| e.is_register() && e.is_good())
            .with_context(|| format!("{} did not register", one.name()))?;
        if let Some(refused) = exchanges[registered..].iter().find(|e| !e.is_good()) {
            bail!("{}: {} {} was answered {:?}", one.name(), refused.method, refused.path, refused.status);
        }
        let from = exchanges.iter().position(|e| e.is_delta()).unwrap_or_default();
        let again = exchanges[from..].iter().filter(|e| e.is_full_fetch()).count();
        ensure!(again == 0, "{}: {again} full fetches after the first delta", one.name());
        deltas += exchanges.iter().filter(|e| e.is_delta()).count();
        renewals += exchanges.iter().filter(|e| e.is_renew()).count();
        full += exchanges.iter().filter(|e| e.is_full_fetch()).count();
    }
    Ok(format!("{full} full fetches at the start, then {deltas} deltas, {renewals} renewals, 0 refused"))
}

/// No line of level ERROR, and no warning of the Eureka client; but that its own thread was late, which a slow
/// machine is to blame for.
pub(super) async fn no_errors(apps: &Apps) -> anyhow::Result<String> {
    for one in apps.all() {
        let log = one.app.process.log()?;
        let of_the_client = |line: &str| line.contains("c.n.d") || line.contains("c.netflix.discovery");
        let bad = log.lines().find(|line| {
            let late = line.contains("task supervisor timed out");
            line.contains(" ERROR ") || (line.contains(" WARN ") && of_the_client(line) && !late)
        });
        if let Some(bad) = bad {
            bail!("{}: {bad}", one.name());
        }
    }
    Ok(format!("{} logs", apps.all().count()))
}
