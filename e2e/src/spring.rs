//! The Spring applications of `e2e/spring` as processes. Every setting is an environment variable.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::ports;
use crate::process::Process;

/// What a JVM may take to start on a machine that starts six of them on two cores.
const START: Duration = Duration::from_secs(300);
/// Hoxton on Java 17 reaches into packages that were open on Java 8.
const OPENED_FOR_LEGACY: [&str; 4] = [
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-opens=java.base/java.lang.reflect=ALL-UNNAMED",
    "--add-opens=java.base/java.text=ALL-UNNAMED",
];

/// How often a client renews and fetches, and when its lease is over.
#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    /// Between two renewals, in seconds.
    pub renew_s: u32,
    /// Without a renewal for so long the lease is over, in seconds.
    pub lease_s: u32,
    /// Between two fetches, in seconds.
    pub fetch_s: u32,
}

impl Intervals {
    /// Netflix's own defaults.
    pub const DEFAULT: Intervals = Intervals { renew_s: 30, lease_s: 90, fetch_s: 30 };
    /// The same client code, at a tenth of the time.
    pub const SHORT: Intervals = Intervals { renew_s: 2, lease_s: 6, fetch_s: 2 };
}

/// A generation of Spring Cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// Boot 2.3 with Hoxton: Ribbon, Jersey 1.
    Legacy,
    /// Boot 3.5 with 2025.0.
    Modern,
}

impl Generation {
    /// As the folders and the metadata `lab` call it.
    pub fn name(self) -> &'static str {
        match self {
            Generation::Legacy => "legacy",
            Generation::Modern => "modern",
        }
    }
}

/// A JVM with these options that runs `GENERATION/APPLICATION.jar`; its environment is still to be set.
pub fn java(jars: &Path, generation: Generation, application: &str, options: &[&str]) -> Command {
    let mut command = Command::new("java");
    command.args(options);
    if generation == Generation::Legacy {
        command.args(OPENED_FOR_LEGACY);
    }
    command.arg("-jar").arg(jars.join(generation.name()).join(format!("{application}.jar")));
    command
}

/// A running application.
#[derive(Debug)]
pub struct App {
    /// Its process.
    pub process: Process,
    /// Where it listens, on all addresses.
    pub port: u16,
}

impl App {
    /// Starts `GENERATION/APPLICATION.jar`, registering at `eureka_url`. Does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        jars: &Path,
        generation: Generation,
        application: &str,
        name: &str,
        eureka_url: &str,
        intervals: Intervals,
        folder: &Path,
    ) -> anyhow::Result<App> {
        let port = ports::free()?;
        // Quick to start and small; the applications do little.
        let small = ["-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
        let mut command = java(jars, generation, application, &small);
        command.env("PORT", port.to_string()).env("EUREKA_URL", eureka_url);
        command.env("RENEW_S", intervals.renew_s.to_string()).env("LEASE_S", intervals.lease_s.to_string());
        command.env("FETCH_S", intervals.fetch_s.to_string());
        Ok(App { process: Process::start(name, command, folder)?, port })
    }

    /// Waits until Spring says that it has started.
    ///
    /// # Errors
    /// When it ends or takes too long.
    pub async fn started(&mut self) -> anyhow::Result<()> {
        self.process.prints("App in ", START).await
    }

    /// The address of a path of it.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}
