//! A proxy on Pingora as its documentation shows it, with the routes and headers that all peers have:
//! `pontoon-pingora-peer http|h2c|tls|tcp ROUTES PORT UPSTREAM [CERTIFICATE KEY]`.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::connectors::TransportConnector;
use pingora::prelude::*;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use pingora::upstreams::peer::BasicPeer;

struct Http {
    upstream: String,
    routes: Vec<String>,
    http2: bool,
    requests: std::sync::atomic::AtomicU64,
}

#[async_trait]
impl ProxyHttp for Http {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, session: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        let path = session.req_header().uri.path();
        if !self.routes.iter().any(|route| path.starts_with(route)) {
            return Err(Error::explain(ErrorType::HTTPStatus(404), "no route"));
        }
        let mut peer = HttpPeer::new(self.upstream.as_str(), false, String::new());
        if self.http2 {
            peer.options.set_http_version(2, 2);
            // One by default: a connection for each stream.
            peer.options.max_h2_streams = 100;
        }
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        _: &mut (),
    ) -> Result<()> {
        let client = session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip());
        if let Some(client) = client {
            request.insert_header("X-Forwarded-For", client.to_string())?;
        }
        let number = self.requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        request.insert_header("X-Request-Id", format!("{number:032x}"))?;
        Ok(())
    }
}

struct Tcp {
    upstream: BasicPeer,
    connector: TransportConnector,
}

#[async_trait]
impl ServerApp for Tcp {
    async fn process_new(self: &Arc<Self>, mut near: Stream, _: &ShutdownWatch) -> Option<Stream> {
        let mut far = self.connector.new_stream(&self.upstream).await.ok()?;
        // How it ends is the ends' own affair.
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        None
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, routes, port, upstream, pair @ ..] = arguments.as_slice() else {
        bail!("expected http|h2c|tls|tcp ROUTES PORT UPSTREAM [CERTIFICATE KEY]");
    };
    let (listen, upstream) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{upstream}"));
    let routes: usize = routes.parse().context("ROUTES must be a number")?;
    let configuration = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: 2_048,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, configuration);
    server.bootstrap();
    if mode == "tcp" {
        let app = Tcp { upstream: BasicPeer::new(&upstream), connector: TransportConnector::new(None) };
        let mut service = Service::new(String::from("tcp"), app);
        service.add_tcp(&listen);
        server.add_service(service);
        server.run_forever();
    }
    let proxy = Http {
        upstream,
        routes: (0..routes).map(|i| format!("/route-{i}/")).collect(),
        http2: mode == "h2c",
        requests: Default::default(),
    };
    let mut service = http_proxy_service(&server.configuration, proxy);
    if mode == "h2c" {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        service.app_logic_mut().context("the service is new")?.server_options = Some(options);
    }
    match (mode.as_str(), pair) {
        ("tls", [certificate, key]) => service.add_tls(&listen, certificate, key)?,
        ("tls", _) => bail!("tls wants a certificate and a key"),
        _ => service.add_tcp(&listen),
    }
    server.add_service(service);
    server.run_forever()
}
