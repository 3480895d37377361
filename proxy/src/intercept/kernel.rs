//! The ruleset as messages of nf_tables (linux/netfilter/nf_tables.h), sent as one batch: the kernel takes all of
//! it or nothing. Each rule counts what it matches and carries its own text as its comment.

use std::io;

use ipnet::IpNet;
use rustix::net::netlink::NETFILTER;

use super::InterceptError;
use super::netlink::{ACK, APPEND, Attributes, CREATE, DUMP, Message, Socket, Writer, bytes, text};
use super::options::Ports;
use super::ruleset::{Chain, Hook, Kind, Match, Rule, Ruleset, TABLE, Verdict};

/// `nfgenmsg`: family, version, and a number that a batch says the subsystem by.
const FIXED_BYTES: usize = 4;
const INET: [u8; FIXED_BYTES] = [1, 0, 0, 0];
const BATCH: [u8; FIXED_BYTES] = [0, 0, 0, 10];

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = message(0);
const DELETE_TABLE: u16 = message(2);
const NEW_CHAIN: u16 = message(3);
const GET_CHAIN: u16 = message(4);
const NEW_RULE: u16 = message(6);
const GET_RULE: u16 = message(7);

const fn message(number: u16) -> u16 {
    const SUBSYSTEM: u16 = 10;
    SUBSYSTEM << 8 | number
}

const TABLE_NAME: u16 = 1;
const TABLE_USER_DATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USER_DATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
/// The same number in nft's user data of tables and of rules.
const USER_DATA_COMMENT: u8 = 0;

/// Sixteen bytes, as an interface's name needs.
const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const ACCEPT: u32 = 1;
/// `NFT_RETURN`, -5.
const RETURN: u32 = 0xffff_fffb;

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_SKUID: u32 = 10;
const META_SKGID: u32 = 11;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_DIRECTION: u32 = 1;
const CT_MARK: u32 = 3;
/// Of a payload: from the beginning of the TCP or UDP header.
const TRANSPORT: u32 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Puts the rules in force in place of those that there are.
pub(super) fn replace(ruleset: &Ruleset) -> Result<(), InterceptError> {
    const DOING: &str = "cannot set the rules";
    let comment = concat!("pontoon-proxy ", env!("CARGO_PKG_VERSION"));
    let sent = transaction(|w| {
        w.message(NEW_TABLE, CREATE, &INET, |w| {
            w.string(TABLE_NAME, TABLE);
            w.attribute(TABLE_USER_DATA, &user_data(comment));
        });
        for chain in &ruleset.chains {
            w.message(NEW_CHAIN, CREATE, &INET, |w| write_chain(w, chain));
        }
        for chain in &ruleset.chains {
            for rule in &chain.rules {
                w.message(NEW_RULE, CREATE | APPEND, &INET, |w| write_rule(w, chain.name, rule));
            }
        }
    });
    sent.map_err(|error| InterceptError::kernel(DOING, error))
}

/// Takes the table away, where there is one.
pub(super) fn remove() -> Result<(), InterceptError> {
    transaction(|_| {}).map_err(|error| InterceptError::kernel("cannot remove the rules", error))
}

/// One batch that begins without a table of ours, whether there was one or not.
fn transaction(then: impl FnOnce(&mut Writer)) -> io::Result<()> {
    let mut batch = Writer::default();
    batch.message(BATCH_BEGIN, 0, &BATCH, |_| {});
    let name = |w: &mut Writer| w.string(TABLE_NAME, TABLE);
    batch.message(NEW_TABLE, CREATE, &INET, name);
    batch.message(DELETE_TABLE, 0, &INET, name);
    then(&mut batch);
    // A message that changes nothing, to be told the end by: errors come before it, and unasked.
    batch.message(NEW_TABLE, CREATE, &INET, |w| w.string(TABLE_NAME, MARKER));
    batch.message(DELETE_TABLE, ACK, &INET, |w| w.string(TABLE_NAME, MARKER));
    batch.message(BATCH_END, 0, &BATCH, |_| {});
    Socket::open(Some(NETFILTER))?.acknowledged(&batch)
}

/// Of a table that is gone by the end of the transaction that makes it.
const MARKER: &str = "pontoon-end";

fn write_chain(w: &mut Writer, chain: &Chain) {
    w.string(CHAIN_TABLE, TABLE);
    w.string(CHAIN_NAME, chain.name);
    w.nest(CHAIN_HOOK, |w| {
        w.be32(
            HOOK_NUMBER,
            match chain.hook {
                Hook::Prerouting => 0,
                Hook::Output => 3,
            },
        );
        w.attribute(HOOK_PRIORITY, &chain.priority.to_be_bytes());
    });
    w.be32(CHAIN_POLICY, ACCEPT);
    w.string(
        CHAIN_TYPE,
        match chain.kind {
            Kind::Nat => "nat",
            Kind::Filter => "filter",
            Kind::Route => "route",
        },
    );
}

fn write_rule(w: &mut Writer, chain: &str, rule: &Rule) {
    w.string(RULE_TABLE, TABLE);
    w.string(RULE_CHAIN, chain);
    w.nest(RULE_EXPRESSIONS, |w| {
        for matches in &rule.matches {
            write_match(w, matches);
        }
        expression(w, "counter", |_| {});
        write_verdict(w, rule.verdict);
    });
    w.attribute(RULE_USER_DATA, &user_data(&rule.to_string()));
}

fn user_data(comment: &str) -> Vec<u8> {
    let comment = &comment.as_bytes()[..comment.len().min(usize::from(u8::MAX) - 1)];
    let mut data = vec![USER_DATA_COMMENT, comment.len() as u8 + 1];
    data.extend(comment);
    data.push(0);
    data
}

fn write_match(w: &mut Writer, matches: &Match) {
    match matches {
        Match::Ipv6 => meta_is(w, META_NFPROTO, &[NFPROTO_IPV6]),
        Match::Tcp => meta_is(w, META_L4PROTO, &[TCP]),
        Match::Syn => {
            const FLAGS_AT: u32 = 13;
            const FIN_SYN_RST_ACK: u8 = 0x17;
            const SYN: u8 = 0x02;
            meta_is(w, META_L4PROTO, &[TCP]);
            payload(w, TRANSPORT, FLAGS_AT, 1);
            mask(w, &[FIN_SYN_RST_ACK]);
            is(w, &[SYN]);
        }
        Match::DnsTcp => destination_port(w, TCP, 53, 53),
        Match::DnsUdp => destination_port(w, UDP, 53, 53),
        Match::Mark(mark) => meta_is(w, META_MARK, &mark.to_ne_bytes()),
        Match::Uid(uid) => meta_is(w, META_SKUID, &uid.to_ne_bytes()),
        Match::Gid(gid) => meta_is(w, META_SKGID, &gid.to_ne_bytes()),
        Match::From(network) => address(w, network, 12, 8),
        Match::To(network) => address(w, network, 16, 24),
        Match::TcpPorts(Ports { first, last }) => destination_port(w, TCP, *first, *last),
        Match::InInterface(name) => meta_is(w, META_IIFNAME, &interface(name)),
        Match::OutInterface(name) => meta_is(w, META_OIFNAME, &interface(name)),
        Match::LocalDestination => {
            const ADDRESS_TYPE: u32 = 3;
            const OF_DESTINATION: u32 = 1 << 1;
            const LOCAL: u32 = 2;
            expression(w, "fib", |w| {
                w.be32(1, REGISTER);
                w.be32(2, ADDRESS_TYPE);
                w.be32(3, OF_DESTINATION);
            });
            is(w, &LOCAL.to_ne_bytes());
        }
        Match::Reply => connection_is(w, CT_DIRECTION, &[1]),
        Match::ConnectionMark(mark) => connection_is(w, CT_MARK, &mark.to_ne_bytes()),
    }
}

/// The whole name with its final zero, or the bytes that it begins with.
fn interface(name: &str) -> Vec<u8> {
    const NAME_BYTES: usize = 16;
    match name.strip_suffix('*') {
        Some(stem) => stem.as_bytes().to_vec(),
        None => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(NAME_BYTES, 0);
            bytes
        }
    }
}

fn destination_port(w: &mut Writer, protocol: u8, first: u16, last: u16) {
    const AT: u32 = 2;
    const NOT_LESS: u32 = 5;
    const NOT_MORE: u32 = 3;
    meta_is(w, META_L4PROTO, &[protocol]);
    payload(w, TRANSPORT, AT, 2);
    if first == last {
        is(w, &first.to_be_bytes());
    } else {
        compare(w, NOT_LESS, &first.to_be_bytes());
        compare(w, NOT_MORE, &last.to_be_bytes());
    }
}

/// The offsets are those of the address in an IPv4 and in an IPv6 header.
fn address(w: &mut Writer, network: &IpNet, at_v4: u32, at_v6: u32) {
    const NETWORK: u32 = 1;
    let (protocol, at, address, bits) = match network {
        IpNet::V4(net) => {
            (NFPROTO_IPV4, at_v4, net.addr().octets().to_vec(), net.netmask().octets().to_vec())
        }
        IpNet::V6(net) => {
            (NFPROTO_IPV6, at_v6, net.addr().octets().to_vec(), net.netmask().octets().to_vec())
        }
    };
    meta_is(w, META_NFPROTO, &[protocol]);
    payload(w, NETWORK, at, address.len() as u32);
    if network.prefix_len() < network.max_prefix_len() {
        mask(w, &bits);
    }
    is(w, &address);
}

fn mask(w: &mut Writer, bits: &[u8]) {
    expression(w, "bitwise", |w| {
        w.be32(1, REGISTER);
        w.be32(2, REGISTER);
        w.be32(3, bits.len() as u32);
        w.nest(4, |w| w.attribute(DATA_VALUE, bits));
        w.nest(5, |w| w.attribute(DATA_VALUE, &vec![0; bits.len()]));
    });
}

fn payload(w: &mut Writer, base: u32, offset: u32, length: u32) {
    expression(w, "payload", |w| {
        w.be32(1, REGISTER);
        w.be32(2, base);
        w.be32(3, offset);
        w.be32(4, length);
    });
}

fn meta_is(w: &mut Writer, key: u32, value: &[u8]) {
    expression(w, "meta", |w| {
        w.be32(1, REGISTER);
        w.be32(2, key);
    });
    is(w, value);
}

fn connection_is(w: &mut Writer, key: u32, value: &[u8]) {
    expression(w, "ct", |w| {
        w.be32(1, REGISTER);
        w.be32(2, key);
    });
    is(w, value);
}

fn is(w: &mut Writer, value: &[u8]) {
    const EQUAL: u32 = 0;
    compare(w, EQUAL, value);
}

fn compare(w: &mut Writer, operator: u32, value: &[u8]) {
    expression(w, "cmp", |w| {
        w.be32(1, REGISTER);
        w.be32(2, operator);
        w.nest(3, |w| w.attribute(DATA_VALUE, value));
    });
}

fn load(w: &mut Writer, value: &[u8]) {
    expression(w, "immediate", |w| {
        w.be32(1, REGISTER);
        w.nest(2, |w| w.attribute(DATA_VALUE, value));
    });
}

fn write_verdict(w: &mut Writer, verdict: Verdict) {
    match verdict {
        Verdict::Return => expression(w, "immediate", |w| {
            w.be32(1, REGISTER_VERDICT);
            w.nest(2, |w| w.nest(DATA_VERDICT, |w| w.be32(VERDICT_CODE, RETURN)));
        }),
        Verdict::Redirect(port) => {
            load(w, &port.to_be_bytes());
            expression(w, "redir", |w| w.be32(1, REGISTER));
        }
        Verdict::Tproxy(port) => {
            const ANY_FAMILY: u32 = 0;
            load(w, &port.to_be_bytes());
            expression(w, "tproxy", |w| {
                w.be32(1, ANY_FAMILY);
                w.be32(3, REGISTER);
            });
        }
        Verdict::SetMark(mark) => {
            load(w, &mark.to_ne_bytes());
            expression(w, "meta", |w| {
                w.be32(2, META_MARK);
                w.be32(3, REGISTER);
            });
        }
        Verdict::SetConnectionMark(mark) => {
            load(w, &mark.to_ne_bytes());
            expression(w, "ct", |w| {
                w.be32(2, CT_MARK);
                w.be32(4, REGISTER);
            });
        }
    }
}

fn expression(w: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    w.nest(LIST_ELEMENT, |w| {
        w.string(EXPRESSION_NAME, name);
        w.nest(EXPRESSION_DATA, data);
    });
}

/// A rule as the kernel has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InForce {
    pub(super) chain: String,
    /// `None`: not a rule of ours.
    pub(super) text: Option<String>,
    /// Nothing in chains of type nat but the first of a connection.
    pub(super) packets: u64,
}

/// Our table as the kernel has it.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) chains: Vec<String>,
    pub(super) rules: Vec<InForce>,
}

/// `None`: there is no such table.
pub(super) fn read() -> Result<Option<Table>, InterceptError> {
    let failed = |error| InterceptError::kernel("cannot read the rules", error);
    let socket = Socket::open(Some(NETFILTER)).map_err(failed)?;
    let dump = |ty, filter: &dyn Fn(&mut Writer)| {
        let mut request = Writer::default();
        request.message(ty, DUMP, &INET, |w| filter(w));
        socket.dump(&request).map_err(failed)
    };
    let mut chains = Vec::new();
    for message in dump(GET_CHAIN, &|_| {})? {
        let attributes = message.attributes(FIXED_BYTES);
        let name = |ty| attributes.get(ty).map(text);
        if name(CHAIN_TABLE).as_deref() == Some(TABLE) && message.fixed(1) == Some(&INET[..1]) {
            chains.extend(name(CHAIN_NAME));
        }
    }
    if chains.is_empty() {
        return Ok(None);
    }
    let rules = dump(GET_RULE, &|w| w.string(RULE_TABLE, TABLE))?;
    Ok(Some(Table { chains, rules: rules.iter().filter_map(rule).collect() }))
}

fn rule(message: &Message) -> Option<InForce> {
    let attributes = message.attributes(FIXED_BYTES);
    if attributes.get(RULE_TABLE).map(text).as_deref() != Some(TABLE) || message.fixed(1) != Some(&INET[..1])
    {
        return None;
    }
    let chain = text(attributes.get(RULE_CHAIN)?);
    let comment = attributes.get(RULE_USER_DATA).and_then(|data| match data {
        [USER_DATA_COMMENT, _, comment @ ..] => Some(text(comment)),
        _ => None,
    });
    let mut packets = 0;
    for (_, element) in Attributes::within(attributes.get(RULE_EXPRESSIONS)?) {
        let element = Attributes::within(element);
        if element.get(EXPRESSION_NAME).map(text).as_deref() == Some("counter") {
            let data = Attributes::within(element.get(EXPRESSION_DATA)?);
            packets =
                data.get(COUNTER_PACKETS).and_then(|value| bytes(value, 0)).map_or(0, u64::from_be_bytes);
        }
    }
    Some(InForce { chain, text: comment, packets })
}
