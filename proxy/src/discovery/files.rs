//! Certificates in files are read again when a file changes. What matters is looked at (time, length, inode, through
//! links), not watched: that works for renamed files, Kubernetes' swapped links and network file systems alike.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::Shared;

/// Between looks.
const PERIOD: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

type Stamps = BTreeMap<PathBuf, Option<Stamp>>;

/// Follows the files for the life of the process.
pub(super) async fn follow(shared: Shared) {
    let mut known = Stamps::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        let files = shared.store().tls_files();
        if files.is_empty() {
            known.clear();
            continue;
        }
        // A file system that hangs holds up a thread that has nothing else to do.
        let Ok(now) = tokio::task::spawn_blocking(move || stamps(files)).await else { continue };
        if now == known {
            continue;
        }
        known = now;
        let problems = shared.store().reload_tls();
        for problem in &problems {
            tracing::error!(%problem, "a changed certificate cannot be used; the one before it stays in force");
        }
        if problems.is_empty() {
            tracing::info!("certificates are read from their files");
        }
    }
}

fn stamps(files: BTreeSet<PathBuf>) -> Stamps {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Stamp { modified: metadata.modified().ok(), length: metadata.len(), inode: metadata.ino() })
    };
    files.into_iter().map(|path| (path.clone(), stamp(&path))).collect()
}
