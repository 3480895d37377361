//! A gRPC service and one call of it, by hand: what the phase `grpc` has behind the proxies, and how it sees that a
//! call's message and its trailers pass.

use std::net::Ipv4Addr;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};

/// The first argument that makes this program the service.
pub(crate) const SERVICE: &str = "grpc-service";
/// Of requests and answers.
const MESSAGE: usize = 1_024;
const WINDOW: u32 = 1 << 20;
const STREAMS: u32 = 1_000;

/// A message as it is on the wire: not compressed, its length, its bytes.
pub(crate) fn message() -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend((MESSAGE as u32).to_be_bytes());
    bytes.resize(5 + MESSAGE, b'x');
    bytes
}

/// Answers every call until the process is ended.
pub(crate) async fn serve(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    let answer = Bytes::from(message());
    loop {
        let (socket, _) = listener.accept().await?;
        // Head, message and trailers are three writes, and none is to wait for the other side's acknowledgement.
        socket.set_nodelay(true)?;
        let answer = answer.clone();
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(STREAMS).initial_connection_window_size(WINDOW);
            let Ok(mut connection) = builder.handshake(socket).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(call(request, respond, answer.clone()));
            }
        });
    }
}

async fn call(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    answer: Bytes,
) -> Result<(), h2::Error> {
    let length = read(&mut request.into_body()).await?;
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(answer, false)?;
    // INVALID_ARGUMENT where the message is not the one that was sent.
    let status = if length == 5 + MESSAGE { "0" } else { "3" };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    stream.send_trailers(trailers)
}

/// The length of what comes.
async fn read(body: &mut h2::RecvStream) -> Result<usize, h2::Error> {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        length += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(length)
}

async fn connect(port: u16) -> anyhow::Result<SendRequest<Bytes>> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let (requests, connection) = h2::client::handshake(socket).await?;
    tokio::spawn(connection);
    Ok(requests)
}

/// One plain request over HTTP/2, with an answer of so many bytes.
pub(crate) async fn check_plain(port: u16, path: &str, answer: usize) -> anyhow::Result<()> {
    let request = Request::get(format!("http://127.0.0.1:{port}{path}")).body(())?;
    let (response, _) = connect(port).await?.ready().await?.send_request(request, true)?;
    let response = response.await?;
    ensure!(response.status() == 200, "answered {}", response.status());
    let length = read(&mut response.into_body()).await?;
    ensure!(length == answer, "the answer has {length} bytes instead of {answer}");
    Ok(())
}

/// One call through a proxy, whole.
pub(crate) async fn check(port: u16, path: &str) -> anyhow::Result<()> {
    let requests = connect(port).await?;
    let request = Request::post(format!("http://127.0.0.1:{port}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, mut stream) = requests.ready().await?.send_request(request, false)?;
    stream.send_data(Bytes::from(message()), true)?;
    let mut body = response.await?.into_body();
    let length = read(&mut body).await?;
    let trailers = body.trailers().await?.context("the answer has no trailers")?;
    ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "the call failed: {trailers:?}");
    ensure!(length == 5 + MESSAGE, "the answer has {length} bytes");
    Ok(())
}
