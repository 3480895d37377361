//! Our proxy, configured by go-control-plane alone: one proxy in delta and one in state of the world, each behind a
//! gate that can do to its connection what a broken server does. Both serve a load over the whole run.

mod changes;
mod driven;
mod faults;
mod server;
mod world;

use std::time::Duration;

use pontoon_e2e::inventory::Instance;
use pontoon_e2e::load::none_failed;
use pontoon_e2e::report::Report;

use self::driven::{Driven, VARIANTS};
use self::server::Server;
use super::place;

/// For a configuration to come through and be served; also after a wait of the client's, 10 s at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests a second to each proxy: a debug build keeps up with them on a busy machine.
const RATE: u32 = 40;
/// For grpc-go to lose its: it sends a client away with the third ping, 10 s after each other.
const PINGS: Duration = Duration::from_secs(60);

/// Runs the group. True: all cases passed.
pub(crate) async fn run(_arguments: Vec<String>) -> anyhow::Result<bool> {
    let mut report = Report::new("go-control-plane")?;
    let folder = report.folder().to_owned();
    let mut server = Server::start(&place("PONTOON_E2E_GO_CONTROL_PLANE")?, &folder).await?;
    let program = place("PONTOON_E2E_PROXY")?;
    let instances = [Instance::start("legacy").await?, Instance::start("modern").await?];
    // Nothing changes at this server, so that pings are all that the proxy sends.
    let quiet = Server::start(&place("PONTOON_E2E_GO_CONTROL_PLANE")?, &folder).await?;
    let mut idle = Driven::start("idle", &program, &folder, &quiet, &instances, 1).await?;
    let mut proxies = Vec::new();
    for variant in VARIANTS {
        proxies.push(Driven::start(variant, &program, &folder, &server, &instances, RATE).await?);
    }
    changes::cases(&mut report, &server, &mut proxies, &instances).await;
    faults::cases(&mut report, &mut server, &mut proxies).await;
    report.case("a server that wants fewer pings gets fewer", idle.pings_less(PINGS)).await;
    for proxy in proxies {
        let name = format!("{}: over the whole run no request failed", proxy.variant);
        report
            .case(&name, async {
                let samples = proxy.load.finish().await?;
                none_failed(&samples)?;
                Ok(format!("0 of {} failed", samples.len()))
            })
            .await;
    }
    report.finish()
}
