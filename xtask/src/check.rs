//! `cargo xtask test`: everything that must hold before a change lands, in the order in which it is cheapest to
//! learn. A step that fails does not stop the others; the closing lines count all of them.

use std::path::Path;
use std::process::Command;

use clap::ValueEnum;

use crate::book;
use crate::chart;
use crate::e2e::{self, Group, On};
use crate::step::Steps;
use crate::tally::Tally;
use crate::tools::Tools;

/// Runs everything. False: something failed.
pub(crate) fn run(workspace: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<bool> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let mut total = Tally::default();
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new("cargo");
        command.current_dir(workspace).args(arguments);
        command
    };

    let mut check = |name: &str, outcome: anyhow::Result<()>| {
        if let Err(error) = &outcome {
            println!("FAILED {name}: {error:#}");
        }
        total.add(Tally::check(outcome.is_ok()));
    };
    let fmt = steps.run("fmt", &mut cargo(&["fmt", "--all", "--check"]));
    check("fmt", fmt.map(drop));
    let deny = tools.cargo_deny(steps).and_then(|deny| {
        let mut command = Command::new(deny);
        command.current_dir(workspace).args(["--locked", "check", "bans", "licenses", "sources"]);
        steps.run("deny", &mut command)
    });
    check("deny", deny.map(drop));
    check("book", book::build(workspace, steps, tools));
    check("chart", chart::check(workspace, steps, tools));
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    let clippy = steps.run("clippy", &mut cargo(&clippy));
    check("clippy", clippy.map(drop));

    let mut tests = |name: &str, arguments: &[&str]| -> anyhow::Result<()> {
        let output = steps.try_run(name, &mut cargo(arguments))?;
        let mut counted = Tally::of_cargo_test(&output.text);
        if !output.success && counted.failed == 0 {
            // It did not compile, or a test program died.
            counted.failed = 1;
        }
        total.add(counted);
        Ok(())
    };
    tests("tests", &["test", "--workspace", "--locked", "--no-fail-fast"])?;
    tools.valgrind(steps)?;
    tests("cost", &["test", "--release", "--locked", "-p", "pontoon-proxy", "--test", "cost"])?;
    tests("idle", &["test", "--release", "--locked", "-p", "pontoon-proxy", "--test", "footprint"])?;

    for group in Group::value_variants() {
        match e2e::run(*group, On::Own, workspace, steps, tools, &[]) {
            Ok(tally) => total.add(tally),
            Err(error) => {
                println!("FAILED e2e {}: {error:#}", group.name());
                total.add(Tally::check(false));
            }
        }
    }

    if ci {
        // What cannot run on a machine that must be able to run it is broken.
        total.failed += std::mem::take(&mut total.skipped);
    }
    if total.skipped > 0 {
        println!("{} skipped", total.skipped);
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0)
}
