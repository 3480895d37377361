//! What is fuzzed of this room.

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::channel::Channel;
use super::give::asked_for;

/// A line's word, and the socket that it is about.
type Line = (String, Option<(SocketAddr, String)>);

/// The lines that another process' bytes are, each with the socket that it asks for, where it does. No more than a
/// socket's buffer of bytes.
pub fn lines(bytes: &[u8]) -> std::io::Result<Vec<Line>> {
    let (mut theirs, ours) = UnixStream::pair()?;
    theirs.write_all(bytes)?;
    theirs.shutdown(Shutdown::Write)?;
    let mut channel = Channel::new(ours, Duration::from_secs(5))?;
    let mut lines = Vec::new();
    while let Ok((text, _)) = channel.receive() {
        let asked = asked_for(&text).map(|(address, name)| (address, name.to_owned()));
        lines.push((text, asked));
    }
    Ok(lines)
}
