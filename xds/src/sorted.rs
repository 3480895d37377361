//! The entries of a map in one order. prost writes a map in the map's own, which is another in each process, and a
//! version is a hash of the bytes.

use std::ops::Range;

use prost::DecodeError;
use prost::encoding::{WireType, decode_key, decode_varint};

/// Sorts the entries of the map that is found by these field numbers, the last of which is the map's. In place: the
/// entries of a map stand together, and whatever their order they have the same length.
///
/// # Errors
/// When the bytes are no message.
pub(crate) fn sort(message: &mut [u8], path: &[u32]) -> Result<(), DecodeError> {
    let Some((field, below)) = path.split_first() else { return Ok(()) };
    let mut entries = Vec::new();
    for (whole, body) in fields(message, *field)? {
        match below {
            [] => entries.push(whole),
            below => sort(&mut message[body], below)?,
        }
    }
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
    let all = first.start..last.end;
    let mut sorted: Vec<&[u8]> = entries.iter().map(|entry| &message[entry.clone()]).collect();
    sorted.sort_unstable();
    let sorted = sorted.concat();
    if sorted.len() == all.len() {
        message[all].copy_from_slice(&sorted);
    }
    Ok(())
}

/// Where a message is, with and without its key and length.
type Place = (Range<usize>, Range<usize>);

/// Where a field's messages are.
fn fields(message: &[u8], field: u32) -> Result<Vec<Place>, DecodeError> {
    let mut found = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = message.len() - rest.len();
        let (tag, wire_type) = decode_key(&mut rest)?;
        let bytes = match wire_type {
            WireType::Varint => decode_varint(&mut rest).map(|_| 0)?,
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => decode_varint(&mut rest)?,
            WireType::StartGroup | WireType::EndGroup => return Ok(found),
        };
        let body = message.len() - rest.len();
        let after = usize::try_from(bytes).ok().and_then(|bytes| rest.get(bytes..));
        let Some(after) = after else { return Ok(found) };
        rest = after;
        let end = message.len() - rest.len();
        if tag == field && wire_type == WireType::LengthDelimited {
            found.push((start..end, body..end));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};
    use crate::pb::google::protobuf::Any;

    #[test]
    fn a_map_of_any_order_is_written_in_one() {
        let configuration = || {
            let route = |name: &str| Route {
                name: name.to_owned(),
                typed_per_filter_config: ["one", "two", "three", "more", "of-them"]
                    .map(|filter| (filter.to_owned(), Any { type_url: filter.repeat(50), value: vec![1] }))
                    .into(),
                ..Route::default()
            };
            let host = |name: &str| VirtualHost {
                name: name.to_owned(),
                routes: vec![route("a"), Route::default(), route("b")],
                include_request_attempt_count: true,
                ..VirtualHost::default()
            };
            RouteConfiguration {
                name: "routes".to_owned(),
                virtual_hosts: vec![host("a"), VirtualHost::default(), host("b")],
                ..RouteConfiguration::default()
            }
        };
        let sorted = || {
            let mut bytes = configuration().encode_to_vec();
            sort(&mut bytes, &[2, 3, 13]).unwrap();
            assert_eq!(RouteConfiguration::decode(&*bytes).unwrap(), configuration());
            bytes
        };
        let first = sorted();
        for _ in 0..5 {
            assert_eq!(sorted(), first);
        }
    }

    #[test]
    fn what_is_no_message_is_left_as_it_is() {
        for bytes in
            [&b"\x12\xff"[..], b"\x12", b"\x00", b"\x13\x01", b"\x12\x7f\x01", b"\xff\xff\xff\xff\xff"]
        {
            let mut left = bytes.to_vec();
            let _ = sort(&mut left, &[2]);
            assert_eq!(left, bytes);
        }
    }
}
