//! Writes an OCI image as a tarball, as `ctr images import` and `docker load` take it, without a container engine.
//! One layer, not compressed: it goes no further than this machine. The same files give the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// What is in an image.
#[derive(Debug)]
pub(crate) struct Image {
    name: String,
    entry: Option<String>,
    user: String,
    /// By the path inside.
    files: BTreeMap<String, PathBuf>,
}

impl Image {
    /// An empty one. A tag other than `latest` is not pulled by default.
    pub(crate) fn new(name: &str) -> Image {
        Image { name: name.to_owned(), entry: None, user: String::new(), files: BTreeMap::new() }
    }

    /// The program that it runs.
    pub(crate) fn entry(mut self, program: &str) -> Image {
        self.entry = Some(program.to_owned());
        self
    }

    /// The user that it runs as.
    pub(crate) fn user(mut self, user: &str) -> Image {
        self.user = user.to_owned();
        self
    }

    /// A file of this machine's, and where it is inside.
    pub(crate) fn file(mut self, from: impl Into<PathBuf>, to: &str) -> Image {
        self.files.insert(to.to_owned(), from.into());
        self
    }

    /// The shared libraries that its programs need here, at the same paths.
    pub(crate) fn with_libraries(mut self) -> anyhow::Result<Image> {
        for program in self.files.values().cloned().collect::<Vec<_>>() {
            let output = Command::new("ldd").arg(&program).output().context("ldd does not start")?;
            // Lines as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, or without a name of its own.
            for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                if word.starts_with('/') && word.contains(".so") {
                    self = self.file(std::fs::canonicalize(word)?, word);
                }
            }
        }
        Ok(self)
    }
}

/// Writes it.
pub(crate) fn write(image: &Image, out: &Path) -> anyhow::Result<()> {
    let layer = Blob::new("application/vnd.oci.image.layer.v1.tar", layer(image)?);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Entrypoint": image.entry.as_ref().map(|program| [program]),
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "User": image.user,
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [layer.digest()] },
    });
    let config = Blob::json("application/vnd.oci.image.config.v1+json", &config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor(),
        "layers": [layer.descriptor()],
    });
    let manifest = Blob::json("application/vnd.oci.image.manifest.v1+json", &manifest);
    let Some((_, tag)) = image.name.rsplit_once(':') else { bail!("{} has no tag", image.name) };
    let mut listed = manifest.descriptor();
    listed["annotations"] = json!({
        "io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({ "schemaVersion": 2, "manifests": [listed] }).to_string().into_bytes();

    let partial = out.with_extension("partial");
    let mut tar =
        Builder::new(File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?);
    append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", 0o644, &index)?;
    for blob in [&config, &layer, &manifest] {
        append(&mut tar, &format!("blobs/sha256/{}", blob.sha256), 0o644, &blob.bytes)?;
    }
    tar.into_inner()?.flush()?;
    Ok(std::fs::rename(partial, out)?)
}

fn layer(image: &Image) -> anyhow::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    let mut folders = BTreeMap::from([(String::from("tmp"), 0o1777)]);
    for path in image.files.keys() {
        let mut path = Path::new(path.trim_start_matches('/'));
        while let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            folders.entry(folder.display().to_string()).or_insert(0o755);
            path = folder;
        }
    }
    // In order, a folder is before what is in it.
    for (folder, mode) in &folders {
        let mut header = header(*mode, 0);
        header.set_entry_type(EntryType::Directory);
        tar.append_data(&mut header, format!("{folder}/"), std::io::empty())?;
    }
    for (to, from) in &image.files {
        let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = std::fs::metadata(from)?.permissions().mode() & 0o777;
        append(&mut tar, to.trim_start_matches('/'), mode | 0o444, &bytes)?;
    }
    Ok(tar.into_inner()?)
}

fn append(tar: &mut Builder<impl std::io::Write>, path: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    Ok(tar.append_data(&mut header(mode, bytes.len() as u64), path, bytes)?)
}

fn header(mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}

/// What an image is made of.
struct Blob {
    media_type: &'static str,
    bytes: Vec<u8>,
    sha256: String,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Blob {
        // By a library that is fast in a debug build, too: layers are large.
        let sum = digest(&SHA256, &bytes);
        let sha256 = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Blob { media_type, bytes, sha256 }
    }

    fn json(media_type: &'static str, value: &Value) -> Blob {
        Blob::new(media_type, value.to_string().into_bytes())
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len() })
    }
}
