//! `cargo xtask`: what the project does with itself.

mod bench;
mod book;
mod chart;
mod check;
mod cluster;
mod descriptors;
mod e2e;
mod footprint;
mod fuzz;
mod images;
mod java;
mod step;
mod tally;
mod tools;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use step::Steps;
use tools::Tools;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What the project does with itself")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build, lint, build the book, and run all tests and all groups of end-to-end tests.
    Test,
    /// Run one group of end-to-end tests.
    E2e {
        /// Which.
        group: e2e::Group,
        /// Handed to the group: names of the cases to run.
        cases: Vec<String>,
        /// Of the group `kubernetes`: where it runs.
        #[arg(long, value_enum, default_value = "own")]
        cluster: e2e::On,
    },
    /// A Kubernetes cluster on this machine, without a container engine. Needs root.
    #[command(subcommand)]
    Cluster(cluster::Task),
    /// Write the images of `pontoon` and `pontoon-proxy` as tarballs into target/images, without a container engine.
    Images(images::Arguments),
    /// Write deploy/kubernetes anew, from the Helm chart.
    Manifests {
        /// Only say whether they are what the chart renders, and whether the chart is a good one.
        #[arg(long)]
        check: bool,
    },
    /// Run every parser against made-up input, a minute each.
    Fuzz(fuzz::Arguments),
    /// Build the proxy as it is shipped, and hold it to its size, its start, and its memory: at the start, and for each idle
    /// connection.
    Footprint,
    /// Measure Pontoon and its peers side by side, and write docs/benchmarks.md.
    Bench(bench::Arguments),
    /// Fetch all programs that tests and benchmarks run against.
    Peers,
    /// Build the book into target/book.
    Book,
    /// Write xds/descriptors.bin.gz anew, from the proto files of the envoy-types crate.
    Descriptors,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<bool> {
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is not inside the workspace")?;
    let (steps, tools) = (Steps::new(workspace)?, Tools::new()?);
    match task {
        Task::Test => return check::run(workspace, &steps, &tools),
        Task::E2e { group, cases, cluster } => {
            e2e::build(workspace, &steps)?;
            let ready = e2e::prepare(group, cluster, workspace, &steps, &tools)?;
            let tally = ready.run(workspace, &steps, &tools, &cases)?;
            let skipped =
                if tally.skipped > 0 { format!(", {} skipped", tally.skipped) } else { String::new() };
            println!("{} passed, {} failed{skipped}", tally.passed, tally.failed);
            return Ok(tally.failed == 0);
        }
        Task::Cluster(task) => return cluster::run(&task, workspace, &steps, &tools),
        Task::Images(arguments) => images::run(&arguments, workspace, &steps)?,
        Task::Manifests { check: true } => chart::check(workspace, &steps, &tools)?,
        Task::Manifests { check: false } => chart::write(workspace, &steps, &tools)?,
        Task::Fuzz(arguments) => return fuzz::run(&arguments, workspace, &steps, &tools),
        Task::Footprint => footprint::run(workspace, &steps)?,
        Task::Bench(arguments) => bench::run(&arguments, workspace, &steps, &tools)?,
        Task::Peers => {
            tools.debian(&steps)?;
            tools.network(&steps)?;
            tools.envoy(&steps)?;
            tools.h2spec(&steps)?;
            tools.cargo_deny(&steps)?;
            tools.mdbook(&steps)?;
            tools.helm(&steps)?;
            tools.spring(&steps, workspace)?;
        }
        Task::Book => book::build(workspace, &steps, &tools)?,
        Task::Descriptors => descriptors::write(workspace)?,
    }
    Ok(true)
}
