use std::fs;

use super::*;
use crate::objects::ObjectName;

fn pool(name: &str, port: u16) -> String {
    format!(
        "apiVersion: pontoon.dev/v1alpha1\nkind: Pool\nmetadata: {{name: {name}}}\nspec:\n  dns: {{name: backend, port: {port}}}\n---\n"
    )
}

struct Watched {
    folder: tempfile::TempDir,
    loaded: watch::Receiver<Loaded>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    async fn start(prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        prepare(folder.path());
        let source = DirectorySource::open(folder.path()).await;
        let loaded = source.loaded();
        Self { folder, loaded, task: tokio::spawn(source.run()) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&Loaded) -> bool) -> Loaded {
        let waited = time::timeout(Duration::from_secs(20), self.loaded.wait_for(|loaded| condition(loaded)));
        waited.await.unwrap_or_else(|_| panic!("never: {what}")).expect("the source runs").clone()
    }
}

fn port(loaded: &Loaded, name: &str) -> Option<u16> {
    let pool = loaded.objects.pools.get(&ObjectName::new("default", name))?;
    pool.spec.dns.as_ref().map(|dns| dns.port)
}

#[tokio::test]
async fn what_is_there_at_the_start_is_there_at_once() {
    let watched = Watched::start(|root| {
        fs::create_dir(root.join("team")).expect("a folder");
        fs::write(root.join("team/a.yaml"), pool("a", 1)).expect("written");
        fs::write(root.join("notes.txt"), "not read").expect("written");
        fs::write(root.join(".hidden.yaml"), "not: read").expect("written");
    })
    .await;
    let loaded = watched.loaded.borrow().clone();
    assert_eq!((port(&loaded, "a"), loaded.problems.len()), (Some(1), 0));
}

#[tokio::test]
async fn a_file_that_is_written_renamed_over_and_removed_is_followed() {
    let mut watched = Watched::start(|_| {}).await;
    fs::write(watched.path("a.yaml"), pool("a", 1)).expect("written");
    watched.until("written", |loaded| port(loaded, "a") == Some(1)).await;
    fs::write(watched.path("a.new"), pool("a", 2)).expect("written");
    fs::rename(watched.path("a.new"), watched.path("a.yaml")).expect("renamed");
    watched.until("renamed over", |loaded| port(loaded, "a") == Some(2)).await;
    fs::remove_file(watched.path("a.yaml")).expect("removed");
    watched.until("removed", |loaded| port(loaded, "a").is_none()).await;
}

#[tokio::test]
async fn a_pipe_is_refused_and_holds_up_nobody() {
    let pipe = |root: &Path| {
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe.yaml"), rustix::fs::Mode::from_raw_mode(0o600))
            .expect("a pipe");
    };
    let mut watched = Watched::start(pipe).await;
    let loaded = watched.loaded.borrow().clone();
    let said: Vec<String> = loaded.problems.iter().map(ToString::to_string).collect();
    assert!(said.len() == 1 && said[0].contains("not a regular file"), "{said:?}");
    fs::write(watched.path("a.yaml"), pool("a", 1)).expect("written");
    watched.until("the file beside it", |loaded| port(loaded, "a") == Some(1)).await;
}

#[tokio::test]
async fn a_bad_file_leaves_what_was_and_says_so() {
    let mut watched =
        Watched::start(|root| fs::write(root.join("a.yaml"), pool("a", 1)).expect("written")).await;
    fs::write(watched.path("a.yaml"), pool("a", 1).replace("port: 1", "prt: 1")).expect("written");
    let loaded =
        watched.until("a problem", |loaded| loaded.problems.iter().any(|p| p.reason == "unknown_field"));
    assert_eq!(port(&loaded.await, "a"), Some(1));
    fs::write(watched.path("a.yaml"), pool("a", 2)).expect("written");
    watched.until("mended", |loaded| port(loaded, "a") == Some(2) && loaded.problems.is_empty()).await;
}

#[tokio::test]
async fn a_file_cut_off_while_it_is_written_deletes_nothing() {
    let mut watched = Watched::start(|root| {
        fs::write(root.join("a.yaml"), pool("a", 1) + &pool("b", 1)).expect("written");
    })
    .await;
    fs::write(watched.path("a.yaml"), "").expect("written");
    let loaded =
        watched.until("a problem", |loaded| loaded.problems.iter().any(|p| p.reason == "empty")).await;
    assert_eq!((port(&loaded, "a"), port(&loaded, "b")), (Some(1), Some(1)));
}

#[tokio::test]
async fn a_directory_that_goes_away_deletes_nothing_and_is_found_again() {
    let mut watched = Watched::start(|root| {
        fs::create_dir(root.join("in")).expect("a folder");
        fs::write(root.join("in/a.yaml"), pool("a", 1)).expect("written");
    })
    .await;
    let inner = watched.path("in");
    let mut source = DirectorySource::open(&inner).await;
    source.rescan = Duration::from_millis(100);
    watched.task.abort();
    watched.loaded = source.loaded();
    watched.task = tokio::spawn(source.run());
    fs::rename(&inner, watched.path("moved")).expect("renamed");
    let gone = |loaded: &Loaded| loaded.problems.iter().any(|problem| problem.reason == "unreadable");
    assert_eq!(port(&watched.until("gone", gone).await, "a"), Some(1));
    fs::rename(watched.path("moved"), &inner).expect("renamed");
    watched.until("back", |loaded| loaded.problems.is_empty() && port(loaded, "a") == Some(1)).await;
    // Another folder in its place.
    fs::create_dir(watched.path("next")).expect("a folder");
    fs::write(watched.path("next/a.yaml"), pool("a", 2)).expect("written");
    fs::rename(&inner, watched.path("moved")).expect("renamed");
    fs::rename(watched.path("next"), &inner).expect("renamed");
    watched.until("replaced", |loaded| port(loaded, "a") == Some(2)).await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_mounted_config_map_is_swapped_as_one() {
    use std::os::unix::fs::symlink;
    let mut watched = Watched::start(|root| {
        for (version, port) in [("..1", 1), ("..2", 2)] {
            fs::create_dir(root.join(version)).expect("a folder");
            fs::write(root.join(version).join("a.yaml"), pool("a", port)).expect("written");
            fs::write(root.join(version).join("b.yaml"), pool("b", port)).expect("written");
        }
        symlink("..1", root.join("..data")).expect("a link");
        symlink("..data/a.yaml", root.join("a.yaml")).expect("a link");
        symlink("..data/b.yaml", root.join("b.yaml")).expect("a link");
    })
    .await;
    assert_eq!(port(&watched.loaded.borrow(), "a"), Some(1));
    symlink("..2", watched.path("..data_tmp")).expect("a link");
    fs::rename(watched.path("..data_tmp"), watched.path("..data")).expect("renamed");
    let loaded = watched.until("swapped", |loaded| port(loaded, "a") == Some(2)).await;
    assert_eq!((port(&loaded, "b"), loaded.problems.len()), (Some(2), 0));
}

#[tokio::test]
async fn files_that_are_too_large_too_many_or_no_text_are_refused() {
    let watched = Watched::start(|root| {
        fs::write(root.join("large.yaml"), vec![b'#'; 1024 * 1024 + 1]).expect("written");
        fs::write(root.join("binary.yaml"), b"a: 1\n\xff\xfe").expect("written");
        fs::write(root.join("good.yaml"), pool("a", 1)).expect("written");
    })
    .await;
    let loaded = watched.loaded.borrow().clone();
    let reasons = loaded.problems.iter().map(|problem| problem.reason).collect::<Vec<_>>();
    assert_eq!((reasons, port(&loaded, "a")), (vec!["not_utf8", "too_large"], Some(1)));

    let watched = Watched::start(|root| {
        for number in 0..=directory::MAX_FILES {
            fs::write(root.join(format!("{number}.yaml")), "").expect("written");
        }
    })
    .await;
    assert!(watched.loaded.borrow().problems[0].message.contains("is this the right directory?"));
}
