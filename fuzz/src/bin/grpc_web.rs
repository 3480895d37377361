//! gRPC-Web: base64 that a browser sends is decoded the same however it is cut, and what is sent to one is a body with
//! one frame of trailers at its end.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pontoon_fuzz::cut;
use pontoon_proxy::fuzzing::{web_answer, web_request};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    cuts: Vec<u8>,
    suffixes: [&'a str; 3],
    text: (bool, bool),
    trailers: Vec<(u8, &'a str)>,
    body: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let Input { cuts, suffixes: [asked, accepted, answered], text, trailers, body } = input;
    let pieces = cut(body, &cuts);
    assert_eq!(web_request(&pieces), web_request(&[body]));

    let web = |text, suffix| format!("application/grpc-web{}{suffix}", if text { "-text" } else { "" });
    let answered = format!("application/grpc{answered}");
    let answer = |pieces: &[&[u8]]| {
        web_answer(&web(text.0, asked), &web(text.1, accepted), &answered, pieces, &trailers)
    };
    let whole = answer(&[body]);
    assert_eq!(answer(&pieces), whole);
    let Some((is_text, encoded)) = whole else { return };
    let bytes = if is_text {
        let (decoded, all) = web_request(&[&encoded]).expect("our own base64");
        assert!(all);
        decoded
    } else {
        encoded
    };
    let trailers = bytes.strip_prefix(body).expect("the body comes first");
    let (head, lines) = trailers.split_at(5);
    assert_eq!(head[0], 0x80);
    assert_eq!(u32::from_be_bytes(head[1..].try_into().expect("four bytes")) as usize, lines.len());
    assert!(lines.is_empty() || lines.ends_with(b"\r\n"));
});
