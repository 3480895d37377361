//! Ports for programs that cannot be told to take a free one. Below 32768, where the kernel hands out none to
//! outgoing connections.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use anyhow::bail;

const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;
const TRIES: usize = 1000;

static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that nobody listens on now, and that this process has not given out before.
///
/// # Errors
/// When a thousand ports in a row are taken.
pub fn free() -> anyhow::Result<u16> {
    for _ in 0..TRIES {
        let port = fastrand::u16(FIRST..LAST);
        let first_time = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(port);
        if first_time && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {LAST}");
}
