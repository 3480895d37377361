//! `cargo xtask`: what the project does with itself.

mod descriptors;

use std::path::Path;

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What the project does with itself")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Write xds/descriptors.bin.gz anew, from the proto files of the envoy-types crate.
    Descriptors,
}

fn main() -> anyhow::Result<()> {
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is not inside the workspace")?;
    match Arguments::parse().task {
        Task::Descriptors => descriptors::write(workspace),
    }
}
