//! `pontoon migration`: a change is done when every proxy has it, so `set` and `rollback` wait for that.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::explain::ExplainArgs;
use super::output::{or_dash, print, table};
use super::{ApiArgs, CliError, Client};
use crate::migration::stage::{Stage, Weight};
use crate::serve::api::types::{
    Changed, InForce, MigrationView, PoolView, Progress, RollbackRequest, SetRequest, Straggler,
};

#[derive(Debug, Subcommand)]
pub(super) enum MigrationCommand {
    /// All migrations, one a line.
    List {
        #[command(flatten)]
        api: ApiArgs,
    },
    /// One migration: where it stands, since when and why, and which proxies have that.
    Show {
        /// NAME or NAMESPACE/NAME.
        name: String,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Move a migration to a stage, and wait until every proxy has that.
    ///
    /// A step that would send more traffic to a target without a healthy endpoint is refused.
    Set {
        /// NAME or NAMESPACE/NAME.
        name: String,
        /// observe, canary, split or cutover. With --weight alone: split.
        #[arg(long, required_unless_present = "weight")]
        stage: Option<Stage>,
        /// For split: the target's share, as 5%, 0.25%, or in hundredths of a percent (500 is 5%).
        #[arg(long)]
        weight: Option<Weight>,
        /// Send traffic to a target without a healthy endpoint all the same; recorded in the audit log.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        how: HowArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Take a migration back to an earlier stage, and wait until every proxy has that. Never refused for want
    /// of health.
    Rollback {
        /// NAME or NAMESPACE/NAME.
        name: String,
        /// The earlier stage.
        #[arg(long, default_value = "observe")]
        to: Stage,
        #[command(flatten)]
        how: HowArgs,
        #[command(flatten)]
        api: ApiArgs,
    },
    /// Why a request goes where it goes, by the proxies' own code: rule, bucket, pool, endpoints, and why not
    /// the others.
    Explain(ExplainArgs),
}

#[derive(Debug, Args)]
pub(super) struct HowArgs {
    /// Why: kept in the audit log.
    #[arg(long)]
    reason: Option<String>,
    /// Refuse unless the migration is at this revision still.
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
    /// Wait until the change is in force (the default).
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return as soon as the change is made.
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// How long to wait (500ms, 30s, 2m). Then the stragglers are named and the exit code is 4.
    #[arg(long, default_value = "30s", value_parser = duration)]
    timeout: Duration,
}

pub(super) async fn run(command: MigrationCommand) -> Result<(), CliError> {
    match command {
        MigrationCommand::List { api } => list(&api).await,
        MigrationCommand::Show { name, api } => show(&name, &api).await,
        MigrationCommand::Explain(args) => super::explain::run(args).await,
        MigrationCommand::Set { name, stage, weight, force, how, api } => {
            let client = Client::from_args(&api)?;
            let body = SetRequest {
                stage,
                weight,
                reason: how.reason.clone(),
                expected_revision: how.revision,
                force,
            };
            let changed = client.set(&name, &body).await?;
            finish(&client, changed, &how, &api).await
        }
        MigrationCommand::Rollback { name, to, how, api } => {
            let client = Client::from_args(&api)?;
            let body =
                RollbackRequest { to: Some(to), reason: how.reason.clone(), expected_revision: how.revision };
            let changed = client.rollback(&name, &body).await?;
            finish(&client, changed, &how, &api).await
        }
    }
}

async fn list(api: &ApiArgs) -> Result<(), CliError> {
    let migrations = Client::from_args(api)?.migrations().await?;
    print(api.output, &migrations, |migrations| {
        let rows: Vec<Vec<String>> = migrations
            .iter()
            .map(|m| {
                vec![
                    m.name.clone(),
                    or_dash(m.service.as_ref()),
                    m.position().to_string(),
                    m.target_share.to_string(),
                    pool_health(m.legacy.as_ref()),
                    pool_health(m.target.as_ref()),
                    m.revision.to_string(),
                    in_force(&m.in_force),
                ]
            })
            .collect();
        table(
            &["name", "service", "stage", "target", "legacy up", "target up", "revision", "in force"],
            &rows,
        )
    })
}

async fn show(name: &str, api: &ApiArgs) -> Result<(), CliError> {
    let migration = Client::from_args(api)?.migration(name).await?;
    print(api.output, &migration, full)
}

async fn finish(client: &Client, mut changed: Changed, how: &HowArgs, api: &ApiArgs) -> Result<(), CliError> {
    if !how.no_wait {
        let revision = changed.migration.revision;
        changed.migration = client.wait_in_force(changed.migration, how.timeout).await?;
        let now = &changed.migration;
        if now.revision != revision {
            changed.warnings.push(format!(
                "revision {revision} was followed by revision {} ({}, by {})",
                now.revision,
                now.position(),
                now.actor,
            ));
        }
    }
    for warning in &changed.warnings {
        eprintln!("warning: {warning}");
    }
    print(api.output, &changed, summary)?;
    if !how.no_wait && changed.migration.in_force.progress == Progress::Waiting {
        return Err(CliError::NotInForce(stragglers(&changed.migration, how.timeout)));
    }
    Ok(())
}

fn summary(changed: &Changed) -> String {
    let m = &changed.migration;
    let moved = match (changed.changed, m.previous) {
        (true, Some(previous)) => format!("{}: {previous} -> {}", m.name, m.position()),
        (true, None) => format!("{}: {}", m.name, m.position()),
        (false, _) => format!("{}: is at {} already", m.name, m.position()),
    };
    format!("{moved} (revision {})\nin force: {}\n", m.revision, in_force(&m.in_force))
}

fn full(m: &MigrationView) -> String {
    let mut text = String::new();
    let mut row = |key: &str, value: String| text.push_str(&format!("{key:<12}{value}\n"));
    row("migration", m.name.clone());
    row("service", m.service.clone().unwrap_or_else(|| "(the object is gone; its state is kept)".into()));
    row("stage", m.position().to_string());
    row("target gets", format!("{} of the keys without a canary mark", m.target_share));
    row("legacy", pool(m.legacy.as_ref()));
    row("target", pool(m.target.as_ref()));
    row("revision", format!("{}, by {} at {}", m.revision, m.actor, m.at));
    if let Some(previous) = m.previous {
        row("before", previous.to_string());
    }
    if let Some(reason) = &m.reason {
        row("reason", reason.clone());
    }
    if let Some(pending) = &m.pending {
        row("file wants", format!("{}; refused for now: {}", pending.position, pending.refusal));
    }
    row("in force", in_force(&m.in_force));
    if let Some(version) = &m.in_force.version {
        row("version", version.clone());
    }
    for route in &m.in_force.routes {
        row("route", format!("{} of gateway {}, version {}", route.name, route.view, route.version));
        for node in &route.acknowledged {
            row("", format!("{node}  acknowledged"));
        }
        for straggler in &route.waiting {
            row("", format!("{}  {}", straggler.node, state_of(straggler)));
        }
        for node in &route.lost {
            row("", format!("{node}  has not come back, and is not waited for"));
        }
    }
    text
}

fn in_force(in_force: &InForce) -> String {
    let acknowledged: usize = in_force.routes.iter().map(|r| r.acknowledged.len()).sum();
    let waiting: usize = in_force.routes.iter().map(|r| r.waiting.len()).sum();
    let of = format!("{acknowledged} of {} acknowledged", acknowledged + waiting);
    match (in_force.progress, in_force.took_ms) {
        (Progress::InForce, Some(took)) => format!("yes, after {took:.0} ms ({of})"),
        (Progress::InForce, None) => format!("yes ({of})"),
        (Progress::Waiting, _) => format!("not yet ({of})"),
        (Progress::NoProxies, _) => "no proxy is connected".to_owned(),
        (Progress::NoRoute, _) => "no route refers to it".to_owned(),
    }
}

fn stragglers(m: &MigrationView, timeout: Duration) -> String {
    let mut text =
        format!("the change is made, but not in force after {timeout:?}; still on another version:");
    for route in &m.in_force.routes {
        for straggler in &route.waiting {
            text.push_str(&format!("\n  {}  {}", straggler.node, state_of(straggler)));
        }
    }
    text
}

fn state_of(straggler: &Straggler) -> String {
    match (&straggler.refused, straggler.connected) {
        (Some(refused), _) => format!("refused: {refused}"),
        (None, true) => "has not acknowledged yet".to_owned(),
        (None, false) => "is not connected, and serves what it had; expected back".to_owned(),
    }
}

fn pool(pool: Option<&PoolView>) -> String {
    match pool {
        Some(pool) => format!("{}, {}", pool.name, pool_health(Some(pool))),
        None => "-".to_owned(),
    }
}

fn pool_health(pool: Option<&PoolView>) -> String {
    match pool.and_then(|pool| pool.healthy.zip(pool.known)) {
        Some((healthy, known)) => format!("{healthy} of {known}"),
        None if pool.is_some() => "only proxies can tell".to_owned(),
        None => "-".to_owned(),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: use 500ms, 30s or 2m");
    let signed: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(signed).map_err(|_| wrong())
}
