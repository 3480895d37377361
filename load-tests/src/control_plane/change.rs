//! The changes that are measured, made as their users make them: over HTTP, or as a file in the objects' folder.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::fleet::Goal;
use super::server::{Addresses, Kind, Site, token};
use super::world::MIGRATION;

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// An instance registers with another port than before.
    Registration,
    /// As many instances, each of another service, as are a hundredth of all services, at once.
    Hundredth,
    /// The weight of a migration.
    Weight,
    /// An endpoint of a pool in its file; only Pontoon reads files.
    File,
}

impl Change {
    pub(super) const ALL: [Change; 4] =
        [Change::Registration, Change::Hundredth, Change::Weight, Change::File];

    pub(super) fn text(self) -> &'static str {
        match self {
            Change::Registration => "registration",
            Change::Hundredth => "1 %",
            Change::Weight => "weight",
            Change::File => "file",
        }
    }

    pub(super) fn goal(self) -> Goal {
        match self {
            Change::Registration | Change::File => Goal::Endpoint,
            Change::Hundredth => Goal::Hundredth,
            Change::Weight => Goal::Route,
        }
    }

    pub(super) fn is_for(self, kind: Kind) -> bool {
        kind == Kind::Pontoon || self != Change::File
    }
}

/// Makes changes at one server. No two that follow each other are the same.
#[derive(Debug)]
pub(super) struct Changer<'s> {
    site: &'s Site,
    kind: Kind,
    addresses: Addresses,
    http: reqwest::Client,
    token: String,
    made: u16,
}

impl<'s> Changer<'s> {
    /// For a server that is ready.
    pub(super) fn new(site: &'s Site, kind: Kind, addresses: Addresses) -> anyhow::Result<Changer<'s>> {
        let token = match kind {
            Kind::Pontoon => token(&site.data())?,
            Kind::GoControlPlane => String::new(),
        };
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?;
        Ok(Changer { site, kind, addresses, http, token, made: 0 })
    }

    /// Registers all that is registered.
    pub(super) async fn register_all(&self) -> anyhow::Result<()> {
        for batch in self.site.world.batches(now_ms()) {
            let answer: Value = sent(self.batch(&batch)).await?.json().await?;
            let refused = answer["responseList"]
                .as_array()
                .map_or(1, |all| all.iter().filter(|one| one["statusCode"] != 200).count());
            if refused > 0 {
                bail!("{refused} registrations of a batch were refused");
            }
        }
        Ok(())
    }

    /// Makes a change, and waits until it is answered.
    pub(super) async fn make(&mut self, change: Change) -> anyhow::Result<()> {
        self.made = self.made % 10_000 + 1;
        let port = 9_000 + self.made;
        let world = self.site.world;
        let services = world.changing(if change == Change::Hundredth { world.hundredth() } else { 1 });
        match (change, self.kind) {
            (Change::File, _) => return world.change_file(&self.site.objects(), port),
            (Change::Registration, Kind::Pontoon) => {
                let (application, body) = world.registration(services.start, port, now_ms());
                let url = format!("http://{}/eureka/apps/{application}", self.addresses.changes);
                sent(self.http.post(url).json(&body)).await?;
            }
            (Change::Hundredth, Kind::Pontoon) => {
                sent(self.batch(&world.batch_of(services, port, now_ms()))).await?;
            }
            (Change::Weight, Kind::Pontoon) => {
                let url =
                    format!("http://{}/api/v1/migrations/default/{MIGRATION}/stage", self.addresses.api);
                let body = json!({"stage": "split", "weight": self.weight(), "force": true});
                sent(self.http.put(url).bearer_auth(&self.token).json(&body)).await?;
            }
            (Change::Registration | Change::Hundredth, Kind::GoControlPlane) => {
                let clusters: Vec<String> = services.map(|service| world.cluster(service)).collect();
                self.post("endpoint", format!("port={port}&clusters={}", clusters.join(","))).await?;
            }
            (Change::Weight, Kind::GoControlPlane) => {
                self.post("weight", format!("weight={}", self.weight())).await?;
            }
        }
        Ok(())
    }

    fn weight(&self) -> u16 {
        1 + self.made % 9_998
    }

    fn batch(&self, batch: &Value) -> RequestBuilder {
        self.http.post(format!("http://{}/eureka/peerreplication/batch/", self.addresses.changes)).json(batch)
    }

    async fn post(&self, path: &str, form: String) -> anyhow::Result<()> {
        let request = self.http.post(format!("http://{}/{path}", self.addresses.changes));
        sent(request.header("content-type", "application/x-www-form-urlencoded").body(form)).await?;
        Ok(())
    }
}

async fn sent(request: RequestBuilder) -> anyhow::Result<reqwest::Response> {
    let answer = request.send().await.context("a change was not answered")?;
    if !answer.status().is_success() {
        let status = answer.status();
        bail!("a change was answered {status}: {}", answer.text().await.unwrap_or_default());
    }
    Ok(answer)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
