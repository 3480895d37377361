//! One line a request. The worker hands over what it has, unformatted, through a bounded queue; a thread per
//! sink formats and writes. A full queue drops the line and counts it: a slow disk never slows a request.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Method, Uri, Version};
use tokio::time::Instant;

use crate::config::listener::{AccessLog, AccessLogFormat};
use crate::error::Error;
use crate::route::Route;

/// Lines that may wait for a sink.
const QUEUE: usize = 8_192;

/// What a line says.
#[derive(Debug, Clone)]
pub struct Entry {
    /// When the request had arrived.
    pub time: SystemTime,
    /// The listener's name.
    pub listener: Arc<str>,
    /// `None`: the line is that of a connection without HTTP.
    pub request: Option<RequestLine>,
    /// The client as the trust rules see it.
    pub client: IpAddr,
    /// 0: none was sent.
    pub status: u16,
    /// What went wrong, if anything did.
    pub error: Option<Error>,
    /// The route taken.
    pub route: Option<Arc<Route>>,
    /// The cluster's name.
    pub cluster: Option<Arc<str>>,
    /// The endpoint of the last try.
    pub endpoint: Option<SocketAddr>,
    /// Tries, 0 if none was made.
    pub attempts: u32,
    /// Body bytes from the client.
    pub received: u64,
    /// Body bytes to the client.
    pub sent: u64,
    /// From the head's arrival to the end.
    pub duration: Duration,
    /// Until the answer's head, where there was one.
    pub first_byte: Option<Duration>,
}

/// What a line says of a request.
#[derive(Debug, Clone)]
pub struct RequestLine {
    /// The method.
    pub method: Method,
    /// Path and query, after normalisation.
    pub path: Uri,
    /// The protocol downstream.
    pub version: Version,
    /// `Host` or `:authority`.
    pub host: Option<HeaderValue>,
    /// `x-request-id`.
    pub request_id: Option<HeaderValue>,
}

impl RequestLine {
    /// Of bytes that never became a request: its method is `-`, its path `*`.
    fn refused() -> Self {
        Self {
            method: Method::from_bytes(b"-").unwrap_or_default(),
            path: Uri::from_static("*"),
            version: Version::HTTP_11,
            host: None,
            request_id: None,
        }
    }
}

impl Entry {
    /// For bytes that never became a request.
    pub fn refused(listener: &Arc<str>, client: IpAddr, error: Error) -> Self {
        Self {
            time: SystemTime::now(),
            listener: Arc::clone(listener),
            request: Some(RequestLine::refused()),
            client,
            status: error.status().as_u16(),
            error: Some(error),
            route: None,
            cluster: None,
            endpoint: None,
            attempts: 0,
            received: 0,
            sent: error.body().len() as u64,
            duration: Duration::ZERO,
            first_byte: None,
        }
    }
}

/// Counts over all sinks.
#[derive(Debug, Default)]
pub struct LogStats {
    dropped: AtomicU64,
}

impl LogStats {
    /// Lines that found the queue full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// Its room is taken when it is made: an entry has some hundred bytes.
type Queue = SyncSender<Box<Entry>>;

/// One open sink. Cheap to clone. With the last one its thread ends, when it has written what it has.
#[derive(Debug, Clone)]
pub struct Sink {
    queue: Arc<Queue>,
    stats: Arc<LogStats>,
}

impl Sink {
    /// Queues a line, or drops and counts it. Never waits.
    pub fn log(&self, entry: Entry) {
        if self.queue.try_send(Box::new(entry)).is_err() {
            self.stats.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// A sink's path, and whether its lines are JSON.
type Key = (Box<str>, bool);

/// All open sinks by path and format; shared by the workers, asked only when a listener's settings change.
#[derive(Debug, Default)]
pub struct Sinks {
    open: Mutex<HashMap<Key, Weak<Queue>>>,
    stats: Arc<LogStats>,
}

impl Sinks {
    /// The sinks' counts.
    pub fn stats(&self) -> Arc<LogStats> {
        Arc::clone(&self.stats)
    }

    /// The sink for a configured log; opened on first use and kept for as long as a configuration has it. Errors with
    /// what the system said about it.
    pub fn open(&self, log: &AccessLog) -> io::Result<Sink> {
        let key: Key = (log.path.clone(), log.format == AccessLogFormat::Json);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let sink = |queue| Sink { queue, stats: Arc::clone(&self.stats) };
        if let Some(queue) = open.get(&key).and_then(Weak::upgrade) {
            return Ok(sink(queue));
        }
        let out: Box<dyn Write + Send> = match &*log.path {
            "/dev/stdout" => Box::new(io::stdout()),
            "/dev/stderr" => Box::new(io::stderr()),
            path => Box::new(Rotated::open(path.into())?),
        };
        let (queue, lines) = sync_channel(QUEUE);
        let format = log.format;
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(&lines, BufWriter::with_capacity(64 * 1024, out), format))?;
        let queue = Arc::new(queue);
        open.retain(|_, kept| kept.strong_count() > 0);
        open.insert(key, Arc::downgrade(&queue));
        Ok(sink(queue))
    }
}

/// How often a file is looked for where it was opened.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A file that may be moved away or removed while it is written, as logrotate does: what comes after that goes to a
/// new one at its path. No signal is needed.
struct Rotated {
    path: PathBuf,
    file: File,
    looked: Instant,
}

impl Rotated {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        Ok(Self { path, file, looked: Instant::now() })
    }

    fn is_at_its_path(&self) -> io::Result<bool> {
        let (ours, there) = (self.file.metadata()?, std::fs::metadata(&self.path)?);
        Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino()))
    }
}

impl Write for Rotated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = Instant::now();
        if now - self.looked >= LOOK_EVERY {
            self.looked = now;
            // Where no new one can be made, the old one is better than none.
            if !self.is_at_its_path().unwrap_or(false)
                && let Ok(anew) = Self::open(self.path.clone())
            {
                *self = anew;
            }
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes until every sender has gone. What the sink refuses (a full disk) is lost; it is tried again with the
/// next line.
fn write_lines(lines: &Receiver<Box<Entry>>, mut out: impl Write, format: AccessLogFormat) {
    let mut line = String::with_capacity(512);
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        while let Some(entry) = next {
            line.clear();
            match format {
                AccessLogFormat::Json => json(&entry, &mut line),
                AccessLogFormat::Text => text(&entry, &mut line),
            }
            line.push('\n');
            let _ = out.write_all(line.as_bytes());
            next = lines.try_recv().ok();
        }
        let _ = out.flush();
    }
}

fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|t| format!("{t:.3}")).unwrap_or_default()
}

fn protocol(request: Option<&RequestLine>) -> &'static str {
    match request.map(|request| request.version) {
        None => "TCP",
        Some(Version::HTTP_10) => "HTTP/1.0",
        Some(Version::HTTP_2) => "HTTP/2",
        Some(_) => "HTTP/1.1",
    }
}

fn ms(duration: Duration) -> f64 {
    (duration.as_micros() as f64) / 1000.0
}

fn lossy(value: Option<&HeaderValue>) -> Option<std::borrow::Cow<'_, str>> {
    value.map(|value| String::from_utf8_lossy(value.as_bytes()))
}

/// One JSON object; absent fields are left out.
fn json(entry: &Entry, out: &mut String) {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        time: String,
        listener: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        method: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        protocol: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<std::borrow::Cow<'a, str>>,
        client: IpAddr,
        #[serde(skip_serializing_if = "Option::is_none")]
        request_id: Option<std::borrow::Cow<'a, str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
        flags: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        route: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cluster: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        endpoint: Option<SocketAddr>,
        attempts: u32,
        bytes_received: u64,
        bytes_sent: u64,
        duration_ms: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        first_byte_ms: Option<f64>,
    }
    let request = entry.request.as_ref();
    let line = Line {
        time: timestamp(entry.time),
        listener: &entry.listener,
        method: request.map(|request| request.method.as_str()),
        path: request.map(|request| request.path.to_string()),
        protocol: protocol(request),
        host: request.and_then(|request| lossy(request.host.as_ref())),
        client: entry.client,
        request_id: request.and_then(|request| lossy(request.request_id.as_ref())),
        status: request.map(|_| entry.status),
        flags: entry.error.map_or("-", Error::flag),
        reason: entry.error.map(Error::reason),
        route: entry.route.as_ref().map(|route| &*route.name),
        cluster: entry.cluster.as_deref(),
        endpoint: entry.endpoint,
        attempts: entry.attempts,
        bytes_received: entry.received,
        bytes_sent: entry.sent,
        duration_ms: ms(entry.duration),
        first_byte_ms: entry.first_byte.map(ms),
    };
    if let Ok(line) = serde_json::to_string(&line) {
        out.push_str(&line);
    }
}

/// `[time] "METHOD path PROTOCOL" status flags reason received sent duration "client" "host" "id" route cluster
/// endpoint attempts`; `-` for what is absent. Quotes and control characters from outside are escaped.
fn text(entry: &Entry, out: &mut String) {
    let quoted = |value: Option<&HeaderValue>| match lossy(value) {
        Some(value) => format!("{value:?}"),
        None => "\"-\"".to_owned(),
    };
    let request = entry.request.as_ref();
    let _ = write!(
        out,
        "[{}] \"{} {} {}\" {} {} {} {} {} {:.3} \"{}\" {} {} {} {} ",
        timestamp(entry.time),
        request.map_or("-", |request| request.method.as_str()),
        request.map_or("-".into(), |request| request.path.to_string()).escape_debug(),
        protocol(request),
        entry.status,
        entry.error.map_or("-", Error::flag),
        entry.error.map_or("-", Error::reason),
        entry.received,
        entry.sent,
        ms(entry.duration),
        entry.client,
        quoted(request.and_then(|request| request.host.as_ref())),
        quoted(request.and_then(|request| request.request_id.as_ref())),
        entry.route.as_ref().map_or("-", |route| &route.name),
        entry.cluster.as_deref().unwrap_or("-"),
    );
    let _ = match entry.endpoint {
        Some(endpoint) => write!(out, "{endpoint}"),
        None => write!(out, "-"),
    };
    let _ = write!(out, " {}", entry.attempts);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_234),
            listener: "edge".into(),
            request: Some(RequestLine {
                method: Method::GET,
                path: Uri::from_static("/a?b=c"),
                version: Version::HTTP_11,
                host: Some(HeaderValue::from_static("shop\"x")),
                request_id: None,
            }),
            client: IpAddr::from([10, 0, 0, 1]),
            status: 503,
            error: Some(Error::ConnectFailure),
            route: None,
            cluster: Some("eureka/SHOP".into()),
            endpoint: Some(SocketAddr::from(([10, 0, 0, 2], 8080))),
            attempts: 2,
            received: 0,
            sent: 12,
            duration: Duration::from_micros(1_500),
            first_byte: None,
        }
    }

    #[test]
    fn a_file_that_was_moved_away_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let mut log = Rotated::open(path.clone()).unwrap();
        log.write_all(b"one\n").unwrap();
        std::fs::rename(&path, &moved).unwrap();
        log.looked -= LOOK_EVERY;
        log.write_all(b"two\n").unwrap();
        log.looked -= LOOK_EVERY;
        log.write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(moved).unwrap(), "one\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "two\nthree\n");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let mut line = String::new();
        json(&entry(), &mut line);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["time"], "1970-01-01T00:00:01.234Z");
        assert_eq!(value["flags"], "UF");
        assert_eq!(value["reason"], "connect_failure");
        assert_eq!(value["path"], "/a?b=c");
        assert_eq!(value["endpoint"], "10.0.0.2:8080");
        assert!(value.get("request_id").is_none());
    }

    #[test]
    fn text_escapes_what_came_from_outside() {
        let mut line = String::new();
        text(&entry(), &mut line);
        assert_eq!(
            line,
            "[1970-01-01T00:00:01.234Z] \"GET /a?b=c HTTP/1.1\" 503 UF connect_failure 0 12 1.500 \
             \"10.0.0.1\" \"shop\\\"x\" \"-\" - eureka/SHOP 10.0.0.2:8080 2"
        );
    }

    #[test]
    fn a_connection_without_http_has_no_request() {
        let entry = Entry { request: None, status: 0, ..entry() };
        let mut line = String::new();
        json(&entry, &mut line);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["protocol"], value.get("status")), (&"TCP".into(), None));
        line.clear();
        text(&entry, &mut line);
        assert!(line.contains(r#""- - TCP" 0 UF connect_failure 0 12"#), "{line}");
    }

    #[test]
    fn a_sink_that_no_configuration_has_goes() {
        let folder = tempfile::tempdir().unwrap();
        let log = |name| AccessLog {
            path: folder.path().join(name).to_str().unwrap().into(),
            format: AccessLogFormat::Text,
        };
        let sinks = Sinks::default();
        let (first, same) = (sinks.open(&log("a")).unwrap(), sinks.open(&log("a")).unwrap());
        assert!(Arc::ptr_eq(&first.queue, &same.queue));
        let queue = Arc::downgrade(&first.queue);
        drop((first, same));
        // With it the thread's reason to wait.
        assert_eq!(queue.strong_count(), 0);
        let other = sinks.open(&log("b")).unwrap();
        assert_eq!(sinks.open.lock().unwrap().len(), 1);
        drop(other);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (queue, _lines) = sync_channel(1);
        let sink = Sink { queue: Arc::new(queue), stats: Arc::default() };
        sink.log(entry());
        sink.log(entry());
        assert_eq!(sink.stats.dropped(), 1);
    }
}
