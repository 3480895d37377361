//! What was to be reached, held against the tables: a verdict is of the very figures that the page shows.

use std::cmp::Ordering;
use std::fmt::Write as _;

use super::{Results, Row, Table, is_rate, median, number, spread};

/// One figure that was to be reached.
struct Goal {
    what: &'static str,
    /// In words; none: it is only told how things stand.
    goal: &'static str,
    /// Of the table.
    phase: &'static str,
    figure: &'static str,
    under: Option<f64>,
    /// Who is not to be better.
    peers: &'static [&'static str],
}

const HAPROXY: &[&str] = &["HAProxy"];
const BOTH: &[&str] = &["HAProxy", "nginx"];
const GO_CONTROL_PLANE: &[&str] = &["go-control-plane"];
const AT_MOST: &str = "at most HAProxy's and nginx's";
const ABOVE: &str = "above HAProxy and nginx";
const SIDECARS: &str = "control-plane-10000-services-1000-sidecars";
const GATEWAYS: &str = "control-plane-10000-services-1000-gateways";

const fn beside(
    what: &'static str,
    goal: &'static str,
    (phase, figure): (&'static str, &'static str),
    peers: &'static [&'static str],
) -> Goal {
    Goal { what, goal, phase, figure, under: None, peers }
}

const fn under(
    what: &'static str,
    goal: &'static str,
    (phase, figure): (&'static str, &'static str),
    under: f64,
    peers: &'static [&'static str],
) -> Goal {
    Goal { what, goal, phase, figure, under: Some(under), peers }
}

const GOALS: [Goal; 19] = [
    beside(
        "CPU µs per HTTP/1.1 request, 64 connections",
        AT_MOST,
        ("http1", "CPU µs/request, 64 connections"),
        BOTH,
    ),
    beside("the same, 512 connections", "", ("http1", "CPU µs/request, 512 connections"), BOTH),
    beside("the same, 10,000 routes", "", ("routes", "CPU µs/request, 10,000 routes"), BOTH),
    beside("the same, answers of 64 KiB", "", ("bodies", "CPU µs/request, 64 KiB"), BOTH),
    beside("the same, uploads of 1 KiB", "", ("bodies", "CPU µs/request, 1 KiB up"), BOTH),
    beside("the same, uploads of 10 MiB", "", ("bodies", "CPU µs/request, 10 MiB up"), BOTH),
    beside("the same, through two proxies in a row", "", ("pair", "CPU µs/request, both together"), BOTH),
    beside("added p99 at 2,000 requests/s, µs", "below HAProxy's", ("open", "added p99 µs"), HAPROXY),
    beside("h2c requests/s, 100 streams, 1 connection", ABOVE, ("h2", "requests/s, 1 connection"), BOTH),
    beside("the same, 16 connections", ABOVE, ("h2", "requests/s, 16"), BOTH),
    beside("gRPC calls/s, 100 streams, 1 connection", ABOVE, ("grpc", "requests/s, 1 connection"), BOTH),
    beside("the same, 16 connections", ABOVE, ("grpc", "requests/s, 16"), BOTH),
    beside("full TLS handshakes/s", "above nginx", ("tls", "full/s"), &["nginx", "HAProxy"]),
    beside("TCP, Gbit/s", "above HAProxy", ("tcp", "Gbit/s"), HAPROXY),
    under("KiB per idle connection", "under 4", ("idle", "KiB per idle connection, of 10,000"), 4.0, &[]),
    under(
        "one endpoint's change to the last of 1,000 sidecars, 10,000 services, p99 in ms",
        "under 100, and ahead of go-control-plane",
        (SIDECARS, "registration p99"),
        100.0,
        GO_CONTROL_PLANE,
    ),
    under(
        "the same to gateways, which have all of it",
        "under 100, and ahead of go-control-plane",
        (GATEWAYS, "registration p99"),
        100.0,
        GO_CONTROL_PLANE,
    ),
    under(
        "control plane, MiB with 10,000 services, 100,000 endpoints, 1,000 sidecars",
        "under 1,024",
        (SIDECARS, "MiB"),
        1024.0,
        &[],
    ),
    under("the same with gateways", "under 1,024", (GATEWAYS, "MiB"), 1024.0, &[]),
];

/// How a figure stands to a bound, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stands {
    Reached,
    /// It lies among our rounds, or the other's rounds do.
    Nearly,
    Missed,
}

impl Stands {
    fn text(self) -> &'static str {
        match self {
            Stands::Reached => "reached",
            Stands::Nearly => "**not reached**, but within the spread",
            Stands::Missed => "**not reached**",
        }
    }
}

impl Results {
    /// A table of all goals.
    pub(super) fn goals(&self) -> String {
        let mut out = String::from("| what | goal | |\n|---|---|---|\n");
        for goal in &GOALS {
            let table = self.tables.iter().find(|table| table.phase == goal.phase);
            let stands = table.and_then(|table| goal.stands(table));
            let stands = stands.unwrap_or_else(|| String::from("not measured"));
            let _ = writeln!(out, "| {} | {} | {stands} |", goal.what, goal.goal);
        }
        out
    }
}

impl Goal {
    fn stands(&self, table: &Table) -> Option<String> {
        let ours = table.rows.first()?;
        let mut stands = Vec::new();
        let mut text = number(ours.median(self.figure)?);
        if let Some(bound) = self.under {
            stands.push(self.to(ours, &[bound])?);
        }
        let peers = self.peers.iter().filter_map(|peer| table.rows.iter().find(|row| row.peer == *peer));
        for (at, peer) in peers.enumerate() {
            let Some(theirs) = peer.median(self.figure) else { continue };
            stands.push(self.to(ours, &peer.values(self.figure))?);
            let word = if at == 0 { " against" } else { " and" };
            let _ = write!(text, "{word} {}'s {}", peer.peer, number(theirs));
            if let Some(ratio) = median(&table.over(ours, peer, self.figure)) {
                let _ = write!(text, " ({ratio:.2} times)");
            }
        }
        let worst = stands.into_iter().max().filter(|_| !self.goal.is_empty());
        Some(worst.map_or_else(String::new, |worst| format!("{}: ", worst.text())) + &text)
    }

    /// How our figure stands to another's rounds.
    fn to(&self, ours: &Row, theirs: &[f64]) -> Option<Stands> {
        let values = ours.values(self.figure);
        let worse = if is_rate(self.figure) { Ordering::Less } else { Ordering::Greater };
        let (own, other) = (median(&values)?, median(theirs)?);
        let ((low, high), (their_low, their_high)) = (spread(&values), spread(theirs));
        Some(match own.total_cmp(&other) {
            order if order != worse => Stands::Reached,
            _ if low <= their_high && their_low <= high => Stands::Nearly,
            _ => Stands::Missed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_plane;
    use crate::phase::Phase;
    use crate::report::tests::table;

    fn goal(goal: &'static str, figure: &'static str) -> Goal {
        beside("this", goal, ("p", figure), BOTH)
    }

    #[test]
    fn the_verdict_is_of_the_worst_comparison() {
        let rows: [(&str, &[_]); 3] = [
            ("Pontoon", &[Some(28.0), Some(27.0), Some(30.0)]),
            ("HAProxy", &[Some(34.0), Some(33.0), Some(37.0)]),
            ("nginx", &[Some(18.0), Some(17.0), Some(18.0)]),
        ];
        let rates = table("requests/s", &rows);
        assert_eq!(
            goal(ABOVE, "requests/s").stands(&rates).unwrap(),
            "**not reached**: 28.0 against HAProxy's 34.0 (0.82 times) and nginx's 18.0 (1.59 times)"
        );
        let costs = table("CPU µs/request", &rows);
        let said = |words| goal(words, "CPU µs/request").stands(&costs).unwrap();
        assert!(said(AT_MOST).starts_with("**not reached**: 28.0 against HAProxy's 34.0 (0.82 times)"));
        assert!(said("").starts_with("28.0 against"));
        let better = Goal { peers: HAPROXY, ..goal(AT_MOST, "CPU µs/request") };
        assert_eq!(better.stands(&costs).unwrap(), "reached: 28.0 against HAProxy's 34.0 (0.82 times)");
        assert_eq!(goal(ABOVE, "handshakes/s").stands(&rates), None);
    }

    #[test]
    fn what_overlaps_is_neither_won_nor_lost() {
        let rows: [(&str, &[_]); 2] = [
            ("Pontoon", &[Some(12.0), Some(10.0), Some(11.0)]),
            ("HAProxy", &[Some(9.0), Some(10.5), Some(10.0)]),
        ];
        let said = goal(AT_MOST, "µs").stands(&table("µs", &rows)).unwrap();
        assert!(
            said.starts_with("**not reached**, but within the spread: 11.0 against HAProxy's 10.0"),
            "{said}"
        );
        let bound =
            |bound| under("this", "under", ("p", "µs"), bound, &[]).stands(&table("µs", &rows)).unwrap();
        assert_eq!(bound(11.5), "reached: 11.0");
        assert_eq!(bound(10.5), "**not reached**, but within the spread: 11.0");
        assert_eq!(bound(4.0), "**not reached**: 11.0");
    }

    #[test]
    fn every_goal_is_of_a_phase_and_told_without_its_table() {
        let results =
            Results { machine: Vec::new(), quick: false, measured: String::new(), tables: Vec::new() };
        assert_eq!(results.goals().matches("not measured").count(), GOALS.len());
        let is_known = |phase: &str| {
            Phase::ALL.iter().any(|known| known.name() == phase) || phase.starts_with(control_plane::PHASE)
        };
        assert!(GOALS.iter().all(|goal| is_known(goal.phase)));
    }
}
