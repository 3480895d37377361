//! From options to rules. A connection is left alone by the first rule that says so, and brought to the proxy by the
//! last. Loops are ruled out by three of them: what bears the proxy's mark (or its user's id) is never touched, nor
//! is what goes to this machine itself, which is how the proxy reaches the application.

use std::fmt;
use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv6Net};

use super::options::{Exclusions, Mode, Options, Ports, REPLY_MARK};

/// The table's name; its family is `inet`.
pub(super) const TABLE: &str = "pontoon";

/// All rules, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub(super) chains: Vec<Chain>,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    pub(super) rules: Vec<Rule>,
}

/// The type of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Asked once a connection.
    Nat,
    /// Asked for each packet.
    Filter,
    /// The same, and the packet is routed anew when its mark changes.
    Route,
}

/// Where a chain is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting,
    Output,
}

/// `dstnat` and `mangle` in the language of nft.
/// Means nothing without the interface, which the kernel does not tell of where a connection was going (RFC 4007).
const LINK_LOCAL: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));
const DSTNAT: i32 = -100;
const MANGLE: i32 = -150;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// All must hold.
    pub(super) matches: Vec<Match>,
    pub(super) verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Match {
    Ipv6,
    Tcp,
    /// The first packet of a connection. Another may be the first that is seen of a connection which is older
    /// than the rules, and which would not outlive being redirected.
    Syn,
    DnsTcp,
    DnsUdp,
    Mark(u32),
    Uid(u32),
    Gid(u32),
    From(IpNet),
    To(IpNet),
    TcpPorts(Ports),
    InInterface(String),
    OutInterface(String),
    /// The destination is this machine.
    LocalDestination,
    /// The packet goes to whoever opened the connection.
    Reply,
    ConnectionMark(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Left alone.
    Return,
    Redirect(u16),
    Tproxy(u16),
    SetMark(u32),
    SetConnectionMark(u32),
}

/// The rules that do what the options say.
pub(super) fn of(options: &Options) -> Ruleset {
    let mut chains = Vec::new();
    if options.outbound.is_some() || options.dns.is_some() {
        chains.push(outbound(options));
    }
    if let Some(port) = options.inbound {
        chains.push(inbound(options, port));
        if options.mode == Mode::Tproxy {
            chains.push(replies(options));
        }
    }
    Ruleset { chains }
}

fn rule(matches: impl Into<Vec<Match>>, verdict: Verdict) -> Rule {
    Rule { matches: matches.into(), verdict }
}

fn alone(matches: Match) -> Rule {
    rule([matches], Verdict::Return)
}

fn outbound(options: &Options) -> Chain {
    let mut rules = Vec::new();
    if options.ipv4_only {
        rules.push(alone(Match::Ipv6));
    }
    rules.extend([&options.mark].into_iter().chain(&options.marks).map(|mark| alone(Match::Mark(*mark))));
    rules.extend(options.uids.iter().map(|uid| alone(Match::Uid(*uid))));
    rules.extend(options.gids.iter().map(|gid| alone(Match::Gid(*gid))));
    let Exclusions { ports, networks, interfaces } = &options.not_outbound;
    rules.extend(interfaces.iter().map(|name| alone(Match::OutInterface(name.clone()))));
    rules.extend(networks.iter().map(|network| alone(Match::To(*network))));
    rules.extend(ports.iter().map(|ports| alone(Match::TcpPorts(*ports))));
    if let Some(port) = options.dns {
        // Before what stays on this machine is left alone: the server may be a stub here.
        rules.push(rule([Match::DnsUdp], Verdict::Redirect(port)));
        rules.push(rule([Match::DnsTcp, Match::Syn], Verdict::Redirect(port)));
    }
    if let Some(port) = options.outbound {
        rules.push(alone(Match::LocalDestination));
        rules.push(alone(Match::To(LINK_LOCAL)));
        rules.push(rule([Match::Syn], Verdict::Redirect(port)));
    }
    Chain { name: "outbound", kind: Kind::Nat, hook: Hook::Output, priority: DSTNAT, rules }
}

fn inbound(options: &Options, port: u16) -> Chain {
    let mut rules = vec![alone(Match::InInterface("lo".to_owned()))];
    if options.ipv4_only {
        rules.push(alone(Match::Ipv6));
    }
    rules.push(alone(Match::To(LINK_LOCAL)));
    let Exclusions { ports, networks, interfaces } = &options.not_inbound;
    rules.extend(interfaces.iter().map(|name| alone(Match::InInterface(name.clone()))));
    rules.extend(networks.iter().map(|network| alone(Match::From(*network))));
    rules.extend(ports.iter().map(|ports| alone(Match::TcpPorts(*ports))));
    // Whoever knocks at the proxy's own ports is told by the proxy that this is not the way.
    let own = [options.outbound, Some(port), options.dns].into_iter().flatten();
    rules.extend(own.map(|port| alone(Match::TcpPorts(Ports { first: port, last: port }))));
    // TPROXY is for each packet, and leaves those of sockets alone that are not transparent.
    let (kind, priority, first, verdict) = match options.mode {
        Mode::Redirect => (Kind::Nat, DSTNAT, Match::Syn, Verdict::Redirect(port)),
        Mode::Tproxy => (Kind::Filter, MANGLE, Match::Tcp, Verdict::Tproxy(port)),
    };
    if options.mode == Mode::Tproxy {
        // A chain that is asked for each packet sees answers to this machine's own connections too.
        rules.push(alone(Match::Reply));
    }
    // What this machine forwards for others is not the application's.
    if options.only_inbound.is_empty() {
        rules.push(rule([Match::LocalDestination, first], verdict));
    } else {
        for ports in &options.only_inbound {
            let matches = [Match::LocalDestination, Match::TcpPorts(*ports), first.clone()];
            rules.push(rule(matches, verdict));
        }
    }
    Chain { name: "inbound", kind, hook: Hook::Prerouting, priority, rules }
}

/// The proxy connects to the application from its caller's address; what the application answers there must not
/// leave the machine.
fn replies(options: &Options) -> Chain {
    let rules = vec![
        rule(
            [Match::Mark(options.mark), Match::Tcp, Match::LocalDestination],
            Verdict::SetConnectionMark(REPLY_MARK),
        ),
        rule([Match::ConnectionMark(REPLY_MARK), Match::Reply], Verdict::SetMark(REPLY_MARK)),
    ];
    Chain { name: "replies", kind: Kind::Route, hook: Hook::Output, priority: MANGLE, rules }
}

/// As `nft -f` takes it.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        for (number, chain) in self.chains.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            let Chain { name, kind, hook, priority, rules } = chain;
            writeln!(f, "\tchain {name} {{")?;
            writeln!(f, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;")?;
            for rule in rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Nat => "nat",
            Kind::Filter => "filter",
            Kind::Route => "route",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for matches in &self.matches {
            write!(f, "{matches} ")?;
        }
        write!(f, "{}", self.verdict)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = |network: &IpNet| if matches!(network, IpNet::V4(_)) { "ip" } else { "ip6" };
        match self {
            Match::Ipv6 => f.write_str("meta nfproto ipv6"),
            Match::Tcp => f.write_str("meta l4proto tcp"),
            Match::Syn => f.write_str("tcp flags syn / fin,syn,rst,ack"),
            Match::DnsTcp => f.write_str("tcp dport 53"),
            Match::DnsUdp => f.write_str("udp dport 53"),
            Match::Mark(mark) => write!(f, "meta mark 0x{mark:08x}"),
            Match::Uid(uid) => write!(f, "meta skuid {uid}"),
            Match::Gid(gid) => write!(f, "meta skgid {gid}"),
            Match::From(network) => write!(f, "{} saddr {network}", ip(network)),
            Match::To(network) => write!(f, "{} daddr {network}", ip(network)),
            Match::TcpPorts(Ports { first, last }) if first == last => write!(f, "tcp dport {first}"),
            Match::TcpPorts(Ports { first, last }) => write!(f, "tcp dport {first}-{last}"),
            Match::InInterface(name) => write!(f, "iifname {name}"),
            Match::OutInterface(name) => write!(f, "oifname {name}"),
            Match::LocalDestination => f.write_str("fib daddr type local"),
            Match::Reply => f.write_str("ct direction reply"),
            Match::ConnectionMark(mark) => write!(f, "ct mark 0x{mark:08x}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Return => f.write_str("return"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
            Verdict::Tproxy(port) => write!(f, "tproxy to :{port}"),
            Verdict::SetMark(mark) => write!(f, "meta mark set 0x{mark:08x}"),
            Verdict::SetConnectionMark(mark) => write!(f, "ct mark set 0x{mark:08x}"),
        }
    }
}

#[cfg(test)]
mod tests;
