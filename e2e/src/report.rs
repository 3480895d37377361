//! The cases of one group as they end: a line each for people, a file for `cargo xtask`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use tokio::time::Instant;

/// The results of one group.
#[derive(Debug)]
pub struct Report {
    /// Said with each case: several groups may write to one terminal.
    group: &'static str,
    folder: PathBuf,
    passed: usize,
    failed: usize,
    skipped: usize,
    cases: Vec<Case>,
}

#[derive(Debug, Serialize)]
struct Case {
    name: String,
    seconds: f64,
    /// What was seen, or what went wrong.
    said: String,
    passed: bool,
}

impl Report {
    /// Nothing yet, and an empty folder for what the group leaves behind.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(group: &'static str) -> anyhow::Result<Report> {
        let root =
            std::env::var_os("PONTOON_E2E_ARTIFACTS").map_or_else(|| "target/e2e".into(), PathBuf::from);
        let folder = std::path::absolute(root.join(group))?;
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Report { group, folder, passed: 0, failed: 0, skipped: 0, cases: Vec::new() })
    }

    /// Where the group's processes write, and what was seen goes.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs one case. What it gives back is printed beside its name: the figures that it saw.
    pub async fn case(&mut self, name: &str, case: impl Future<Output = anyhow::Result<String>>) -> bool {
        let started = Instant::now();
        let result = case.await;
        self.note(name, started.elapsed().as_secs_f64(), result)
    }

    /// Notes a case that was run by somebody else.
    pub fn note(&mut self, name: &str, seconds: f64, result: anyhow::Result<String>) -> bool {
        let passed = result.is_ok();
        let group = self.group;
        let said = match result {
            Ok(said) => {
                println!("ok     {group}: {name} ({seconds:.1} s) {said}");
                self.passed += 1;
                said
            }
            Err(error) => {
                let said = format!("{error:#}");
                println!("FAILED {group}: {name} ({seconds:.1} s) {said}");
                self.failed += 1;
                said
            }
        };
        self.cases.push(Case { name: name.to_owned(), seconds, said, passed });
        passed
    }

    /// A case that cannot run here.
    pub fn skip(&mut self, name: &str, why: &str) {
        println!("skipped {}: {name}: {why}", self.group);
        self.skipped += 1;
    }

    /// Whether nothing was run.
    pub fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }

    /// Writes `results.json` and, after a failure, names the logs. True: all cases passed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(self) -> anyhow::Result<bool> {
        let results = serde_json::json!({
            "passed": self.passed, "failed": self.failed, "skipped": self.skipped, "cases": self.cases,
        });
        std::fs::write(self.folder.join("results.json"), serde_json::to_vec_pretty(&results)?)?;
        if self.failed > 0 {
            print_logs(&self.folder)?;
        }
        Ok(self.failed == 0)
    }
}

/// The end of each log: on a build machine the folder is gone when somebody looks.
fn print_logs(folder: &Path) -> anyhow::Result<()> {
    const LINES: usize = 10;
    let mut logs: Vec<PathBuf> =
        std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    for log in logs {
        let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(LINES)..].join("\n");
        println!("---- {}\n{end}", log.display());
    }
    Ok(())
}
