//! As much of the wire as a simulated proxy needs: requests are encoded, and of a response only its type, its nonce
//! and the number of its resources are read, while it comes in. Resources are neither kept nor decoded, so that a
//! thousand clients cost little beside the server that is measured.

use std::collections::HashMap;

use anyhow::{Context as _, bail};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use pontoon_xds::ResourceType;
use prost::Message as _;
use prost::bytes::{BufMut as _, Bytes, BytesMut};
use tokio::net::TcpStream;

/// A gRPC message opens with a byte for compression and four for its length.
const PREFIX_BYTES: usize = 5;
/// Longer type URLs and nonces are nobody's.
const MAX_KEPT_BYTES: usize = 1024;
/// What gRPC clients give a stream and a connection; a proxy takes its configuration in bulk.
const WINDOW: u32 = 1024 * 1024;

/// One delta stream on a connection of its own.
pub(super) struct Stream {
    out: SendStream<Bytes>,
    answer: Option<ResponseFuture>,
    body: Option<RecvStream>,
    // Ends the connection with the stream.
    _requests: SendRequest<Bytes>,
}

impl Stream {
    /// Opens it. The server may answer only once it has a request.
    pub(super) async fn open(tcp: TcpStream) -> anyhow::Result<Stream> {
        tcp.set_nodelay(true)?;
        let (mut requests, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(2 * WINDOW)
            .handshake(tcp)
            .await?;
        // It ends when the stream is dropped; what it ended with shows on the stream.
        tokio::spawn(async move {
            let _ended = connection.await;
        });
        let request = http::Request::post(
            "http://control-plane/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        )
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
        let (answer, out) = requests.send_request(request, false)?;
        Ok(Stream { out, answer: Some(answer), body: None, _requests: requests })
    }

    /// Sends an encoded request.
    pub(super) fn send(&mut self, request: Bytes) -> anyhow::Result<()> {
        Ok(self.out.send_data(request, false)?)
    }

    /// The next bytes of the answer; an error when the server ends it.
    pub(super) async fn receive(&mut self) -> anyhow::Result<Bytes> {
        if let Some(answer) = self.answer.take() {
            let answer = answer.await?;
            if let Some(status) = answer.headers().get("grpc-status") {
                bail!("the server refuses the stream with {status:?}");
            }
            self.body = Some(answer.into_body());
        }
        let body = self.body.as_mut().context("no answer")?;
        match body.data().await {
            Some(bytes) => {
                let bytes = bytes?;
                body.flow_control().release_capacity(bytes.len())?;
                Ok(bytes)
            }
            None => {
                let trailers = body.trailers().await?.unwrap_or_default();
                bail!("the server ended the stream: {:?}", trailers.get("grpc-status"))
            }
        }
    }
}

/// The first request of a type. The node goes with the first of the stream.
pub(super) fn subscription(node: Option<(&str, &str)>, ty: ResourceType, names: &[String]) -> Bytes {
    framed(&DeltaDiscoveryRequest {
        node: node.map(|(id, cluster)| Node {
            id: id.to_owned(),
            cluster: cluster.to_owned(),
            ..Node::default()
        }),
        type_url: ty.type_url().to_owned(),
        resource_names_subscribe: names.to_vec(),
        initial_resource_versions: HashMap::new(),
        ..DeltaDiscoveryRequest::default()
    })
}

/// Says yes to a response.
pub(super) fn acknowledgement(response: &Seen) -> Bytes {
    framed(&DeltaDiscoveryRequest {
        type_url: response.ty.type_url().to_owned(),
        response_nonce: response.nonce.clone(),
        ..DeltaDiscoveryRequest::default()
    })
}

fn framed(request: &DeltaDiscoveryRequest) -> Bytes {
    let length = request.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    out.extend_from_slice(&request.encode_to_vec());
    out.freeze()
}

/// What is read of one `DeltaDiscoveryResponse`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) ty: ResourceType,
    pub(super) nonce: String,
    pub(super) resources: u32,
}

/// Reads a stream of messages in pieces of any size.
#[derive(Debug)]
pub(super) struct Scanner {
    at: At,
    /// Of the message, after its prefix.
    left: usize,
    type_url: Vec<u8>,
    nonce: Vec<u8>,
    resources: u32,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Prefix { read: usize, length: u32 },
    Tag { value: u64, shift: u32 },
    Length { field: u64, value: u64, shift: u32 },
    Contents { field: u64, left: usize },
}

const START: At = At::Prefix { read: 0, length: 0 };
const NEXT_FIELD: At = At::Tag { value: 0, shift: 0 };
const RESOURCES: u64 = 2;
const TYPE_URL: u64 = 4;
const NONCE: u64 = 5;

impl Default for Scanner {
    fn default() -> Scanner {
        Scanner { at: START, left: 0, type_url: Vec::new(), nonce: Vec::new(), resources: 0 }
    }
}

impl Scanner {
    /// Takes further bytes; `done` is told of each message that is complete.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut done: impl FnMut(Seen) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while let Some((&first, rest)) = bytes.split_first() {
            if let At::Contents { field, left } = self.at {
                let (now, later) = bytes.split_at(left.min(bytes.len()));
                self.keep(field, now)?;
                self.left = self.left.checked_sub(now.len()).context("a field longer than its message")?;
                self.at = match left - now.len() {
                    0 => NEXT_FIELD,
                    left => At::Contents { field, left },
                };
                bytes = later;
            } else {
                self.byte(first)?;
                bytes = rest;
            }
            // An empty field, or an empty message, is complete without a byte of its own.
            if let At::Contents { left: 0, .. } = self.at {
                self.at = NEXT_FIELD;
            }
            if self.left == 0 && matches!(self.at, At::Tag { shift: 0, .. }) {
                done(self.complete()?)?;
            }
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8) -> anyhow::Result<()> {
        if !matches!(self.at, At::Prefix { .. }) {
            self.left = self.left.checked_sub(1).context("a message that ends within a field")?;
        }
        let low = u64::from(byte & 0x7f);
        self.at = match self.at {
            At::Prefix { read: 0, .. } if byte != 0 => bail!("a compressed message was not asked for"),
            At::Prefix { read, length } => {
                let length = if read == 0 { 0 } else { length << 8 | u32::from(byte) };
                if read + 1 < PREFIX_BYTES {
                    At::Prefix { read: read + 1, length }
                } else {
                    self.left = length as usize;
                    NEXT_FIELD
                }
            }
            At::Tag { shift, .. } | At::Length { shift, .. } if shift > 28 => bail!("not a response"),
            At::Tag { value, shift } if byte & 0x80 != 0 => {
                At::Tag { value: value | low << shift, shift: shift + 7 }
            }
            At::Tag { value, shift } => {
                let tag = value | low << shift;
                // All fields of a response are texts, bytes or messages.
                if tag & 7 != 2 {
                    bail!("not a response: wire type {}", tag & 7);
                }
                self.resources += u32::from(tag >> 3 == RESOURCES);
                At::Length { field: tag >> 3, value: 0, shift: 0 }
            }
            At::Length { field, value, shift } if byte & 0x80 != 0 => {
                At::Length { field, value: value | low << shift, shift: shift + 7 }
            }
            At::Length { field, value, shift } => {
                At::Contents { field, left: usize::try_from(value | low << shift)? }
            }
            At::Contents { .. } => bail!("not a response"),
        };
        Ok(())
    }

    fn keep(&mut self, field: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let kept = match field {
            TYPE_URL => &mut self.type_url,
            NONCE => &mut self.nonce,
            _ => return Ok(()),
        };
        kept.extend_from_slice(bytes);
        if kept.len() > MAX_KEPT_BYTES { bail!("a type or nonce that is too long") } else { Ok(()) }
    }

    fn complete(&mut self) -> anyhow::Result<Seen> {
        let read = std::mem::take(self);
        let type_url = String::from_utf8(read.type_url)?;
        let ty = ResourceType::from_type_url(&type_url)
            .with_context(|| format!("a response of type {type_url:?}"))?;
        Ok(Seen { ty, nonce: String::from_utf8(read.nonce)?, resources: read.resources })
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

    use super::*;

    fn message(response: &DeltaDiscoveryResponse) -> Vec<u8> {
        let body = response.encode_to_vec();
        let mut out = vec![0];
        out.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
        out.extend_from_slice(&body);
        out
    }

    #[test]
    fn messages_are_read_in_pieces_of_any_size() {
        let resource = Resource { name: "a".repeat(300), version: "1".to_owned(), ..Resource::default() };
        let first = DeltaDiscoveryResponse {
            system_version_info: "v".to_owned(),
            resources: vec![resource.clone(), Resource::default(), resource],
            type_url: ResourceType::Endpoint.type_url().to_owned(),
            nonce: "17".to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        // Nothing but removals, and its last field is empty.
        let second = DeltaDiscoveryResponse {
            type_url: ResourceType::Route.type_url().to_owned(),
            nonce: "18".to_owned(),
            removed_resources: vec![String::new()],
            ..DeltaDiscoveryResponse::default()
        };
        let bytes = [message(&first), message(&second)].concat();
        let expected = [
            Seen { ty: ResourceType::Endpoint, nonce: "17".to_owned(), resources: 3 },
            Seen { ty: ResourceType::Route, nonce: "18".to_owned(), resources: 0 },
        ];
        for size in [1, 2, 3, 7, 64, bytes.len()] {
            let (mut scanner, mut seen) = (Scanner::default(), Vec::new());
            for piece in bytes.chunks(size) {
                scanner
                    .feed(piece, |one| {
                        seen.push(one);
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(seen, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_response_is_refused() {
        let feed = |bytes: &[u8]| Scanner::default().feed(bytes, |_| Ok(()));
        assert!(feed(&[1, 0, 0, 0, 0]).is_err(), "compressed");
        assert!(feed(&[0, 0, 0, 0, 2, 0x08, 1]).is_err(), "a number");
        assert!(feed(&[0, 0, 0, 0, 3, 0x0a, 9, 0]).is_ok(), "not at its end yet");
        assert!(feed(&[0, 0, 0, 0, 3, 0x0a, 9, 0, 0]).is_err(), "a field longer than its message");
        assert!(feed(&[0, 0, 0, 0, 0]).is_err(), "no type");
    }
}
