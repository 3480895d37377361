//! `cargo xtask images`: what `deploy/images/Dockerfile` builds, as tarballs for `docker load` or
//! `ctr images import`, made without a container engine.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;

use crate::cluster::image::{Image, write as write_image};
use crate::step::Steps;

/// The programs, each in an image of its name.
const PROGRAMS: [&str; 2] = ["pontoon", "pontoon-proxy"];
/// `nonroot` of the distroless images.
const USER: &str = "65532:65532";
/// For which programs are built that need no library of their system's: names are looked up as DNS and the hosts file say.
const TARGET: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };
/// The tag where none is asked for. One other than `latest`, which would be pulled each time.
const TAG: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// `debug` builds in seconds, `dist` is what is shipped, linked statically.
    #[arg(long, default_value = "dist")]
    profile: String,
}

pub(crate) fn run(arguments: &Arguments, workspace: &Path, steps: &Steps) -> anyhow::Result<()> {
    let mut build = Command::new("cargo");
    build.current_dir(workspace).args([
        "build",
        "--locked",
        "-p",
        "pontoon",
        "-p",
        "pontoon-proxy",
        "--bins",
    ]);
    let mut built = workspace.join("target");
    if arguments.profile != "debug" {
        build.args(["--profile", &arguments.profile, "--target", TARGET]);
        build.env("RUSTFLAGS", "-C target-feature=+crt-static");
        built.push(TARGET);
    }
    built.push(&arguments.profile);
    steps.run(&format!("build {}", arguments.profile), &mut build)?;
    for path in write(workspace, &built)? {
        let size = std::fs::metadata(&path)?.len();
        println!("{} ({} MB)", path.display(), size / 1_000_000);
    }
    Ok(())
}

/// Writes them from the programs of a folder, with the libraries that these need, and says where.
pub(crate) fn write(workspace: &Path, built: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let folder = workspace.join("target/images");
    std::fs::create_dir_all(&folder)?;
    PROGRAMS
        .iter()
        .map(|program| {
            let path = folder.join(format!("{program}.tar"));
            let built = stripped(&built.join(program), &folder)?;
            let inside = format!("/usr/bin/{program}");
            let image = Image::new(&format!("pontoon.dev/{program}:{TAG}")).entry(&inside).user(USER);
            write_image(&image.file(built, &inside).with_libraries()?, &path)?;
            Ok(path)
        })
        .collect()
}

/// A copy without what a debugger needs, which is most of a debug build.
fn stripped(program: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let name = program.file_name().context("no name")?;
    let copy = folder.join(name);
    let output = Command::new("strip").arg("--strip-debug").arg("-o").arg(&copy).arg(program).output();
    let output = output.context("strip does not start")?;
    if !output.status.success() {
        bail!("strip {}: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(copy)
}
