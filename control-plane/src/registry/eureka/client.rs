//! A Eureka client for one instance: registers, renews, registers again when the server has forgotten it, and
//! says `DOWN` before it deregisters. No call is given up for good: a server that is away is asked again.
//! It fetches nothing; who wants the registry's content reads the model.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::{Method, StatusCode, Url};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// For one call. Longer than a server's garbage collection pause, shorter than a lease.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Between attempts to register.
const RETRY: Duration = Duration::from_secs(1);

/// What one instance says of itself.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The server, prefix included: `http://127.0.0.1:8761/eureka/`.
    pub base_url: String,
    /// The application's name; sent in upper case.
    pub app: String,
    /// Unique within the application; `ip:app:port` is usual.
    pub instance_id: String,
    /// Need not resolve.
    pub host: String,
    /// Where the instance listens.
    pub ip: IpAddr,
    /// The plain HTTP port.
    pub port: u16,
    /// The name that callers use; mostly the application's in lower case.
    pub vip: String,
    /// Free words for those who read the registry.
    pub metadata: BTreeMap<String, String>,
    /// Between renewals; 30 s is usual.
    pub renewal_interval: Duration,
    /// How long the server waits for a renewal before it takes the instance for dead; 90 s is usual.
    pub lease_duration: Duration,
}

/// A registration that is kept alive until [`Client::stop`]. Dropped without it, renewals end and the lease
/// runs out, as if the process had been killed.
#[derive(Debug)]
pub struct Client {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// The client cannot start at all.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No URL, or one that has no path.
    #[error("{base_url:?} is not the URL of a Eureka server; it looks like http://HOST:8761/eureka/")]
    BaseUrl {
        /// What was given.
        base_url: String,
    },
    /// The HTTP client could not be made.
    #[error("the HTTP client cannot be made: {0}")]
    Http(#[from] reqwest::Error),
}

impl Client {
    /// Registers in the background and renews from then on. Needs a tokio runtime.
    pub fn start(registration: Registration) -> Result<Client, ClientError> {
        let calls = Calls::new(registration)?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => (),
                () = keep(&calls) => (),
            }
            leave(&calls).await;
        });
        Ok(Client { stop, task: Some(task) })
    }

    /// Says `DOWN`, so that callers go elsewhere, then deregisters. Returns when both were answered or given up.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take()
            && let Err(error) = task.await
        {
            tracing::warn!(%error, "the Eureka client ended badly");
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Register until it is taken, renew until it is forgotten, from the beginning.
async fn keep(calls: &Calls) {
    loop {
        let dirty = now_ms();
        if let Err(error) = calls.register("UP", dirty).await {
            tracing::warn!(%error, instance = calls.registration.instance_id, "cannot register with Eureka");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        loop {
            tokio::time::sleep(calls.registration.renewal_interval).await;
            match calls.renew(dirty).await {
                Ok(StatusCode::NOT_FOUND) => break,
                Ok(_) => (),
                // As both Spring generations do: the next renewal comes at its time.
                Err(error) => tracing::warn!(%error, "cannot renew with Eureka"),
            }
        }
    }
}

async fn leave(calls: &Calls) {
    if let Err(error) = calls.register("DOWN", now_ms()).await {
        tracing::warn!(%error, "cannot say DOWN to Eureka");
    }
    if let Err(error) = calls.cancel().await {
        tracing::warn!(%error, "cannot deregister from Eureka");
    }
}

#[derive(Debug)]
struct Calls {
    http: reqwest::Client,
    app_url: Url,
    instance_url: Url,
    registration: Registration,
}

impl Calls {
    fn new(registration: Registration) -> Result<Calls, ClientError> {
        let app = registration.app.to_uppercase();
        let url = |segments: &[&str]| {
            let mut url = Url::parse(&registration.base_url).ok()?;
            // Colons stay as they are, as Spring's clients send them; what a path cannot hold is escaped.
            url.path_segments_mut().ok()?.pop_if_empty().extend(segments);
            Some(url)
        };
        let (Some(app_url), Some(instance_url)) =
            (url(&["apps", &app]), url(&["apps", &app, &registration.instance_id]))
        else {
            return Err(ClientError::BaseUrl { base_url: registration.base_url });
        };
        let http = reqwest::Client::builder().timeout(CALL_TIMEOUT).build()?;
        Ok(Calls { http, app_url, instance_url, registration })
    }

    async fn register(&self, status: &str, dirty: u64) -> Result<(), reqwest::Error> {
        let request = self.http.post(self.app_url.clone()).json(&self.body(status, dirty));
        request.send().await?.error_for_status().map(drop)
    }

    /// 404 is an answer here, not an error.
    async fn renew(&self, dirty: u64) -> Result<StatusCode, reqwest::Error> {
        let query = [("status", "UP".to_owned()), ("lastDirtyTimestamp", dirty.to_string())];
        let mut url = self.instance_url.clone();
        url.query_pairs_mut().extend_pairs(query);
        let response = self.http.request(Method::PUT, url).send().await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(StatusCode::NOT_FOUND),
            _ => Ok(response.error_for_status()?.status()),
        }
    }

    async fn cancel(&self) -> Result<(), reqwest::Error> {
        self.http.delete(self.instance_url.clone()).send().await?.error_for_status().map(drop)
    }

    fn body(&self, status: &str, dirty: u64) -> Value {
        let of = &self.registration;
        json!({"instance": {
            "instanceId": of.instance_id,
            "hostName": of.host,
            "app": of.app.to_uppercase(),
            "ipAddr": of.ip.to_string(),
            "status": status,
            "overriddenStatus": "UNKNOWN",
            "port": {"$": of.port, "@enabled": "true"},
            "securePort": {"$": 443, "@enabled": "false"},
            "countryId": 1,
            "dataCenterInfo": {
                "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
                "name": "MyOwn",
            },
            "leaseInfo": {
                "renewalIntervalInSecs": of.renewal_interval.as_secs().max(1),
                "durationInSecs": of.lease_duration.as_secs().max(1),
            },
            "metadata": of.metadata,
            "vipAddress": of.vip,
            "secureVipAddress": of.vip,
            "isCoordinatingDiscoveryServer": "false",
            "lastUpdatedTimestamp": dirty.to_string(),
            "lastDirtyTimestamp": dirty.to_string(),
        }})
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
