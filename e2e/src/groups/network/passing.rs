//! What an outbound sidecar passes on to where it was going: connection by connection, as servers may believe something
//! of a connection (NTLM and Negotiate do); and, byte by byte, what is not asked of a server but of a proxy.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context, ensure};

use super::Lab;
use super::hosts::{Host, Network};
use super::traffic::{Identity, connect, serve};

const PORT: u16 = 8081;
const GRANTED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

/// Keeps its connections, and answers each request with the port that the connection comes from, and the head as it was
/// received. After a CONNECT it gives back what it gets.
pub(super) async fn keeper(host: &Host) -> anyhow::Result<()> {
    serve(host, PORT, |mut stream, _, _| {
        let from = stream.peer_addr()?.port();
        loop {
            let head = head(&mut stream)?;
            if head.starts_with("CONNECT ") {
                stream.write_all(GRANTED.as_bytes())?;
                let mut word = [0; 4];
                while stream.read_exact(&mut word).is_ok() {
                    stream.write_all(&word)?;
                }
                return Ok(());
            }
            let body = format!("{from} {head}");
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        }
    })
    .await
}

fn head(stream: &mut TcpStream) -> anyhow::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("cut off")?;
        head.extend(byte);
    }
    Ok(String::from_utf8(head)?)
}

/// One client's connection.
struct Client(TcpStream);

impl Client {
    async fn open(from: &Host, to: std::net::SocketAddr) -> anyhow::Result<Self> {
        from.inside(move || Ok(Self(connect(to, Identity::default())?))).await
    }

    /// Sends a head, and gives the port that the server saw, and the head that it got.
    fn ask(&mut self, request: &str) -> anyhow::Result<(u16, String)> {
        self.0.write_all(request.as_bytes())?;
        let answer = head(&mut self.0)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        let length = answer.to_ascii_lowercase();
        let length = length.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next());
        let mut body = vec![0; length.context("no length")?.parse()?];
        self.0.read_exact(&mut body)?;
        let body = String::from_utf8(body)?;
        let (from, head) = body.split_once(' ').context("another body")?;
        Ok((from.parse()?, head.to_owned()))
    }
}

impl Lab {
    pub(super) async fn own_connections(&self) -> anyhow::Result<String> {
        let Network { a, c, .. } = &self.network;
        let _sidecar = self.outbound_sidecar().await?;
        self.intercept(a, "up --no-inbound")?;
        let request = "GET /x HTTP/1.1\r\nhost: example.net\r\n\r\n";
        for to in c.at(PORT) {
            let mut used = BTreeSet::new();
            for _ in 0..3 {
                let before = self.redirected(a)?;
                let (mut one, mut other) = (Client::open(a, to).await?, Client::open(a, to).await?);
                let answers = [one.ask(request)?, other.ask(request)?];
                ensure!(self.redirected(a)? == before + 2, "{to}: not intercepted");
                let added = |head: &str| head.to_ascii_lowercase().contains("\r\nx-");
                ensure!(answers.iter().all(|(_, head)| !added(head)), "{to}: told of us: {answers:?}");
                let [first, second] = answers.map(|(port, _)| port);
                ensure!(used.insert(first) && used.insert(second), "{to}: a connection served two clients");
                for _ in 0..5 {
                    ensure!(one.ask(request)?.0 == first, "{to}: a client's second connection");
                    ensure!(other.ask(request)?.0 == second, "{to}: a client's second connection");
                }
                // Gone, and nobody gets what was theirs.
            }
        }
        Ok(String::new())
    }

    pub(super) async fn asked_of_a_proxy(&self) -> anyhow::Result<String> {
        let Network { a, c, .. } = &self.network;
        let _sidecar = self.outbound_sidecar().await?;
        self.intercept(a, "up --no-inbound")?;
        for to in c.at(PORT) {
            let before = self.redirected(a)?;
            let absolute =
                "GET http://orders/x?y HTTP/1.1\r\nHost: orders\r\nProxy-Authorization: Basic eA==\r\n\r\n";
            let (_, got) = Client::open(a, to).await?.ask(absolute)?;
            ensure!(got == absolute, "{to}: an absolute form became {got:?}");

            let connect = "CONNECT orders:443 HTTP/1.1\r\nHost: orders:443\r\n\r\n";
            let mut client = Client::open(a, to).await?;
            client.0.write_all(connect.as_bytes())?;
            ensure!(head(&mut client.0)? == GRANTED, "{to}: another answer to CONNECT");
            let mut word = [0; 4];
            client.0.write_all(&[22, 3, 1, 0])?;
            client.0.read_exact(&mut word)?;
            ensure!(word == [22, 3, 1, 0], "{to}: {word:?} in the tunnel");
            ensure!(self.redirected(a)? == before + 2, "{to}: not intercepted");
        }
        Ok(String::new())
    }
}
