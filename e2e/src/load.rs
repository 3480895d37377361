//! A steady load of GET requests, each on behalf of a user. The loop is open: a slow answer does not slow the
//! next request. Every request is kept with its time, user and outcome, so a test can say afterwards who was
//! answered by whom, and a failure has its moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use twox_hash::XxHash64;

use crate::wait::until;

/// Requests under way at once. One more counts as failed.
const MAX_IN_FLIGHT: usize = 500;
/// Kept at most; a load ends there, so that a forgotten one does not grow.
const MAX_SAMPLES: usize = 1_000_000;

/// How the outcome begins of an answer that had a head and came to no end.
const CUT: &str = "an answer broke off";
/// What a Tomcat says that is being stopped to a request on a connection that it kept: it means 503, and reads no header of
/// it, so that it misses the `Host` (`Http11Processor.service`, 9.0.46).
const UNREAD: &str = "400 Bad Request: ";
/// In the moment of a kill, or of a stop.
const MOST_LOST: usize = 2;

/// What is sent.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The address.
    pub url: String,
    /// Requests a second.
    pub rate: u32,
    /// Users `user-0` to `user-N`, in turn.
    pub users: u32,
    /// The header that names the user.
    pub user_header: &'static str,
    /// An answer that takes longer has failed.
    pub timeout: Duration,
}

/// One request that has ended.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it was sent.
    pub sent: Instant,
    /// When its outcome was known.
    pub ended: Instant,
    /// The user.
    pub user: String,
    /// Who answered, or what went wrong.
    pub outcome: Result<Answer, String>,
}

/// A good answer of `inventory`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Answer {
    /// `legacy` or `modern`.
    pub side: String,
    /// The instance's port.
    pub port: String,
    /// Its host: of one in a pod, the pod's name.
    #[serde(default)]
    pub host: String,
}

/// A running load. Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    samples: Arc<Mutex<Vec<Sample>>>,
    in_flight: Arc<Semaphore>,
    stop: CancellationToken,
    sending: JoinHandle<Option<()>>,
}

impl Load {
    /// Starts sending.
    ///
    /// # Errors
    /// When no client can be made.
    pub fn start(plan: Plan) -> anyhow::Result<Load> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(plan.timeout)
            .pool_max_idle_per_host(MAX_IN_FLIGHT)
            .build()?;
        let samples: Arc<Mutex<Vec<Sample>>> = Arc::default();
        let (in_flight, stop) = (Arc::new(Semaphore::new(MAX_IN_FLIGHT)), CancellationToken::new());
        let sending = send_all(client, plan, samples.clone(), in_flight.clone());
        let sending = tokio::spawn(stop.clone().run_until_cancelled_owned(sending));
        Ok(Load { samples, in_flight, stop, sending })
    }

    /// All requests so far that were sent after a moment.
    pub fn since(&self, from: Instant) -> Vec<Sample> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().filter(|sample| sample.sent >= from).cloned().collect()
    }

    /// How many have ended.
    pub fn count(&self) -> usize {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Forgets answers that had begun and broke off since a moment, whenever they were sent for: of one whose sender is
    /// killed between its head and its end nobody can give the rest. Says how many.
    ///
    /// # Errors
    /// When there are more than [`MOST_LOST`].
    pub fn forget_cut(&self, from: Instant) -> anyhow::Result<usize> {
        self.forget(from, |error| error.starts_with(CUT)).context("answers that broke off")
    }

    /// Forgets what a Tomcat answered since a moment that was stopped then, without a look at the request: nobody can tell
    /// that from an answer of the application's. Says how many.
    ///
    /// # Errors
    /// When there are more than [`MOST_LOST`].
    pub fn forget_unread(&self, from: Instant) -> anyhow::Result<usize> {
        self.forget(from, |error| error == UNREAD).context("answers without a look at the request")
    }

    fn forget(&self, from: Instant, which: impl Fn(&str) -> bool) -> anyhow::Result<usize> {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.len();
        let is_lost = |sample: &Sample| sample.outcome.as_ref().is_err_and(|error| which(error));
        samples.retain(|sample| sample.ended < from || !is_lost(sample));
        let lost = before - samples.len();
        ensure!(lost <= MOST_LOST, "{lost}, and there may be {MOST_LOST}");
        Ok(lost)
    }

    /// Waits for so many more requests to end, and gives those that were sent meanwhile.
    ///
    /// # Errors
    /// When they do not come within a minute.
    pub async fn next(&self, requests: usize) -> anyhow::Result<Vec<Sample>> {
        self.next_since(Instant::now(), requests).await
    }

    /// Waits for so many requests that were sent after a moment, and gives them: for several loads at once.
    ///
    /// # Errors
    /// When they do not come within a minute.
    pub async fn next_since(&self, from: Instant, requests: usize) -> anyhow::Result<Vec<Sample>> {
        until("requests to end", Duration::from_secs(60), async || {
            let seen = self.since(from);
            ensure!(seen.len() >= requests, "{} of {requests} have", seen.len());
            Ok(seen)
        })
        .await
    }

    /// Stops sending, waits for what is under way, and gives everything.
    ///
    /// # Errors
    /// When something is under way for longer than a minute.
    pub async fn finish(mut self) -> anyhow::Result<Vec<Sample>> {
        self.stop.cancel();
        // A tick that was due is still served after that: it must not find its place taken by this wait.
        (&mut self.sending).await.context("the load broke off")?;
        let all = u32::try_from(MAX_IN_FLIGHT)?;
        let drained = tokio::time::timeout(Duration::from_secs(60), self.in_flight.acquire_many(all)).await;
        let _permits = drained.context("requests are still under way")??;
        Ok(std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn send_all(
    client: reqwest::Client,
    plan: Plan,
    samples: Arc<Mutex<Vec<Sample>>>,
    in_flight: Arc<Semaphore>,
) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / plan.rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for turn in 0..MAX_SAMPLES {
        ticks.tick().await;
        let user = format!("user-{}", u32::try_from(turn).unwrap_or_default() % plan.users.max(1));
        let (samples, sent) = (samples.clone(), Instant::now());
        let keep = move |user, outcome| {
            let sample = Sample { sent, ended: Instant::now(), user, outcome };
            samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        };
        let Ok(permit) = in_flight.clone().try_acquire_owned() else {
            keep(user, Err(format!("{MAX_IN_FLIGHT} requests are under way")));
            continue;
        };
        let request = client.get(&plan.url).header(plan.user_header, &user);
        tokio::spawn(async move {
            let outcome = answer(request).await.map_err(|error| format!("{error:#}"));
            keep(user, outcome);
            drop(permit);
        });
    }
}

async fn answer(request: reqwest::RequestBuilder) -> anyhow::Result<Answer> {
    let response = request.send().await?;
    let status = response.status();
    let body = match response.text().await {
        // One that only takes too long has not broken off.
        Err(error) if !error.is_timeout() => return Err(anyhow::Error::new(error).context(CUT)),
        body => body?,
    };
    ensure!(status == 200, "{status}: {}", body.chars().take(200).collect::<String>());
    serde_json::from_str(&body).with_context(|| format!("not inventory's answer: {body:?}"))
}

/// Fails with the first few failures and their count, if there are any.
///
/// # Errors
/// As said.
pub fn none_failed(samples: &[Sample]) -> anyhow::Result<()> {
    let Some(start) = samples.first().map(|sample| sample.sent) else { return Ok(()) };
    let failed: Vec<String> = samples
        .iter()
        .filter_map(|sample| {
            let error = sample.outcome.as_ref().err()?;
            let at = sample.sent.saturating_duration_since(start).as_millis();
            Some(format!("after {at} ms, {}: {error}", sample.user))
        })
        .collect();
    ensure!(
        failed.is_empty(),
        "{} of {} requests failed:\n  {}",
        failed.len(),
        samples.len(),
        failed[..failed.len().min(10)].join("\n  ")
    );
    Ok(())
}

/// Fails when somebody was answered by another side than that of their bucket, by the target's share in hundredths of
/// a percent.
///
/// # Errors
/// As said.
pub fn on_their_side(samples: &[Sample], share: u64) -> anyhow::Result<()> {
    for sample in samples {
        let bucket = XxHash64::oneshot(0, sample.user.as_bytes()) % 10_000;
        let side = if bucket < share { "modern" } else { "legacy" };
        if let Ok(answer) = &sample.outcome {
            ensure!(
                answer.side == side,
                "{} (bucket {bucket}, share {share}) was answered by {}",
                sample.user,
                answer.side
            );
        }
    }
    Ok(())
}

/// How many requests each side answered.
pub fn by_side(samples: &[Sample]) -> BTreeMap<&str, usize> {
    let mut sides = BTreeMap::new();
    for answer in samples.iter().filter_map(|sample| sample.outcome.as_ref().ok()) {
        *sides.entry(answer.side.as_str()).or_default() += 1;
    }
    sides
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_broke_off_after_the_kill_is_forgotten_though_it_was_asked_for_before() {
        let from = Instant::now();
        let (before, after) = (from - Duration::from_millis(9), from + Duration::from_millis(9));
        let cut = |sent, ended| Sample { sent, ended, user: String::new(), outcome: Err(CUT.to_owned()) };
        let load = Load {
            samples: Arc::new(Mutex::new(vec![cut(before, before), cut(before, after), cut(after, after)])),
            in_flight: Arc::new(Semaphore::new(1)),
            stop: CancellationToken::new(),
            sending: tokio::spawn(async { None }),
        };
        assert_eq!(load.forget_cut(from).expect("few"), 2);
        assert_eq!(load.count(), 1);
    }

    #[tokio::test]
    async fn the_end_of_a_load_fails_none_of_its_requests() {
        // Nobody answers there, which is another failure than a place that was not free.
        let plan = Plan {
            url: "http://127.0.0.1:1/".to_owned(),
            rate: 1000,
            users: 1,
            user_header: "x-user-id",
            timeout: Duration::from_secs(1),
        };
        for _ in 0..20 {
            let load = Load::start(plan.clone()).expect("a load");
            load.next(1).await.expect("a request");
            // Nothing else runs meanwhile, so the next tick is due when the load is told to end.
            let due = Instant::now() + Duration::from_millis(5);
            while Instant::now() < due {
                std::hint::spin_loop();
            }
            for sample in load.finish().await.expect("an end") {
                let error = sample.outcome.expect_err("nobody answers");
                assert!(!error.contains("are under way"), "{error}");
            }
        }
    }
}
