//! `cargo xtask footprint`: what the shipped proxy takes before anybody asks anything of it. Its build takes minutes, so
//! that it is no part of `cargo xtask test`.

use std::path::Path;
use std::process::Command;

use crate::step::Steps;

/// What the tests begin a line with that a person wants to see.
const FIGURE: &str = "figure: ";

/// Builds and measures.
pub(crate) fn run(workspace: &Path, steps: &Steps) -> anyhow::Result<()> {
    let mut build = Command::new("cargo");
    build.current_dir(workspace).args([
        "build",
        "--profile",
        "dist",
        "--locked",
        "-p",
        "pontoon-proxy",
        "--bins",
    ]);
    steps.run("build what is shipped", &mut build)?;
    let mut test = Command::new("cargo");
    test.current_dir(workspace).args([
        "test",
        "--release",
        "--locked",
        "-p",
        "pontoon-proxy",
        "--test",
        "footprint",
    ]);
    test.args(["--", "--nocapture", "--test-threads", "1"]);
    test.env("PONTOON_TEST_PROXY", workspace.join("target/dist/pontoon-proxy"));
    let said = steps.run("footprint", &mut test)?;
    for figure in said.lines().filter_map(|line| Some(line.split_once(FIGURE)?.1)) {
        println!("       {figure}");
    }
    Ok(())
}
