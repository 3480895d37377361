//! The page of the book that shows the results.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::Results;
use crate::configuration::shown;
use crate::control_plane;
use crate::peer::Name;
use crate::phase::Phase;

impl Results {
    /// The page, and beside it a folder of its name with a picture for each table.
    pub(crate) fn write_page(&self, path: &Path) -> anyhow::Result<()> {
        let folder = path.with_extension("");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let pictures: Vec<PathBuf> =
            self.tables.iter().map(|table| folder.join(&table.phase).with_extension("svg")).collect();
        for (picture, table) in pictures.iter().zip(&self.tables) {
            std::fs::write(picture, table.plot())
                .with_context(|| format!("cannot write {}", picture.display()))?;
        }
        // Of tables that are gone.
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "svg") && !pictures.contains(&path) {
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        std::fs::write(path, self.page()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn page(&self) -> String {
        let mut out = String::from(concat!(
            "# Benchmarks\n\n",
            "Written by `cargo xtask bench`, which installs the peers, runs all of a table's on loopback in one run, ",
            "loads them in turn, round after round, and shows medians with the lowest and highest round. Read the ",
            "ratios: absolute figures belong to the machine and the moment. A ratio is the median of those of the ",
            "rounds, each to the best peer's figure in the same round, where that is known; there is none to what is ",
            "nothing or less. ",
            "The load generator and the upstream ",
            "share the machine with the proxy, which has one processor to itself where there are two, so requests/s ",
            "is what all three together reach; CPU time per request is the proxy's own. The order of the peers ",
            "is another in each round. While one is loaded the others are halted (SIGSTOP), and a load begins when ",
            "the proxies' processor is idle, or after 10 s of waiting (1 s in a short run). A phase that was left out of a run keeps its ",
            "figures of an earlier one: each table says when it was measured, and of which commit; machine and versions are those of the newest. All figures, by ",
            "rounds, are in [results.json](benchmarks/results.json).\n\n",
            "Every proxy has one worker thread, 100 prefix routes, keep-alive to one upstream (nginx with a fixed ",
            "answer of 1 KiB), sets `X-Forwarded-For` and a request id, and writes no access log, where nothing else is ",
            "said; requests bring a `traceparent`. See [the configuration of each](#configuration). Buffers are at each one's defaults, but for ",
            "HAProxy's pipe and nginx's buffer for TCP, which are as large as ours; Envoy, Pingora and Caddy look at one route after ",
            "another, the others have a tree of them; each has the TLS library that it comes with. A load with failed ",
            "requests does not count and is repeated, and so is one while which something else, or the machine's host, ",
            "had more than a twentieth of the proxies' processor: up to twice, and in a short run never. What counts all the same, or is lost, is ",
            "said below the table.\n\n",
        ));
        if self.quick {
            out.push_str("These are the figures of a short run (`--quick`).\n\n");
        }
        out.push_str(&self.about_machine());
        let mut of_control_plane = false;
        for table in &self.tables {
            if table.phase.starts_with(control_plane::PHASE)
                && !std::mem::replace(&mut of_control_plane, true)
            {
                let _ = write!(out, "\n## Control plane\n\n{}", control_plane::NOTE.trim_end());
                out.push('\n');
            }
            let note = Phase::ALL.iter().find(|phase| phase.name() == table.phase).map_or("", |p| p.note());
            let (title, rows, phase) = (&table.title, table.markdown(), &table.phase);
            let (measured, ratios) = (table.measured(), table.ratios());
            let _ = write!(
                out,
                "\n## {title}\n\n{measured}\n\n{note}{rows}\n\n{ratios}\n\n![{title}](benchmarks/{phase}.svg)\n"
            );
        }
        out.push_str(concat!(
            "\n## What was to be reached, and what is not\n\n",
            "Of a worker with 100 routes, metrics on and no access log, by the tables above; where there is no goal, how ",
            "things stand. Where the machine's host was busy all the same, the spread in the tables shows it.\n\n",
        ));
        let _ = write!(out, "{}\n{}", self.goals(), include_str!("../../goals.md"));
        out.push_str("\n## Configuration\n\n");
        out.push_str("As each is started for HTTP/1.1, with the first of its 100 routes.\n");
        for name in [Name::Pontoon].into_iter().chain(Name::OTHERS) {
            let _ = write!(out, "\n{}", shown(name));
        }
        out.push_str(concat!(
            "\n## How to repeat\n\n",
            "    cargo xtask bench               # everything, about an hour and a half\n",
            "    cargo xtask bench --quick       # under 5 minutes, fewer phases, no peers on a JVM; writes target/bench/benchmarks.md\n",
            "    cargo xtask bench page          # this page, of docs/benchmarks/results.json, without measuring\n",
            "    cargo xtask bench control-plane # the control plane alone, about 25 minutes; with --quick under three\n",
            "    cargo xtask bench --phase http1 --peer nginx    # while one works; writes target/bench/benchmarks.md\n",
            "    cargo xtask bench --against docs/benchmarks/results.json    # and say what is worse than in the published run\n",
        ));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_what_the_results_say() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let results = Results::read(&docs.join("benchmarks/results.json")).unwrap();
        let page = std::fs::read_to_string(docs.join("benchmarks.md")).unwrap();
        assert!(results.page() == page, "docs/benchmarks.md is another: cargo xtask bench page");
    }
}
