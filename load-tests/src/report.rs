//! Results as a table for the terminal and the book, and as JSON for a later comparison.

mod goals;
mod page;
mod plot;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::peer::Name;
use crate::phase::Phase;
use crate::{control_plane, gateway_api};

/// One phase's figures.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) phase: String,
    pub(crate) title: String,
    /// The figure that the picture shows, and whose ratio to the best peer stands beside the figures; less is better.
    ratio_of: String,
    /// When, and of which commit; a run may keep tables of another.
    #[serde(default)]
    measured: String,
    /// Whether the values of all rows are in their rounds' places; those of before that was so are not.
    #[serde(default)]
    by_round: bool,
    pub(crate) rows: Vec<Row>,
}

/// One peer's figures, each with every round's value. Ours is the first row of a table.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) peer: String,
    /// By round, so that peers can be compared within it. None: the round was lost.
    figures: Vec<(String, Vec<Option<f64>>)>,
    /// Why something is missing, and the like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

impl Row {
    pub(crate) fn new(peer: &str) -> Row {
        Row { peer: peer.to_owned(), figures: Vec::new(), notes: Vec::new() }
    }

    /// In the round after the last that has this figure.
    pub(crate) fn push(&mut self, figure: &str, value: f64) {
        self.push_in(self.rounds(figure).len(), figure, value);
    }

    pub(crate) fn push_in(&mut self, round: usize, figure: &str, value: f64) {
        let at = self.figures.iter().position(|(name, _)| *name == figure).unwrap_or_else(|| {
            self.figures.push((figure.to_owned(), Vec::new()));
            self.figures.len() - 1
        });
        let (_, rounds) = &mut self.figures[at];
        rounds.resize(rounds.len().max(round + 1), None);
        rounds[round] = Some(value);
    }

    /// For the reader, below the table.
    pub(crate) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Takes the other figures of the same peer.
    pub(crate) fn add(&mut self, other: Row) {
        self.figures.extend(other.figures);
        self.notes.extend(other.notes);
    }

    fn rounds(&self, figure: &str) -> &[Option<f64>] {
        self.figures.iter().find(|(name, _)| *name == figure).map_or(&[], |(_, rounds)| rounds)
    }

    /// Of the rounds that counted.
    fn values(&self, figure: &str) -> Vec<f64> {
        self.rounds(figure).iter().copied().flatten().collect()
    }

    fn median(&self, figure: &str) -> Option<f64> {
        median(&self.values(figure))
    }
}

fn spread(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)))
}

/// Of an even count, halfway between the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// What one round alone must be worse by: it shows no spread of its own.
const SPREAD_OF_ONE: f64 = 0.05;
/// How a figure begins that is neither better nor worse: it says what the load was.
const OF_THE_LOAD: [&str; 2] = ["changes", "% of"];

/// Of rates more is better, of all else less.
fn is_rate(figure: &str) -> bool {
    figure.contains("/s")
}

fn is_memory(figure: &str) -> bool {
    figure.contains("MiB") || figure.contains("KiB")
}

fn is_of_the_load(figure: &str) -> bool {
    OF_THE_LOAD.iter().any(|word| figure.starts_with(word))
}

fn is_worse(figure: &str, now: &[f64], then: &[f64]) -> bool {
    if is_of_the_load(figure) || now.is_empty() || then.is_empty() {
        return false;
    }
    let width = |values: &[f64]| if values.len() > 1 { 0.0 } else { SPREAD_OF_ONE };
    let ((low, high), (then_low, then_high)) = (spread(now), spread(then));
    let slack = width(now).max(width(then));
    match is_rate(figure) {
        true => high < then_low * (1.0 - slack),
        false => low > then_high * (1.0 + slack),
    }
}

/// With two digits behind the point where there are few before it.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 | 1000.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

impl Table {
    pub(crate) fn new(phase: &str, title: &str, ratio_of: &str, rows: Vec<Row>) -> Table {
        Table {
            phase: phase.to_owned(),
            title: title.to_owned(),
            ratio_of: ratio_of.to_owned(),
            measured: String::new(),
            by_round: true,
            rows,
        }
    }

    /// Medians with the spread, the ratio to the best peer, and what is to be said of them.
    pub(crate) fn markdown(&self) -> String {
        let names: Vec<&str> = self
            .rows
            .first()
            .map(|r| r.figures.iter().map(|(n, _)| n.as_str()).collect())
            .unwrap_or_default();
        let mut out = format!("| proxy | {} | ratio to the best peer |\n|---|", names.join(" | "));
        out.push_str(&"---|".repeat(names.len() + 1));
        for row in &self.rows {
            let _ = write!(out, "\n| {} |", row.peer);
            for name in &names {
                let _ = write!(out, " {} |", self.cell(row, name));
            }
            let _ = write!(out, " {} |", self.ratio(row, &self.ratio_of));
        }
        for (at, (row, note)) in
            self.rows.iter().flat_map(|row| row.notes.iter().map(move |note| (row, note))).enumerate()
        {
            let _ = write!(out, "{}- {}: {note}", if at == 0 { "\n\n" } else { "\n" }, row.peer);
        }
        out
    }

    /// A median, what it is of where that is more than one round, and how many rounds count where some were lost.
    fn cell(&self, row: &Row, figure: &str) -> String {
        let values = row.values(figure);
        let Some(median) = median(&values) else { return String::from("-") };
        let mut out = number(median);
        if values.len() > 1 {
            let (low, high) = spread(&values);
            let _ = write!(out, " ({}–{})", number(low), number(high));
        }
        let rounds = self.rows.iter().map(|row| row.rounds(figure).len()).max().unwrap_or_default();
        if values.len() < rounds {
            let _ = write!(out, ", {} of {rounds}", values.len());
        }
        out
    }

    /// One figure a line: for tables of many figures and few rows.
    pub(crate) fn list(&self) -> String {
        let Some(first) = self.rows.first() else { return String::new() };
        let peers: Vec<&str> = self.rows.iter().map(|row| row.peer.as_str()).collect();
        let mut out = format!("| | {} |\n|---|{}", peers.join(" | "), "---|".repeat(peers.len()));
        for (name, _) in &first.figures {
            let _ = write!(out, "\n| {name} |");
            for row in &self.rows {
                let value = row.median(name).map_or_else(|| "-".into(), number);
                let _ = write!(out, " {value} |");
            }
        }
        out
    }

    /// When it was measured, as a sentence.
    pub(crate) fn measured(&self) -> String {
        match self.measured.as_str() {
            "" => String::from("When this was measured, and of which commit, was not kept."),
            measured => format!("Measured on {measured}."),
        }
    }

    /// How many times another's figure a row's is, in each round that has both. Nothing where either is nothing or less,
    /// as what is added to a floor may be.
    fn over(&self, row: &Row, other: &Row, figure: &str) -> Vec<f64> {
        let median_of = |row: &Row| row.median(figure).filter(|median| *median > 0.0);
        let (Some(_), Some(median)) = (median_of(row), median_of(other)) else { return Vec::new() };
        if !self.by_round {
            return row.values(figure).iter().map(|own| own / median).collect();
        }
        let both = row.rounds(figure).iter().zip(other.rounds(figure));
        let both = both.filter_map(|(own, other)| (*own).zip(*other));
        both.filter(|(own, other)| *own > 0.0 && *other > 0.0).map(|(own, other)| own / other).collect()
    }

    /// How many times the best peer's figure a row's is: the median of the rounds.
    fn ratio(&self, row: &Row, figure: &str) -> String {
        let rounds = self.best(figure).map_or_else(Vec::new, |best| self.over(row, best, figure));
        median(&rounds).map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"))
    }

    /// The peer with the best median of a figure, where that is something.
    fn best(&self, figure: &str) -> Option<&Row> {
        let of_peers = self.compared().skip(1).filter_map(|row| Some((row, row.median(figure)?)));
        let by_median = |one: &(&Row, f64), other: &(&Row, f64)| one.1.total_cmp(&other.1);
        let best = match is_rate(figure) {
            true => of_peers.max_by(by_median),
            false => of_peers.min_by(by_median),
        };
        best.filter(|(_, median)| *median > 0.0).map(|(row, _)| row)
    }

    /// We and the peers, without the floor.
    fn compared(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.median(&self.ratio_of).is_some())
    }

    /// The ratio to the best peer of every figure that peers have.
    fn ratios(&self) -> String {
        let figures = self.rows.first().map(|row| row.figures.as_slice()).unwrap_or_default();
        let of_peers = |name: &str| self.compared().skip(1).any(|row| row.median(name).is_some());
        let names = figures.iter().map(|(name, _)| name.as_str());
        let names: Vec<&str> = names.filter(|name| !is_of_the_load(name) && of_peers(name)).collect();
        if names.is_empty() {
            return String::new();
        }
        let mut out = format!("| ratio to the best peer | {} |\n|---|", names.join(" | "));
        out.push_str(&"---|".repeat(names.len()));
        for row in self.compared() {
            let ratios: Vec<String> = names.iter().map(|name| self.ratio(row, name)).collect();
            let _ = write!(out, "\n| {} | {} |", row.peer, ratios.join(" | "));
        }
        out
    }
}

impl Table {
    /// The compared figure as bars.
    fn plot(&self) -> String {
        let bars = self.rows.iter().filter_map(|row| {
            let values = row.values(&self.ratio_of);
            let (low, high) = spread(&values);
            Some(plot::Bar { peer: &row.peer, median: median(&values)?, low, high })
        });
        plot::bars(&self.ratio_of, &bars.collect::<Vec<_>>())
    }
}

/// Set by `cargo xtask bench`, which knows what it has built.
const COMMIT: &str = "PONTOON_BENCH_COMMIT";

/// What the page of the book is made of, for others to compare with.
const OF_BOOK: &str = "docs/benchmarks/results.json";
const BOOK_PAGE: &str = "docs/benchmarks.md";

/// The first argument that asks for the page alone.
pub(crate) const PAGE: &str = "page";

/// Writes the page of the book anew, of the results that are kept.
pub(crate) fn write_book_page() -> anyhow::Result<()> {
    Results::read(Path::new(OF_BOOK))?.write_page(Path::new(BOOK_PAGE))
}

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    machine: Vec<(String, String)>,
    pub(crate) quick: bool,
    /// What this run's tables say of when they were measured.
    #[serde(skip)]
    measured: String,
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
        let commit = std::env::var(COMMIT)
            .map_or_else(|_| String::from("a commit that is not known"), |commit| format!("commit {commit}"));
        let measured = format!("{}, of {commit}", says("date", "+%F"));
        Results { machine, quick, measured, tables: Vec::new() }
    }

    /// What this run has measured.
    pub(crate) fn add(&mut self, table: Table) {
        self.tables.push(Table { measured: self.measured.clone(), ..table });
    }

    /// Phases that this run left out keep the figures of the last run that had them, if it was of the same kind.
    ///
    /// # Errors
    /// When there are results that cannot be read.
    fn keep_of(&mut self, earlier: &Path) -> anyhow::Result<()> {
        if !earlier.exists() {
            return Ok(());
        }
        let earlier = Results::read(earlier)?;
        if earlier.quick != self.quick {
            return Ok(());
        }
        for table in earlier.tables {
            if !self.tables.iter().any(|own| own.phase == table.phase) {
                self.tables.push(table);
            }
        }
        for (name, value) in earlier.machine {
            self.about(&name, value);
        }
        Ok(())
    }

    /// A line about machine or peers, if there is none of that name.
    pub(crate) fn about(&mut self, name: &str, value: String) {
        if !self.machine.iter().any(|(known, _)| known == name) {
            self.machine.push((name.to_owned(), value));
        }
    }

    /// Machine and programs, as a table.
    pub(crate) fn about_machine(&self) -> String {
        let mut out = String::from("| | |\n|---|---|\n");
        for (name, value) in &self.machine {
            let _ = writeln!(out, "| {name} | {value} |");
        }
        out
    }

    /// What an earlier run wrote.
    fn read(path: &Path) -> anyhow::Result<Results> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a result of ours", path.display()))
    }

    /// An earlier run that this one is to be compared with.
    ///
    /// # Errors
    /// When it cannot be read, or one of the runs is quick and the other is not.
    pub(crate) fn earlier(&self, path: Option<&Path>) -> anyhow::Result<Option<Results>> {
        let Some(path) = path else { return Ok(None) };
        let earlier = Results::read(path)?;
        let kind = |quick: bool| if quick { "a quick run" } else { "a full run" };
        anyhow::ensure!(
            self.quick == earlier.quick,
            "this is {}, and {} is of {}",
            kind(self.quick),
            path.display(),
            kind(earlier.quick)
        );
        Ok(Some(earlier))
    }

    /// Our own figures that are worse than in the earlier run, so that not even the best round of now comes up to the
    /// worst one of then. Where peers have the figure, it is the ratio to the one that was best then, in the same round, that
    /// counts: the machine may be another, or be busy. Of memory it is the figure itself.
    fn compare(&self, earlier: &Results) -> String {
        let mut out = String::new();
        for table in &self.tables {
            let Some(before) = earlier.tables.iter().find(|then| then.phase == table.phase) else { continue };
            let Some((row, then)) = table.rows.first().zip(before.rows.first()) else { continue };
            for (figure, _) in &row.figures {
                let best = before.best(figure).filter(|_| !is_memory(figure));
                let by = best.and_then(|of| table.rows.iter().find(|row| row.peer == of.peer));
                let (now_over, then_over) = match (by, best) {
                    (Some(by), Some(of)) => (table.over(row, by, figure), before.over(then, of, figure)),
                    // To another peer it would be another ratio.
                    (None, Some(of)) => {
                        let _ = writeln!(out, "not compared: {}, {figure}: without {}", table.phase, of.peer);
                        continue;
                    }
                    (_, None) => (row.values(figure), then.values(figure)),
                };
                if is_worse(figure, &now_over, &then_over)
                    && let Some((now, then)) = row.median(figure).zip(then.median(figure))
                {
                    let (phase, now, then) = (&table.phase, number(now), number(then));
                    let _ = writeln!(out, "worse: {phase}, {figure}: {now} instead of {then}");
                }
            }
        }
        if out.is_empty() {
            out.push_str("nothing is worse than before by more than the spread");
        }
        out
    }

    /// Says what is worse than in the earlier run, keeps what this one left out, and writes all of it to `json`, and where
    /// else it is wanted.
    pub(crate) fn save(
        &mut self,
        json: &Path,
        earlier: Option<&Results>,
        copy: Option<&Path>,
    ) -> anyhow::Result<()> {
        if let Some(earlier) = earlier {
            println!("{}", self.compare(earlier));
        }
        self.keep_of(json)?;
        let place = |table: &Table| Phase::ALL.iter().position(|phase| phase.name() == table.phase);
        // Those of the control plane come last; those of routes are never among others.
        self.tables.sort_by_key(|table| {
            let (own, phase) = (place(table).unwrap_or(usize::MAX), &*table.phase);
            (own, control_plane::place(phase), gateway_api::place(phase))
        });
        self.write_json(json)?;
        copy.map_or(Ok(()), |copy| self.write_json(copy))
    }

    /// Saves it and writes the page. The book has only what full runs measured, beside all peers; the rest goes beside
    /// the logs.
    pub(crate) fn publish(
        &mut self,
        is_for_book: bool,
        artifacts: &Path,
        earlier: Option<&Results>,
        copy: Option<&Path>,
    ) -> anyhow::Result<()> {
        let (json, page) = match is_for_book {
            true => (PathBuf::from(OF_BOOK), PathBuf::from(BOOK_PAGE)),
            false => (artifacts.join(self.file()), artifacts.join("benchmarks.md")),
        };
        self.save(&json, earlier, copy)?;
        // Of what is written there, to the last digit.
        Results::read(&json)?.write_page(&page)?;
        println!("{}, from {}", page.display(), json.display());
        Ok(())
    }

    /// The name of its JSON.
    pub(crate) fn file(&self) -> &'static str {
        if self.quick { "quick.json" } else { "results.json" }
    }

    fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        // Tables and rows begin lines: one value a line is thousands.
        let text = serde_json::to_string(self)?
            .replace("{\"phase\":", "\n{\"phase\":")
            .replace("{\"peer\":", "\n{\"peer\":");
        std::fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
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
        Name::SpringCloudGateway => {
            return String::from("Spring Boot 3.5.16, Spring Cloud 2025.0.1, ") + &java();
        }
        Name::Zuul => return String::from("Spring Boot 2.3.12, Spring Cloud Hoxton.SR12, ") + &java(),
    };
    says(program, flag).trim_start_matches("nginx version: ").to_owned()
}

fn java() -> String {
    says("java", "-version")
}

/// The first line.
fn says(program: &str, flag: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let output =
        std::process::Command::new(program).env("PATH", format!("{path}:/usr/sbin")).arg(flag).output();
    let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
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
        // One round has no spread.
        assert!(!is_worse("MiB at start", &[10.4], &[10.0]));
        assert!(is_worse("full/s", &[900.0], &[1_000.0]));
        assert!(!is_worse("changes a second", &[200.0, 210.0], &[100.0, 101.0]));
        assert!(!is_worse("requests/s", &[], &[96.0, 99.0]));
    }

    #[test]
    fn a_ratio_is_compared_with_one_to_the_same_peer() {
        let run = |tables| Results { machine: Vec::new(), quick: true, measured: String::new(), tables };
        let figure = "CPU µs/request";
        let rows: [(&str, &[_]); 3] =
            [("Pontoon", &[Some(20.0)]), ("best", &[Some(10.0)]), ("other", &[Some(40.0)])];
        let then = run(vec![table(figure, &[("Pontoon", &[Some(10.0)]), rows[1], rows[2]])]);
        assert_eq!(
            run(vec![table(figure, &rows)]).compare(&then),
            "worse: p, CPU µs/request: 20.0 instead of 10.0\n"
        );
        let without = run(vec![table(figure, &[rows[0], rows[2]])]);
        assert_eq!(without.compare(&then), "not compared: p, CPU µs/request: without best\n");
    }

    #[test]
    fn a_median_of_an_even_count_is_halfway() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[9.0, 1.0, 4.0]), Some(4.0));
        assert_eq!(median(&[9.0, 1.0, 4.0, 6.0]), Some(5.0));
    }

    #[test]
    fn a_number_has_the_digits_that_tell_it_from_the_next() {
        let shown = [0.27, 4.123, 17.64, -1652.4, 47239.0, 0.0].map(number);
        assert_eq!(shown, ["0.27", "4.12", "17.6", "-1652", "47239", "0"]);
    }

    /// Figures of peers, by rounds.
    pub(super) fn table(figure: &str, rows: &[(&str, &[Option<f64>])]) -> Table {
        let row = |(peer, rounds): &(&str, &[Option<f64>])| Row {
            figures: vec![(figure.to_owned(), rounds.to_vec())],
            ..Row::new(peer)
        };
        Table::new("p", "t", figure, rows.iter().map(row).collect())
    }

    #[test]
    fn what_a_round_lost_is_said() {
        let mut row = Row::new("nginx");
        row.push_in(1, "requests/s", 30.0);
        row.push_in(2, "requests/s", 40.0);
        row.note(String::from("closed"));
        let mut table = table("requests/s", &[("Pontoon", &[Some(10.0), Some(20.0), Some(30.0)])]);
        table.rows.push(row);
        assert_eq!(
            table.markdown().lines().skip(2).collect::<Vec<_>>(),
            [
                "| Pontoon | 20.0 (10.0–30.0) | 0.71 |",
                "| nginx | 35.0 (30.0–40.0), 2 of 3 | 1.00 |",
                "",
                "- nginx: closed",
            ]
        );
    }

    #[test]
    fn a_ratio_is_of_figures_of_the_same_round() {
        // The second round was slow for all.
        let rows: [(&str, &[_]); 2] =
            [("Pontoon", &[Some(10.0), Some(25.0), Some(11.0)]), ("one", &[Some(10.0), Some(20.0), None])];
        let mut table = table("CPU µs/request", &rows);
        let ratio = |table: &Table| table.ratio(&table.rows[0], "CPU µs/request");
        assert_eq!(table.over(&table.rows[0], &table.rows[1], "CPU µs/request"), [1.0, 1.25]);
        assert_eq!(ratio(&table), "1.12");
        // Whose rounds are not known is compared by medians: 11 with 15.
        table.by_round = false;
        assert_eq!(ratio(&table), "0.73");
    }

    #[test]
    fn results_of_before_rounds_had_places_are_read() {
        let text = r#"{"machine": [], "quick": false, "tables": [{"phase": "p", "title": "t", "ratio_of": "a",
            "rows": [{"peer": "Pontoon", "figures": [["a", [1.0, null, 2]]]}]}]}"#;
        let results: Results = serde_json::from_str(text).unwrap();
        assert_eq!(results.tables[0].rows[0].rounds("a"), [Some(1.0), None, Some(2.0)]);
        assert!(results.tables[0].measured().contains("not kept"));
    }

    #[test]
    fn only_a_run_of_the_same_kind_is_compared_with() {
        let results =
            Results { machine: Vec::new(), quick: true, measured: String::new(), tables: Vec::new() };
        let folder = std::env::temp_dir().join(format!("pontoon-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("results.json");
        results.write_json(&file).unwrap();
        assert!(results.earlier(Some(&file)).unwrap().is_some());
        assert!(Results { quick: false, ..results }.earlier(Some(&file)).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_ratio_is_to_the_best_of_the_others() {
        let mut rows: Vec<Row> = ["Pontoon", "one", "other"].into_iter().map(Row::new).collect();
        for (row, values) in
            rows.iter_mut().zip([[10.0, 300.0, 5.0], [20.0, 100.0, -1.0], [40.0, 200.0, 2.0]])
        {
            for (figure, value) in ["CPU µs/request", "requests/s", "added p99 µs"].into_iter().zip(values)
            {
                row.push(figure, value);
            }
        }
        let table = Table::new("p", "t", "CPU µs/request", rows);
        assert!(table.markdown().ends_with("| other | 40.0 | 200.0 | 2.00 | 2.00 |"), "{}", table.markdown());
        let ratios = table.ratios();
        assert!(ratios.contains("\n| Pontoon | 0.50 | 1.50 | - |\n"), "{ratios}");
        assert!(ratios.ends_with("| other | 2.00 | 1.00 | - |"), "{ratios}");
    }
}
