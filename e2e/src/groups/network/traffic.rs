//! What is sent between hosts: servers that say whom they see, and clients that may be of another user, group or
//! mark. Plain sockets and threads, as each has to be on its host.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use socket2::{Domain, Socket, Type};

use super::hosts::Host;

/// For one answer. Longer than a sidecar waits for a name.
const ANSWER: Duration = Duration::from_secs(15);
/// A server's first words.
const GREETING: &str = "220 at your service, ";

/// To whoever asks for the protocol foo.
const FOO_GRANTED: &[u8] = b"HTTP/1.1 101 Foo\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n";

/// Whose a client is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Identity {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mark: Option<u32>,
}

/// What a client got.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Whom the server saw.
    pub(super) peer: String,
    /// As whom the server was asked.
    pub(super) local: String,
    /// The request came through a proxy: what belongs to its connection has gone.
    pub(super) proxied: bool,
    /// The server was told more than the client said.
    pub(super) told: bool,
    pub(super) body: String,
}

/// Serves HTTP on a port of a host until the process ends.
pub(super) async fn http(host: &Host, port: u16) -> anyhow::Result<()> {
    serve(host, port, |mut stream, peer, local| {
        let mut head = Vec::new();
        let mut chunk = [0; 1024];
        while !head.windows(4).any(|four| four == b"\r\n\r\n") {
            let length = stream.read(&mut chunk)?;
            ensure!(length > 0, "cut off");
            head.extend(&chunk[..length]);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        if head.contains("upgrade: foo\r\n") {
            stream.write_all(FOO_GRANTED)?;
            let mut word = [0; 4];
            stream.read_exact(&mut word)?;
            return Ok(stream.write_all(&word)?);
        }
        let proxied = !head.contains("connection: close");
        let told = ["x-request-id:", "x-forwarded-", "x-envoy-"].iter().any(|name| head.contains(name));
        let target = head.split(' ').nth(1).unwrap_or_default();
        let body = format!("{peer} {local} {proxied} {told} {target}");
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )?;
        Ok(())
    })
    .await
}

/// Serves a protocol in which the server speaks first.
pub(super) async fn greeter(host: &Host, port: u16) -> anyhow::Result<()> {
    serve(host, port, |mut stream, peer, _| {
        writeln!(stream, "{GREETING}{peer}")?;
        let mut word = [0; 4];
        while stream.read_exact(&mut word).is_ok() {
            stream.write_all(&word)?;
        }
        Ok(())
    })
    .await
}

pub(super) async fn serve(
    host: &Host,
    port: u16,
    answer: fn(TcpStream, String, String) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let listener = host.inside(move || Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?)).await?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let canonical = |address: SocketAddr| address.ip().to_canonical().to_string();
                if let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) {
                    // A client that goes is no matter of the server's.
                    let _ = answer(stream, canonical(peer), canonical(local));
                }
            });
        }
    });
    Ok(())
}

/// What a DNS server says of every name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// It is there, in IPv4.
    Address(Ipv4Addr),
    /// There is no such name (NXDOMAIN).
    NoName,
    /// It cannot say (SERVFAIL).
    Failure,
    /// Nothing.
    Nothing,
}

/// Answers each DNS query, over UDP.
pub(super) async fn dns_server(
    host: &Host,
    says: impl Fn() -> Says + Clone + Send + 'static,
) -> anyhow::Result<()> {
    // One socket each: an answer must come from the address that was asked.
    let addresses = host.at(53);
    for socket in host.inside(move || Ok(addresses.map(UdpSocket::bind))).await? {
        let (socket, says) = (socket?, says.clone());
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                let mut answer = query[..length].to_vec();
                let Some(end) = question_end(&answer) else { continue };
                answer.truncate(end);
                let (code, address) = match says() {
                    Says::Address(address) => (0, Some(address)),
                    Says::NoName => (3, None),
                    Says::Failure => (2, None),
                    Says::Nothing => continue,
                };
                // There is nothing but A.
                let address = address.filter(|_| answer.ends_with(&[0, 1, 0, 1]));
                // A response with recursion, of one question and at most one answer.
                let answers = u8::from(address.is_some());
                answer[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
                if let Some(address) = address {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                    answer.extend(address.octets());
                }
                let _ = socket.send_to(&answer, from);
            }
        });
    }
    Ok(())
}

/// The first address of a name, as a server says it over UDP.
pub(super) async fn resolve(from: &Host, server: SocketAddr, name: &str) -> anyhow::Result<Ipv4Addr> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    from.inside(move || {
        let any: SocketAddr = if server.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        // Takes answers from the server alone.
        socket.connect(server)?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.send(&query)?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).context("no answer")?;
        let answer = &answer[..length];
        ensure!(answer.get(7).is_some_and(|answers| *answers > 0), "no address: {answer:?}");
        // Behind the question: a pointer to its name, type, class, lifetime and length.
        let at = question_end(answer).context("no question")? + 12;
        let address: [u8; 4] = answer.get(at..at + 4).context("no address")?.try_into()?;
        Ok(address.into())
    })
    .await
}

/// Behind the name, the type and the class of a message's one question.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match *message.get(at)? {
            0 => return (at + 5 <= message.len()).then_some(at + 5),
            length => at += usize::from(length) + 1,
        }
    }
}

/// GET / with this `Host`.
pub(super) async fn get(from: &Host, to: SocketAddr, host: &str, who: Identity) -> anyhow::Result<Answer> {
    ask(from, to, "GET /", host, who).await
}

/// Changes to a protocol that no proxy knows, and has a word of it come back.
pub(super) async fn foo(from: &Host, to: SocketAddr, host: &str) -> anyhow::Result<()> {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n");
    from.inside(move || {
        let mut stream = connect(to, Identity::default())?;
        stream.write_all(request.as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).context("no answer")?;
            head.extend(byte);
        }
        ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        stream.write_all(b"foo?")?;
        let mut word = [0; 4];
        stream.read_exact(&mut word)?;
        ensure!(&word == b"foo?", "another word");
        Ok(())
    })
    .await
}

/// A request without a body: this method and target.
pub(super) async fn ask(
    from: &Host,
    to: SocketAddr,
    what: &str,
    host: &str,
    who: Identity,
) -> anyhow::Result<Answer> {
    let request = format!("{what} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    from.inside(move || {
        let mut stream = connect(to, who)?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("no answer")?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        let mut words = body.split(' ').map(str::to_owned);
        Ok(Answer {
            status: status.with_context(|| format!("no HTTP: {answer:?}"))?,
            peer: words.next().unwrap_or_default(),
            local: words.next().unwrap_or_default(),
            proxied: words.next().as_deref() == Some("true"),
            told: words.next().as_deref() == Some("true"),
            body,
        })
    })
    .await
}

/// A connection to a greeter.
pub(super) struct Conversation {
    stream: TcpStream,
    /// Whom the server saw.
    pub(super) seen: String,
}

impl Conversation {
    /// Waits for the greeting, says a word and hears it again.
    pub(super) async fn open(from: &Host, to: SocketAddr) -> anyhow::Result<Self> {
        from.inside(move || {
            let mut stream = connect(to, Identity::default())?;
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                let mut byte = [0];
                stream.read_exact(&mut byte).context("no greeting")?;
                line.extend(byte);
            }
            let line = String::from_utf8(line)?;
            let seen = line.trim_end().strip_prefix(GREETING).context("another greeting")?.to_owned();
            let mut conversation = Self { stream, seen };
            conversation.go_on()?;
            Ok(conversation)
        })
        .await
    }

    /// Another word.
    pub(super) fn go_on(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(b"ehlo")?;
        let mut word = [0; 4];
        self.stream.read_exact(&mut word).context("no word back")?;
        ensure!(&word == b"ehlo", "another word");
        Ok(())
    }
}

/// A conversation of one word. Gives whom the server saw.
pub(super) async fn greet(from: &Host, to: SocketAddr) -> anyhow::Result<String> {
    Ok(Conversation::open(from, to).await?.seen)
}

/// The thread is of nobody's afterwards: it becomes whom the client is to be.
pub(super) fn connect(to: SocketAddr, who: Identity) -> anyhow::Result<TcpStream> {
    if who.uid.is_some() || who.gid.is_some() {
        set_thread_groups(&[])?;
    }
    let socket_of = || -> anyhow::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if let Some(mark) = who.mark {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    };
    if let Some(gid) = who.gid {
        set_thread_gid(Gid::from_raw(gid))?;
    }
    if let Some(uid) = who.uid {
        set_thread_uid(Uid::from_raw(uid))?;
    }
    let socket = socket_of()?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect_timeout(&to.into(), ANSWER).with_context(|| format!("cannot connect to {to}"))?;
    Ok(socket.into())
}
