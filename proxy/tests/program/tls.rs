//! A listener's certificate, and clients that trust it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::running::PATIENCE;

const NAME: &str = "shop.test";

/// A client's connection through TLS.
pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// One certificate that vouches for itself.
pub(crate) struct Certificate {
    /// Of a filter chain.
    pub(crate) transport_socket: Value,
    client: ClientConfig,
}

impl Certificate {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
        let inline = |text: String| json!({"inline_string": text});
        let own = json!({"certificate_chain": inline(certificate.pem()), "private_key": inline(key.serialize_pem())});
        let url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
        let common = json!({"tls_certificates": [own], "alpn_protocols": ["h2", "http/1.1"]});
        let transport_socket =
            json!({"name": "tls", "typed_config": {"@type": url, "common_tls_context": common}});
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        Self { transport_socket, client }
    }

    /// A client that speaks this protocol, and comes again with its tickets.
    pub(crate) fn client(&self, protocol: &str) -> Arc<ClientConfig> {
        let mut client = self.client.clone();
        client.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Arc::new(client)
    }
}

pub(crate) fn connect(address: SocketAddr, client: &Arc<ClientConfig>) -> Tls {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let connection = ClientConnection::new(Arc::clone(client), ServerName::try_from(NAME).unwrap()).unwrap();
    StreamOwned::new(connection, socket)
}

/// Asks on a connection that stays; gives the body, which is as long as it says.
pub(crate) fn get(stream: &mut (impl Read + Write), path: &str) -> std::io::Result<(u16, String)> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\n\r\n").as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let field = |name: &str| head.split_once(name)?.1.split(['\r', ' ']).find_map(|word| word.parse().ok());
    let mut body = vec![0; field("content-length:").unwrap_or(0)];
    stream.read_exact(&mut body)?;
    Ok((field("http/1.1").unwrap_or(0) as u16, String::from_utf8_lossy(&body).into_owned()))
}
