use super::*;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

async fn start(
    router: Router,
    limits: Limits,
) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(listener, router, limits, stop.clone()));
    (address, stop, task)
}

async fn exchange(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_stop_answers_what_is_under_way_and_closes_what_idles() {
    let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (asked_in, go_in) = (asked.clone(), go.clone());
    let router = Router::new().route(
        "/slow",
        get(move || async move {
            asked_in.notify_one();
            go_in.notified().await;
            "done"
        }),
    );
    let (address, stop, task) = start(router, Limits::API).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    let slow = tokio::spawn(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        exchange(&mut stream, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await
    });
    asked.notified().await;
    stop.cancel();
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
    go.notify_one();
    assert!(slow.await.unwrap().ends_with("done"));
    task.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_head_too_large_is_refused_and_a_silent_connection_closed() {
    let limits = Limits { head_timeout: Duration::from_millis(50), head_bytes: 8192, ..Limits::API };
    let (address, _stop, _task) = start(Router::new(), limits).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(9000));
    assert!(exchange(&mut stream, &head).await.starts_with("HTTP/1.1 431"));
    let mut silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
}
