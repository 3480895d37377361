use std::time::Duration;

use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::StatusCode;
use http_body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, timeout};

use super::*;
use crate::upstream::cluster::ConnectionLimits;

type Server = server::Connection<DuplexStream, Bytes>;

/// Longer than any window.
const LONG: usize = 300 * 1024;

async fn connect() -> (Http2, Server) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let opening = Http2::new(near, Wear::new(ConnectionLimits::default()));
    let (near, far) = tokio::join!(opening, server::handshake(far));
    let near = near.unwrap();
    near.add_stream();
    (near, far.unwrap())
}

/// A connection with one request on it, and the bytes of an endpoint that has sent its settings.
async fn asked_of_bytes() -> (Http2, DuplexStream, Begun) {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let near = Http2::new(near, Wear::new(ConnectionLimits::default())).await.unwrap();
    far.write_all(&SETTINGS).await.unwrap();
    near.add_stream();
    let begun = near.begin(post(Vec::new())).ok().unwrap();
    (near, far, begun)
}

/// What was sent has gone after this: a reset would take its place.
async fn let_go() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn post(frames: Vec<Frame<Bytes>>) -> Request<RequestBody> {
    Request::post("http://shop/a?b")
        .version(http::Version::HTTP_2)
        .body(RequestBody::of(frames, true))
        .unwrap()
}

fn long() -> Vec<Frame<Bytes>> {
    (0..LONG / 10_240).map(|_| Frame::data(Bytes::from_static(&[b'x'; 10_240]))).collect()
}

/// The next request, after which the connection goes on by itself.
async fn accept(mut server: Server) -> (Request<RecvStream>, SendResponse<Bytes>) {
    let accepted = server.accept().await.unwrap().unwrap();
    spawn_local(async move { while server.accept().await.is_some() {} });
    accepted
}

async fn all(body: &mut RecvStream) -> Result<usize, h2::Error> {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        length += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    Ok(length)
}

async fn head(begun: &mut Begun) -> Result<(Response<()>, Answer), Error> {
    poll_fn(|cx| begun.poll_head(cx)).await
}

#[tokio::test]
async fn a_request_and_its_answer_are_whole() {
    let both = async {
        let (near, far) = connect().await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        let mut frames = long();
        frames.insert(3, Frame::data(Bytes::new()));
        frames.push(Frame::trailers(trailers.clone()));
        let mut begun = near.begin(post(frames)).ok().unwrap();
        let serve = async {
            let (request, mut respond) = accept(far).await;
            let (parts, mut body) = request.into_parts();
            assert_eq!((parts.method, parts.uri.to_string().as_str()), (Method::POST, "http://shop/a?b"));
            assert_eq!(all(&mut body).await.unwrap(), LONG);
            let trailers = body.trailers().await.unwrap().unwrap();
            let early = Response::builder().status(103).body(()).unwrap();
            respond.send_informational(early).unwrap();
            let response = Response::builder().status(201).body(()).unwrap();
            let mut send = respond.send_response(response, false).unwrap();
            send.send_data(vec![b'y'; LONG].into(), false).unwrap();
            send.send_trailers(trailers).unwrap();
        };
        let ask = async {
            let (response, mut answer) = head(&mut begun).await.unwrap();
            assert_eq!(response.status(), StatusCode::CREATED);
            let mut length = 0;
            loop {
                let frame = poll_fn(|cx| answer.poll_frame(cx)).await.unwrap().unwrap();
                match frame.into_data() {
                    Ok(data) => length += data.len(),
                    Err(frame) => break assert_eq!(frame.trailers_ref(), Some(&trailers)),
                }
            }
            assert_eq!(length, LONG);
            assert!(answer.is_end_stream() && poll_fn(|cx| answer.poll_frame(cx)).await.is_none());
        };
        tokio::join!(serve, ask);
    };
    LocalSet::new().run_until(both).await;
}

#[tokio::test]
async fn what_an_answer_leaves_of_its_request_ends_with_it() {
    for reads in [true, false] {
        let both = async {
            let (near, far) = connect().await;
            let mut begun = near.begin(post(long())).ok().unwrap();
            let (accepted, answered) = tokio::join!(
                async {
                    let (request, mut respond) = accept(far).await;
                    (request.into_body(), respond.send_response(Response::new(()), false).unwrap())
                },
                head(&mut begun)
            );
            let ((mut body, _send), (response, answer)) = (accepted, answered.unwrap());
            assert_eq!(response.status(), StatusCode::OK);
            if reads {
                assert_eq!(all(&mut body).await.unwrap(), LONG);
            }
            drop((begun, answer));
            if !reads {
                assert_eq!(all(&mut body).await.unwrap_err().reason(), Some(Reason::CANCEL));
            }
        };
        LocalSet::new().run_until(both).await;
    }
}

#[tokio::test]
async fn an_answer_is_of_its_length_or_an_error() {
    for (length, is_whole) in [("3", true), ("4", false), ("2", false)] {
        let both = async {
            let (near, far) = connect().await;
            let request = Request::get("http://shop/").version(http::Version::HTTP_2);
            let mut begun = near.begin(request.body(RequestBody::empty()).unwrap()).ok().unwrap();
            let serve = async {
                let (_, mut respond) = accept(far).await;
                let response = Response::builder().header(CONTENT_LENGTH, length).body(()).unwrap();
                let mut send = respond.send_response(response, false).unwrap();
                send.send_data(Bytes::from_static(b"abc"), true).unwrap();
                send
            };
            let ask = async {
                let (_, mut answer) = head(&mut begun).await?;
                while let Some(frame) = poll_fn(|cx| answer.poll_frame(cx)).await {
                    frame?;
                }
                Ok::<_, Error>(())
            };
            let (_send, asked) = tokio::join!(serve, ask);
            assert_eq!(asked, if is_whole { Ok(()) } else { Err(Error::UpstreamReset) }, "{length}");
        };
        LocalSet::new().run_until(both).await;
    }
}

/// By `NO_ERROR` a server says that it does not need the rest of a request (RFC 9113, 8.1), and nothing of its answer.
#[tokio::test]
async fn an_answer_is_whole_by_its_end_alone() {
    for ends in [true, false] {
        let both = async {
            let (near, far) = connect().await;
            let mut begun = near.begin(post(long())).ok().unwrap();
            let serve = async {
                let (request, mut respond) = accept(far).await;
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(Bytes::from_static(b"abc"), ends).unwrap();
                let_go().await;
                send.send_reset(Reason::NO_ERROR);
                request
            };
            let ask = async {
                let (_, mut answer) = head(&mut begun).await?;
                let first = poll_fn(|cx| answer.poll_frame(cx)).await.unwrap()?;
                assert_eq!(first.into_data().unwrap(), "abc");
                poll_fn(|cx| answer.poll_frame(cx)).await.transpose().map(|frame| frame.is_none())
            };
            let (_request, asked) = tokio::join!(serve, ask);
            assert_eq!(asked, if ends { Ok(true) } else { Err(Error::UpstreamReset) });
        };
        LocalSet::new().run_until(both).await;
    }
}

#[tokio::test]
async fn a_body_that_fails_resets_its_stream() {
    let both = async {
        let (near, far) = connect().await;
        let mut request = post(Vec::new());
        *request.body_mut() = RequestBody::of(vec![Frame::data(Bytes::from_static(b"half"))], false);
        let mut begun = near.begin(request).ok().unwrap();
        assert_eq!(head(&mut begun).await.err(), Some(Error::ClientGone));
        drop(begun);
        let (request, _respond) = accept(far).await;
        let failed = all(&mut request.into_body()).await.unwrap_err();
        assert_eq!(failed.reason(), Some(Reason::CANCEL));
    };
    LocalSet::new().run_until(both).await;
}

#[tokio::test]
async fn a_request_comes_back_from_a_connection_that_is_to_end() {
    let both = async {
        let (near, mut far) = connect().await;
        assert!(!near.is_closed());
        far.abrupt_shutdown(Reason::NO_ERROR);
        assert!(far.accept().await.is_none());
        while !near.is_closed() {
            tokio::task::yield_now().await;
        }
        let failed = near.begin(post(long())).err().unwrap();
        assert_eq!(failed.error, Error::UpstreamReset);
        assert_eq!(failed.request.unwrap().uri().path(), "/a");
    };
    LocalSet::new().run_until(both).await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_does_not_answer_pings_is_gone() {
    for reads in [true, false] {
        let both = async {
            let (near, far) = connect().await;
            let mut begun = near.begin(post(long())).ok().unwrap();
            let held = if reads { (Some(accept(far).await), None) } else { (None, Some(far)) };
            let start = Instant::now();
            let answered = timeout(Duration::from_secs(200), head(&mut begun)).await;
            assert_eq!(answered.is_err(), reads);
            if let Ok(answered) = answered {
                assert_eq!(answered.err(), Some(Error::UpstreamReset));
                assert_eq!(start.elapsed().as_secs(), 40);
                assert!(near.is_closed());
            }
            drop(held);
        };
        LocalSet::new().run_until(both).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_uses_ends_though_its_endpoint_does_not_read() {
    let both = async {
        let (near, mut far) = tokio::io::duplex(16);
        drop(Http2::new(near, Wear::new(ConnectionLimits::default())).await.unwrap());
        tokio::time::sleep(Duration::from_secs(41)).await;
        let mut got = Vec::new();
        timeout(Duration::from_millis(1), far.read_to_end(&mut got)).await.expect("an end").unwrap();
        assert_eq!(got.len(), 16);
    };
    LocalSet::new().run_until(both).await;
}

/// Also where it rested, and then did not read what it was sent.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_stops_reading_is_gone_though_nobody_waits_for_it() {
    let both = async {
        let (near, far) = connect().await;
        near.remove_stream();
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(!near.is_closed(), "nobody has waited for it");
        let stalled: Vec<_> = (0..20).map(|_| near.begin(post(long())).ok().unwrap()).collect();
        // More than what the pipe takes.
        for mut begun in stalled {
            let _ = timeout(Duration::from_millis(1), head(&mut begun)).await;
        }
        assert!(!near.is_closed());
        tokio::time::sleep(Duration::from_secs(80)).await;
        assert!(near.is_closed());
        drop(far);
    };
    LocalSet::new().run_until(both).await;
}

/// As after a pause: what was on its way comes first.
#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_answer_to_a_ping_is_behind_much_else_is_there() {
    const WINDOW: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let both = async {
        let (near, mut far, _begun) = asked_of_bytes().await;
        tokio::time::sleep(Duration::from_secs(35)).await;
        // It has been asked, and says something else for longer than an answer may take.
        for _ in 0..10 {
            far.write_all(&WINDOW).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(!near.is_closed());
        }
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(near.is_closed());
    };
    LocalSet::new().run_until(both).await;
}

/// grpc-go ends a connection on which it is asked more often while it has nothing to say.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_only_answers_pings_is_seldom_asked() {
    let both = async {
        let (_near, mut far, _begun) = asked_of_bytes().await;
        far.read_exact(&mut [0; 24]).await.unwrap();
        let (start, mut asked) = (Instant::now(), Vec::new());
        while asked.len() < 3 {
            let mut head = [0; 9];
            far.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            far.read_exact(&mut payload).await.unwrap();
            if head[3] == 6 && head[4] == 0 {
                asked.push(start.elapsed().as_secs());
                head[4] = 1;
                far.write_all(&[&head[..], &payload].concat()).await.unwrap();
            }
        }
        assert_eq!(asked, [30, 340, 650]);
    };
    LocalSet::new().run_until(both).await;
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_does_not_pile_up() {
    let both = async {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let opening = Http2::new(near, Wear::new(ConnectionLimits::default()));
        let mut server = server::Builder::new();
        server.max_concurrent_streams(2);
        let (near, far) = tokio::join!(opening, server.handshake::<_, Bytes>(far));
        let near = near.unwrap();
        let mut far = far.unwrap();
        spawn_local(async move {
            let mut held = Vec::new();
            while let Some(accepted) = far.accept().await {
                held.push(accepted);
            }
        });
        // It takes a hundred until it has said otherwise.
        let first = near.begin(post(long())).ok().unwrap();
        while near.sender.borrow().current_max_send_streams() != 2 {
            tokio::task::yield_now().await;
        }
        let mut begun = vec![first];
        while near.has_room() {
            begun.push(near.begin(post(long())).ok().unwrap());
        }
        // One has gone, and two wait.
        assert_eq!(begun.len(), 3);
        drop(begun.drain(1..));
        assert!(!near.has_room(), "h2 has them still");
    };
    LocalSet::new().run_until(both).await;
}

#[tokio::test]
async fn the_last_piece_of_a_request_goes_though_its_answer_was_before_it() {
    let both = async {
        let (near, far) = connect().await;
        let mut begun = near.begin(post(long())).ok().unwrap();
        let serve = async {
            let (request, mut respond) = accept(far).await;
            let mut body = request.into_body();
            // So much room is given that all but half of the last piece may come.
            let (mut length, mut room) = (0, LONG - 5_000 - 65_535);
            while length < LONG - 5_000 {
                let data = body.data().await.unwrap().unwrap();
                length += data.len();
                let given = data.len().min(room);
                room -= given;
                body.flow_control().release_capacity(given).unwrap();
            }
            respond.send_response(Response::new(()), true).unwrap();
            (body, length)
        };
        let ask = async { head(&mut begun).await.unwrap() };
        let ((mut body, length), (_, answer)) = tokio::join!(serve, ask);
        drop((begun, answer));
        body.flow_control().release_capacity(5_000).unwrap();
        assert_eq!(length + all(&mut body).await.unwrap(), LONG);
    };
    LocalSet::new().run_until(both).await;
}

#[tokio::test]
async fn what_was_answered_was_not_refused() {
    for answered in [false, true] {
        let both = async {
            let (near, far) = connect().await;
            let mut begun = near.begin(post(Vec::new())).ok().unwrap();
            let serve = async {
                let (_, mut respond) = accept(far).await;
                if !answered {
                    respond.send_reset(Reason::REFUSED_STREAM);
                    return None;
                }
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                let_go().await;
                send.send_reset(Reason::REFUSED_STREAM);
                Some(send)
            };
            let ask = async {
                let (_, mut answer) = head(&mut begun).await?;
                poll_fn(|cx| answer.poll_frame(cx)).await.unwrap().map(|_| ())
            };
            let (_send, asked) = tokio::join!(serve, ask);
            let expected = if answered { Error::UpstreamReset } else { Error::RefusedStream };
            assert_eq!(asked, Err(expected));
        };
        LocalSet::new().run_until(both).await;
    }
}

#[tokio::test]
async fn a_tunnel_passes_both_ways_and_each_ends_by_itself() {
    let both = async {
        let (near, far) = connect().await;
        let request = Request::connect("db:1").version(http::Version::HTTP_2);
        let mut begun = near.begin(request.body(RequestBody::empty()).unwrap()).ok().unwrap();
        let serve = async {
            let (request, mut respond) = accept(far).await;
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            let mut body = request.into_body();
            assert_eq!(all(&mut body).await.unwrap(), LONG);
            send.send_data(vec![b'y'; LONG].into(), true).unwrap();
            send
        };
        let ask = async {
            let (_, answer) = head(&mut begun).await.unwrap();
            let mut tunnel = answer.into_tunnel().unwrap();
            tunnel.write_all(&vec![b'x'; LONG]).await.unwrap();
            tunnel.shutdown().await.unwrap();
            let mut got = Vec::new();
            tunnel.read_to_end(&mut got).await.unwrap();
            assert!(got == vec![b'y'; LONG]);
        };
        tokio::join!(serve, ask);
    };
    LocalSet::new().run_until(both).await;
}

#[test]
fn what_http2_has_no_place_for_is_removed() {
    let left = |fields: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        remove_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::to_string).collect();
        left.sort();
        left.join(" ")
    };
    assert_eq!(left(&[("te", "trailers"), ("x", "1")]), "te x");
    assert_eq!(left(&[("te", "gzip"), ("x", "1")]), "x");
    assert_eq!(left(&[("keep-alive", "1"), ("proxy-connection", "1"), ("upgrade", "h2c"), ("x", "1")]), "x");
    assert_eq!(
        left(&[("connection", "y, Z"), ("connection", "te"), ("te", "trailers"), ("x", "1"), ("y", "1")]),
        "x"
    );
    assert_eq!(left(&[("transfer-encoding", "chunked"), ("transfer-encoding", "gzip"), ("x", "1")]), "x");
}
