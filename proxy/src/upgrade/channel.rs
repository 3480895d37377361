//! Lines of text with sockets beside them, over a Unix stream socket. Blocking, with a timeout: it is used off the
//! request path only, a line at a time.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::describe;

/// The longest line: an address and a listener's name.
const MAX_LINE: usize = 4 * 1024;
/// The most sockets of one answer: one for each of as many workers as there can be.
const MAX_SOCKETS: usize = 1_024;
/// Sockets of one message; Linux takes 253.
const CHUNK: usize = 64;

/// One end.
#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
}

impl Channel {
    /// Fails where the other end is a stranger's.
    pub(super) fn new(stream: UnixStream, timeout: Duration) -> io::Result<Self> {
        let peer = rustix::net::sockopt::socket_peercred(&stream)?;
        if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
            let reason = format!("{} is not one to hand sockets to or to take them from", describe(&peer));
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream })
    }

    /// A line: its number of sockets, then its text; then as many bytes as sockets, which come with them.
    pub(super) fn send(&mut self, text: &str, sockets: &[TcpListener]) -> io::Result<()> {
        io::Write::write_all(&mut self.stream, format!("{} {text}\n", sockets.len()).as_bytes())?;
        for chunk in sockets.chunks(CHUNK) {
            let descriptors: Vec<_> = chunk.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let bytes = [0; CHUNK];
            let sent = sendmsg(
                &self.stream,
                &[IoSlice::new(&bytes[..chunk.len()])],
                &mut control,
                SendFlags::NOSIGNAL,
            )?;
            if sent != chunk.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// The next line, and its sockets.
    pub(super) fn receive(&mut self) -> io::Result<(String, Vec<TcpListener>)> {
        let mut line = Vec::new();
        loop {
            // A byte at a time, so that none of a message with sockets is read here.
            let mut byte = [0];
            if io::Read::read(&mut self.stream, &mut byte)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match byte {
                [b'\n'] => break,
                _ if line.len() >= MAX_LINE => return Err(io::ErrorKind::InvalidData.into()),
                [byte] => line.push(byte),
            }
        }
        let line = String::from_utf8(line).map_err(io::Error::other)?;
        let (count, text) = line.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        let count: usize = count.parse().map_err(io::Error::other)?;
        if count > MAX_SOCKETS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut sockets = Vec::with_capacity(count);
        while sockets.len() < count {
            self.receive_sockets(count - sockets.len(), &mut sockets)?;
        }
        Ok((text.to_owned(), sockets))
    }

    fn receive_sockets(&mut self, most: usize, sockets: &mut Vec<TcpListener>) -> io::Result<()> {
        let mut bytes = [0; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut bytes[..most.min(CHUNK)])];
        let received = recvmsg(&self.stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let before = sockets.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                sockets.extend(descriptors.map(|descriptor: OwnedFd| TcpListener::from(descriptor)));
            }
        }
        if received.bytes == 0 || sockets.len() == before {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_sockets_arrive_as_they_were_sent() {
        let (left, right) = UnixStream::pair().unwrap();
        let timeout = Duration::from_secs(5);
        let (mut left, mut right) =
            (Channel::new(left, timeout).unwrap(), Channel::new(right, timeout).unwrap());
        let sockets: Vec<_> = (0..150).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses = |sockets: &[TcpListener]| {
            sockets.iter().map(|socket| socket.local_addr().unwrap()).collect::<Vec<_>>()
        };
        left.send("hello", &[]).unwrap();
        left.send("sockets", &sockets).unwrap();
        left.send("one more", &sockets[..1]).unwrap();
        assert_eq!(right.receive().unwrap().0, "hello");
        let (text, received) = right.receive().unwrap();
        assert_eq!((text.as_str(), addresses(&received)), ("sockets", addresses(&sockets)));
        assert_eq!(addresses(&right.receive().unwrap().1), addresses(&sockets[..1]));
        drop(left);
        assert_eq!(right.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
