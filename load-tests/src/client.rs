//! Requests whose answers are looked at: to see that a proxy passes them whole before it is measured, and to open
//! connections that then stay idle. The TLS client verifies nothing: that would cost more than the server's own part.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, NamedGroup, SignatureScheme, StreamOwned,
};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer heads are nobody's.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// One request, and what is to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange<'a> {
    pub(crate) path: &'a str,
    /// Bytes that go up with it; none is a GET.
    pub(crate) upload: usize,
    /// Bytes of the answer.
    pub(crate) answer: usize,
}

impl Exchange<'_> {
    /// Over a new connection, of which then only the socket is kept.
    pub(crate) fn connect(self, port: u16, tls: Option<&Arc<ClientConfig>>) -> anyhow::Result<TcpStream> {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        socket.set_nodelay(true)?;
        let Some(config) = tls else {
            self.over(&mut socket)?;
            return Ok(socket);
        };
        let name = ServerName::try_from("localhost")?;
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, socket);
        self.over(&mut stream)?;
        Ok(stream.sock)
    }

    fn over(self, connection: &mut (impl Read + Write)) -> anyhow::Result<()> {
        let (path, upload) = (self.path, self.upload);
        let request = match upload {
            0 => format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            _ => format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {upload}\r\n\r\n"),
        };
        connection.write_all(request.as_bytes())?;
        connection.write_all(&vec![b'x'; upload])?;
        let (mut have, mut part) = (Vec::new(), [0; 16 * 1024]);
        let head = loop {
            if let Some(at) = have.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(have.len() < MAX_HEAD_BYTES, "the answer's head has no end");
            match connection.read(&mut part)? {
                0 => bail!("closed after {} bytes", have.len()),
                length => have.extend_from_slice(&part[..length]),
            }
        };
        let text = String::from_utf8_lossy(&have[..head]).to_ascii_lowercase();
        ensure!(text.starts_with("http/1.1 200"), "answered {text:?}");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.context("no content-length")?.trim().parse()?;
        ensure!(length == self.answer, "the answer to {path} has {length} bytes instead of {}", self.answer);
        let mut left = (head + length).saturating_sub(have.len());
        while left > 0 {
            match connection.read(&mut part)? {
                0 => bail!("closed {left} bytes before the end"),
                length => left = left.saturating_sub(length),
            }
        }
        Ok(())
    }
}

/// What the peers share: TLS 1.3 and X25519. Some of them know no hybrid key exchange.
pub(crate) fn config(tickets: Option<&Arc<Tickets>>) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.resumption = match tickets {
        Some(tickets) => Resumption::store(Arc::clone(tickets) as Arc<dyn ClientSessionStore>),
        None => Resumption::disabled(),
    };
    Ok(Arc::new(config))
}

/// The tickets of the one server that is spoken with; each is good for one connection. First they are gathered, and none is
/// shown: for one that is shown some servers give just another one.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    kept: Mutex<Vec<Tls13ClientSessionValue>>,
    are_shown: AtomicBool,
}

impl Tickets {
    fn kept(&self) -> MutexGuard<'_, Vec<Tls13ClientSessionValue>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.kept().len()
    }

    /// From now on.
    pub(crate) fn show(&self) {
        self.are_shown.store(true, Relaxed);
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.kept().push(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().pop_if(|_| self.are_shown.load(Relaxed))
    }
}

/// Takes whatever certificate there is.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
