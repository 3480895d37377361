//! The port that a kubelet asks from outside of the pod. Unlike the admin port it shows no configuration and ends nothing:
//! metrics, whether the proxy has started, is ready and lives, whether something listens on a port of the application's
//! (which a kubelet cannot see where interception accepts for it), and the beginning of the end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::{Admin, Answer, Phase, accept, http1, text};

/// How long an application waits for the first configuration. A control plane that is away keeps none down for
/// longer: where its connections are intercepted they pass to where they were going.
const START: Duration = Duration::from_secs(10);
/// For the application to accept. A kubelet waits for a second by default.
const CONNECT: Duration = Duration::from_millis(900);
/// What it takes at least until everybody knows that a pod is going: its address leaves the EndpointSlices at
/// the same moment at which we are told.
const LINGER: Duration = Duration::from_secs(2);

/// After the hook: a pod that ends has ended by then, mostly. Until then callers are asked to close, no more.
const STAY: Duration = Duration::from_secs(60);

/// Serves until the process ends.
pub(crate) async fn serve(admin: Arc<Admin>, socket: TcpListener) {
    accept(socket, "health", move |connection| {
        let admin = Arc::clone(&admin);
        // Who asked may have gone; it asks again.
        async move { drop(connected(&admin, connection).await) }
    })
    .await;
}

async fn connected(admin: &Arc<Admin>, connection: TcpStream) -> Result<(), hyper::Error> {
    let local = connection.local_addr().ok().map(|local| local.ip());
    http1()
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(connection),
            service_fn(|request: Request<Incoming>| async move {
                Ok::<_, std::convert::Infallible>(answer(admin, &request, local).await)
            }),
        )
        .await
}

async fn answer(admin: &Arc<Admin>, request: &Request<Incoming>, local: Option<IpAddr>) -> Answer {
    match (request.method(), request.uri().path()) {
        // Accepted before another process took over, which is ready.
        (&Method::GET, "/ready") if *admin.phase.borrow() == Phase::Replaced => {
            text(StatusCode::OK, "READY\n")
        }
        (&Method::GET, "/ready") => admin.ready(false),
        (&Method::GET, "/live") => admin.live(),
        (&Method::GET, "/metrics") => admin.metrics(),
        (&Method::GET, "/started") => started(admin),
        (&Method::GET, "/end") => {
            let limit = admin.bootstrap.drain;
            let ended = tokio::time::timeout(limit, admin.workers.end_inbound(LINGER.min(limit))).await;
            tokio::spawn(stay(Arc::clone(admin)));
            match ended {
                Ok(()) => text(StatusCode::OK, "ended\n"),
                Err(_) => text(StatusCode::OK, format!("callers are left after {limit:?}\n")),
            }
        }
        (&Method::GET, path) => match path.strip_prefix("/tcp/").and_then(|port| port.parse().ok()) {
            Some(port) => listens(local, port).await,
            None => text(StatusCode::NOT_FOUND, format!("no {path} here\n")),
        },
        (method, _) => text(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not for this port\n")),
    }
}

/// The hook is called for a container that its probe has ended, too: then another takes its place in the same pod, and
/// this process goes on.
async fn stay(admin: Arc<Admin>) {
    tokio::time::sleep(STAY).await;
    if *admin.phase.borrow() == Phase::Serving {
        admin.workers.stay_inbound().await;
    }
}

fn started(admin: &Admin) -> Answer {
    if admin.is_ready() {
        return text(StatusCode::OK, "STARTED\n");
    }
    match admin.started.elapsed().unwrap_or_default() > START {
        true => text(StatusCode::OK, "STARTED without a configuration\n"),
        false => {
            text(StatusCode::SERVICE_UNAVAILABLE, format!("NOT STARTED\n{}\n", admin.waiting().join("\n")))
        }
    }
}

/// Whether the application accepts at the address at which we were asked, as a kubelet would have found out.
async fn listens(local: Option<IpAddr>, port: u16) -> Answer {
    let Some(local) = local else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the connection has gone\n");
    };
    match tokio::time::timeout(CONNECT, TcpStream::connect(SocketAddr::new(local, port))).await {
        Ok(Ok(_)) => text(StatusCode::OK, "ACCEPTS\n"),
        Ok(Err(error)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("port {port}: {error}\n")),
        Err(_) => {
            text(StatusCode::SERVICE_UNAVAILABLE, format!("port {port} does not accept in {CONNECT:?}\n"))
        }
    }
}
