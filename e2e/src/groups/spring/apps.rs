//! The six applications, each behind a tap of its own on the way to the registry.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use pontoon_e2e::spring::{App, Generation, Intervals};
use pontoon_e2e::tap::Tap;

/// A change is seen by every client: its fetch interval, the server cache of a real Netflix server (30 s), and
/// the cache of the client-side balancer (35 s in Spring Cloud LoadBalancer).
pub(super) const SEEN_WITHIN: Duration = Duration::from_secs(120);

/// One application and what it says to its registry.
pub(super) struct Tapped {
    pub app: App,
    pub tap: Tap,
}

/// All of them.
pub(super) struct Apps {
    pub legacy: Vec<Tapped>,
    pub modern: Vec<Tapped>,
    pub orders: Vec<Tapped>,
}

impl Apps {
    /// Starts them together and waits for all.
    pub(super) async fn start(jars: &Path, registry: SocketAddr, folder: &Path) -> anyhow::Result<Apps> {
        let start = async |generation: Generation, application: &str, name: &str| {
            let tap = Tap::start(registry).await?;
            let url = format!("http://{}/eureka/", tap.address);
            let app = App::start(jars, generation, application, name, &url, Intervals::SHORT, folder)?;
            anyhow::Ok(Tapped { app, tap })
        };
        let (legacy, modern) = (Generation::Legacy, Generation::Modern);
        let mut apps = Apps { legacy: Vec::new(), modern: Vec::new(), orders: Vec::new() };
        for number in 1..=2 {
            apps.legacy.push(start(legacy, "inventory", &format!("legacy-inventory-{number}")).await?);
            apps.modern.push(start(modern, "inventory", &format!("modern-inventory-{number}")).await?);
        }
        apps.orders.push(start(legacy, "orders", "legacy-orders").await?);
        apps.orders.push(start(modern, "orders", "modern-orders").await?);
        for one in apps.all_mut() {
            one.app.started().await?;
        }
        Ok(apps)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Tapped> {
        self.legacy.iter().chain(&self.modern).chain(&self.orders)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Tapped> {
        self.legacy.iter_mut().chain(&mut self.modern).chain(&mut self.orders)
    }

    /// The ports of all `inventory` instances.
    pub(super) fn inventory_ports(&self) -> BTreeSet<String> {
        self.legacy.iter().chain(&self.modern).map(|one| one.app.port.to_string()).collect()
    }
}

impl Tapped {
    /// As the log file is called.
    pub(super) fn name(&self) -> &str {
        self.app.process.name()
    }
}
