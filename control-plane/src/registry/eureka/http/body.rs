//! Reads a body into memory, of which there is only so much, in a time of which there is only so much.

use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use futures_util::StreamExt;
use tokio::sync::Semaphore;

use crate::registry::eureka::refusal::Refusal;

/// For a body to arrive. A registration is one packet or two.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// What is read and thrown away of a body that is too large, so that its sender gets to read why. One that sends
/// more finds the connection closed.
const DISCARD_BYTES: usize = 32 << 20;

/// A body up to that size is read whenever it comes; registrations are 2 to 8 KiB.
const SMALL_BYTES: usize = 64 << 10;
/// Larger ones at once; more of them wait.
pub(in crate::registry::eureka) const LARGE_AT_ONCE: usize = 32;

pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limit_bytes: usize,
    large: &Semaphore,
) -> Result<Vec<u8>, Refusal> {
    match tokio::time::timeout(READ_TIMEOUT, collect(headers, body, limit_bytes, large)).await {
        Ok(read) => read,
        Err(_) => Err(Refusal::Incomplete(format!("nothing more within {} s", READ_TIMEOUT.as_secs()))),
    }
}

async fn collect(
    headers: &HeaderMap,
    body: Body,
    limit_bytes: usize,
    large: &Semaphore,
) -> Result<Vec<u8>, Refusal> {
    let mut permit = None;
    let said = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let mut too_large = said.is_some_and(|length| length > limit_bytes);
    let mut collected = Vec::with_capacity(said.filter(|_| !too_large).unwrap_or(0).min(SMALL_BYTES));
    let mut read_bytes = 0;
    let mut parts = body.into_data_stream();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| Refusal::Incomplete(error.to_string()))?;
        read_bytes += part.len();
        if read_bytes > limit_bytes {
            too_large = true;
            collected = Vec::new();
        }
        if read_bytes > DISCARD_BYTES {
            break;
        }
        if !too_large {
            if permit.is_none() && read_bytes > SMALL_BYTES {
                permit = Some(large.acquire().await.map_err(|error| Refusal::Incomplete(error.to_string()))?);
            }
            collected.extend_from_slice(&part);
        }
    }
    if too_large { Err(Refusal::TooLarge { limit_bytes }) } else { Ok(collected) }
}
