//! Instances of `inventory` inside this process, that register over HTTP as an application does: for groups that are
//! about proxies and not about Spring.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longer than any group: nobody renews.
const LEASE_SECONDS: u32 = 3600;

/// One instance. Dropping it ends it, without a word to the registry.
#[derive(Debug)]
pub struct Instance {
    /// `legacy` or `modern`.
    pub side: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    _stop: DropGuard,
}

impl Instance {
    /// Starts answering.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(side: &'static str) -> anyhow::Result<Instance> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let body = Bytes::from(json!({ "side": side, "port": address.port().to_string() }).to_string());
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve(listener, body)));
        Ok(Instance { side, address, _stop: stop.drop_guard() })
    }

    /// Registers it under `inventory`, UP, with its side in the metadata `lab`.
    ///
    /// # Errors
    /// When the registry answers anything but 204.
    pub async fn register(&self, eureka: SocketAddr) -> anyhow::Result<()> {
        register(eureka, "inventory", self.address, self.side).await
    }
}

/// Registers an instance of `app`, UP, with its side in the metadata `lab`.
///
/// # Errors
/// When the registry answers anything but 204.
pub async fn register(eureka: SocketAddr, app: &str, at: SocketAddr, side: &str) -> anyhow::Result<()> {
    let instance = json!({ "instance": {
        "instanceId": id(app, at), "hostName": "localhost", "app": app.to_uppercase(),
        "ipAddr": at.ip(), "vipAddress": app, "status": "UP",
        "port": { "$": at.port(), "@enabled": "true" },
        "securePort": { "$": 443, "@enabled": "false" },
        "dataCenterInfo": {
            "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn",
        },
        "leaseInfo": { "renewalIntervalInSecs": 30, "durationInSecs": LEASE_SECONDS },
        "metadata": { "lab": side },
    } });
    let url = format!("http://{eureka}/eureka/apps/{}", app.to_uppercase());
    answered(reqwest::Method::POST, &url, Some(instance), 204).await
}

/// Takes it out, as an application that stops does.
///
/// # Errors
/// When the registry answers anything but 200.
pub async fn cancel(eureka: SocketAddr, app: &str, at: SocketAddr) -> anyhow::Result<()> {
    let url = format!("http://{eureka}/eureka/apps/{}/{}", app.to_uppercase(), id(app, at));
    answered(reqwest::Method::DELETE, &url, None, 200).await
}

fn id(app: &str, at: SocketAddr) -> String {
    format!("localhost:{app}:{}", at.port())
}

async fn answered(
    method: reqwest::Method,
    url: &str,
    body: Option<serde_json::Value>,
    expected: u16,
) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let request = client.request(method, url);
    let request = match &body {
        Some(body) => request.json(body),
        None => request,
    };
    let answer = request.send().await.with_context(|| format!("{url} does not answer"))?;
    let status = answer.status();
    ensure!(status == expected, "{url} answered {status}: {}", answer.text().await.unwrap_or_default());
    Ok(())
}

async fn serve(listener: TcpListener, body: Bytes) {
    while let Ok((stream, _)) = listener.accept().await {
        let body = body.clone();
        let answer = hyper::service::service_fn(move |_: Request<Incoming>| {
            let body = body.clone();
            async move { Ok::<_, std::convert::Infallible>(Response::new(Full::new(body))) }
        });
        // How a connection ends is the client's matter.
        tokio::spawn(async move {
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await
                .ok()
        });
    }
}
