//! Requests to the gateway: one by one, or as a steady load of which every answer counts.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HOST, HeaderMap};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// An answer that takes longer is none.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between requests of one connection.
const PAUSE: Duration = Duration::from_millis(2);
/// Failures that are shown; the others are counted.
const SHOWN: usize = 5;

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    client: reqwest::Client,
    gateway: SocketAddr,
}

/// An answer, as far as it is looked at.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    headers: HeaderMap,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Caller {
    pub(super) fn new(port: u16) -> anyhow::Result<Caller> {
        let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        Ok(Caller { client, gateway: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) })
    }

    /// One request.
    pub(super) async fn get(&self, host: &str, path: &str) -> reqwest::Result<Answer> {
        let url = format!("http://{}{path}", self.gateway);
        let response = self.client.get(url).header(HOST, host).send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        response.bytes().await?;
        Ok(Answer { status, headers })
    }

    /// What is wrong with the answer to one; `None`: it is 200.
    pub(super) async fn fault(&self, host: &str, path: &str) -> Option<String> {
        match self.get(host, path).await {
            Ok(answer) if answer.status == StatusCode::OK => None,
            Ok(answer) => Some(format!("{host}{path}: {}", answer.status)),
            Err(error) => Some(format!("{host}{path}: {error:?}")),
        }
    }
}

/// Requests over several connections, until it is finished.
#[derive(Debug)]
pub(super) struct Load {
    tasks: JoinSet<()>,
    tally: Arc<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    requests: AtomicUsize,
    failed: AtomicUsize,
    faults: Mutex<Vec<String>>,
}

/// What a load came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) requests: usize,
    pub(super) failed: usize,
}

impl Load {
    /// Each connection takes the targets (host and path) in turn.
    pub(super) fn start(
        caller: &Caller,
        targets: Vec<(String, String)>,
        connections: usize,
    ) -> anyhow::Result<Load> {
        let (tally, targets) = (Arc::<Tally>::default(), Arc::new(targets));
        let mut tasks = JoinSet::new();
        for first in 0..connections {
            // A pool of its own is a connection of its own.
            let caller = Caller::new(caller.gateway.port())?;
            tasks.spawn(send(caller, targets.clone(), first, tally.clone()));
        }
        Ok(Load { tasks, tally })
    }

    /// So far.
    pub(super) fn outcome(&self) -> Outcome {
        Outcome {
            requests: self.tally.requests.load(Ordering::Relaxed),
            failed: self.tally.failed.load(Ordering::Relaxed),
        }
    }

    /// Ends it; failures are shown.
    pub(super) async fn finish(mut self) -> Outcome {
        self.tasks.shutdown().await;
        let faults = self.tally.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.iter().for_each(|fault| eprintln!("failed: {fault}"));
        drop(faults);
        self.outcome()
    }
}

async fn send(caller: Caller, targets: Arc<Vec<(String, String)>>, first: usize, tally: Arc<Tally>) {
    let began = Instant::now();
    for (host, path) in targets.iter().cycle().skip(first) {
        let fault = caller.fault(host, path).await;
        tally.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(fault) = fault {
            tally.failed.fetch_add(1, Ordering::Relaxed);
            let mut faults = tally.faults.lock().unwrap_or_else(PoisonError::into_inner);
            if faults.len() < SHOWN {
                faults.push(format!("after {:.3} s: {fault}", began.elapsed().as_secs_f64()));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
