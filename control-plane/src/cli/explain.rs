//! `pontoon migration explain`: the proxies' own decision, told step by step.

use clap::Args;
use serde_json::Value;

use super::client::split_name;
use super::output::{line, print};
use super::{ApiArgs, CliError, Client, Format};
use crate::serve::api::types::{ExplainRequest, ExplainResponse, SplitSide};

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The migration, NAME or NAMESPACE/NAME.
    name: String,
    /// The URL as users ask for it.
    url: String,
    /// A header of the request; may be said several times.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The request's method.
    #[arg(short = 'X', long, default_value = "GET")]
    method: String,
    /// The gateway, NAME or NAMESPACE/NAME, where several carry the migration.
    #[arg(long)]
    gateway: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

pub(super) async fn run(args: ExplainArgs) -> Result<(), CliError> {
    let whole = |name: &str| split_name(name).map(|(namespace, name)| format!("{namespace}/{name}"));
    let migration = whole(&args.name)?;
    let body = ExplainRequest {
        url: args.url,
        method: Some(args.method),
        headers: args.headers,
        gateway: args.gateway.as_deref().map(whole).transpose()?,
        migration: Some(migration.clone()),
    };
    let client = Client::from_args(&args.api)?;
    let answer: ExplainResponse = client.send(reqwest::Method::POST, &["explain"], &body).await?;
    print(args.api.output, &answer, in_words)?;
    if args.api.output == Format::Table && !answer.migrations.iter().any(|m| m.migration.name == migration) {
        line(&format!(
            "\n{migration} has no say in this request: its route does not send to either of its sides"
        ))?;
    }
    Ok(())
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once(':').ok_or_else(|| format!("{text:?} is no header: use 'NAME: VALUE'"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn in_words(answer: &ExplainResponse) -> String {
    let explanation = &answer.explanation;
    let mut text = String::new();
    let mut row = |key: &str, value: &str| text.push_str(&format!("{key:<12}{value}\n"));
    row("gateway", &answer.gateway);
    for (key, field) in [
        ("listener", "listener"),
        ("routes", "route_configuration"),
        ("version", "version"),
        ("host", "virtual_host"),
        ("rule", "route"),
        ("pool", "cluster"),
    ] {
        row(key, explanation[field].as_str().unwrap_or("-"));
    }
    match explanation["bucket"].as_u64() {
        Some(bucket) if explanation["random"] == true => {
            row("bucket", &format!("{bucket}, at random: the request names no user"))
        }
        Some(bucket) => row("bucket", &bucket.to_string()),
        None => row("bucket", "-"),
    }
    for concerned in &answer.migrations {
        let side = match concerned.side {
            SplitSide::Target => "target",
            SplitSide::Legacy => "legacy",
        };
        let migration = &concerned.migration;
        row("side", &format!("{side} of {}, which is at {}", migration.name, migration.position()));
    }
    row("outcome", explanation["outcome"].as_str().unwrap_or("-"));
    for endpoint in explanation["endpoints"].as_array().into_iter().flatten() {
        let address = endpoint["address"].as_str().unwrap_or("?");
        let state =
            endpoint["reason"].as_str().map_or("takes requests".to_owned(), |r| format!("takes none: {r}"));
        row("endpoint", &format!("{address}  {state}"));
    }
    text.push_str("\nhow it came about\n");
    for step in explanation["steps"].as_array().into_iter().flatten() {
        text.push_str(&format!("  {}\n", step_in_words(step)));
    }
    text
}

fn step_in_words(step: &Value) -> String {
    let word = |field: &str| step[field].as_str().unwrap_or("none").to_owned();
    match step["step"].as_str() {
        Some("virtual_host") => format!("host {:?} belongs to {}", word("host"), word("virtual_host")),
        Some("route_skipped") => format!("not {}: {}", word("route"), word("because")),
        Some("lot") => {
            let percent = step["millionths"].as_f64().unwrap_or_default() / 10_000.0;
            let drawn = if step["drawn"] == true { "this one too" } else { "not this one" };
            format!("{} takes {percent} % of such requests at random: {drawn}", word("route"))
        }
        Some("route_matched") => format!("{} takes it", word("route")),
        Some("hash_policy") => format!("key {}: {}", word("policy"), word("value")),
        Some("weighted") => {
            let arms: Vec<String> = step["arms"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|arm| {
                    let last = arm["to"].as_u64().unwrap_or(0);
                    let cluster = arm["cluster"].as_str().unwrap_or("?");
                    match (arm["from"].as_u64().unwrap_or(0), last) {
                        (from, to) if from >= to => format!("{cluster} none"),
                        (from, to) => format!("{cluster} {from} to {}", to - 1),
                    }
                })
                .collect();
            format!("bucket {} of {} by {}: {}", step["bucket"], step["total"], word("by"), arms.join(", "))
        }
        Some("session") => {
            let gone = step["endpoint"].is_string() && step["is_there"] == false;
            let gone = if gone { ", which is not there" } else { "" };
            format!("session by {}: {}{gone}", word("by"), word("endpoint"))
        }
        _ => step.to_string(),
    }
}
