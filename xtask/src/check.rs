//! `cargo xtask test`: everything that must hold before a change lands. First what is read and what is built, in the
//! order in which it is cheapest to learn, with all processors for each; then what measures; then what only runs, in
//! two lanes, since most of that is waiting: the groups on a cluster, and all else. A step that fails does not stop the
//! others; the closing lines count all of them.

use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::anyhow;
use clap::ValueEnum;

use crate::book;
use crate::chart;
use crate::e2e::{self, Group, On, Ready};
use crate::step::Steps;
use crate::tally::Tally;
use crate::tools::Tools;

const TESTS: [&str; 4] = ["test", "--workspace", "--locked", "--no-fail-fast"];
const FUZZING: &str = "pontoon/fuzzing,pontoon-proxy/fuzzing";
/// What a request costs, and an idle connection: of a release build. What is shipped is smaller.
const RELEASE_TESTS: [&str; 6] = ["test", "--release", "--locked", "--no-fail-fast", "-p", "pontoon-proxy"];
const COST: [&str; 2] = ["--test", "cost"];
const IDLE: [&str; 2] = ["--test", "footprint"];

/// Runs everything. False: something failed.
pub(crate) fn run(workspace: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<bool> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let check = Check { workspace, steps, tools };
    let mut total = check.sources();
    let (ready, built) = check.build();
    total.add(built);
    let (on_cluster, beside): (Vec<Ready>, Vec<Ready>) =
        ready.into_iter().partition(|ready| ready.group.is_on_cluster());
    total.add(check.tests("cost", &[&RELEASE_TESTS[..], &COST].concat()));
    total.add(check.tests("idle", &[&RELEASE_TESTS[..], &IDLE].concat()));
    thread::scope(|scope| {
        let lane = scope.spawn(|| check.groups(&on_cluster));
        total.add(check.tests("tests", &TESTS));
        total.add(check.groups(&beside));
        let on_cluster =
            lane.join().unwrap_or_else(|_| noted("the groups on a cluster", Err(anyhow!("panicked"))));
        total.add(on_cluster);
    });

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

struct Check<'a> {
    workspace: &'a Path,
    steps: &'a Steps,
    tools: &'a Tools,
}

impl Check<'_> {
    /// What is learnt without running anything of ours.
    fn sources(&self) -> Tally {
        let Check { workspace, steps, tools } = *self;
        let mut tally = Tally::default();
        let mut check = |name: &str, outcome: anyhow::Result<()>| {
            tally.add(noted(name, outcome.map(|()| Tally::check(true))))
        };
        check("fmt", self.cargo("fmt", &["fmt", "--all", "--check"]));
        let deny = tools.cargo_deny(steps).and_then(|deny| {
            let mut command = Command::new(deny);
            command.current_dir(workspace).args(["--locked", "check", "bans", "licenses", "sources"]);
            steps.run("deny", &mut command)
        });
        check("deny", deny.map(drop));
        check("book", book::build(workspace, steps, tools));
        check("chart", chart::check(workspace, steps, tools));
        // What only the fuzz targets see is compiled by nothing else of this.
        let all = ["clippy", "--workspace", "--all-targets", "--locked", "--features"];
        let clippy = [&all[..], &[FUZZING, "--", "-D", "warnings"]].concat();
        check("clippy", self.cargo("clippy", &clippy));
        tally
    }

    /// All that the lanes run: nothing is built, and nothing fetched, beside a test. What fails is not counted twice:
    /// a test that does not compile fails again where it runs, a group that is not ready does not run.
    fn build(&self) -> (Vec<Ready>, Tally) {
        let Check { workspace, steps, tools } = *self;
        let mut tally = Tally::default();
        let _again_where_it_runs = self.cargo("build the tests", &[&TESTS[..], &["--no-run"]].concat());
        let release = [&RELEASE_TESTS[..], &COST, &IDLE, &["--no-run"]].concat();
        let _again_where_it_runs = self.cargo("build the tests of the release", &release);
        if let Err(error) = tools.valgrind(steps) {
            tally.add(noted("valgrind", Err(error)));
        }
        if let Err(error) = e2e::build(workspace, steps) {
            tally.add(noted("the programs", Err(error)));
            return (Vec::new(), tally);
        }
        let ready = Group::value_variants().iter().filter_map(|group| {
            match e2e::prepare(*group, On::Own, workspace, steps, tools) {
                Ok(ready) => Some(ready),
                Err(error) => {
                    tally.add(noted(&format!("e2e {}", group.name()), Err(error)));
                    None
                }
            }
        });
        (ready.collect(), tally)
    }

    fn tests(&self, name: &str, arguments: &[&str]) -> Tally {
        let outcome = self.steps.try_run(name, self.command().args(arguments));
        noted(name, outcome.map(|output| Tally::of_step(&output)))
    }

    fn groups(&self, ready: &[Ready]) -> Tally {
        let mut tally = Tally::default();
        for ready in ready {
            let outcome = ready.run(self.workspace, self.steps, self.tools, &[]);
            tally.add(noted(&format!("e2e {}", ready.group.name()), outcome));
        }
        tally
    }

    fn cargo(&self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        self.steps.run(name, self.command().args(arguments)).map(drop)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("cargo");
        command.current_dir(self.workspace);
        command
    }
}

/// What came of it; what could not be done is said, and has failed.
fn noted(name: &str, outcome: anyhow::Result<Tally>) -> Tally {
    outcome.unwrap_or_else(|error| {
        println!("FAILED {name}: {error:#}");
        Tally::check(false)
    })
}
