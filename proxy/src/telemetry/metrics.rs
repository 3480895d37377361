//! Counters in shards, one a worker, and their Prometheus text. A worker is the only writer of its shard, so a
//! count is a plain load and store. Rows of listeners and clusters that have gone are dropped at the next scrape.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::access_log::LogStats;
use super::histogram::Histogram;
use crate::error::Error;
use crate::overload::Admission;

/// Clusters (and listeners) that get rows of their own in a shard. Above it they share the row `_other`, so
/// that no configuration makes a scrape grow without a bound.
const ROW_BUDGET: usize = 2_000;
/// Status classes: none, 1xx to 5xx.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
/// One column for each error and one for none.
const CAUSES: usize = Error::ALL.len() + 1;

/// A count with one writer and any number of readers. Also used as a gauge: it may be subtracted from.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Only ever called by the worker that owns the shard.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// As [`Counter::add`].
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One worker's counts of one listener.
#[derive(Debug)]
pub struct ListenerCells {
    name: Arc<str>,
    /// Requests ended, by cause and status class.
    requests: Vec<[Counter; 6]>,
    /// Connections without HTTP that ended, by cause.
    ended: Vec<Counter>,
    /// Open connections.
    pub connections: Counter,
    /// Connections accepted.
    pub accepted: Counter,
    /// Requests in flight.
    pub active: Counter,
    /// Accepts that failed for want of a file descriptor or memory.
    pub accept_failures: Counter,
    /// TLS handshakes that succeeded.
    pub handshakes: Counter,
    /// TLS handshakes that failed or took too long.
    pub handshake_failures: Counter,
    /// Connections that no filter chain took.
    pub no_chain: Counter,
    /// Connections whose first bytes did not come in time.
    pub inspect_timeouts: Counter,
    /// Idle connections of this worker's that were closed for a new one of this listener.
    pub made_room: Counter,
}

impl ListenerCells {
    fn new(name: Arc<str>) -> Self {
        Self {
            name,
            requests: (0..CAUSES).map(|_| Default::default()).collect(),
            ended: (0..CAUSES).map(|_| Counter::default()).collect(),
            connections: Counter::default(),
            accepted: Counter::default(),
            active: Counter::default(),
            accept_failures: Counter::default(),
            handshakes: Counter::default(),
            handshake_failures: Counter::default(),
            no_chain: Counter::default(),
            inspect_timeouts: Counter::default(),
            made_room: Counter::default(),
        }
    }

    /// Counts a request that has ended; `status` 0 means that none was sent.
    pub fn ended(&self, status: u16, error: Option<Error>) {
        self.requests[error.map_or(0, |e| e.index() + 1)][class(status)].add(1);
    }

    /// Counts a connection without HTTP that has ended.
    pub fn ended_connection(&self, error: Option<Error>) {
        self.ended[error.map_or(0, |e| e.index() + 1)].add(1);
    }

    fn merge(&self, other: &Self) {
        for (mine, theirs) in self.requests.iter().flatten().zip(other.requests.iter().flatten()) {
            mine.add(theirs.get());
        }
        for (mine, theirs) in self.ended.iter().zip(&other.ended) {
            mine.add(theirs.get());
        }
        self.connections.add(other.connections.get());
        self.accepted.add(other.accepted.get());
        self.active.add(other.active.get());
        self.accept_failures.add(other.accept_failures.get());
        self.handshakes.add(other.handshakes.get());
        self.handshake_failures.add(other.handshake_failures.get());
        self.no_chain.add(other.no_chain.get());
        self.inspect_timeouts.add(other.inspect_timeouts.get());
        self.made_room.add(other.made_room.get());
    }
}

/// One worker's counts of one cluster.
#[derive(Debug)]
pub struct ClusterCells {
    name: Arc<str>,
    responses: [Counter; 6],
    /// Tries after the first.
    pub retries: Counter,
    /// Connects that failed or timed out.
    pub connect_failures: Counter,
    /// Connections opened.
    pub connects: Counter,
    /// Requests in flight.
    pub active: Counter,
    /// Exchanges that ended in an upstream error.
    pub failures: Counter,
    /// Open connections without HTTP.
    pub connections: Counter,
    /// Those that have ended.
    connections_ended: Counter,
    /// Bytes that they carried to endpoints.
    bytes_sent: Counter,
    /// Bytes that they carried to clients.
    bytes_received: Counter,
    /// From the request's arrival to the end of its answer.
    pub latency: Histogram,
}

impl ClusterCells {
    fn new(name: Arc<str>) -> Self {
        Self {
            name,
            responses: Default::default(),
            retries: Counter::default(),
            connect_failures: Counter::default(),
            connects: Counter::default(),
            active: Counter::default(),
            failures: Counter::default(),
            connections: Counter::default(),
            connections_ended: Counter::default(),
            bytes_sent: Counter::default(),
            bytes_received: Counter::default(),
            latency: Histogram::default(),
        }
    }

    /// Counts an answer.
    pub fn ended(&self, status: u16) {
        self.responses[class(status)].add(1);
    }

    /// Counts a connection without HTTP that has ended, with the bytes from its client and to it.
    pub fn ended_connection(&self, from_client: u64, to_client: u64) {
        self.connections_ended.add(1);
        self.bytes_sent.add(from_client);
        self.bytes_received.add(to_client);
    }

    fn merge(&self, other: &Self) {
        for (mine, theirs) in self.responses.iter().zip(&other.responses) {
            mine.add(theirs.get());
        }
        self.retries.add(other.retries.get());
        self.connect_failures.add(other.connect_failures.get());
        self.connects.add(other.connects.get());
        self.active.add(other.active.get());
        self.failures.add(other.failures.get());
        self.connections.add(other.connections.get());
        self.connections_ended.add(other.connections_ended.get());
        self.bytes_sent.add(other.bytes_sent.get());
        self.bytes_received.add(other.bytes_received.get());
        self.latency.merge(&other.latency);
    }
}

fn class(status: u16) -> usize {
    usize::from(status / 100).min(CLASSES.len() - 1)
}

/// One worker's counts. The locks are taken when a row is made and when a scrape reads, never for a request.
#[derive(Debug, Default)]
pub struct Shard {
    listeners: Mutex<Vec<Arc<ListenerCells>>>,
    clusters: Mutex<Vec<Arc<ClusterCells>>>,
    /// How late the worker's last tick was, in microseconds.
    lag: AtomicU64,
}

impl Shard {
    /// Takes note of how late the worker's clock ticked.
    pub fn note_lag(&self, lateness: Duration) {
        self.lag.store(lateness.as_micros() as u64, Relaxed);
    }

    /// The row of a listener; made if absent.
    pub fn listener(&self, name: &Arc<str>) -> Arc<ListenerCells> {
        row(&self.listeners, name, |cells| &cells.name, ListenerCells::new)
    }

    /// The row of a cluster; made if absent.
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ClusterCells> {
        row(&self.clusters, name, |cells| &cells.name, ClusterCells::new)
    }
}

fn row<T>(
    rows: &Mutex<Vec<Arc<T>>>,
    name: &Arc<str>,
    name_of: fn(&T) -> &Arc<str>,
    new: fn(Arc<str>) -> T,
) -> Arc<T> {
    let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
    let name = if rows.len() < ROW_BUDGET { Arc::clone(name) } else { Arc::from("_other") };
    if let Some(row) = rows.iter().find(|row| *name_of(row) == name) {
        return Arc::clone(row);
    }
    let row = Arc::new(new(name));
    rows.push(Arc::clone(&row));
    row
}

/// Reads all shards. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    shards: Arc<[Arc<Shard>]>,
    logs: Arc<LogStats>,
    admission: Arc<Admission>,
}

impl Metrics {
    pub(crate) fn new(shards: Arc<[Arc<Shard>]>, logs: Arc<LogStats>, admission: Arc<Admission>) -> Self {
        Self { shards, logs, admission }
    }

    /// Appends the request path's metrics in the Prometheus text format, without an end mark.
    pub fn render(&self, out: &mut String) {
        let listeners = merged(
            self.shards.iter().map(|shard| &shard.listeners),
            |cells| &cells.name,
            ListenerCells::new,
            ListenerCells::merge,
        );
        let clusters = merged(
            self.shards.iter().map(|shard| &shard.clusters),
            |cells| &cells.name,
            ClusterCells::new,
            ClusterCells::merge,
        );
        render_listeners(out, &listeners);
        render_clusters(out, &clusters);
        header(
            out,
            "pontoon_access_log_dropped_total",
            "counter",
            "Access log lines that the writer was too slow for.",
        );
        let _ = writeln!(out, "pontoon_access_log_dropped_total {}", self.logs.dropped());
        header(
            out,
            "pontoon_worker_lag_seconds",
            "gauge",
            "How long work waited for its worker when last looked at.",
        );
        for (worker, shard) in self.shards.iter().enumerate() {
            let seconds = shard.lag.load(Relaxed) as f64 / 1e6;
            let _ = writeln!(out, "pontoon_worker_lag_seconds{{worker=\"{worker}\"}} {seconds}");
        }
        header(out, "pontoon_memory_bytes", "gauge", "Resident memory when last looked at.");
        let _ = writeln!(out, "pontoon_memory_bytes {}", self.admission.memory());
        header(
            out,
            "pontoon_overload_pressure",
            "gauge",
            "0: none; 1: connections are not kept alive; 2: nothing new is taken.",
        );
        let _ = writeln!(out, "pontoon_overload_pressure {}", self.admission.pressure() as u8);
    }

    /// Requests that have ended and open connections, over all listeners and workers.
    pub fn totals(&self) -> (u64, u64) {
        let mut totals = (0, 0);
        for shard in self.shards.iter() {
            for cells in shard.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                totals.0 += cells.requests.iter().flatten().map(Counter::get).sum::<u64>();
                totals.1 += cells.connections.get();
            }
        }
        totals
    }
}

fn merged<'a, T: 'a>(
    shards: impl Iterator<Item = &'a Mutex<Vec<Arc<T>>>>,
    name_of: fn(&T) -> &Arc<str>,
    new: fn(Arc<str>) -> T,
    merge: fn(&T, &T),
) -> BTreeMap<Arc<str>, T> {
    let mut merged: BTreeMap<Arc<str>, T> = BTreeMap::new();
    for shard in shards {
        let mut rows = shard.lock().unwrap_or_else(PoisonError::into_inner);
        for row in rows.iter() {
            let name = name_of(row);
            merge(merged.entry(Arc::clone(name)).or_insert_with(|| new(Arc::clone(name))), row);
        }
        // Its last figures have now been read once; nobody writes it any more.
        rows.retain(|row| Arc::strong_count(row) > 1);
    }
    merged
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Name, kind, help, and where the value is.
type Plain<T> = (&'static str, &'static str, &'static str, fn(&T) -> &Counter);

fn render_listeners(out: &mut String, rows: &BTreeMap<Arc<str>, ListenerCells>) {
    let name = "pontoon_downstream_requests_total";
    header(out, name, "counter", "Requests ended, by listener, status class, response flag and reason.");
    for (listener, row) in rows {
        let listener = escape(listener);
        for (cause, classes) in row.requests.iter().enumerate() {
            let error = cause.checked_sub(1).map(|index| Error::ALL[index]);
            let (flag, reason) = error.map_or(("-", ""), |e| (e.flag(), e.reason()));
            for (class, count) in CLASSES.iter().zip(classes).filter(|(_, count)| count.get() > 0) {
                let _ = writeln!(
                    out,
                    "{name}{{listener=\"{listener}\",class=\"{class}\",flag=\"{flag}\",reason=\"{reason}\"}} {}",
                    count.get()
                );
            }
        }
    }
    let name = "pontoon_tcp_connections_total";
    header(
        out,
        name,
        "counter",
        "Connections without HTTP that ended, by listener, response flag and reason.",
    );
    for (listener, row) in rows {
        let listener = escape(listener);
        for (cause, count) in row.ended.iter().enumerate().filter(|(_, count)| count.get() > 0) {
            let error = cause.checked_sub(1).map(|index| Error::ALL[index]);
            let (flag, reason) = error.map_or(("-", ""), |e| (e.flag(), e.reason()));
            let count = count.get();
            let _ = writeln!(
                out,
                "{name}{{listener=\"{listener}\",flag=\"{flag}\",reason=\"{reason}\"}} {count}"
            );
        }
    }
    let plain: [Plain<ListenerCells>; 9] = [
        ("pontoon_downstream_connections", "gauge", "Open connections.", |row| &row.connections),
        ("pontoon_downstream_connections_total", "counter", "Connections accepted.", |row| &row.accepted),
        ("pontoon_downstream_requests_active", "gauge", "Requests in flight.", |row| &row.active),
        (
            "pontoon_accept_failures_total",
            "counter",
            "Accepts that failed for want of files or memory.",
            |row| &row.accept_failures,
        ),
        ("pontoon_tls_handshakes_total", "counter", "TLS handshakes with clients.", |row| &row.handshakes),
        (
            "pontoon_tls_handshake_failures_total",
            "counter",
            "TLS handshakes with clients that failed or took too long.",
            |row| &row.handshake_failures,
        ),
        ("pontoon_no_filter_chain_total", "counter", "Connections that no filter chain took.", |row| {
            &row.no_chain
        }),
        (
            "pontoon_inspect_timeouts_total",
            "counter",
            "Connections whose first bytes did not come in time.",
            |row| &row.inspect_timeouts,
        ),
        (
            "pontoon_idle_connections_closed_total",
            "counter",
            "Idle connections that made room for a new one, the proxy being nearly full.",
            |row| &row.made_room,
        ),
    ];
    render_plain(out, "listener", rows, &plain);
}

fn render_clusters(out: &mut String, rows: &BTreeMap<Arc<str>, ClusterCells>) {
    let name = "pontoon_upstream_requests_total";
    header(out, name, "counter", "Requests ended, by cluster and status class.");
    for (cluster, row) in rows {
        let cluster = escape(cluster);
        for (class, count) in CLASSES.iter().zip(&row.responses).filter(|(_, count)| count.get() > 0) {
            let _ = writeln!(out, "{name}{{cluster=\"{cluster}\",class=\"{class}\"}} {}", count.get());
        }
    }
    let plain: [Plain<ClusterCells>; 9] = [
        ("pontoon_upstream_retries_total", "counter", "Tries after the first.", |row| &row.retries),
        ("pontoon_upstream_connect_failures_total", "counter", "Connects that failed or timed out.", |row| {
            &row.connect_failures
        }),
        ("pontoon_upstream_connects_total", "counter", "Connections opened.", |row| &row.connects),
        ("pontoon_upstream_failures_total", "counter", "Requests that ended in an upstream error.", |row| {
            &row.failures
        }),
        ("pontoon_upstream_requests_active", "gauge", "Requests in flight.", |row| &row.active),
        ("pontoon_upstream_tcp_connections", "gauge", "Open connections without HTTP.", |row| {
            &row.connections
        }),
        (
            "pontoon_upstream_tcp_connections_total",
            "counter",
            "Connections without HTTP that ended.",
            |row| &row.connections_ended,
        ),
        (
            "pontoon_upstream_tcp_sent_bytes_total",
            "counter",
            "Bytes that they carried to endpoints.",
            |row| &row.bytes_sent,
        ),
        ("pontoon_upstream_tcp_received_bytes_total", "counter", "Bytes that they carried back.", |row| {
            &row.bytes_received
        }),
    ];
    render_plain(out, "cluster", rows, &plain);
    let name = "pontoon_upstream_request_duration_seconds";
    header(out, name, "histogram", "From a request's arrival to the end of its answer.");
    for (cluster, row) in rows {
        row.latency.render(out, name, &format!("cluster=\"{}\"", escape(cluster)));
    }
}

fn render_plain<T>(out: &mut String, label: &str, rows: &BTreeMap<Arc<str>, T>, metrics: &[Plain<T>]) {
    for (name, kind, help, get) in metrics {
        header(out, name, kind, help);
        for (value, row) in rows {
            let _ = writeln!(out, "{name}{{{label}=\"{}\"}} {}", escape(value), get(row).get());
        }
    }
}

/// A label value: backslash, quote and line end escaped.
fn escape(value: &str) -> std::borrow::Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_add_up_and_rows_that_have_gone_are_dropped_after_one_scrape() {
        let shards: Arc<[Arc<Shard>]> = Arc::new([Arc::default(), Arc::default()]);
        let metrics = Metrics::new(Arc::clone(&shards), Arc::default(), Admission::new(Default::default()));
        let name: Arc<str> = "a\"b".into();
        let rows: Vec<_> = shards.iter().map(|shard| shard.cluster(&name)).collect();
        for row in &rows {
            row.ended(200);
            row.latency.observe(Duration::from_millis(3));
        }
        let mut text = String::new();
        metrics.render(&mut text);
        assert!(text.contains(r#"pontoon_upstream_requests_total{cluster="a\"b",class="2xx"} 2"#), "{text}");
        assert!(
            text.contains(r#"duration_seconds_bucket{cluster="a\"b",le="0.005"} 2"#)
                && text.contains(r#"le="0.0025"} 0"#),
            "{text}"
        );
        drop(rows);
        metrics.render(&mut String::new());
        let mut text = String::new();
        metrics.render(&mut text);
        assert!(!text.contains("a\\\"b"), "{text}");
    }

    #[test]
    fn rows_are_bounded() {
        let shard = Shard::default();
        let rows: Vec<_> =
            (0..ROW_BUDGET + 10).map(|n| shard.cluster(&Arc::from(format!("c{n}").as_str()))).collect();
        assert_eq!(&*rows[ROW_BUDGET + 5].name, "_other");
        assert_eq!(shard.clusters.lock().unwrap().len(), ROW_BUDGET + 1);
    }

    #[test]
    fn a_request_is_counted_under_its_class_and_flag() {
        let shards: Arc<[Arc<Shard>]> = Arc::new([Arc::default()]);
        let row = shards[0].listener(&"edge".into());
        row.ended(503, Some(Error::NoHealthyUpstream));
        row.ended(200, None);
        let mut text = String::new();
        Metrics::new(shards, Arc::default(), Admission::new(Default::default())).render(&mut text);
        assert!(
            text.contains(r#"listener="edge",class="5xx",flag="UH",reason="no_healthy_upstream"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"listener="edge",class="2xx",flag="-",reason=""} 1"#), "{text}");
    }
}
