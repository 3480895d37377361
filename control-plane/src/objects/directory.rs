//! Reads a directory of YAML. Names that start with a dot are left out, so that a mounted ConfigMap (whose
//! files are links through a hidden folder) is read once; links are followed. Everything is bounded.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::catalogue::File;

/// A larger file is refused: an object is a few hundred bytes, and Kubernetes stops at 1 MiB too.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// More files are refused as a whole: a path that was given by mistake must not be read through.
pub const MAX_FILES: usize = 1000;
/// Folders below the directory.
pub const MAX_DEPTH: usize = 8;

/// What tells whether a file changed, without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    path: PathBuf,
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

/// All YAML files, by their path relative to the directory.
pub(super) type Listing = BTreeMap<Arc<str>, Signature>;

/// Why a directory could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// A folder could not be read.
    #[error("{path}: {source}; look at the path and its permissions")]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is more than we are made for.
    #[error(
        "more than {MAX_FILES} files, or folders nested deeper than {MAX_DEPTH}: is this the right directory?"
    )]
    TooMany,
}

/// Lists a directory; a path to a file is a listing of that file.
pub(super) fn list(root: &Path) -> Result<Listing, ListError> {
    let mut listing = Listing::new();
    let error = |path: &Path, source| ListError::Io { path: path.to_owned(), source };
    if std::fs::metadata(root).map_err(|source| error(root, source))?.is_file() {
        let name = root.file_name().map_or_else(|| "file".into(), |name| name.to_string_lossy().into_owned());
        if let Some(signature) = signature(root) {
            listing.insert(name.into(), signature);
        }
        return Ok(listing);
    }
    let mut folders = vec![(root.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            // A folder below that went away while we were looking.
            Err(gone) if depth > 0 && gone.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(error(&folder, source)),
        };
        for entry in entries {
            let entry = entry.map_err(|source| error(&folder, source))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() && depth >= MAX_DEPTH => return Err(ListError::TooMany),
                Ok(metadata) if metadata.is_dir() => folders.push((path, relative, depth + 1)),
                _ if !is_yaml(&path) => {}
                // A link to nowhere is listed, so that it is reported and not taken for a deletion.
                _ => {
                    let signature =
                        signature(&path).unwrap_or(Signature { path, modified: None, bytes: 0, inode: 0 });
                    listing.insert(relative.into(), signature);
                }
            }
            if listing.len() > MAX_FILES || folders.len() > MAX_FILES {
                return Err(ListError::TooMany);
            }
        }
    }
    Ok(listing)
}

fn is_yaml(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|e| matches!(e, "yaml" | "yml" | "json"))
}

fn signature(path: &Path) -> Option<Signature> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Signature {
        path: path.to_owned(),
        modified: metadata.modified().ok(),
        bytes: metadata.len(),
        inode: inode(&metadata),
    })
}

/// Tells a folder from another in its place; `None` where there is none.
pub(super) fn identity(root: &Path) -> Option<u64> {
    std::fs::metadata(root).ok().map(|metadata| inode(&metadata))
}

#[cfg(unix)]
fn inode(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> u64 {
    0
}

/// Reads a listed file. One that changed since it was listed is being written.
pub(super) fn read(signature: &Signature) -> File {
    let unusable = |reason, message: String| File::Unusable { reason, message };
    if signature.bytes > MAX_FILE_BYTES {
        let message = format!("the file has {} bytes; at most {MAX_FILE_BYTES} are read", signature.bytes);
        return unusable("too_large", message);
    }
    let mut bytes = Vec::new();
    let opened = open(&signature.path);
    let read = opened.and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        return unusable("unreadable", format!("the file cannot be read: {error}"));
    }
    if self::signature(&signature.path).as_ref() != Some(signature) {
        return being_written();
    }
    match String::from_utf8(bytes) {
        Ok(text) => File::Text(text.into()),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = 1 + error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count();
            unusable("not_utf8", format!("line {line} is not UTF-8 text"))
        }
    }
}

/// Opens a file, and only that: a pipe would be waited for until somebody writes to it.
fn open(path: &Path) -> io::Result<std::fs::File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    // Should it be replaced by a pipe just now, opening it does not wait, and reading it ends at once.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// A file that changed between two looks.
pub(super) fn being_written() -> File {
    let message = "the file is being written; it is read when it has come to rest";
    File::Unusable { reason: "being_written", message: message.into() }
}
