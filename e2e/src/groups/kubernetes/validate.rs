//! Objects of ours that could not be used, in a cluster that the chart is installed in.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use pontoon_e2e::kubernetes::{Cluster, Namespace, PATIENCE};
use pontoon_e2e::wait::until;
use serde_json::Value;

use super::install::without_webhook;
use super::plane::condition;
use crate::groups::place;

/// That there is no such Pool is none of the webhook's business: it may come.
const GOOD: &str = "
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {name: orders, namespace: validated}
spec:
  service: orders
  legacy: {eureka: {application: orders}}
  target: {pool: orders-new}
  canary: [{header: {name: x-user, regex: 'a.*'}}]
";

/// A Migration is refused in the words of `pontoon validate`; while the webhook is down it is taken, and its status has
/// them. What was taken so can be labelled, mended and deleted.
pub(super) async fn refused(cluster: &Cluster, folder: &Path) -> anyhow::Result<String> {
    let bad = GOOD.replace("orders-new", "Orders").replace("a.*", "a(");
    let file = folder.join("orders.yaml");
    std::fs::write(&file, &bad)?;
    let printed = validate(&file, "table").await?;
    let words: Vec<&str> =
        printed.lines().filter_map(|line| line.find("Migration ").map(|at| &line[at..])).collect();
    ensure!(words.len() == 2, "{printed}");
    let namespace = cluster.namespace("validated", &[]).await?;

    // The API server takes a moment to take note of the webhook, and lets objects pass until then.
    let said = until("it to be refused", PATIENCE, async || {
        let Err(error) = namespace.apply(&bad).await else {
            namespace.delete(&["migration.pontoon.dev", "orders"]).await?;
            bail!("it was taken");
        };
        Ok(format!("{error:#}"))
    })
    .await?;
    ensure!(said.contains("denied the request") && has(&said, &words), "{said}");
    namespace.apply(GOOD).await?;
    let said = refusal(&namespace, &bad).await?;
    ensure!(has(&said, &words), "a change is refused with {said}");
    // What a schema can say, the API server says by itself.
    let said = refusal(&namespace, &format!("{GOOD}  weight: 20000\n")).await?;
    ensure!(said.contains("spec.weight") && !said.contains("denied the request"), "{said}");
    namespace.delete(&["migration.pontoon.dev", "orders"]).await?;

    let problems: Value = serde_json::from_str(&validate(&file, "json").await?)?;
    let problems = problems["problems"].as_array().context("no problems")?;
    without_webhook(cluster, async || {
        namespace.apply(&bad).await?;
        until("its status to say what is wrong", PATIENCE, async || {
            let migration = namespace.get(&["migration.pontoon.dev", "orders"]).await?;
            let accepted =
                condition(&migration["status"]["conditions"], "Accepted").context("no condition")?;
            ensure!(accepted["status"] == "False" && accepted["reason"] == "invalid_value", "{accepted}");
            let message = accepted["message"].as_str().unwrap_or_default();
            for problem in problems {
                let [field, said] = ["field", "message"].map(|of| problem[of].as_str().unwrap_or_default());
                ensure!(message.contains(&format!("{field}: {said}")), "{field} is not in {message}");
            }
            Ok(())
        })
        .await
    })
    .await?;

    let mut looks = 0;
    until("a label to be a warning", PATIENCE, async || {
        // One that is there already is no change.
        looks += 1;
        let (object, label) = ("migration.pontoon.dev/orders", format!("looks={looks}"));
        let change = ["label", "--overwrite", "--warnings-as-errors", object, &label];
        let Err(error) = namespace.kubectl(&change).await else { bail!("no warning") };
        let said = format!("{error:#}");
        ensure!(said.contains("Warning: ") && has(&said, &words), "{said}");
        Ok(())
    })
    .await?;
    let labelled = namespace.get(&["migration.pontoon.dev", "orders"]).await?;
    ensure!(labelled["metadata"]["labels"]["looks"].is_string(), "{}", labelled["metadata"]);
    let said = refusal(&namespace, &bad.replace("service: orders", "service: other")).await?;
    ensure!(has(&said, &words), "another change is refused with {said}");
    namespace.apply(GOOD).await?;
    namespace.delete(&["migration.pontoon.dev", "orders"]).await?;
    Ok(format!("{} problems in the same words", words.len()))
}

/// What `pontoon validate` prints.
async fn validate(file: &Path, format: &str) -> anyhow::Result<String> {
    let mut command = tokio::process::Command::new(place("PONTOON_E2E_PONTOON")?);
    let output = command.arg("validate").arg(file).args(["-o", format]).output().await?;
    Ok(String::from_utf8(output.stdout)?)
}

/// What kubectl says of an object that the API server does not take.
async fn refusal(namespace: &Namespace, yaml: &str) -> anyhow::Result<String> {
    match namespace.apply(yaml).await {
        Ok(()) => bail!("it was taken: {yaml}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

fn has(said: &str, words: &[&str]) -> bool {
    words.iter().all(|words| said.contains(words))
}
