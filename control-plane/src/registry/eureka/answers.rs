//! The two answers that every client asks for every 30 s, the full list and the delta, encoded once for each
//! change and format and shared by all who ask. There is no age: a change makes them anew at the next request.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::OnceCell;

use super::refusal::Refusal;
use super::wire::{Detail, Format, Listing, json, xml};

/// An answer in both framings.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// As it is.
    pub plain: Bytes,
    /// For `Accept-Encoding: gzip`.
    pub gzip: Bytes,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// `GET apps`.
    Full,
    /// `GET apps/delta`.
    Delta,
}

type Slot = Mutex<(u64, Arc<OnceCell<Encoded>>)>;

/// One slot for each form of an answer.
#[derive(Debug, Default)]
pub struct Answers {
    slots: [Slot; 8],
}

impl Answers {
    /// The answer at `revision` or newer, made from what `listing` gives if nobody has made it yet. Who comes
    /// while it is being made waits for that one.
    pub async fn get(
        &self,
        what: What,
        format: Format,
        detail: Detail,
        revision: u64,
        listing: impl Fn() -> Option<Listing>,
    ) -> Result<Encoded, Refusal> {
        let number = 4 * usize::from(what == What::Delta)
            + 2 * usize::from(format == Format::Xml)
            + usize::from(detail == Detail::Compact);
        let cell = {
            let mut slot = self.slots[number].lock().unwrap_or_else(PoisonError::into_inner);
            if slot.0 != revision {
                *slot = (revision, Arc::default());
            }
            slot.1.clone()
        };
        let make = || async {
            let listing = listing().ok_or(Refusal::NoDelta)?;
            let encode = move || {
                let plain = match format {
                    Format::Json => json::applications(&listing, detail)?,
                    Format::Xml => xml::applications(&listing, detail),
                };
                let gzip = gzip(&plain).map_err(|error| Refusal::Encoding(error.to_string()))?;
                Ok(Encoded { plain: plain.into(), gzip: gzip.into() })
            };
            let encoded = tokio::task::spawn_blocking(encode).await;
            encoded.map_err(|error| Refusal::Encoding(error.to_string()))?
        };
        cell.get_or_try_init(make).await.cloned()
    }
}

/// Fast rather than small: instance lists shrink to a tenth either way.
pub(super) fn gzip(plain: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 8 + 64), Compression::fast());
    encoder.write_all(plain)?;
    encoder.finish()
}
