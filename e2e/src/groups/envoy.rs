//! Envoy as the gateway, configured by our control plane alone. Three gateways stand side by side over the same
//! routes: an Envoy in delta, an Envoy in state of the world, and our own proxy. `inventory` moves under load through
//! all three, and each user is answered by the same side everywhere.

mod dumps;
mod gateways;
mod kept;
mod moving;
mod restart;

use std::time::Duration;

use anyhow::ensure;
use pontoon_e2e::inventory::Instance;
use pontoon_e2e::load::{Load, Plan, none_failed};
use pontoon_e2e::pontoon::{ControlPlane, Gateway};
use pontoon_e2e::report::Report;
use pontoon_e2e::wait::{get, until};

use self::gateways::{Envoy, Ports, objects};
use super::place;

/// For a configuration to come through and be served.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the group. True: all cases passed.
pub(crate) async fn run(_arguments: Vec<String>) -> anyhow::Result<bool> {
    let mut report = Report::new("envoy")?;
    let folder = report.folder().to_owned();
    let ports = Ports::take()?;
    let certified = rcgen::generate_simple_self_signed(vec!["shop.example".to_owned()])?;
    let pontoon = place("PONTOON_E2E_PONTOON")?;
    let plane = ControlPlane::prepare(&pontoon, &folder, &objects(&ports, &certified, None))?;
    let mut serving = plane.start().await?;
    let mut instances = Vec::new();
    for side in ["legacy", "legacy", "modern", "modern"] {
        let instance = Instance::start(side).await?;
        instance.register(plane.eureka).await?;
        instances.push(instance);
    }
    let program = place("PONTOON_E2E_ENVOY")?;
    let mut envoys = Vec::new();
    for variant in gateways::VARIANTS {
        envoys.push(Envoy::start(&program, &plane, &folder, variant).await?);
    }
    let own = Gateway::start(&place("PONTOON_E2E_PROXY")?, &folder, "default/own", plane.xds, 1).await?;

    let mut loads = Vec::new();
    for port in ports.http() {
        let url = format!("http://127.0.0.1:{port}/stock/1");
        until("the gateway to reach inventory", PATIENCE, async || get(&url).await).await?;
        loads.push(Load::start(Plan {
            url,
            rate: 150,
            users: 300,
            user_header: "x-user-id",
            timeout: Duration::from_secs(10),
        })?);
    }
    for (variant, port) in gateways::VARIANTS.into_iter().zip(ports.https) {
        report
            .case(
                &format!("{variant}: a certificate comes by SDS"),
                gateways::tls(port, &certified, &plane, variant),
            )
            .await;
    }
    for envoy in &envoys {
        let name = format!("{}: the dynamic sections of /config_dump have Envoy's shape", envoy.variant);
        report.case(&name, dumps::same(envoy.admin, own.admin)).await;
    }
    moving::cases(&mut report, &plane, &ports, &loads).await;
    report
        .case("an instance that leaves the registry costs no request", left(&plane, &instances, &loads))
        .await;
    report
        .case(
            "what Envoy refuses is shown with node, resource and reason, and ends with its cause",
            gateways::refused(&plane, &folder, &ports, &certified, &envoys),
        )
        .await;
    let beside = objects(&ports, &certified, None);
    report
        .case(
            "while Envoy refuses routes it serves the earlier ones, and nothing that they lead to goes",
            kept::kept(&plane, &folder, &beside, &ports, &envoys),
        )
        .await;
    let admins: Vec<_> = envoys.iter().map(|envoy| envoy.admin).chain([own.admin]).collect();
    report
        .case(
            "a setting that changes while the control plane is away is in force after it comes back",
            restart::changed(&plane, &mut serving, &folder, &beside, &admins, &loads),
        )
        .await;
    for ((gateway, _), load) in ports.gateways().into_iter().zip(loads) {
        report
            .case(&format!("{gateway}: over the whole run no request failed"), async {
                let samples = load.finish().await?;
                none_failed(&samples)?;
                Ok(format!("0 of {} failed", samples.len()))
            })
            .await;
    }
    for envoy in &mut envoys {
        envoy.process.check_alive()?;
    }
    report.finish()
}

/// It says goodbye, then it is gone: nobody is sent there any more once all gateways have the change.
async fn left(plane: &ControlPlane, instances: &[Instance], loads: &[Load]) -> anyhow::Result<String> {
    let Some(gone) = instances.first() else { anyhow::bail!("no instance") };
    pontoon_e2e::inventory::cancel(plane.eureka, "inventory", gone.address).await?;
    let port = gone.address.port().to_string();
    for load in loads {
        until("requests without the instance", PATIENCE, async || {
            let seen = load.next(60).await?;
            none_failed(&seen)?;
            let met =
                seen.iter().filter(|s| s.outcome.as_ref().is_ok_and(|answer| answer.port == port)).count();
            ensure!(met == 0, "{met} of {} met it", seen.len());
            Ok(())
        })
        .await?;
    }
    Ok(String::new())
}
