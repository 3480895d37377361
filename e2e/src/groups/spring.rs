//! Real Spring Cloud applications of two generations, with Pontoon in the place of their Eureka server and of
//! their gateway. `inventory` runs on both sides and moves from the Hoxton instances to the Boot 3 ones under load.
//!
//! With the argument `netflix` the cases that concern a registry alone run against a real Netflix server: what is
//! asked of ours must hold for it too; with `peers`, the cases of both as each other's peers alone.

mod apps;
mod moving;
mod peering;
mod registering;

use std::net::SocketAddr;
use std::path::Path;

use pontoon_e2e::pontoon::{ControlPlane, Gateway};
use pontoon_e2e::process::Process;
use pontoon_e2e::report::Report;
use pontoon_e2e::spring::{App, Generation, Intervals};
use pontoon_e2e::wait::{get, until};
use pontoon_e2e::{load, ports};

use self::apps::Apps;
use super::place;

/// Runs the group. True: all cases passed.
pub(crate) async fn run(arguments: Vec<String>) -> anyhow::Result<bool> {
    let mut report = Report::new("spring")?;
    let folder = report.folder().to_owned();
    let jars = place("PONTOON_E2E_SPRING")?;
    let asked = |what: &str| arguments.iter().any(|argument| argument == what);
    if asked("netflix") {
        with_netflix(&mut report, &jars, &folder).await?;
    } else if asked("peers") {
        peering::cases(&mut report, &jars, &folder).await;
    } else {
        with_pontoon(&mut report, &jars, &folder).await?;
        peering::cases(&mut report, &jars, &folder).await;
    }
    report.finish()
}

async fn with_netflix(report: &mut Report, jars: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut server =
        App::start(jars, Generation::Modern, "eureka-server", "eureka-server", "", Intervals::SHORT, folder)?;
    server.started().await?;
    let mut apps = Apps::start(jars, SocketAddr::from(([127, 0, 0, 1], server.port)), folder).await?;
    registering::cases(report, &mut apps).await;
    Ok(())
}

async fn with_pontoon(report: &mut Report, jars: &Path, folder: &Path) -> anyhow::Result<()> {
    let port = ports::free()?;
    let plane = ControlPlane::prepare(&place("PONTOON_E2E_PONTOON")?, folder, &objects(port))?;
    let mut serving: Process = plane.start().await?;
    let gateway = Gateway::start(&place("PONTOON_E2E_PROXY")?, folder, "default/edge", plane.xds, 1).await?;
    let mut apps = Apps::start(jars, plane.eureka, folder).await?;
    registering::cases(report, &mut apps).await;

    let url = format!("http://127.0.0.1:{port}/stock/1");
    until("the gateway to reach inventory", apps::SEEN_WITHIN, async || get(&url).await).await?;
    let load = load::Load::start(load::Plan {
        url,
        rate: 50,
        users: 500,
        user_header: "x-user-id",
        timeout: std::time::Duration::from_secs(10),
    })?;
    moving::cases(report, &plane, &mut serving, &mut apps, &load).await;
    report
        .case("over the whole run no request failed", async {
            let samples = load.finish().await?;
            load::none_failed(&samples)?;
            Ok(format!("0 of {} failed", samples.len()))
        })
        .await;
    drop(gateway);
    Ok(())
}

fn objects(port: u16) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: pontoon
  listeners:
  - {{name: http, port: {port}, protocol: HTTP}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - matches:
    - path: {{type: PathPrefix, value: /stock}}
    backendRefs:
    - {{name: inventory}}
---
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {{name: inventory}}
spec:
  service: inventory
  legacy: {{eureka: {{application: inventory, selector: {{lab: legacy}}}}}}
  target: {{eureka: {{application: inventory, selector: {{lab: modern}}}}}}
  key: {{header: x-user-id}}
"
    )
}
