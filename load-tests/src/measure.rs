//! Reading what a process has used, and driving wrk.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// CPU time of a process so far, user and system, of all its threads. Of those that run it is known in ns; of those that
/// have ended it is only in the sum of all, in ticks, which is rounded down: whichever is more is nearer.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let of_all = parse_stat(&stat).with_context(|| format!("no times in {path}"))?;
    Ok(of_all.max(threads(pid).map(|(time, _)| time).sum()))
}

/// How often threads of a process that run still have been given a processor.
pub(crate) fn wakes(pid: u32) -> u64 {
    threads(pid).map(|(_, times)| times).sum()
}

/// What each thread has had. One may end while it is looked for, and goes to the sum of all.
fn threads(pid: u32) -> impl Iterator<Item = (Duration, u64)> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| parse_schedstat(&std::fs::read_to_string(thread.path().join("schedstat")).ok()?))
}

/// Of `/proc/PID/stat`.
fn parse_stat(text: &str) -> Option<Duration> {
    // The second field is the name in brackets and may hold spaces; user and system time are the 14th and 15th.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(ticks(fields.next()?)? + ticks(fields.next()?)?)
}

/// Of `/proc/PID/task/TID/schedstat`: ns on a processor, ns of waiting for one, and how often it got one.
fn parse_schedstat(text: &str) -> Option<(Duration, u64)> {
    let mut fields = text.split_whitespace().map(str::parse);
    let time = Duration::from_nanos(fields.next()?.ok()?);
    Some((time, fields.nth(1)?.ok()?))
}

fn ticks(field: &str) -> Option<Duration> {
    let micros = field.parse::<u64>().ok()? * 1_000_000 / rustix::param::clock_ticks_per_second();
    Some(Duration::from_micros(micros))
}

/// What a processor has not done so far, by `/proc/stat`, in ticks of mostly 10 ms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Processor {
    /// With what it waited for a disk.
    idle: Duration,
    /// By the machine's host.
    stolen: Duration,
}

impl Processor {
    pub(crate) fn now(number: usize) -> anyhow::Result<Processor> {
        let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Processor::parse(&text, number).with_context(|| format!("no cpu{number} in /proc/stat"))
    }

    fn parse(text: &str, number: usize) -> Option<Processor> {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("cpu{number} ")))?;
        // user nice system idle iowait irq softirq steal
        let field = |at| ticks(line.split_whitespace().nth(at)?);
        Some(Processor { idle: field(3)? + field(4)?, stolen: field(7)? })
    }

    /// How long in the time since it was busy.
    pub(crate) fn busy(self, since: Processor, time: Duration) -> Duration {
        time.saturating_sub(self.idle.saturating_sub(since.idle))
    }

    /// How long in the time since it was kept from those whose CPU time is `own`: by others, or by the host.
    pub(crate) fn taken(self, since: Processor, time: Duration, own: Duration) -> Duration {
        let stolen = self.stolen.saturating_sub(since.stolen);
        // Stolen time is nobody's CPU time.
        self.busy(since, time).saturating_sub(own).max(stolen)
    }
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident(pid: u32) -> anyhow::Result<u64> {
    status_bytes(pid, "VmRSS:")
}

/// The most resident memory that a process has had so far, in bytes.
pub(crate) fn peak_resident(pid: u32) -> anyhow::Result<u64> {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, field: &'static str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find(|l| l.starts_with(field)).with_context(|| format!("no {field}"))?;
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).context(field)?;
    Ok(kib * 1024)
}

/// What wrk saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) per_second: f64,
}

impl Load {
    /// Fails where a request did.
    pub(crate) fn all_answered(self) -> anyhow::Result<Load> {
        let Load { errors, requests, .. } = self;
        ensure!(errors == 0 && requests > 0, "{errors} errors in {requests} requests");
        Ok(self)
    }
}

/// Of each request of a load: what callers that trace send (W3C Trace Context).
pub(crate) const TRACE_HEADER: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A closed loop over keep-alive connections, of what the script says, or of plain GETs.
pub(crate) fn wrk(url: &str, script: Option<&Path>, connections: u32, seconds: u32) -> anyhow::Result<Load> {
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "-H", TRACE_HEADER])
        .args(script.iter().flat_map(|file| [OsStr::new("-s"), file.as_os_str()]))
        .arg(url)
        .output()
        .context("cannot start wrk")?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(text: &str) -> anyhow::Result<Load> {
    let number_before = |mark: &str| {
        let line = text.lines().find(|line| line.contains(mark))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let requests =
        number_before(" requests in ").with_context(|| format!("wrk says nothing useful:\n{text}"))?;
    let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    let sum = |line: &str| -> u64 {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).sum()
    };
    let errors = text.lines().filter(|l| l.contains("Non-2xx") || l.contains("Socket errors")).map(sum).sum();
    Ok(Load { requests, errors, per_second: rate.and_then(|r| r.trim().parse().ok()).unwrap_or(0.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let text = "  1 threads and 64 connections\n  20000 requests in 2.00s, 23.42MB read\n  \
                    Socket errors: connect 0, read 3, write 0, timeout 0\n  Non-2xx or 3xx responses: 7\n\
                    Requests/sec:  10000.50\nTransfer/sec:     11.71MB\n";
        // "Non-2xx or 3xx" holds two digits of its own.
        let load = parse(text).unwrap();
        assert_eq!((load.requests, load.per_second), (20_000, 10_000.5));
        assert!(load.errors >= 10);
    }

    #[test]
    fn a_load_with_errors_or_without_requests_does_not_count() {
        let load = Load { requests: 10, errors: 0, per_second: 1.0 };
        assert!(load.all_answered().is_ok());
        assert!(Load { errors: 1, ..load }.all_answered().is_err());
        assert!(Load { requests: 0, ..load }.all_answered().is_err());
    }

    #[test]
    fn this_process_uses_memory_and_time() {
        let pid = std::process::id();
        assert!(resident(pid).unwrap() > 100_000);
        assert!(cpu_time(pid).unwrap() > Duration::ZERO);
    }

    #[test]
    fn times_are_read_from_behind_a_name_with_spaces_and_brackets() {
        let tick = Duration::from_secs(1) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap();
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 1 0 126092";
        assert_eq!(parse_stat(stat), Some(tick * 42));
        assert_eq!(parse_stat("42 (a) S 1"), None);
        assert_eq!(parse_schedstat("2328712 45 7\n"), Some((Duration::from_nanos(2_328_712), 7)));
        assert_eq!(parse_schedstat(""), None);
    }

    #[test]
    fn what_a_processor_did_for_others_is_what_is_left() {
        let tick = Duration::from_secs(1) / u32::try_from(rustix::param::clock_ticks_per_second()).unwrap();
        let text = |idle, steal| {
            format!(
                "cpu  9 9 9 9 9 9 9 9 0 0\ncpu1 96 0 16 {idle} 5 1 2 {steal} 0 0\ncpu12 1 1 1 1 1 1 1 1 0 0\n"
            )
        };
        let then = Processor::parse(&text(100, 0), 1).unwrap();
        assert_eq!(then, Processor { idle: tick * 105, stolen: Duration::ZERO });
        let now = Processor::parse(&text(150, 10), 1).unwrap();
        assert_eq!(now.busy(then, tick * 100), tick * 50);
        assert_eq!(now.taken(then, tick * 100, tick * 30), tick * 20);
        // The proxy had all that was left, and the host the rest.
        assert_eq!(now.taken(then, tick * 100, tick * 40), tick * 10);
        assert_eq!(now.taken(then, tick * 100, tick * 60), tick * 10);
        assert_eq!(Processor::parse(&text(1, 1), 2), None);
    }
}
