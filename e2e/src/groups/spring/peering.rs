//! A Netflix server and Pontoon as each other's peers, as for the time in which clients move from one to the other.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::pontoon::ControlPlane;
use pontoon_e2e::ports;
use pontoon_e2e::process::Process;
use pontoon_e2e::report::Report;
use pontoon_e2e::spring::{Generation, java};
use pontoon_e2e::wait::{get, until};
use serde_json::{Value, json};

use super::place;

const JVM: Duration = Duration::from_secs(300);
/// A Netflix server tells its peers within half a second, and repeats what failed after up to a minute.
const TOLD: Duration = Duration::from_secs(90);

pub(super) async fn cases(report: &mut Report, jars: &Path, folder: &Path) {
    for generation in [Generation::Legacy, Generation::Modern] {
        let name = format!("a Netflix server ({}) and Pontoon are peers", generation.name());
        let folder = folder.join(format!("peers-{}", generation.name()));
        report.case(&name, peers(jars, generation, &folder)).await;
    }
}

async fn peers(jars: &Path, generation: Generation, folder: &Path) -> anyhow::Result<String> {
    let plane = ControlPlane::prepare(&place("PONTOON_E2E_PONTOON")?, folder, "")?;
    let ours = Server { url: format!("http://{}/eureka/apps/SHOP", plane.eureka) };
    let port = ports::free()?;
    let theirs = Server { url: format!("http://127.0.0.1:{port}/eureka/apps/SHOP") };
    let plane = plane.peer_of(&format!("http://127.0.0.1:{port}/eureka/"));
    let netflix = async || {
        let mut command = java(jars, generation, "eureka-server", &["-Xmx192m", "-XX:TieredStopAtLevel=1"]);
        command.arg(format!("--eureka.client.service-url.defaultZone=http://{}/eureka/", plane.eureka));
        command.env("PORT", port.to_string());
        let mut process = Process::start("netflix", command, folder)?;
        process.prints("App in ", JVM).await?;
        anyhow::Ok(process)
    };
    let running = netflix().await?;
    theirs.register("early").await?;
    let serving = plane.start().await?;
    // The list is not given out before the peer is copied.
    ours.shows("early", "UP").await.context("what the peer knew at the start")?;

    ours.register("ours").await?;
    theirs.comes_to("ours", Some("UP")).await?;
    theirs.register("theirs").await?;
    ours.comes_to("theirs", Some("UP")).await?;
    theirs.call("PUT", "ours/status?value=OUT_OF_SERVICE").await?;
    ours.comes_to("ours", Some("OUT_OF_SERVICE")).await?;
    ours.call("PUT", "theirs/status?value=OUT_OF_SERVICE").await?;
    theirs.comes_to("theirs", Some("OUT_OF_SERVICE")).await?;
    ours.call("DELETE", "theirs/status?value=UP").await?;
    theirs.comes_to("theirs", Some("UP")).await?;
    ours.call("DELETE", "theirs").await?;
    theirs.comes_to("theirs", None).await?;
    theirs.call("DELETE", "ours").await?;
    ours.comes_to("ours", None).await?;

    // One that has forgotten everything is told of what renews.
    ours.register("later").await?;
    drop(running);
    let running = netflix().await?;
    ours.call("PUT", "later").await?;
    theirs.comes_to("later", Some("UP")).await?;
    drop((running, serving));
    Ok(String::new())
}

/// One registry's list of an application.
struct Server {
    url: String,
}

impl Server {
    async fn register(&self, id: &str) -> anyhow::Result<()> {
        let instance: Value = json!({
            "instanceId": id, "hostName": "localhost", "app": "SHOP", "ipAddr": "127.0.0.1", "status": "UP",
            "port": {"$": 8080, "@enabled": "true"}, "securePort": {"$": 443, "@enabled": "false"},
            "dataCenterInfo": {
                "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn",
            },
            "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 300},
            "vipAddress": "shop", "lastDirtyTimestamp": "1700000000000",
        });
        let request = reqwest::Client::new().post(&self.url).json(&json!({ "instance": instance }));
        let status = request.send().await?.status();
        ensure!(status.is_success(), "{} answered {status} to a registration", self.url);
        Ok(())
    }

    async fn call(&self, method: &str, path: &str) -> anyhow::Result<()> {
        let url = format!("{}/{path}", self.url);
        let status = reqwest::Client::new().request(method.parse()?, &url).send().await?.status();
        ensure!(status.is_success(), "{method} {url} answered {status}");
        Ok(())
    }

    async fn shows(&self, id: &str, status: &str) -> anyhow::Result<()> {
        let listed: Value = serde_json::from_str(&get(&format!("{}/{id}", self.url)).await?)?;
        ensure!(
            listed["instance"]["status"] == status,
            "it is {}, not {status}",
            listed["instance"]["status"]
        );
        Ok(())
    }

    /// Waits until it knows of an instance that it has this status, or that it has gone.
    async fn comes_to(&self, id: &str, status: Option<&str>) -> anyhow::Result<()> {
        until(&format!("{} to have {id} as {status:?}", self.url), TOLD, async || match status {
            Some(status) => self.shows(id, status).await,
            None => {
                ensure!(
                    self.shows(id, "").await.is_err_and(|error| error.to_string().contains("404")),
                    "it is there"
                );
                Ok(())
            }
        })
        .await
    }
}
