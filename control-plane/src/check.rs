//! `pontoon check`: whether a cluster can take Pontoon, or whether what is installed there works, with a hint for all that
//! does not. Rooms are what is looked at; each asks ([`Cluster`]) and then judges what it was told by pure functions.

mod cluster;
mod gateways;
mod kinds;
mod plane;
mod reach;
mod rights;
mod webhook;

use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::objects::Controller;

/// For one answer of the API server.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be checked.
#[derive(Debug, Clone)]
pub struct Options {
    /// Before the installation.
    pub pre: bool,
    /// Where Pontoon is, or is to be.
    pub namespace: String,
    /// Whose classes are its own.
    pub controller: Controller,
    /// That pods are not reached from here is a failure: here is a machine whose applications call them.
    pub from_vm: bool,
    /// `HOST:PORT` of what else has to be reached from here.
    pub reach: Vec<String>,
}

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It holds.
    Ok,
    /// It works, but not as it should.
    Warning,
    /// It does not hold.
    Failed,
    /// It cannot be told from here.
    Skipped,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What has to hold.
    pub what: String,
    /// Whether it does.
    pub outcome: Outcome,
    /// What was seen instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How to mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Check {
    fn new(what: &str, outcome: Outcome, why: Option<String>, hint: Option<&str>) -> Check {
        Check { what: what.to_owned(), outcome, why, hint: hint.map(str::to_owned) }
    }

    fn ok(what: &str) -> Check {
        Check::new(what, Outcome::Ok, None, None)
    }

    /// It holds, and this was seen.
    fn seen(what: &str, seen: impl Into<String>) -> Check {
        Check::new(what, Outcome::Ok, Some(seen.into()), None)
    }

    fn warning(what: &str, why: impl Into<String>, hint: &str) -> Check {
        Check::new(what, Outcome::Warning, Some(why.into()), Some(hint))
    }

    fn failed(what: &str, why: impl Into<String>, hint: &str) -> Check {
        Check::new(what, Outcome::Failed, Some(why.into()), Some(hint))
    }

    fn skipped(what: &str, why: impl Into<String>) -> Check {
        Check::new(what, Outcome::Skipped, Some(why.into()), None)
    }

    /// What has to be seen for it was not.
    fn unseen(what: &str, error: &Unseen) -> Check {
        match error {
            Unseen::Forbidden(why) => Check::skipped(what, format!("you may not look: {why}")),
            Unseen::Other(why) => Check::failed(what, why.clone(), "see whether the API server is well"),
        }
    }
}

/// Checks about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Category {
    /// What they are about.
    pub name: &'static str,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// None has failed.
    pub success: bool,
    /// By what they are about.
    pub categories: Vec<Category>,
}

impl Report {
    fn of(categories: Vec<Category>) -> Report {
        let mut report = Report { success: false, categories };
        report.success = report.count(Outcome::Failed) == 0;
        report
    }

    /// How many ended so.
    pub fn count(&self, outcome: Outcome) -> usize {
        let all = self.categories.iter().flat_map(|category| &category.checks);
        all.filter(|check| check.outcome == outcome).count()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Category { name, checks } in &self.categories {
            writeln!(f, "{name}\n{}", "-".repeat(name.len()))?;
            for Check { what, outcome, why, hint } in checks {
                let (sign, why) = match outcome {
                    Outcome::Ok => ("√", why.as_ref().map(|seen| format!(" ({seen})"))),
                    Outcome::Warning => ("‼", why.as_ref().map(|why| format!("\n    {why}"))),
                    Outcome::Failed => ("×", why.as_ref().map(|why| format!("\n    {why}"))),
                    Outcome::Skipped => ("-", why.as_ref().map(|why| format!("\n    not told: {why}"))),
                };
                writeln!(f, "{sign} {what}{}", why.unwrap_or_default())?;
                if let Some(hint) = hint {
                    writeln!(f, "    hint: {hint}")?;
                }
            }
            writeln!(f)?;
        }
        let counts = [(Outcome::Failed, "failed"), (Outcome::Warning, "warnings")];
        let counts: Vec<String> = counts
            .into_iter()
            .map(|(outcome, word)| (self.count(outcome), word))
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        match (self.success, counts.is_empty()) {
            (true, true) => write!(f, "all is well"),
            (true, false) => write!(f, "it works, with {}", counts.join(", ")),
            (false, _) => write!(f, "{}", counts.join(", ")),
        }
    }
}

/// Why something was not seen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unseen {
    /// The API server says that we may not.
    Forbidden(String),
    /// It cannot be asked.
    Other(String),
}

impl From<kube::Error> for Unseen {
    fn from(error: kube::Error) -> Unseen {
        match error {
            kube::Error::Api(status) if status.code == 403 => Unseen::Forbidden(status.message.clone()),
            // With the causes: which of them it is counts here.
            error => Unseen::Other(format!("{:#}", anyhow::Error::from(error))),
        }
    }
}

/// Asks the API server, each question within a limit.
#[derive(Clone)]
struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    async fn within<T>(&self, answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Unseen> {
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Unseen::Other(format!("the API server gave no answer in {PATIENCE:?}"))),
        }
    }

    /// One of our namespace's own.
    async fn own<K>(&self, name: &str) -> Result<Option<K>, Unseen>
    where
        K: kube::Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api = Api::<K>::namespaced(self.client.clone(), &self.namespace);
        self.within(api.get_opt(name)).await
    }
}

/// Makes all checks. `client` is what connects, or why nothing does.
pub async fn run(client: Result<Client, String>, options: &Options) -> Report {
    let mut categories = Vec::new();
    let client = match client {
        Ok(client) => client,
        Err(why) => return Report::of(vec![cluster::unknown(why)]),
    };
    let cluster = Cluster { client, namespace: options.namespace.clone() };
    let (category, answers) = cluster::look(&cluster).await;
    categories.push(category);
    if !answers {
        // All else would say the same.
        return Report::of(categories);
    }
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    let definitions = cluster.within(definitions.list(&ListParams::default())).await.map(|list| list.items);
    categories.push(kinds::gateway_api(&definitions));
    categories.push(kinds::own(&definitions, options.pre));
    if options.pre {
        categories.push(rights::before(&cluster).await);
    } else {
        let plane = plane::look(&cluster, &options.controller).await;
        let has_webhook = webhook::is_installed(&cluster, &options.controller).await;
        let makes_gateways = plane.makes_gateways;
        categories.push(rights::after(&cluster, &options.controller, makes_gateways, has_webhook).await);
        categories.push(plane.category);
        categories.push(webhook::look(&cluster, &options.controller, has_webhook).await);
        categories.push(gateways::look(&cluster, &options.controller).await);
        categories.push(reach::look(&cluster, options).await);
    }
    Report::of(categories)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(checks: Vec<Check>) -> Report {
        Report::of(vec![Category { name: "kubernetes", checks }])
    }

    #[test]
    fn a_report_is_read_by_people() {
        let all = report(vec![
            Check::seen("the API server answers", "v1.37.2"),
            Check::warning("clocks agree", "12 s apart", "run NTP"),
            Check::skipped("pods are reached", "there are none"),
        ]);
        let expected = "kubernetes\n----------\n√ the API server answers (v1.37.2)\n‼ clocks agree\n    12 s apart\n    \
                        hint: run NTP\n- pods are reached\n    not told: there are none\n\nit works, with 1 warnings";
        assert_eq!(all.to_string(), expected);
        assert!(all.success);
        assert!(report(vec![Check::ok("x")]).to_string().ends_with("all is well"));
    }

    #[test]
    fn a_report_is_read_by_programs() {
        let failed = report(vec![Check::ok("one"), Check::failed("two", "is not", "make it so")]);
        assert!(!failed.success);
        assert_eq!(
            serde_json::to_value(&failed).unwrap(),
            serde_json::json!({
                "success": false,
                "categories": [{ "name": "kubernetes", "checks": [
                    { "what": "one", "outcome": "ok" },
                    { "what": "two", "outcome": "failed", "why": "is not", "hint": "make it so" },
                ] }],
            })
        );
    }
}
