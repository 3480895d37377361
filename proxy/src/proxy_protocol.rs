//! The PROXY protocol, versions 1 and 2 (proxy-protocol.txt of HAProxy): whom a connection's peer stands for, told
//! before its first byte. The bytes are the crate `ppp`'s to read and to write; here is how many of them there may be
//! and what is made of each form.

use std::net::SocketAddr;

use ppp::v2::{Command, Protocol};
use ppp::{PartialResult as _, v1, v2};

/// Longest of version 1, with its line end.
const MOST_V1: usize = 107;
/// Longest of version 2: its extensions could be 64 KiB, and those that are in use are a few hundred bytes.
pub(crate) const MOST_BYTES: usize = 4_096;
const START_V1: &[u8] = b"PROXY ";
/// Signature, command, family and length.
const HEAD_V2: usize = 16;

/// The two forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Both ends of the connection that the peer stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// Where it had connected to.
    pub destination: SocketAddr,
}

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// They may become a header.
    Unfinished,
    /// No header.
    Absent,
    /// A header of that many bytes.
    Header {
        version: Version,
        length: usize,
        /// `None`: the peer speaks for itself, or for a client without an IP address.
        addresses: Option<Addresses>,
    },
}

/// A header that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the PROXY protocol header is malformed: {0}")]
pub(crate) struct Malformed(String);

/// Reads the header that `bytes` begin with. More than [`MOST_BYTES`] are never needed.
pub(crate) fn read(bytes: &[u8]) -> Result<Beginning, Malformed> {
    let begins = |start: &[u8]| bytes.starts_with(start) || start.starts_with(bytes);
    if begins(v2::PROTOCOL_PREFIX) {
        read_v2(bytes)
    } else if begins(START_V1) {
        read_v1(bytes)
    } else {
        Ok(Beginning::Absent)
    }
}

fn read_v1(bytes: &[u8]) -> Result<Beginning, Malformed> {
    let line = &bytes[..bytes.len().min(MOST_V1)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        if line.len() == MOST_V1 {
            return Err(Malformed(format!("no end of line within {MOST_V1} bytes")));
        }
        return Ok(Beginning::Unfinished);
    };
    let header = v1::Header::try_from(&line[..=end]).map_err(|error| Malformed(error.to_string()))?;
    let addresses = match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(ip) => Some(Addresses {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        }),
        v1::Addresses::Tcp6(ip) => Some(Addresses {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        }),
    };
    Ok(Beginning::Header { version: Version::V1, length: end + 1, addresses })
}

fn read_v2(bytes: &[u8]) -> Result<Beginning, Malformed> {
    if let Some(&[high, low]) = bytes.get(HEAD_V2 - 2..HEAD_V2) {
        let length = HEAD_V2 + usize::from(u16::from_be_bytes([high, low]));
        if length > MOST_BYTES {
            return Err(Malformed(format!("it is {length} bytes long; the most is {MOST_BYTES}")));
        }
    }
    let header = match v2::Header::try_from(bytes) {
        Ok(header) => header,
        Err(error) if error.is_incomplete() => return Ok(Beginning::Unfinished),
        Err(error) => return Err(Malformed(error.to_string())),
    };
    let length = header.len();
    let stream = header.command == Command::Proxy && header.protocol == Protocol::Stream;
    let addresses = match header.addresses {
        v2::Addresses::IPv4(ip) if stream => Some(Addresses {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        }),
        v2::Addresses::IPv6(ip) if stream => Some(Addresses {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        }),
        _ => None,
    };
    Ok(Beginning::Header { version: Version::V2, length, addresses })
}

/// The header for a connection on behalf of a client; without one, for a connection of our own. Addresses of two
/// families, which no header can tell, are told as one: IPv4 within IPv6.
pub(crate) fn header(version: Version, client: Option<Addresses>) -> Vec<u8> {
    let ends = client.map(|Addresses { source, destination }| one_family(source, destination));
    match version {
        Version::V1 => {
            let addresses = ends.map_or(v1::Addresses::Unknown, v1::Addresses::from);
            addresses.to_string().into_bytes()
        }
        Version::V2 => {
            let command = if ends.is_some() { Command::Proxy } else { Command::Local };
            let addresses = ends.map_or(v2::Addresses::Unspecified, v2::Addresses::from);
            let protocol = if ends.is_some() { Protocol::Stream } else { Protocol::Unspecified };
            let header = v2::Builder::with_addresses(v2::Version::Two | command, protocol, addresses);
            // It fails for more than 64 KiB of extensions, and there are none.
            header.build().unwrap_or_default()
        }
    }
}

fn one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let mapped = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
        v6 => v6,
    };
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    (mapped(source), mapped(destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(source: &str, destination: &str) -> Addresses {
        Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = v2::PROTOCOL_PREFIX.to_vec();
        bytes.extend([command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_header_of_each_form_is_read_whole_and_byte_by_byte() {
        let four = addresses("192.0.2.1:56324", "192.0.2.2:443");
        let six = addresses("[2001:db8::1]:1", "[2001:db8::2]:65535");
        let mut with_extension = vec![192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 0x04, 1, 187];
        with_extension.extend([1, 0, 2, b'h', b'2']);
        for (header, version, expected) in [
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n".to_vec(), Version::V1, Some(four)),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n".to_vec(), Version::V1, Some(six)),
            (b"PROXY UNKNOWN\r\n".to_vec(), Version::V1, None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), Version::V1, None),
            (header(Version::V2, Some(four)), Version::V2, Some(four)),
            (header(Version::V2, Some(six)), Version::V2, Some(six)),
            (header(Version::V2, None), Version::V2, None),
            (v2(0x21, 0x11, &with_extension), Version::V2, Some(four)),
            // A health check of the balancer's, whatever addresses it gives.
            (v2(0x20, 0x11, &with_extension), Version::V2, None),
            (v2(0x21, 0x31, &[0; 216]), Version::V2, None),
            (v2(0x21, 0x00, &[]), Version::V2, None),
        ] {
            let (length, mut bytes) = (header.len(), header);
            for end in 0..length {
                assert_eq!(read(&bytes[..end]), Ok(Beginning::Unfinished), "{:?}", &bytes[..end]);
            }
            bytes.extend(b"GET / HTTP/1.1\r\n");
            assert_eq!(read(&bytes), Ok(Beginning::Header { version, length, addresses: expected }));
        }
    }

    #[test]
    fn what_begins_otherwise_is_no_header() {
        for bytes in
            [b"GET / ".as_slice(), b"POST / ", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n", b"\r\n\r\nGET"]
        {
            assert_eq!(read(bytes), Ok(Beginning::Absent), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_malformed_is_told() {
        let long = [START_V1, &[b'1'; 200]].concat();
        for bytes in [
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n".as_slice(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 65536\r\n",
            b"PROXY TCP4 192.0.2.1 2001:db8::2 1 2\r\n",
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            b"PROXY TCP4 0192.0.2.1 192.0.2.2 1 2\r\n",
            &long,
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x41, &[0; 12]),
            &v2(0x21, 0x11, &[0; 5_000]),
        ] {
            assert!(read(bytes).is_err(), "{:?} is {:?}", String::from_utf8_lossy(bytes), read(bytes));
        }
    }

    #[test]
    fn what_is_written_is_what_the_specification_shows() {
        let four = addresses("192.0.2.1:56324", "192.0.2.2:443");
        assert_eq!(header(Version::V1, Some(four)), b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n");
        assert_eq!(header(Version::V1, None), b"PROXY UNKNOWN\r\n");
        assert_eq!(
            header(Version::V2, Some(four)),
            v2(0x21, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 0x04, 1, 187])
        );
        assert_eq!(header(Version::V2, None), v2(0x20, 0x00, &[]));
        let mixed = addresses("192.0.2.1:1", "[2001:db8::2]:2");
        assert_eq!(header(Version::V1, Some(mixed)), b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n");
    }

    proptest::proptest! {
        #[test]
        fn nothing_from_outside_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            for start in [b"".as_slice(), START_V1, v2::PROTOCOL_PREFIX, &[v2::PROTOCOL_PREFIX, b"\x21\x11"].concat()] {
                let _ = read(&[start, &bytes].concat());
            }
        }
    }
}
