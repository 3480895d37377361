//! Commands that only look: proxies, audit log, objects, registry.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::output::{line, or_dash, print, table};
use super::{ApiArgs, CliError, Client, Format};
use crate::migration::audit::Entry;
use crate::serve::api::types::{AuditPage, Difference, ObjectsView, ProxyType, ProxyView, RegistrySummary};

/// Between two looks with `--follow`.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct PlainArgs {
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// A folder, or one file.
    #[arg(value_name = "DIR")]
    path: PathBuf,
    /// It is for a cluster: kinds that are not read here are passed over, and what is referred to and not there is a
    /// warning, as the cluster may have it.
    #[arg(long)]
    kubernetes: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct ProxiesArgs {
    /// A node id: show this proxy in full.
    name: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Only this migration: NAME or NAMESPACE/NAME.
    #[arg(long, value_name = "NAME")]
    migration: Option<String>,
    /// Only entries after this number.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,
    /// Go on printing what is added.
    #[arg(short, long)]
    follow: bool,
    /// Print the lines as they are stored, for keeping and for checking their hashes.
    #[arg(long, conflicts_with = "migration")]
    lines: bool,
    #[command(flatten)]
    api: ApiArgs,
}

pub(super) async fn proxies(args: ProxiesArgs) -> Result<(), CliError> {
    let client = Client::from_args(&args.api)?;
    let all: Vec<ProxyView> = client.get(&["proxies"], &[]).await?;
    let Some(wanted) = args.name else {
        return print(args.api.output, &all, |all| {
            let rows: Vec<Vec<String>> = all.iter().map(proxy_row).collect();
            table(&["node", "gateway", "user agent", "connected", "in sync", "last refusal"], &rows)
        });
    };
    let one: Vec<ProxyView> = all.into_iter().filter(|proxy| proxy.node == wanted).collect();
    if one.is_empty() {
        return Err(CliError::Other(format!(
            "no proxy {wanted:?} is connected: `pontoon proxies` lists those that are"
        )));
    }
    print(args.api.output, &one, |streams| streams.iter().map(proxy_in_full).collect())
}

fn proxy_row(proxy: &ProxyView) -> Vec<String> {
    let behind: Vec<&str> =
        proxy.types.iter().filter(|(_, t)| !t.in_sync).map(|(ty, _)| ty.as_str()).collect();
    let in_sync = match (proxy.unknown_gateway, behind.is_empty()) {
        (true, _) => "no: there is no such gateway".to_owned(),
        (false, true) => "yes".to_owned(),
        (false, false) => format!("not yet: {}", behind.join(", ")),
    };
    let nacks = proxy.types.iter().filter_map(|(ty, t)| Some((ty, t.last_nack.as_ref()?)));
    let nack = nacks.max_by_key(|(_, nack)| nack.at).map(|(ty, nack)| {
        let resources = nack.resources.join(", ");
        format!("{} {ty} {resources}: {}", nack.at.strftime("%F %T"), nack.message)
    });
    vec![
        proxy.node.clone(),
        proxy.cluster.clone(),
        proxy.user_agent.clone(),
        proxy.connected_at.strftime("%F %T").to_string(),
        in_sync,
        or_dash(nack),
    ]
}

fn proxy_in_full(proxy: &ProxyView) -> String {
    let mut text = format!(
        "node        {}\ngateway     {}\nuser agent  {}\nconnected   {}\n\n",
        proxy.node, proxy.cluster, proxy.user_agent, proxy.connected_at
    );
    if proxy.unknown_gateway {
        text.push_str(&format!("there is no gateway {}; look at the proxy's --cluster\n\n", proxy.cluster));
    }
    let mut rows = Vec::new();
    for (ty, of_type) in &proxy.types {
        if of_type.wildcard {
            rows.push([ty, "*", "", "all of them"].map(str::to_owned).to_vec());
        }
        let differs = of_type.differs.iter().map(|difference| &difference.resource);
        let names: BTreeSet<&String> =
            of_type.names.iter().chain(of_type.acknowledged.keys()).chain(differs).collect();
        rows.extend(names.into_iter().map(|name| resource_row(ty, name, of_type)));
    }
    text.push_str(&table(&["type", "resource", "in force", "should be"], &rows));
    for (ty, of_type) in &proxy.types {
        if !of_type.in_sync {
            text.push_str(&format!("{ty}: has not acknowledged all that is published\n"));
        }
        if let Some(nack) = &of_type.last_nack {
            let resources = nack.resources.join(", ");
            text.push_str(&format!("{ty}: refused at {}: {} ({resources})\n", nack.at, nack.message));
        }
    }
    text
}

/// A resource that a proxy follows: the version it has, and what should be instead.
fn resource_row(ty: &str, name: &str, of_type: &ProxyType) -> Vec<String> {
    let in_force = of_type.acknowledged.get(name);
    let difference = of_type.differs.iter().find(|difference| difference.resource == name);
    let should_be = match (difference, in_force) {
        (Some(Difference { published: Some(version), .. }), _) => version.clone(),
        (Some(Difference { published: None, .. }), _) => "gone".to_owned(),
        (None, Some(_)) => "the same".to_owned(),
        (None, None) => "there is none".to_owned(),
    };
    vec![ty.to_owned(), name.to_owned(), or_dash(in_force), should_be]
}

pub(super) async fn audit(args: AuditArgs) -> Result<(), CliError> {
    let client = Client::from_args(&args.api)?;
    let migration = match args.migration.as_deref().map(super::client::split_name).transpose()? {
        Some((namespace, name)) => vec![("migration", format!("{namespace}/{name}"))],
        None => Vec::new(),
    };
    let mut after = args.after;
    if args.lines {
        return audit_lines(&client, after, args.follow).await;
    }
    let mut printed = Vec::new();
    loop {
        let mut query = migration.clone();
        query.push(("after", after.to_string()));
        let page: AuditPage = client.get(&["audit"], &query).await?;
        if let Some(broken) = &page.broken {
            eprintln!("warning: {broken}");
        }
        let more = page.next > after;
        after = page.next;
        if args.follow {
            for entry in &page.entries {
                let text = if args.api.output != Format::Table {
                    serde_json::to_string(entry).map_err(|error| CliError::Other(error.to_string()))?
                } else {
                    row(entry).join("  ")
                };
                line(&text)?;
            }
        } else {
            printed.extend(page.entries);
        }
        match (more, args.follow) {
            (true, _) => {}
            (false, true) => tokio::time::sleep(FOLLOW_INTERVAL).await,
            (false, false) => break,
        }
    }
    print(args.api.output, &printed, |entries| {
        let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
        table(&["seq", "at", "actor", "migration", "rev", "from", "to", "version", "reason"], &rows)
    })
}

/// Byte for byte as stored, so that hashes can be checked.
async fn audit_lines(client: &Client, mut after: u64, follow: bool) -> Result<(), CliError> {
    loop {
        let lines = client.audit_lines(after).await?;
        if let Some(last) = lines.lines().next_back() {
            let last: Entry =
                serde_json::from_str(last).map_err(|error| CliError::Other(error.to_string()))?;
            after = last.seq;
            line(lines.trim_end())?;
        } else if follow {
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        } else {
            return Ok(());
        }
    }
}

fn row(entry: &Entry) -> Vec<String> {
    let forced = if entry.forced { " (forced)" } else { "" };
    vec![
        entry.seq.to_string(),
        entry.at.strftime("%F %T").to_string(),
        entry.actor.clone(),
        entry.migration.clone(),
        entry.revision.to_string(),
        or_dash(entry.from),
        format!("{}{forced}", entry.to),
        or_dash(entry.config.as_ref()),
        or_dash(entry.reason.as_ref()),
    ]
}

pub(super) async fn objects(args: PlainArgs) -> Result<(), CliError> {
    let view: ObjectsView = Client::from_args(&args.api)?.get(&["objects"], &[]).await?;
    print(args.api.output, &view, |view| {
        let rows: Vec<Vec<String>> = view
            .objects
            .iter()
            .map(|o| {
                let state = if o.ok { "as written" } else { "not as written" };
                vec![o.kind.clone(), o.name.clone(), or_dash(o.file.as_ref()), state.to_owned()]
            })
            .collect();
        let mut text = table(&["kind", "name", "file", "served"], &rows);
        for problem in &view.problems {
            text.push_str(problem);
            text.push('\n');
        }
        text
    })
}

pub(super) async fn registry(args: PlainArgs) -> Result<(), CliError> {
    let summary: RegistrySummary = Client::from_args(&args.api)?.get(&["registry"], &[]).await?;
    print(args.api.output, &summary, |summary| {
        let rows: Vec<Vec<String>> = summary
            .applications
            .iter()
            .map(|(name, application)| {
                let instances: Vec<String> =
                    application.instances.iter().map(|(status, count)| format!("{count} {status}")).collect();
                let held = if application.held { "held: only expired leases are left" } else { "" };
                vec![name.clone(), instances.join(", "), held.to_owned()]
            })
            .collect();
        table(&["application", "instances", ""], &rows)
    })
}

pub(super) fn validate(args: &ValidateArgs) -> Result<(), CliError> {
    let report = crate::objects::validate(&args.path);
    let report = if args.kubernetes { report.for_cluster() } else { report };
    print(args.output, &report, |report| report.to_string())?;
    match report.errors() {
        0 => Ok(()),
        1 => Err(CliError::Other(format!("{} would not be served as written", args.path.display()))),
        errors => Err(CliError::Other(format!("{errors} errors in {}", args.path.display()))),
    }
}

pub(super) fn openapi() -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(&crate::serve::api::document());
    line(&text.map_err(|error| CliError::Other(error.to_string()))?)
}

pub(super) fn crds() -> Result<(), CliError> {
    let all = crate::kubernetes::crds::all().map_err(|error| CliError::Other(error.to_string()))?;
    let texts = all.into_iter().map(|(_, text)| text).collect::<Vec<_>>();
    line(texts.join("---\n").trim_end())
}
