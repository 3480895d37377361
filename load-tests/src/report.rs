//! Results as a table for the terminal and the book, and as JSON for a later comparison.

mod plot;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::control_plane;
use crate::peer::Name;
use crate::phase::Phase;

/// One phase's figures.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) phase: String,
    pub(crate) title: String,
    /// The figure whose ratio to the best peer is shown; less is better.
    pub(crate) ratio_of: String,
    pub(crate) rows: Vec<Row>,
}

/// One peer's figures, each with every round's value. Ours is the first row of a table.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) peer: String,
    figures: Vec<(String, Vec<f64>)>,
}

impl Row {
    pub(crate) fn new(peer: &str) -> Row {
        Row { peer: peer.to_owned(), figures: Vec::new() }
    }

    pub(crate) fn push(&mut self, figure: &str, value: f64) {
        match self.figures.iter_mut().find(|(name, _)| *name == figure) {
            Some((_, values)) => values.push(value),
            None => self.figures.push((figure.to_owned(), vec![value])),
        }
    }

    fn median(&self, figure: &str) -> Option<f64> {
        self.figures.iter().find(|(name, _)| *name == figure).and_then(|(_, values)| median(values))
    }
}

fn spread(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)))
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Of rates more is better, of all else less.
fn is_worse(figure: &str, now: &[f64], then: &[f64]) -> bool {
    let least = |values: &[f64]| values.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0);
    let most = |values: &[f64]| values.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0);
    match figure.contains("/s") {
        true => most(now) < least(then),
        false => least(now) > most(then),
    }
}

fn number(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

impl Table {
    /// Medians with the spread, and the ratio to the best peer.
    pub(crate) fn markdown(&self) -> String {
        let names: Vec<&str> = self
            .rows
            .first()
            .map(|r| r.figures.iter().map(|(n, _)| n.as_str()).collect())
            .unwrap_or_default();
        let mut out = format!("| proxy | {} | ratio to the best peer |\n|---|", names.join(" | "));
        out.push_str(&"---|".repeat(names.len() + 1));
        let best =
            self.rows.iter().skip(1).filter_map(|row| row.median(&self.ratio_of)).min_by(f64::total_cmp);
        for row in &self.rows {
            let _ = write!(out, "\n| {} |", row.peer);
            for name in &names {
                let Some((_, values)) = row.figures.iter().find(|(own, _)| own == name) else {
                    out.push_str(" - |");
                    continue;
                };
                let (low, high) = spread(values);
                let middle = median(values).map_or_else(|| "-".into(), number);
                if values.len() > 1 {
                    let _ = write!(out, " {middle} ({}–{}) |", number(low), number(high));
                } else {
                    let _ = write!(out, " {middle} |");
                }
            }
            let ratio = row.median(&self.ratio_of).zip(best).map(|(own, best)| own / best);
            let _ = write!(out, " {} |", ratio.map_or_else(|| "-".into(), |r| format!("{r:.2}")));
        }
        out
    }
}

impl Table {
    /// The compared figure as bars.
    fn plot(&self) -> String {
        let bars = self.rows.iter().filter_map(|row| {
            let (_, values) = row.figures.iter().find(|(name, _)| *name == self.ratio_of)?;
            let (low, high) = spread(values);
            Some(plot::Bar { peer: &row.peer, median: median(values)?, low, high })
        });
        plot::bars(&self.ratio_of, &bars.collect::<Vec<_>>())
    }
}

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    machine: Vec<(String, String)>,
    quick: bool,
    pub(crate) tables: Vec<Table>,
}

impl Results {
    pub(crate) fn begin(peers: &[Name], quick: bool) -> Results {
        let first = |path: &str, mark: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|l| l.starts_with(mark)).unwrap_or_default().to_owned();
            line.split_once(':').map_or(line.clone(), |(_, value)| value.trim().to_owned())
        };
        let processors = std::thread::available_parallelism().map_or(0, usize::from);
        let mut machine = vec![
            (String::from("processor"), first("/proc/cpuinfo", "model name")),
            (String::from("processors"), processors.to_string()),
            (String::from("memory"), first("/proc/meminfo", "MemTotal")),
            (String::from("kernel"), first("/proc/sys/kernel/osrelease", "")),
        ];
        machine.extend(peers.iter().map(|peer| (peer.text().to_owned(), version(*peer))));
        Results { machine, quick, tables: Vec::new() }
    }

    /// Phases that this run left out keep the figures of the last run that had them, if it was of the same kind.
    pub(crate) fn keep_of(&mut self, earlier: &Path) {
        let earlier = std::fs::read(earlier).ok();
        let earlier = earlier.and_then(|text| serde_json::from_slice::<Results>(&text).ok());
        let Some(earlier) = earlier.filter(|earlier| earlier.quick == self.quick) else { return };
        for table in earlier.tables {
            if !self.tables.iter().any(|own| own.phase == table.phase) {
                self.tables.push(table);
            }
        }
        let place = |table: &Table| Phase::ALL.iter().position(|phase| phase.name() == table.phase);
        // Those of the control plane come last.
        self.tables
            .sort_by_key(|table| (place(table).unwrap_or(usize::MAX), control_plane::place(&table.phase)));
        for (name, value) in earlier.machine {
            self.about(&name, value);
        }
    }

    /// A line about machine or peers, if there is none of that name.
    pub(crate) fn about(&mut self, name: &str, value: String) {
        if !self.machine.iter().any(|(known, _)| known == name) {
            self.machine.push((name.to_owned(), value));
        }
    }

    /// What an earlier run wrote.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Results> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a result of ours", path.display()))
    }

    /// Our own figures that are worse than in the earlier run, so that not even the best round of now comes up to the
    /// worst one of then.
    pub(crate) fn compare(&self, earlier: &Results) -> String {
        let mut out = String::new();
        for table in &self.tables {
            let then = earlier.tables.iter().find(|then| then.phase == table.phase);
            let Some((row, then)) = table.rows.first().zip(then.and_then(|then| then.rows.first())) else {
                continue;
            };
            for (figure, now) in &row.figures {
                let Some((_, then)) = then.figures.iter().find(|(name, _)| name == figure) else { continue };
                if is_worse(figure, now, then)
                    && let Some((now, then)) = median(now).zip(median(then))
                {
                    let _ = writeln!(
                        out,
                        "worse: {}, {figure}: {} instead of {}",
                        table.phase,
                        number(now),
                        number(then)
                    );
                }
            }
        }
        if out.is_empty() {
            String::from("nothing is worse than before by more than the spread")
        } else {
            out
        }
    }

    pub(crate) fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

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
            "share the machine with the proxy, so requests/s is what all three together reach; CPU time per request ",
            "is the proxy's own. A phase that was left out of a run keeps its figures of the run before.\n\n",
            "Every proxy has one worker thread, 100 prefix routes, keep-alive to one upstream (nginx with a fixed ",
            "answer of 1 KiB), sets `X-Forwarded-For` and a request id, and writes no access log. Pontoon is ",
            "configured by xDS, the others by their files (`load-tests/src/configuration.rs`).\n\n",
        ));
        if self.quick {
            out.push_str("These are the figures of a short run (`--quick`).\n\n");
        }
        out.push_str("| | |\n|---|---|\n");
        for (name, value) in &self.machine {
            let _ = writeln!(out, "| {name} | {value} |");
        }
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
            let _ = write!(out, "\n## {title}\n\n{note}{rows}\n\n![{title}](benchmarks/{phase}.svg)\n");
        }
        out.push_str(concat!(
            "\n## How to repeat\n\n",
            "    cargo xtask bench               # everything, an hour and more\n",
            "    cargo xtask bench --quick       # under 5 minutes, without convergence; writes target/bench/benchmarks.md\n",
            "    cargo xtask bench control-plane # the control plane alone, about 25 minutes; with --quick under three\n",
            "    cargo xtask bench --phase http1 --peer nginx\n",
            "    cargo xtask bench --against results.json    # and say what is worse than in that run\n",
        ));
        out
    }
}

fn version(peer: Name) -> String {
    let (program, flag) = match peer {
        Name::Pontoon => return env!("CARGO_PKG_VERSION").into(),
        Name::Haproxy => ("haproxy", "-v"),
        Name::Nginx => ("nginx", "-v"),
        Name::Envoy => return String::from("1.40.0"),
        Name::Pingora => return String::from("0.9.1"),
        Name::Caddy => return String::from("2.11.9"),
    };
    let path = std::env::var("PATH").unwrap_or_default();
    let output =
        std::process::Command::new(program).env("PATH", format!("{path}:/usr/sbin")).arg(flag).output();
    let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or_default().trim_start_matches("nginx version: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_beyond_the_spread_is_worse() {
        assert!(is_worse("CPU µs/request", &[17.0, 18.0], &[15.0, 16.0]));
        assert!(!is_worse("CPU µs/request", &[15.9, 18.0], &[15.0, 16.0]));
        assert!(is_worse("requests/s", &[90.0, 95.0], &[96.0, 99.0]));
        assert!(!is_worse("requests/s", &[90.0, 97.0], &[96.0, 99.0]));
        assert!(is_worse("CPU s/GiB", &[0.3], &[0.2]));
    }
}
