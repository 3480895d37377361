//! Watches a directory and publishes what it says. The file system's events only say when to look; a look
//! every few seconds is the net under them (network file systems send none). A file is read when two looks
//! have found it the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::{self, Instant, MissedTickBehavior};

use super::catalogue::{Catalogue, File, Loaded, of_file};
use super::directory::{self, Listing};

/// Between an event and the look at it, and between the two looks: an editor's several steps of saving are
/// over by then.
const SETTLE: Duration = Duration::from_millis(40);
/// The net under the events.
const RESCAN: Duration = Duration::from_secs(3);

/// A directory of objects.
#[derive(Debug)]
pub struct DirectorySource {
    root: Arc<Path>,
    catalogue: Catalogue,
    files: BTreeMap<Arc<str>, File>,
    /// As the files were when they were read.
    read: Listing,
    publish: watch::Sender<Loaded>,
    rescan: Duration,
}

impl DirectorySource {
    /// Reads the directory once. A directory that cannot be read is a problem in [`Loaded`], not an error: it
    /// may come yet.
    pub async fn open(root: impl Into<PathBuf>) -> Self {
        let mut source = Self {
            root: root.into().into(),
            catalogue: Catalogue::default(),
            files: BTreeMap::new(),
            read: Listing::new(),
            publish: watch::Sender::new(Loaded::default()),
            rescan: RESCAN,
        };
        if let Some(Ok(listing)) = source.list().await {
            let settled = listing.clone();
            source.take_over(listing, &settled).await;
        } else {
            source.unavailable().await;
        }
        source
    }

    /// What the directory says; changes as it does.
    pub fn loaded(&self) -> watch::Receiver<Loaded> {
        self.publish.subscribe()
    }

    /// Keeps looking. Runs until it is dropped.
    pub async fn run(mut self) {
        // One place: an event that finds it taken is covered by the look to come.
        let (wake, mut woken) = mpsc::channel(1);
        let mut folder = directory::identity(&self.root);
        let mut watcher = watcher(&self.root, wake.clone());
        let mut rescan = time::interval_at(Instant::now() + self.rescan, self.rescan);
        rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What changed between the first read and the watch had no event.
        let _ = wake.try_send(());
        loop {
            tokio::select! {
                _ = woken.recv() => time::sleep(SETTLE).await,
                _ = rescan.tick() => {
                    // A watch stays with the folder that it was set on, also when another takes its place.
                    let now = directory::identity(&self.root);
                    if watcher.is_none() || now != folder {
                        folder = now;
                        watcher = self::watcher(&self.root, wake.clone());
                        let _ = wake.try_send(());
                    }
                }
            }
            // What happens from here on is seen by the next round.
            while woken.try_recv().is_ok() {}
            if !self.look().await {
                // Something moves: look again.
                let _ = wake.try_send(());
            }
        }
    }

    /// Looks once, twice where something changed. False: something was still moving.
    async fn look(&mut self) -> bool {
        let first = match self.list().await {
            Some(Ok(listing)) => listing,
            Some(Err(_)) => {
                self.unavailable().await;
                return true;
            }
            None => return true,
        };
        let unusable = self.files.values().any(|file| matches!(file, File::Unusable { .. }));
        if first == self.read && !unusable && !self.publish.borrow().is_unavailable() {
            return true;
        }
        time::sleep(SETTLE).await;
        let Some(Ok(second)) = self.list().await else { return false };
        let still = first == second;
        self.take_over(second, &first).await;
        still
    }

    async fn list(&self) -> Option<Result<Listing, directory::ListError>> {
        let root = self.root.clone();
        tokio::task::spawn_blocking(move || directory::list(&root)).await.ok()
    }

    /// Reads what changed since it was read and is the same in both listings.
    async fn take_over(&mut self, listing: Listing, before: &Listing) {
        // A file that one look has and the next has not may be on its way from one name to another.
        let vanished = before.keys().any(|name| !listing.contains_key(name));
        let mut files = BTreeMap::new();
        let mut to_read = Vec::new();
        for (name, signature) in &listing {
            let known = self.files.get(name).filter(|file| matches!(file, File::Text(_)));
            match known {
                Some(file) if self.read.get(name) == Some(signature) => {
                    files.insert(name.clone(), file.clone());
                }
                _ if before.get(name) != Some(signature) => {
                    files.insert(name.clone(), directory::being_written());
                }
                _ => to_read.push((name.clone(), signature.clone())),
            }
        }
        let read = tokio::task::spawn_blocking(move || {
            to_read
                .into_iter()
                .map(|(name, signature)| (name, directory::read(&signature)))
                .collect::<Vec<_>>()
        });
        let Ok(read) = read.await else { return };
        files.extend(read);
        if vanished {
            for name in before.keys().filter(|name| !listing.contains_key(*name)) {
                files.insert(name.clone(), directory::being_written());
            }
        }
        self.read = listing;
        self.files = files;
        let loaded = self.catalogue.update(&self.files);
        self.publish(loaded);
    }

    async fn unavailable(&mut self) {
        let Some(Err(error)) = self.list().await else { return };
        let name: Arc<str> = ".".into();
        let message = format!("{error}. The objects stay as they were");
        let loaded = self.catalogue.unavailable(of_file(&name, "unreadable", message));
        self.publish(loaded);
    }

    fn publish(&self, loaded: Loaded) {
        self.publish.send_if_modified(|published| {
            let changed = *published != loaded;
            if changed {
                for problem in loaded.problems.iter().filter(|p| !published.problems.contains(p)) {
                    tracing::warn!(reason = problem.reason, "{problem}");
                }
                tracing::info!(objects = loaded.len(), problems = loaded.problems.len(), "objects read");
                *published = loaded;
            }
            changed
        });
    }
}

/// Without events the rescan does: a system that has no watches to give is no reason to stop.
fn watcher(root: &Path, wake: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        let only_read = |event: &notify::Event| {
            use notify::event::{AccessKind, AccessMode, EventKind};
            match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
                kind => kind.is_access(),
            }
        };
        if !event.as_ref().is_ok_and(only_read) {
            let _ = wake.try_send(());
        }
    };
    let watched = notify::recommended_watcher(on_event)
        .and_then(|mut watcher| watcher.watch(root, RecursiveMode::Recursive).map(|()| watcher));
    match watched {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::debug!(%error, "no file system events; looking every {RESCAN:?}");
            None
        }
    }
}

#[cfg(test)]
mod tests;
