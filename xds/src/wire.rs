//! Encoded messages, field by field, where they stand: nothing is decoded.

use std::ops::Range;

use prost::encoding::{WireType, decode_key, decode_varint};

/// Where a field stands in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Its number.
    pub number: u32,
    /// All of it, with its key and length.
    pub whole: Range<usize>,
    /// What is in it, of a message, text or bytes. `None`: it is a number.
    pub content: Option<Range<usize>>,
}

/// Gives each field of a message, in order. `None`: from there on it is no message, or has a group, which nobody writes any
/// more.
pub fn each_field(message: &[u8], mut take: impl FnMut(Field)) -> Option<()> {
    let mut rest = message;
    while !rest.is_empty() {
        let begin = message.len() - rest.len();
        let (number, wire_type) = decode_key(&mut rest).ok()?;
        let length = match wire_type {
            WireType::Varint => decode_varint(&mut rest).map(|_| 0).ok()?,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut rest).ok()?).ok()?,
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        let value = message.len() - rest.len();
        rest = rest.get(length..)?;
        let end = message.len() - rest.len();
        let content = (wire_type == WireType::LengthDelimited).then_some(value..end);
        take(Field { number, whole: begin..end, content });
    }
    Some(())
}

/// Sorts the entries of the map that is found by these field numbers, the last of which is the map's. In place: the
/// entries of a map stand together, and whatever their order they have the same length. `None`: it is no message, and left
/// as it is from there on.
pub(crate) fn sort(message: &mut [u8], path: &[u32]) -> Option<()> {
    let (number, below) = path.split_first()?;
    let (mut entries, mut inner) = (Vec::new(), Vec::new());
    each_field(message, |field| match field.content {
        Some(_) if field.number == *number && below.is_empty() => entries.push(field.whole),
        Some(content) if field.number == *number => inner.push(content),
        _ => {}
    })?;
    for content in inner {
        sort(message.get_mut(content)?, below)?;
    }
    let [first, .., last] = entries.as_slice() else { return Some(()) };
    let all = first.start..last.end;
    let mut sorted: Vec<&[u8]> = entries.iter().filter_map(|entry| message.get(entry.clone())).collect();
    sorted.sort_unstable();
    let sorted = sorted.concat();
    if sorted.len() == all.len() {
        message.get_mut(all)?.copy_from_slice(&sorted);
    }
    Some(())
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
