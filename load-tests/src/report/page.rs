//! The page of the book that shows the results.

use std::fmt::Write as _;
use std::path::Path;

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
        for table in &self.tables {
            let picture = folder.join(&table.phase).with_extension("svg");
            std::fs::write(&picture, table.plot())
                .with_context(|| format!("cannot write {}", picture.display()))?;
        }
        std::fs::write(path, self.page()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn page(&self) -> String {
        let mut out = String::from(concat!(
            "# Benchmarks\n\n",
            "Written by `cargo xtask bench`, which installs the peers, runs all of them on loopback in one run, ",
            "loads them in turn, round after round, and shows medians with the lowest and highest round. Read the ",
            "ratios: absolute figures belong to the machine and the moment. The load generator and the upstream ",
            "share the machine with the proxy, which has one processor to itself where there are two, so requests/s ",
            "is what all three together reach; CPU time per request is the proxy's own. The order of the peers ",
            "changes from round to round. A phase that was left out of a run keeps its figures of the run before.\n\n",
            "Every proxy has one worker thread, 100 prefix routes, keep-alive to one upstream (nginx with a fixed ",
            "answer of 1 KiB), sets `X-Forwarded-For` and a request id, and writes no access log, where nothing else is ",
            "said; requests bring a `traceparent`. See [the configuration of each](#configuration). A round with failed ",
            "requests does not count.\n\n",
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
            let ratios = table.ratios();
            let _ = write!(
                out,
                "\n## {title}\n\n{note}{rows}\n\n{ratios}\n\n![{title}](benchmarks/{phase}.svg)\n"
            );
        }
        out.push('\n');
        out.push_str(include_str!("../../goals.md"));
        out.push_str("\n## Configuration\n\n");
        out.push_str("As each is started for HTTP/1.1, with the first of its 100 routes.\n");
        for name in [Name::Pontoon].into_iter().chain(Name::OTHERS) {
            let _ = write!(out, "\n{}", shown(name));
        }
        out.push_str(concat!(
            "\n## How to repeat\n\n",
            "    cargo xtask bench               # everything, about an hour and a half\n",
            "    cargo xtask bench --quick       # under 5 minutes, fewer phases, no peers on a JVM; writes target/bench/benchmarks.md\n",
            "    cargo xtask bench control-plane # the control plane alone, about 25 minutes; with --quick under three\n",
            "    cargo xtask bench --phase http1 --peer nginx    # while one works; writes target/bench/benchmarks.md\n",
            "    cargo xtask bench --against results.json    # and say what is worse than in that run\n",
        ));
        out
    }
}
