//! A steady load with user ids: an open loop, so that a slow answer does not slow the next request, and a
//! tally of who answered whom. Latency counts from the moment at which the request was due.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::sample::{SIDE_HEADER, Side};

/// Requests under way at once; more than that and a request counts as failed rather than waits.
const MAX_IN_FLIGHT: usize = 256;
/// A request without an answer for so long has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Samples kept for the table and for one stage; older ones are only counted.
const KEPT_SAMPLES: usize = 100_000;

/// What is sent.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// The gateway, without a trailing slash.
    pub(super) base: String,
    /// Requests a second.
    pub(super) rate: u32,
    /// Users `user-0` to `user-N`, in turn.
    pub(super) users: u32,
    /// The first so many users belong to the canary group and send its header.
    pub(super) canary_users: u32,
    /// The header that carries the user's id.
    pub(super) user_header: &'static str,
    /// The header and value that mark the canary group.
    pub(super) canary_header: (&'static str, &'static str),
}

/// One answered or failed request.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// When it was due.
    pub(super) due: Instant,
    /// The user's number.
    pub(super) user: u32,
    /// From due to the last byte of the answer.
    pub(super) latency: Duration,
    /// Who answered, or what went wrong.
    pub(super) outcome: Result<Side, String>,
}

/// The running load. Dropping it stops it.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    failed: AtomicU64,
    samples: Mutex<VecDeque<Sample>>,
}

impl Load {
    /// Starts sending.
    pub(super) fn start(plan: Plan) -> anyhow::Result<Load> {
        let client = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .pool_max_idle_per_host(MAX_IN_FLIGHT)
            .no_proxy()
            .build()?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            samples: Mutex::new(VecDeque::new()),
        });
        let task = tokio::spawn(send_all(client, plan, shared.clone()));
        Ok(Load { shared, task })
    }

    /// Requests sent, and how many of them failed, since the start.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.shared.sent.load(Ordering::Relaxed), self.shared.failed.load(Ordering::Relaxed))
    }

    /// The finished requests that were due at or after `since`.
    pub(super) fn samples_since(&self, since: Instant) -> Vec<Sample> {
        let samples = self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|s| s.due >= since).cloned().collect()
    }

    /// Stops sending, waits for what is under way, and gives the totals.
    pub(super) async fn finish(mut self) -> (u64, u64) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the load generator ended early");
        }
        self.totals()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn send_all(client: reqwest::Client, plan: Plan, shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / plan.rate.max(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut number = 0_u32;
    while !shared.stop.load(Ordering::Relaxed) {
        let due = ticks.tick().await;
        let user = number % plan.users.max(1);
        number = number.wrapping_add(1);
        shared.sent.fetch_add(1, Ordering::Relaxed);
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            let outcome = Err(format!("{MAX_IN_FLIGHT} requests already wait for an answer"));
            shared.record(Sample { due, user, latency: Duration::ZERO, outcome });
            continue;
        };
        let request = request(&client, &plan, user);
        let shared = shared.clone();
        tokio::spawn(async move {
            let outcome = answer(request).await;
            shared.record(Sample { due, user, latency: due.elapsed(), outcome });
            drop(permit);
        });
    }
    // All permits back: nothing is under way any more.
    let _all = permits.acquire_many(MAX_IN_FLIGHT as u32).await;
}

fn request(client: &reqwest::Client, plan: &Plan, user: u32) -> reqwest::RequestBuilder {
    let request = client.get(format!("{}/stock/{user}", plan.base)).header(plan.user_header, user_id(user));
    if user < plan.canary_users {
        request.header(plan.canary_header.0, plan.canary_header.1)
    } else {
        request
    }
}

/// The id that user `number` sends.
pub(super) fn user_id(number: u32) -> String {
    format!("user-{number}")
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Side, String> {
    let response = request.send().await.map_err(|e| format!("no answer: {}", root_cause(&e)))?;
    let status = response.status();
    let side = match response.headers().get(SIDE_HEADER).map(|v| v.as_bytes()) {
        Some(b"legacy") => Some(Side::Legacy),
        Some(b"target") => Some(Side::Target),
        _ => None,
    };
    let body = response.text().await.map_err(|e| format!("broken answer: {}", root_cause(&e)))?;
    match (status.is_success(), side) {
        (true, Some(side)) => Ok(side),
        _ => Err(format!("status {status}: {}", body.chars().take(120).collect::<String>())),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl Shared {
    fn record(&self, sample: Sample) {
        if let Err(reason) = &sample.outcome {
            self.failed.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(user = sample.user, %reason, "a request failed");
        }
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() == KEPT_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }
}
