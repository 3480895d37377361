//! Netlink messages (RFC 3549; linux/netlink.h): a writer of nested attributes, a reader of what comes back, and a
//! socket on which a request is answered before the next is sent. Nothing here knows what the messages mean.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
    sockopt,
};

/// Flags of `nlmsghdr`.
pub(super) const REQUEST: u16 = 0x01;
pub(super) const ACK: u16 = 0x04;
pub(super) const DUMP: u16 = 0x300;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const EXCL: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;
const NESTED: u16 = 0x8000;
/// The kernel sends no dump in larger pieces.
const RECEIVE_BYTES: usize = 64 * 1024;
/// The kernel answers at once; whoever waits longer waits for nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// Messages that are being written.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// A message of this type, with its fixed part; then what `attributes` writes.
    pub(super) fn message(
        &mut self,
        ty: u16,
        flags: u16,
        fixed: &[u8],
        attributes: impl FnOnce(&mut Writer),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(ty.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        // No sequence: one request is on its way at a time. Port id 0 is the kernel's.
        self.bytes.extend([0; 8]);
        self.bytes.extend(fixed);
        self.pad();
        attributes(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(super) fn attribute(&mut self, ty: u16, value: &[u8]) {
        let length = (ATTRIBUTE_BYTES + value.len()) as u16;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(ty.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    /// In network order, as netfilter has its numbers.
    pub(super) fn be32(&mut self, ty: u16, value: u32) {
        self.attribute(ty, &value.to_be_bytes());
    }

    /// In the machine's order, as routing has its numbers.
    pub(super) fn ne32(&mut self, ty: u16, value: u32) {
        self.attribute(ty, &value.to_ne_bytes());
    }

    /// Ends with a zero.
    pub(super) fn string(&mut self, ty: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(ty, &bytes);
    }

    pub(super) fn nest(&mut self, ty: u16, inside: impl FnOnce(&mut Writer)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((ty | NESTED).to_ne_bytes());
        inside(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message that came, without its header.
#[derive(Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// The fixed part, where it is that long.
    pub(super) fn fixed(&self, length: usize) -> Option<&[u8]> {
        self.bytes.get(..length)
    }

    /// The attributes behind a fixed part.
    pub(super) fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes { rest: self.bytes.get(fixed.next_multiple_of(4)..).unwrap_or_default() }
    }
}

/// Type and value of each attribute, up to the first that is cut short.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes inside an attribute.
    pub(super) fn within(value: &'a [u8]) -> Self {
        Self { rest: value }
    }

    /// The first of this type.
    pub(super) fn get(mut self, ty: u16) -> Option<&'a [u8]> {
        self.find(|(found, _)| *found == ty).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(bytes(self.rest, 0)?));
        let ty = u16::from_ne_bytes(bytes(self.rest, 2)?) & !NESTED;
        let value = self.rest.get(ATTRIBUTE_BYTES..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((ty, value))
    }
}

/// `N` bytes from a place on.
pub(super) fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}

/// A string up to its zero.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A netlink socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// `None`: routing (`NETLINK_ROUTE` is 0).
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { fd })
    }

    /// Sends messages of which the last asks for an ACK, and waits for that or for the first error.
    pub(super) fn acknowledged(&self, messages: &Writer) -> io::Result<()> {
        self.send(messages)?;
        loop {
            for (ty, message) in self.receive()? {
                if ty == ERROR {
                    return result(&message);
                }
            }
        }
    }

    /// Sends a request for a dump and gives all that comes.
    pub(super) fn dump(&self, request: &Writer) -> io::Result<Vec<Message>> {
        self.send(request)?;
        let mut all = Vec::new();
        loop {
            for (ty, message) in self.receive()? {
                match ty {
                    DONE => return Ok(all),
                    ERROR => result(&message)?,
                    _ => all.push(message),
                }
            }
        }
    }

    fn send(&self, messages: &Writer) -> io::Result<()> {
        sendto(&self.fd, &messages.bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<(u16, Message)>> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        let (_, length) = recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = buffer.get(..length).ok_or(io::ErrorKind::InvalidData)?;
        let mut found = Vec::new();
        while let (Some(length), Some(ty)) = (bytes(rest, 0), bytes(rest, 4)) {
            let length = u32::from_ne_bytes(length) as usize;
            let Some(body) = rest.get(HEADER_BYTES..length) else { break };
            found.push((u16::from_ne_bytes(ty), Message { bytes: body.to_vec() }));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(found)
    }
}

/// `nlmsgerr`: 0 is an ACK, else an error number below zero.
fn result(message: &Message) -> io::Result<()> {
    match message.fixed(4).and_then(|fixed| bytes(fixed, 0)).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut writer = Writer::default();
        writer.message(7, CREATE, &[1, 2, 3, 4], |w| {
            w.string(1, "table");
            w.nest(2, |w| w.be32(3, 0x0102_0304));
            w.attribute(4, &[9]);
        });
        let length = u32::from_ne_bytes(bytes(&writer.bytes, 0).unwrap()) as usize;
        assert_eq!(length, writer.bytes.len());
        let message = Message { bytes: writer.bytes[HEADER_BYTES..].to_vec() };
        assert_eq!(message.fixed(4), Some(&[1, 2, 3, 4][..]));
        let attributes = message.attributes(4);
        assert_eq!(attributes.get(1).map(text).as_deref(), Some("table"));
        assert_eq!(Attributes::within(attributes.get(2).unwrap()).get(3), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attributes.get(4), Some(&[9][..]));
        assert_eq!(attributes.get(5), None);
    }

    #[test]
    fn what_is_cut_short_ends_the_reading() {
        for length in 0..12 {
            let bytes = [12, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8];
            assert_eq!(Attributes::within(&bytes[..length]).count(), 0, "{length}");
        }
        assert_eq!(Attributes::within(&[3, 0, 1, 0]).count(), 0);
    }
}
