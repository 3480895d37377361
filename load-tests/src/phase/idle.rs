//! Resident memory: at start, and with idle keep-alive connections, plain or under TLS, that have each had one request.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::client;
use crate::configuration::{Front, Pair, Scenario};
use crate::measure::resident;
use crate::peer::{Bench, Name, pause};
use crate::report::{Row, Table};

pub(super) const TITLE: &str = "Resident memory (one worker, 100 routes)";
pub(super) const TITLE_TLS: &str = "Resident memory with connections under TLS 1.3 (one worker, 100 routes)";

/// The client's end of each is in this process, and twice as many is the most that one may have open.
const STEPS: [(usize, &str); 2] = [(1_000, "MiB with 1,000 idle"), (10_000, "MiB with 10,000 idle")];
const PER_CONNECTION: &str = "KiB per idle connection, of 10,000";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// For what a proxy does with a connection that has fallen idle; Pontoon's takes half a second.
const SETTLE: Duration = Duration::from_secs(3);

pub(super) fn run(bench: &Bench, peers: &[Name], front: Front) -> anyhow::Result<Table> {
    let (phase, title, pair) = match front {
        Front::Tls => ("idle-tls", TITLE_TLS, Some(Pair::generate(&bench.folder)?)),
        _ => ("idle", TITLE, None),
    };
    let scenario = Scenario { pair, ..Scenario::of(front) };
    let tls = client::config(false)?;
    let upstream = bench.upstream(front)?;
    let mut rows = Vec::new();
    for peer in peers {
        let proxy = bench.proxy(*peer, &scenario, upstream.port)?;
        let mut row = Row::new(peer.text());
        pause(SETTLE);
        let at_start = resident(proxy.pid())?;
        row.push("MiB at start", at_start as f64 / 1_048_576.0);
        let mut held = Vec::new();
        let mut with = at_start;
        for (count, figure) in STEPS {
            while held.len() < count {
                let number = held.len();
                let tls = (front == Front::Tls).then_some(&tls);
                let connection = connect(proxy.port, &scenario.path(), tls);
                held.push(connection.with_context(|| format!("{}: connection {number}", peer.text()))?);
            }
            pause(SETTLE);
            with = resident(proxy.pid())?;
            row.push(figure, with as f64 / 1_048_576.0);
        }
        let each = with.saturating_sub(at_start) as f64 / 1024.0 / held.len().max(1) as f64;
        row.push(PER_CONNECTION, each);
        rows.push(row);
    }
    Ok(Table { phase: phase.to_owned(), title: title.to_owned(), ratio_of: PER_CONNECTION.to_owned(), rows })
}

/// One request over a connection, of which then only the socket is kept.
fn connect(port: u16, path: &str, tls: Option<&Arc<ClientConfig>>) -> anyhow::Result<TcpStream> {
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let Some(config) = tls else {
        ask(&mut socket, path)?;
        return Ok(socket);
    };
    let name = ServerName::try_from("localhost")?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, socket);
    ask(&mut stream, path)?;
    Ok(stream.sock)
}

fn ask(connection: &mut (impl Read + Write), path: &str) -> anyhow::Result<()> {
    connection.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let length = connection.read(&mut part)?;
        if length == 0 {
            bail!("closed after {} bytes", answer.len());
        }
        answer.extend_from_slice(&part[..length]);
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n");
        if head.is_some_and(|head| answer.len() >= head + 4 + 1024) {
            return Ok(());
        }
    }
}
