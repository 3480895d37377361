//! Responses on the wire: gRPC's framing, written out piece by piece as the connection takes it. A state of the world of
//! megabytes costs a stream its next piece; what comes after is in the resources, which all streams share.
//!
//! tonic writes each message out as a whole, and keeps a buffer of its size for as long as the stream lives. So it is left
//! heads and early errors alone: [`Framed`] puts this body in the place of its own.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body as TonicBody;
use tonic::codegen::Service;
use tonic::server::NamedService;

use super::lock;
use super::stream::Response;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use crate::resource::Resource;
use crate::variant::Variant;

/// What is written out at once, and from which on a resource goes as it is, uncopied. An HTTP/2 frame has as much.
const PIECE: usize = 16 * 1024;

/// Of `DiscoveryResponse` and of `DeltaDiscoveryResponse`.
const RESOURCES: u8 = key(2);
/// Of the delta variant's `Resource`.
const VERSION: u8 = key(1);
const RESOURCE: u8 = key(2);
const NAME: u8 = key(3);
/// Of `Any`.
const TYPE_URL: u8 = key(1);
const VALUE: u8 = key(2);

/// Of a field that has a length (wire type 2) and a number below 16.
const fn key(number: u8) -> u8 {
    number << 3 | 2
}

/// The body of a stream's answer, on its way there in the answer's extensions.
#[derive(Debug, Clone)]
pub(super) struct Outbound(Arc<Mutex<Option<Frames>>>);

impl Outbound {
    pub(super) fn new(variant: Variant, responses: mpsc::Receiver<Result<Response, Status>>) -> Outbound {
        let frames = Frames { variant, responses, writing: None, has_ended: false };
        Outbound(Arc::new(Mutex::new(Some(frames))))
    }
}

/// A service whose answers get these bodies.
#[derive(Debug, Clone)]
pub(super) struct Framed<S>(pub(super) S);

impl<S: NamedService> NamedService for Framed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, R> Service<R> for Framed<S>
where
    S: Service<R, Response = http::Response<TonicBody>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let answered = self.0.call(request);
        Box::pin(async move {
            let mut answer = answered.await?;
            let outbound = answer.extensions_mut().remove::<Outbound>();
            Ok(match outbound.and_then(|outbound| lock(&outbound.0).take()) {
                Some(frames) => answer.map(|_| TonicBody::new(frames)),
                None => answer,
            })
        })
    }
}

#[derive(Debug)]
struct Frames {
    variant: Variant,
    responses: mpsc::Receiver<Result<Response, Status>>,
    writing: Option<Writing>,
    has_ended: bool,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let status = loop {
            if let Some(piece) = self.writing.as_mut().and_then(Writing::next) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.writing = None;
            if self.has_ended {
                return Poll::Ready(None);
            }
            match ready!(self.responses.poll_recv(cx)) {
                None => break Status::ok(""),
                Some(Err(status)) => break status,
                Some(Ok(response)) => match Writing::new(response, self.variant) {
                    Ok(writing) => self.writing = Some(writing),
                    Err(status) => break status,
                },
            }
        };
        self.has_ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

/// A response of which some has been written out.
#[derive(Debug)]
struct Writing {
    variant: Variant,
    type_url: &'static str,
    /// Written and not yet given.
    piece: Vec<u8>,
    /// Of a large resource; goes after `piece`.
    body: Option<Bytes>,
    left: super::stream::Left,
}

impl Writing {
    fn new(response: Response, variant: Variant) -> Result<Writing, Status> {
        let type_url = response.ty.type_url();
        let lengths = response.resources.iter().map(|resource| field(length(variant, type_url, resource)));
        let lengths = lengths.sum::<usize>();
        let head = head(variant, &response);
        let length = u32::try_from(head.len() + lengths).map_err(|_| {
            Status::out_of_range(format!("a response of {lengths} bytes; gRPC has 4 GiB for one at most"))
        })?;
        let mut piece = Vec::with_capacity(head.len() + 5);
        // It is not compressed.
        piece.put_u8(0);
        piece.put_u32(length);
        piece.put_slice(&head);
        Ok(Writing { variant, type_url, piece, body: None, left: response.resources.into() })
    }

    fn next(&mut self) -> Option<Bytes> {
        while self.body.is_none() && self.piece.len() < PIECE {
            let Some(resource) = self.left.next() else { break };
            self.write(&resource);
        }
        if self.piece.is_empty() { self.body.take() } else { Some(std::mem::take(&mut self.piece).into()) }
    }

    fn write(&mut self, resource: &Resource) {
        let (variant, type_url, out) = (self.variant, self.type_url, &mut self.piece);
        put_key(out, RESOURCES, length(variant, type_url, resource));
        if variant == Variant::Delta {
            for (key, text) in [(VERSION, &resource.version), (NAME, &resource.name)] {
                put_key(out, key, text.len());
                out.put_slice(text.as_bytes());
            }
            put_key(out, RESOURCE, any_length(type_url, resource));
        }
        put_key(out, TYPE_URL, type_url.len());
        out.put_slice(type_url.as_bytes());
        put_key(out, VALUE, resource.body.len());
        if resource.body.len() < PIECE {
            out.put_slice(&resource.body);
        } else {
            self.body = Some(resource.body.clone());
        }
    }
}

/// All of a response but its resources.
fn head(variant: Variant, response: &Response) -> Vec<u8> {
    let (version, nonce) = (response.version.clone(), response.nonce.clone());
    let type_url = response.ty.type_url().to_owned();
    match variant {
        Variant::Sotw => {
            DiscoveryResponse { version_info: version, type_url, nonce, ..Default::default() }.encode_to_vec()
        }
        Variant::Delta => DeltaDiscoveryResponse {
            system_version_info: version,
            type_url,
            nonce,
            removed_resources: response.removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
        .encode_to_vec(),
    }
}

fn put_key(out: &mut Vec<u8>, key: u8, length: usize) {
    out.put_u8(key);
    encode_varint(length as u64, out);
}

/// Bytes of a field with so many in it.
fn field(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn any_length(type_url: &str, resource: &Resource) -> usize {
    field(type_url.len()) + field(resource.body.len())
}

/// Bytes of one item of the resources.
fn length(variant: Variant, type_url: &str, resource: &Resource) -> usize {
    let any = any_length(type_url, resource);
    match variant {
        Variant::Sotw => any,
        Variant::Delta => field(resource.version.len()) + field(resource.name.len()) + field(any),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::ResourceType;
    use crate::server::stream::Resources;
    use crate::snapshot::ResourceMap;

    /// Small ones, some that are as long as a piece or nearly, and a large one between them.
    fn resources() -> Vec<Resource> {
        let lengths = (0..300).chain([PIECE - 1, PIECE, 5 * PIECE, 0, PIECE + 1, 1]);
        let body = |(at, length): (usize, usize)| Resource::of_body(&format!("{at:03}"), vec![1; length]);
        lengths.enumerate().map(body).collect()
    }

    fn response(resources: Resources) -> Response {
        let (nonce, version) = ("7".to_owned(), "a".to_owned());
        Response { ty: ResourceType::Cluster, nonce, version, resources, removed: vec!["gone".into()] }
    }

    /// The message, and the pieces that it came in.
    fn written(variant: Variant, resources: Resources) -> (Vec<u8>, Vec<Bytes>) {
        let mut writing = Writing::new(response(resources), variant).unwrap();
        let pieces: Vec<Bytes> = std::iter::from_fn(|| writing.next()).collect();
        let all = pieces.concat();
        let (head, message) = all.split_at(5);
        assert_eq!(head[0], 0);
        assert_eq!(head[1..], u32::try_from(message.len()).unwrap().to_be_bytes());
        (message.to_vec(), pieces)
    }

    #[test]
    fn a_response_is_what_prost_would_write() {
        let all = resources();
        let map: ResourceMap = all.iter().map(|one| (one.name.clone(), one.clone())).collect();
        for resources in [Resources::Listed(all.clone()), Resources::All(map)] {
            let (message, _) = written(Variant::Sotw, resources.clone());
            let sotw = DiscoveryResponse::decode(&*message).unwrap();
            assert_eq!((&*sotw.version_info, &*sotw.nonce), ("a", "7"));
            assert_eq!(sotw.type_url, ResourceType::Cluster.type_url());
            let bodies = sotw.resources.iter().map(|any| (&*any.type_url, &any.value[..]));
            assert!(bodies.eq(all.iter().map(|one| (ResourceType::Cluster.type_url(), &one.body[..]))));

            let (message, _) = written(Variant::Delta, resources);
            let delta = DeltaDiscoveryResponse::decode(&*message).unwrap();
            assert_eq!((&*delta.system_version_info, &*delta.nonce), ("a", "7"));
            assert_eq!((delta.type_url, delta.removed_resources), (sotw.type_url, vec!["gone".to_owned()]));
            let told = delta.resources.iter().map(|one| {
                (&*one.name, &*one.version, one.resource.as_ref().map(|any| (&*any.type_url, &any.value[..])))
            });
            let wanted = all.iter().map(|one| {
                (&*one.name, &*one.version, Some((ResourceType::Cluster.type_url(), &one.body[..])))
            });
            assert!(told.eq(wanted));
        }
    }

    #[test]
    fn what_is_written_is_short_or_shared() {
        let all = resources();
        let (_, pieces) = written(Variant::Sotw, Resources::Listed(all.clone()));
        let is_shared = |piece: &Bytes| all.iter().any(|one| one.body.as_ptr() == piece.as_ptr());
        let (shared, short): (Vec<&Bytes>, Vec<&Bytes>) = pieces.iter().partition(|piece| is_shared(piece));
        assert_eq!(shared.len(), 3);
        assert!(short.iter().all(|piece| piece.len() < 2 * PIECE + 256), "longer than two pieces");
    }
}
