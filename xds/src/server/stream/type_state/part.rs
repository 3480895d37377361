//! What goes into one response, and what of an answer to it is kept.

use std::sync::Arc;

use crate::resource::Resource;

/// Of a refusal's message, which is kept and shown.
const MAX_NACK_BYTES: usize = 8 * 1024;

/// The contents of a response.
#[derive(Debug, Default)]
pub(in super::super) struct Part {
    pub(in super::super) removed: Vec<Arc<str>>,
    /// What is new to the client.
    pub(in super::super) changed: Vec<Resource>,
    /// What the client is rid of with this response.
    pub(super) gone: Vec<Arc<str>>,
}

/// Keeps the first items, at least one, up to so many bytes. The rest waits for the next response, so that none grows
/// beyond what gRPC clients take.
pub(super) fn shorten<T>(items: &mut Vec<T>, max_bytes: usize, size: impl Fn(&T) -> usize) {
    let mut left = max_bytes;
    let mut kept = 0;
    for item in items.iter() {
        let Some(less) = left.checked_sub(size(item)) else { break };
        left = less;
        kept += 1;
    }
    items.truncate(kept.max(1));
}

/// The client's words, as far as they are kept.
pub(in crate::server) fn shortened(message: &str) -> String {
    message[..message.floor_char_boundary(MAX_NACK_BYTES)].to_owned()
}
