//! The raw ends of an exchange: a client that writes a request as it is told to, and an upstream that keeps what it
//! receives. Both are HTTP/1.1 byte by byte, so that no library smooths a difference over.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const LIMIT: Duration = Duration::from_secs(10);
/// Longer than any timeout of the table.
const SLOW: Duration = Duration::from_secs(2);
/// No message of the table is longer.
const LONGEST: usize = 64 * 1024;
/// Values that are another with every request, or name the proxy; of these only the presence counts.
const OWN_VALUES: [&str; 3] = ["date", "x-request-id", "x-envoy-upstream-service-time"];
/// What only one of the two adds. The page on differences says so.
const OWN_HEADERS: [&str; 3] = ["server", "x-forwarded-host", REASON];
/// What marks an answer of ours that says what went wrong.
const REASON: &str = "x-pontoon-reason";

/// What came back, and what the upstreams received.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exchange {
    pub(super) status: u16,
    headers: Vec<String>,
    body: String,
    pub(super) received: Vec<String>,
    is_error: bool,
}

impl Exchange {
    /// Whether our proxy answered by itself that something went wrong.
    pub(super) fn is_error(&self) -> bool {
        self.is_error
    }

    /// What only this has (`-`) and what only the other has (`+`), line by line; `> ` is what upstreams received.
    pub(super) fn differences(&self, other: &Exchange) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |ours: Vec<String>, theirs: Vec<String>| {
            let mut rest = theirs;
            for line in ours {
                match rest.iter().position(|other| *other == line) {
                    Some(position) => drop(rest.remove(position)),
                    None => found.push(format!("-{line}")),
                }
            }
            found.extend(rest.into_iter().map(|line| format!("+{line}")));
        };
        let answer = |exchange: &Exchange| {
            let mut lines = vec![exchange.status.to_string()];
            lines.extend(exchange.headers.iter().cloned());
            lines.push(format!("{:?}", exchange.body));
            lines
        };
        let received = |exchange: &Exchange| {
            let lines = exchange.received.iter().flat_map(|message| message.lines());
            lines.map(|line| format!("> {line}")).collect()
        };
        compare(answer(self), answer(other));
        compare(received(self), received(other));
        found
    }

    /// Without what each proxy says about an error in its own words.
    pub(super) fn without_words(mut self) -> Exchange {
        self.headers.retain(|line| !line.starts_with("content-") && !line.starts_with("connection"));
        self.body.clear();
        self.is_error = false;
        self
    }
}

/// An upstream that keeps what it receives.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    received: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    pub(super) async fn start(name: &'static str) -> anyhow::Result<Upstream> {
        Upstream::behind(name, None).await
    }

    /// With TLS, if there is an acceptor.
    pub(super) async fn behind(name: &'static str, tls: Option<TlsAcceptor>) -> anyhow::Result<Upstream> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let upstream = Upstream { address: listener.local_addr()?, received: Arc::default() };
        let received = upstream.received.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, received) = (tls.clone(), received.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(name, stream, received).await,
                        Some(tls) => serve(name, tls.accept(stream).await?, received).await,
                    }
                });
            }
        });
        Ok(upstream)
    }

    /// What came since the last time.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.received.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Answers one request after the other. An error is the proxy's leaving.
async fn serve(
    name: &str,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    received: Arc<Mutex<Vec<String>>>,
) -> anyhow::Result<()> {
    loop {
        let (start, mut headers, body) = message(&mut stream, false).await?;
        headers.retain(|line| !OWN_HEADERS.iter().any(|own| line.split(':').next() == Some(own)));
        let asked =
            headers.iter().find_map(|line| line.strip_prefix("x-do: ")).unwrap_or_default().to_owned();
        let text = format!("{name}: {start}\n{}\n\n{body}", headers.join("\n"));
        received.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        let more = "x-upstream: yes\r\nx-twice: 1\r\nx-twice: 2\r\nx-drop: 1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n";
        let head = start.starts_with("HEAD ");
        let answer = match asked.as_str() {
            "close" => return Ok(()),
            "slow" => {
                tokio::time::sleep(SLOW).await;
                continue;
            }
            // What must not be (RFC 9110, 8.6): the connection is lost with it.
            "204-with-a-body" => format!("HTTP/1.1 204 X\r\n{more}content-length: 5\r\n\r\nhello"),
            "204-of-nothing" => format!("HTTP/1.1 204 X\r\n{more}content-length: 0\r\n\r\n"),
            "204" | "304" => format!("HTTP/1.1 {asked} X\r\n{more}\r\n"),
            "chunked" => {
                format!("HTTP/1.1 200 OK\r\n{more}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            }
            _ => {
                let status = if asked.is_empty() { "200" } else { asked.as_str() };
                let body = if head { String::new() } else { format!("from {name}") };
                format!("HTTP/1.1 {status} X\r\n{more}content-length: {}\r\n\r\n{body}", 5 + name.len())
            }
        };
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// Sends `METHOD TARGET | HEADER: VALUE | = BODY` on a connection of its own, over HTTP/1.1 unless the target is
/// followed by ` HTTP/1.0`. `host` counts where no header says it.
pub(super) async fn exchange(proxy: SocketAddr, host: &str, request: &str) -> anyhow::Result<Exchange> {
    exchange_on(TcpStream::connect(proxy).await?, host, request, false).await
}

/// The same on a connection that is there. `ends`: the client says that it sends no more.
pub(super) async fn exchange_on(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    request: &str,
    ends: bool,
) -> anyhow::Result<Exchange> {
    let mut parts = request.split(" | ");
    let start = parts.next().unwrap_or_default();
    let (mut lines, mut body) = (Vec::new(), None);
    for part in parts {
        match part.strip_prefix("= ") {
            Some(text) => body = Some(text),
            None => lines.push(part.to_owned()),
        }
    }
    if !lines.iter().any(|line| line.to_ascii_lowercase().starts_with("host:")) {
        lines.insert(0, format!("Host: {host}"));
    }
    if let Some(body) = body {
        lines.push(format!("Content-Length: {}", body.len()));
    }
    let version = if start.ends_with(" HTTP/1.0") { "" } else { " HTTP/1.1" };
    let text = format!("{start}{version}\r\n{}\r\n\r\n{}", lines.join("\r\n"), body.unwrap_or_default());
    let send = async {
        stream.write_all(text.as_bytes()).await?;
        if ends {
            stream.shutdown().await?;
        }
        message(&mut stream, start.starts_with("HEAD ")).await
    };
    let (start, mut headers, body) = tokio::time::timeout(LIMIT, send).await.context("no answer")??;
    let status = start.split(' ').nth(1).context("no status")?.parse()?;
    let is_error = headers.iter().any(|line| line.starts_with(REASON));
    headers.retain(|line| !OWN_HEADERS.iter().any(|own| line.split(':').next() == Some(own)));
    Ok(Exchange { status, headers, body, received: Vec::new(), is_error })
}

/// A message: its first line, its headers in order of their names, and its body without framing.
async fn message(
    stream: &mut (impl AsyncRead + Unpin),
    is_head: bool,
) -> anyhow::Result<(String, Vec<String>, String)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        more(stream, &mut bytes).await?;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut body = bytes.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let start = lines.next().unwrap_or_default().to_owned();
    let mut headers: Vec<String> = lines.filter_map(header).collect();
    // Values of one name stay in their order.
    headers.sort_by(|a, b| a.split(':').next().cmp(&b.split(':').next()));
    let value = |name: &str| headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let bodiless = is_head || ["204", "304"].iter().any(|status| start.split(' ').nth(1) == Some(status));
    if bodiless {
        return Ok((start, headers, String::new()));
    }
    if value("transfer-encoding") == Some("chunked") {
        while !body.ends_with(b"0\r\n\r\n") {
            more(stream, &mut body).await?;
        }
        return Ok((start, headers, unchunked(&String::from_utf8_lossy(&body))));
    }
    let length: usize = value("content-length").map_or(Ok(0), str::parse)?;
    while body.len() < length {
        more(stream, &mut body).await?;
    }
    Ok((start, headers, String::from_utf8_lossy(&body).into_owned()))
}

async fn more(stream: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut buffer = [0; 4096];
    let read = stream.read(&mut buffer).await?;
    ensure!(read > 0, "closed after {:?}", String::from_utf8_lossy(bytes));
    bytes.extend_from_slice(&buffer[..read]);
    ensure!(bytes.len() <= LONGEST, "a message that is longer than any of the table");
    Ok(())
}

fn header(line: &str) -> Option<String> {
    let (name, value) = line.split_once(':')?;
    let name = name.to_ascii_lowercase();
    let value = if OWN_VALUES.contains(&name.as_str()) { "..." } else { value.trim() };
    Some(format!("{name}: {value}"))
}

/// How it is cut into chunks is each proxy's own.
fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        match after.get(..size) {
            Some(chunk) if size > 0 => {
                body.push_str(chunk);
                rest = after.get(size + 2..).unwrap_or_default();
            }
            _ => break,
        }
    }
    body
}
