//! The page of the book that shows the results.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use super::PHASE;
use crate::report::{Results, Table};

/// The tables, in the page's order, each with what a reader must know of it.
const TABLES: [(&str, &str); 5] = [
    (
        "attached-routes",
        "Routes are added at once, sixteen requests at a time, and then removed. *Counted* is when the Gateway's status \
         says how many there are, *accepted* when each route's own status says that it is; both from the end of the last \
         request. A write of a route is one of its status.",
    ),
    (
        "route-probe",
        "Each route has a host of its own, one rule for a path, with headers added both ways, and one for all others whose \
         backend is not there. It is called as soon as it is made, over and over with 1 ms between, until it answers 200; \
         404 until then is no error, all else is. After that three more requests, and in the end one to each route, must \
         succeed. *Told of* is when a watch of the client's own hears of it: what is before that is the API server's.",
    ),
    (
        "route-change",
        "The first of these routes is edited by server-side apply, and called until the answer has the new header. \
         Meanwhile four connections call it, of whose answers each counts.",
    ),
    (
        "backend-failover",
        "First the endpoint's slice says that it is not ready, and that it is again; then its server closes its sockets \
         without a word and opens them again. Requests are tried once more where nothing came of the first try, which is \
         the default.",
    ),
    (
        "route-scale",
        "Each Service has a slice of ten endpoints, of which one is another with each change; fifty slices change in a \
         second, and a route is edited twice a second.",
    ),
];

/// What was to be reached.
struct Goal {
    what: &'static str,
    goal: &'static str,
    /// Of which tables which figures; several count together.
    figures: &'static [(&'static str, &'static str)],
    most: f64,
}

const GOALS: [Goal; 4] = [
    Goal {
        what: "a route in force after its creation, with 3,000 routes, p99 in ms",
        goal: "under 20",
        figures: &[("route-probe", "in force after its creation: p99, ms")],
        most: 20.0,
    },
    Goal {
        what: "an edit of one of 3,000 routes in force, p99 in ms",
        goal: "under 20",
        figures: &[("route-change", "in force after its edit: p99, ms")],
        most: 20.0,
    },
    Goal {
        what: "proxy, MiB with 5,000 routes",
        goal: "under 28.6 (30 MB)",
        figures: &[("route-scale", "proxy, MiB with all")],
        most: 28.6,
    },
    Goal {
        what: "errors, all tests together",
        goal: "none",
        figures: &[
            ("route-probe", "errors before the first success"),
            ("route-probe", "errors after the first success"),
            ("route-change", "errors"),
            ("backend-failover", "told: errors"),
            ("backend-failover", "refusing: errors"),
            ("route-scale", "errors"),
        ],
        most: 0.0,
    },
];

impl Goal {
    /// By the very figures that the page shows.
    fn stands(&self, tables: &[Table]) -> String {
        let shown = |(test, figure): &(&str, &str)| -> Option<f64> {
            let table = tables.iter().find(|table| table.phase == format!("{PHASE}-{test}"))?.list();
            let start = format!("| {figure} | ");
            table.lines().find_map(|line| line.strip_prefix(&start))?.trim_end_matches(" |").parse().ok()
        };
        let figures: Vec<f64> = self.figures.iter().filter_map(shown).collect();
        let sum: f64 = figures.iter().sum();
        match figures.as_slice() {
            [] => String::from("not measured"),
            _ if sum <= self.most => format!("reached: {sum}"),
            _ => format!("**not reached**: {sum}"),
        }
    }
}

/// Where a table stands among the others.
pub(crate) fn place(phase: &str) -> usize {
    let name = |phase: &str| phase.strip_prefix(PHASE).map(|rest| rest.trim_start_matches('-').to_owned());
    let name = name(phase).unwrap_or_default();
    TABLES.iter().position(|(table, _)| *table == name).unwrap_or(TABLES.len())
}

pub(super) fn write(results: &Results, path: &Path) -> anyhow::Result<()> {
    std::fs::write(path, page(results)).with_context(|| format!("cannot write {}", path.display()))
}

fn page(results: &Results) -> String {
    let mut out = String::from(concat!(
        "# Benchmarks: Gateway API\n\n",
        "Written by `cargo xtask bench gateway-api`: the tests of public comparisons of Gateway API implementations, with ",
        "`pontoon serve --kubernetes`, one `pontoon-proxy` (one worker) and the API server, etcd and controllers of a ",
        "cluster, all on one machine, whose processors they share with the client. etcd does not wait for its disk. ",
        "Services are headless and their endpoints written by hand; one process answers for those that answer.\n\n",
        "No other implementation can be run here. What others published of the same tests (gateway-api-bench, on other and ",
        "larger machines; not measured here, so only the order of magnitude can be compared): a route is in force after ",
        "10 to 30 ms (agentgateway), 120 to 300 ms (Istio), 600 ms with thousands of answers 503 (Envoy Gateway); the data ",
        "plane holds 4 MB, growing to 40 MB with 5,000 routes, at under 1 % of a processor (agentgateway), or 1 to 2 GB ",
        "(those on Envoy). Our goals: under 20 ms at the 99th percentile with 3,000 routes, under 30 MB with 5,000, no ",
        "error anywhere; [what is not reached](#what-was-to-be-reached-and-what-is-not).\n\n",
    ));
    if results.quick {
        out.push_str("These are the figures of a short run (`--quick`).\n\n");
    }
    out.push_str(&results.about_machine());
    for table in &results.tables {
        let note = TABLES.get(place(&table.phase)).map_or("", |(_, note)| *note);
        let (title, measured) = (&table.title, table.measured());
        let _ = write!(out, "\n## {title}\n\n{measured} {note}\n\n{}\n", table.list());
    }
    out.push_str("\n## What was to be reached, and what is not\n\n| what | goal | |\n|---|---|---|\n");
    for goal in &GOALS {
        let _ = writeln!(out, "| {} | {} | {} |", goal.what, goal.goal, goal.stands(&results.tables));
    }
    out.push_str(concat!(
        "\n## How to repeat\n\n",
        "    cargo xtask bench gateway-api           # needs root; about ten minutes\n",
        "    cargo xtask bench gateway-api --quick   # about a minute; writes target/bench/gateway-api/benchmarks-gateway-api.md\n",
        "    cargo xtask bench gateway-api --only route-scale\n",
        "    cargo xtask bench gateway-api --against results.json    # and say what is worse than in that run\n",
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;
    use crate::report::Row;

    #[test]
    fn goals_are_held_against_what_is_shown() {
        let of = |test: &str, figures: &[(&str, f64)]| {
            let mut row = Row::new("Pontoon");
            figures.iter().for_each(|(figure, value)| row.push(figure, *value));
            table(test, String::new(), "", row)
        };
        let tables = [
            of("route-probe", &[("in force after its creation: p99, ms", 41.93)]),
            of("route-change", &[("in force after its edit: p99, ms", 14.2), ("errors", 0.0)]),
            of("backend-failover", &[("told: errors", 2.0), ("refusing: errors", 1.0)]),
        ];
        let stand = GOALS.each_ref().map(|goal| goal.stands(&tables));
        assert_eq!(stand, ["**not reached**: 41.9", "reached: 14.2", "not measured", "**not reached**: 3"]);
    }

    #[test]
    fn tables_stand_in_the_pages_order() {
        let places =
            ["gateway-api-attached-routes", "gateway-api-route-change", "gateway-api-route-scale", "x"];
        assert_eq!(places.map(place), [0, 2, 4, 5]);
    }
}
