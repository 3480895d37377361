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

const GOALS: [Goal; 20] = [
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
        "the same where its pool is in a file",
        "under 100, and ahead of go-control-plane",
        (SIDECARS, "file p99"),
        100.0,
        GO_CONTROL_PLANE,
    ),
    under(
        "the same by registration to gateways, which have all of it",
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

/// How a figure stands to a bound or to another's, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stands {
    Reached,
    /// Better in some rounds, and worse in others.
    Level,
    /// The bound lies among our rounds.
    Nearly,
    Missed,
}

impl Stands {
    fn text(self) -> &'static str {
        match self {
            Stands::Reached => "reached",
            Stands::Level => "**level**, within the spread",
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
            stands.push(self.to_bound(ours, bound)?);
        }
        let peers = self.peers.iter().filter_map(|peer| table.rows.iter().find(|row| row.peer == *peer));
        for (at, peer) in peers.enumerate() {
            let Some(theirs) = peer.median(self.figure) else { continue };
            stands.push(self.to_peer(table, ours, peer)?);
            let word = if at == 0 { " against" } else { " and" };
            let _ = write!(text, "{word} {}'s {}", peer.peer, number(theirs));
            if let Some(ratio) = median(&table.over(ours, peer, self.figure)) {
                let _ = write!(text, " ({ratio:.2} times)");
            }
        }
        let worst = stands.into_iter().max().filter(|_| !self.goal.is_empty());
        Some(worst.map_or_else(String::new, |worst| format!("{}: ", worst.text())) + &text)
    }

    fn to_bound(&self, ours: &Row, bound: f64) -> Option<Stands> {
        let values = ours.values(self.figure);
        let (middle, (low, high)) = (median(&values)?, spread(&values));
        let (is_under, is_among) =
            (middle.total_cmp(&bound) == Ordering::Less, low <= bound && bound <= high);
        Some(match (is_under, is_among) {
            (true, _) => Stands::Reached,
            (false, true) => Stands::Nearly,
            (false, false) => Stands::Missed,
        })
    }

    /// By what we have to another in each round; where that is not known, by whose rounds are all better.
    fn to_peer(&self, table: &Table, ours: &Row, peer: &Row) -> Option<Stands> {
        let ratios = table.over(ours, peer, self.figure);
        let (low, high, even) = if ratios.is_empty() || !table.by_round {
            let (own, other) = (ours.values(self.figure), peer.values(self.figure));
            let ((low, high), (their_low, their_high)) = (spread(&own), spread(&other));
            (low - their_high, high - their_low, 0.0)
        } else {
            let (low, high) = spread(&ratios);
            (low, high, 1.0)
        };
        ours.median(self.figure).map(|_| match is_rate(self.figure) {
            true if low > even => Stands::Reached,
            true if high < even => Stands::Missed,
            false if high < even => Stands::Reached,
            false if low > even => Stands::Missed,
            _ => Stands::Level,
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
        let mut both = table("µs", &rows);
        let said = |table: &Table| goal(AT_MOST, "µs").stands(table).unwrap();
        assert!(said(&both).starts_with("**level**, within the spread: 11.0 against"), "{}", said(&both));
        // Rounds that were slow for both do not hide who is behind in each.
        both.rows[0].figures[0].1 = vec![Some(9.5), Some(10.9), Some(10.4)];
        assert!(said(&both).starts_with("**not reached**: 10.4 against HAProxy's 10.0"), "{}", said(&both));
        both.by_round = false;
        assert!(said(&both).starts_with("**level**, within the spread"), "{}", said(&both));
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
