//! `cargo xtask fuzz`: every parser against made-up input for a minute each, led by coverage. libFuzzer needs no
//! nightly compiler for that, only the flags below; what nightly would add are the sanitizers, and there is next to
//! no unsafe code of ours to watch.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use clap::Args;

use crate::step::Steps;
use crate::tools::Tools;

/// Counters at every edge and the operands of comparisons, as libFuzzer reads them.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// An input may take so long. Above it, it is a way to make the proxy slow, and counts as a crash.
const INPUT_SECONDS: u32 = 5;
const MEMORY_MIB: u32 = 2048;
const INPUT_BYTES: u32 = 4096;

/// What is fuzzed.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Which targets; all of them by default.
    targets: Vec<String>,
    /// How long each.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Run one target once with this input, as a crash was reported with.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// Builds and runs them. False: an input was found that crashes one.
pub(crate) fn run(
    arguments: &Arguments,
    workspace: &Path,
    steps: &Steps,
    tools: &Tools,
) -> anyhow::Result<bool> {
    let folder = workspace.join("fuzz");
    let known = targets(&folder)?;
    let chosen = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    if let Some(unknown) = chosen.iter().find(|name| !known.contains(name)) {
        bail!("there is no target {unknown:?}; there are: {}", known.join(", "));
    }
    let host = host()?;
    let target = workspace.join("target/fuzz");
    // The versions that are shipped; what only the targets need comes on top.
    std::fs::copy(workspace.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    let mut build = Command::new("cargo");
    build.current_dir(&folder).args(["build", "--bins", "--target", &host, "--target-dir"]);
    // A target of its own keeps the flags from build scripts and procedural macros.
    build.arg(&target).env("RUSTFLAGS", FLAGS).env("CARGO_INCREMENTAL", "0");
    steps.run("build the fuzz targets", &mut build)?;
    let programs = target.join(host).join("debug");

    if let Some(input) = &arguments.input {
        let [target] = chosen.as_slice() else { bail!("--input needs one target") };
        let status = Command::new(programs.join(target)).arg(input).status()?;
        return Ok(status.success());
    }
    let mut passed = true;
    for name in chosen {
        passed &= one(name, &programs, &folder, workspace, arguments.seconds, steps, tools)?;
    }
    Ok(passed)
}

fn one(
    name: &str,
    programs: &Path,
    folder: &Path,
    workspace: &Path,
    seconds: u32,
    steps: &Steps,
    tools: &Tools,
) -> anyhow::Result<bool> {
    // What was found in earlier runs is where the next one begins.
    let corpus = tools.folder("fuzz").join(name);
    let found = workspace.join("target/fuzz/found").join(name);
    for folder in [&corpus, &found] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut command = Command::new(programs.join(name));
    command.current_dir(workspace).arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-timeout={INPUT_SECONDS}")).arg(format!("-rss_limit_mb={MEMORY_MIB}"));
    command.arg(format!("-max_len={INPUT_BYTES}")).args(["-print_final_stats=1", "-verbosity=0"]);
    command.arg(format!("-artifact_prefix={}/", found.display()));
    command.arg(&corpus);
    let seeds = folder.join("seeds").join(name);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    let output = steps.try_run(&format!("fuzz {name}"), &mut command)?;
    if output.success {
        let runs = output.text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        println!("       {} inputs", runs.unwrap_or("?").trim());
        return Ok(true);
    }
    let written = output.text.lines().find_map(|line| line.split_once("Test unit written to ")?.1.into());
    if let Some(path) = written.map(|path: &str| Path::new(path.trim())) {
        let bytes = std::fs::read(path).unwrap_or_default();
        println!("       the input: {}", bytes.escape_ascii());
        println!("       again: cargo xtask fuzz {name} --input {}", path.display());
    }
    Ok(false)
}

/// One program a target.
fn targets(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder.join("src/bin"))? {
        let path = entry?.path();
        if let (Some("rs"), Some(name)) = (path.extension().and_then(|e| e.to_str()), path.file_stem()) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The machine's target triple.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").stderr(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}
