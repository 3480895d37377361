//! What `--mode tproxy` needs beside rules: marked packets are routed to this machine itself, by a rule and a table
//! of one route, for each family.

use std::io;

use super::InterceptError;
use super::netlink::{ACK, CREATE, DUMP, EXCL, Message, REPLACE, Socket, Writer, bytes};
use super::options::{Options, REPLY_MARK};

/// The routing table; nobody else's by its number.
const TABLE: u32 = 15_006;
const FAMILIES: [(u8, &str); 2] = [(2, "-4"), (10, "-6")];
const LOOPBACK_INDEX: u32 = 1;

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;
/// Of `rtmsg` and of `fib_rule_hdr`.
const FIXED_BYTES: usize = 12;
/// Before the main table; without it the kernel would choose another each time.
const PRIORITY: u32 = 15_006;
const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_TABLE: u16 = 15;
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_TABLE: u16 = 15;

/// Sets both up. What is there already stays.
pub(super) fn up() -> Result<(), InterceptError> {
    const EEXIST: i32 = 17;
    let failed = |error| InterceptError::kernel("cannot set the routing of marked packets", error);
    let socket = Socket::open(None).map_err(failed)?;
    for (family, _) in FAMILIES {
        match socket.acknowledged(&route(family, NEW_ROUTE, CREATE | REPLACE)) {
            // A machine without IPv6 has no packets of it either.
            Err(error) if family == 10 && is_absent(&error) => continue,
            other => other.map_err(failed)?,
        }
        match socket.acknowledged(&rule(family, NEW_RULE, CREATE | EXCL)) {
            Err(error) if error.raw_os_error() == Some(EEXIST) => {}
            other => other.map_err(failed)?,
        }
    }
    Ok(())
}

/// Removes both, where they are.
pub(super) fn down() -> Result<(), InterceptError> {
    let failed = |error| InterceptError::kernel("cannot remove the routing of marked packets", error);
    let socket = Socket::open(None).map_err(failed)?;
    for (family, _) in FAMILIES {
        if has_rule(&socket, family).map_err(failed)? {
            socket.acknowledged(&rule(family, DELETE_RULE, 0)).map_err(failed)?;
        }
        if has_route(&socket, family).map_err(failed)? {
            socket.acknowledged(&route(family, DELETE_ROUTE, 0)).map_err(failed)?;
        }
    }
    Ok(())
}

/// What is in force, as `ip` takes it.
pub(super) fn read() -> Result<Vec<String>, InterceptError> {
    let failed = |error| InterceptError::kernel("cannot read the routing of marked packets", error);
    let socket = Socket::open(None).map_err(failed)?;
    let mut lines = Vec::new();
    for (family, flag) in FAMILIES {
        if has_rule(&socket, family).map_err(failed)? {
            lines.push(rule_text(flag));
        }
        if has_route(&socket, family).map_err(failed)? {
            lines.push(route_text(flag));
        }
    }
    Ok(lines)
}

/// What would be set up, as comments for `nft`.
pub(super) fn text(options: &Options) -> String {
    if !options.needs_policy_routing() {
        return String::new();
    }
    FAMILIES.iter().map(|(_, flag)| format!("# {}\n# {}\n", rule_text(flag), route_text(flag))).collect()
}

fn rule_text(flag: &str) -> String {
    format!("ip {flag} rule add priority {PRIORITY} fwmark {REPLY_MARK} lookup {TABLE}")
}

fn route_text(flag: &str) -> String {
    format!("ip {flag} route add local default dev lo table {TABLE}")
}

fn is_absent(error: &io::Error) -> bool {
    const EOPNOTSUPP: i32 = 95;
    const EAFNOSUPPORT: i32 = 97;
    const EACCES: i32 = 13;
    // EACCES: the interface has IPv6 turned off by sysctl.
    matches!(error.raw_os_error(), Some(EOPNOTSUPP | EAFNOSUPPORT | EACCES))
}

fn route(family: u8, ty: u16, flags: u16) -> Writer {
    const STATIC: u8 = 4;
    const HOST: u8 = 254;
    const LOCAL: u8 = 2;
    let mut writer = Writer::default();
    writer.message(ty, flags | ACK, &[family, 0, 0, 0, 0, STATIC, HOST, LOCAL, 0, 0, 0, 0], |w| {
        w.ne32(ROUTE_INTERFACE, LOOPBACK_INDEX);
        w.ne32(ROUTE_TABLE, TABLE);
    });
    writer
}

fn rule(family: u8, ty: u16, flags: u16) -> Writer {
    const TO_TABLE: u8 = 1;
    let mut writer = Writer::default();
    writer.message(ty, flags | ACK, &[family, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0], |w| {
        w.ne32(RULE_PRIORITY, PRIORITY);
        w.ne32(RULE_MARK, REPLY_MARK);
        w.ne32(RULE_TABLE, TABLE);
    });
    writer
}

fn has_rule(socket: &Socket, family: u8) -> io::Result<bool> {
    let is_ours = |message: &Message| {
        [(RULE_PRIORITY, PRIORITY), (RULE_MARK, REPLY_MARK), (RULE_TABLE, TABLE)]
            .iter()
            .all(|(ty, value)| number(message, *ty) == Some(*value))
    };
    Ok(dump(socket, family, GET_RULE)?.iter().any(is_ours))
}

fn has_route(socket: &Socket, family: u8) -> io::Result<bool> {
    let is_ours = |message: &Message| number(message, ROUTE_TABLE) == Some(TABLE);
    Ok(dump(socket, family, GET_ROUTE)?.iter().any(is_ours))
}

fn dump(socket: &Socket, family: u8, ty: u16) -> io::Result<Vec<Message>> {
    let mut request = Writer::default();
    request.message(ty, DUMP, &[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], |_| {});
    match socket.dump(&request) {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        // A family that the kernel does not have is answered for by another, which has none of ours.
        Ok(all) => Ok(all.into_iter().filter(|m| m.fixed(1) == Some(&[family][..])).collect()),
        other => other,
    }
}

fn number(message: &Message, ty: u16) -> Option<u32> {
    message.attributes(FIXED_BYTES).get(ty).and_then(|value| bytes(value, 0)).map(u32::from_ne_bytes)
}
