//! A Spring application in an image, with a Java of its own: this machine's, cut down by jlink to what Spring asks for.
//! Made once, and kept in the cache folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, bail};

use crate::cluster::image::{self, Image};
use crate::step::Steps;
use crate::tools::{Fnv, Tools, on_path};

/// As `e2e/src/kubernetes.rs` calls it.
const NAME: &str = "pontoon.test/inventory:1";
/// Where Java is inside.
const HOME: &str = "/opt/java";
/// Spring reads classes of most of Java SE, and Netty and Tomcat those behind `sun.misc`.
const MODULES: &str = "java.se,jdk.crypto.ec,jdk.unsupported";
/// `nonroot` of the distroless images.
const USER: &str = "65532:65532";

/// The image of the modern `inventory`, from the folder of the [applications](Tools::spring).
pub(crate) fn image(spring: &Path, steps: &Steps, tools: &Tools) -> anyhow::Result<PathBuf> {
    let mut stamp = Fnv::default();
    // Its name has the stamp of the sources.
    stamp.write(spring.as_os_str().as_encoded_bytes());
    for source in [include_str!("java.rs"), include_str!("cluster/image.rs")] {
        stamp.write(source.as_bytes());
    }
    let out = tools.folder(&format!("spring-image-{:016x}.tar", stamp.value()));
    if out.exists() {
        return Ok(out);
    }
    if !on_path("jlink") {
        bail!("jlink is not on PATH: it comes with a JDK, of which the image's Java is made");
    }
    let java = spring.join("java");
    remove(&java)?;
    let mut link = Command::new("jlink");
    link.args(["--strip-java-debug-attributes", "--no-header-files", "--no-man-pages", "--compress=2"]);
    link.args(["--add-modules", MODULES, "--output"]).arg(&java);
    steps.run("jlink", &mut link)?;
    // What all JVMs start with is read once and mapped: half of a second of each start. That archive is only taken with
    // the very file that it was made from, by the time that it has in an image.
    let modules = File::options().write(true).open(java.join("lib/modules"))?;
    modules.set_modified(SystemTime::UNIX_EPOCH)?;
    let mut dump = Command::new(java.join("bin/java"));
    steps.run("archive of Java's classes", dump.arg("-Xshare:dump"))?;
    image::write(&of(&java, spring)?, &out)?;
    remove(&java)?;
    Ok(out)
}

fn of(java: &Path, spring: &Path) -> anyhow::Result<Image> {
    let image = Image::new(NAME).entry(&format!("{HOME}/bin/java")).user(USER);
    // Of all of Java these two ask for libraries of the system; the others ask for these.
    let image = ["lib/server/libjvm.so", "lib/libjli.so"]
        .into_iter()
        .fold(image, |image, library| image.file(java.join(library), &format!("{HOME}/{library}")))
        .with_libraries()?;
    let mut files = Vec::new();
    list(java, &mut files)?;
    let image = files.into_iter().try_fold(image, |image, file| -> anyhow::Result<Image> {
        let inside = Path::new(HOME).join(file.strip_prefix(java)?);
        Ok(image.file(&file, &inside.display().to_string()))
    })?;
    Ok(image.file(spring.join("modern/inventory.jar"), "/inventory.jar"))
}

/// Every file below, but notices.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if !path.is_dir() {
            files.push(path);
        } else if !path.ends_with("legal") {
            list(&path, files)?;
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
