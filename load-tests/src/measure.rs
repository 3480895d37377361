//! Reading what a process has used, and driving wrk.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::peer::Name;

/// CPU time of a process so far, user and system, of all its threads. Of those that run it is known in ns; of those that
/// have ended it is only in the sum of all, in ticks, which is rounded down: whichever is more is nearer.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let of_all = parse_stat(&stat).with_context(|| format!("no times in {path}"))?;
    // A thread may end while it is looked for, and its times go to the sum.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_each = threads.filter_map(|thread| {
        parse_schedstat(&std::fs::read_to_string(thread.path().join("schedstat")).ok()?)
    });
    Ok(of_all.max(of_each.sum()))
}

/// Of `/proc/PID/stat`.
fn parse_stat(text: &str) -> Option<Duration> {
    // The second field is the name in brackets and may hold spaces; user and system time are the 14th and 15th.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(ticks(fields.next()?)? + ticks(fields.next()?)?)
}

/// Of `/proc/PID/task/TID/schedstat`: ns on a processor, ns of waiting for one, and how often it got one.
fn parse_schedstat(text: &str) -> Option<Duration> {
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn ticks(field: &str) -> Option<Duration> {
    let micros = field.parse::<u64>().ok()? * 1_000_000 / rustix::param::clock_ticks_per_second();
    Some(Duration::from_micros(micros))
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
    /// Whether this round counts. A peer that fails now and then is measured by its other rounds; we are not to fail.
    pub(crate) fn counts(&self, peer: &str, what: &str) -> anyhow::Result<bool> {
        if self.errors == 0 && self.requests > 0 {
            return Ok(true);
        }
        let said = format!("{peer}, {what}: {} errors in {} requests", self.errors, self.requests);
        ensure!(peer != Name::Pontoon.text(), "{said}");
        eprintln!("{said}; the round does not count");
        Ok(false)
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
        assert_eq!(parse_schedstat("2328712 45 7\n"), Some(Duration::from_nanos(2_328_712)));
        assert_eq!(parse_schedstat(""), None);
    }
}
