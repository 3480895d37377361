//! What is intercepted and what is not: the flags, and the same after checking.

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use serde::Deserialize;

use super::InterceptError;

/// How connections from elsewhere are brought to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// By NAT: the application sees the proxy's address as its caller's.
    #[default]
    Redirect,
    /// By transparent sockets: the proxy can connect to the application from the caller's own address.
    Tproxy,
}

/// On packets of the application that go to a caller whose address the proxy has borrowed.
pub(super) const REPLY_MARK: u32 = 1502;
/// An exclusion is a rule that each new connection is compared with.
const MOST_RULES: usize = 500;
/// `IFNAMSIZ` less the final zero.
const MAX_INTERFACE_BYTES: usize = 15;

/// The flags of `intercept up`.
#[derive(Debug, Clone, Args)]
pub struct Up {
    /// How connections from elsewhere come to the proxy. What the application sends always comes by redirect.
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// The port of the sidecar's `outbound` listener.
    #[arg(long, value_name = "PORT", default_value_t = 15001)]
    pub outbound_port: u16,
    /// The port of the sidecar's intercepted `inbound` listener.
    #[arg(long, value_name = "PORT", default_value_t = 15006)]
    pub inbound_port: u16,
    /// Leave alone what the application sends.
    #[arg(long)]
    pub no_outbound: bool,
    /// Leave alone what comes from elsewhere.
    #[arg(long)]
    pub no_inbound: bool,
    /// Leave IPv6 alone.
    #[arg(long)]
    pub ipv4_only: bool,
    /// Bring DNS queries (UDP and TCP, port 53) to this port, that of the sidecar's resolver.
    #[arg(long, value_name = "PORT")]
    pub dns_port: Option<u16>,
    /// The mark of the proxy's own connections (its `--mark`), decimal or 0x...
    #[arg(long, value_name = "MARK", default_value = "1501", value_parser = mark)]
    pub mark: u32,
    /// More marks that are left alone.
    #[arg(long, value_name = "MARK", value_delimiter = ',', value_parser = mark)]
    pub exclude_mark: Vec<u32>,
    /// What these users send is left alone: the proxy's, where it cannot set marks.
    #[arg(long, value_name = "UID", value_delimiter = ',')]
    pub exclude_uid: Vec<u32>,
    /// What these groups send is left alone.
    #[arg(long, value_name = "GID", value_delimiter = ',')]
    pub exclude_gid: Vec<u32>,
    /// Outbound: ports that are left alone, as 3306 or 8000-8100.
    #[arg(long, value_name = "PORT[-PORT]", value_delimiter = ',')]
    pub exclude_outbound_port: Vec<String>,
    /// Outbound: destinations that are left alone.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub exclude_outbound_cidr: Vec<IpNet>,
    /// Outbound: interfaces that are left alone; eth* is all that begin so.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub exclude_outbound_interface: Vec<String>,
    /// Inbound: ports that are left alone. Default: those of SSH and of the proxy's admin port.
    #[arg(long, value_name = "PORT[-PORT]", value_delimiter = ',', default_values = ["22", "15000"])]
    pub exclude_inbound_port: Vec<String>,
    /// Inbound: intercept these ports alone.
    #[arg(long, value_name = "PORT[-PORT]", value_delimiter = ',')]
    pub only_inbound_port: Vec<String>,
    /// Inbound: sources that are left alone.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub exclude_inbound_cidr: Vec<IpNet>,
    /// Inbound: interfaces that are left alone.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub exclude_inbound_interface: Vec<String>,
    /// Print the rules, in the language of nft, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// A first and a last port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last, not less than the first.
    pub last: u16,
}

/// What is left alone of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Destination ports.
    pub ports: Vec<Ports>,
    /// Of the other side.
    pub networks: Vec<IpNet>,
    /// Through which packets leave or come; a `*` at the end stands for anything.
    pub interfaces: Vec<String>,
}

/// What is to be in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// For inbound.
    pub mode: Mode,
    /// Where outbound goes; `None`: it is left alone.
    pub outbound: Option<u16>,
    /// Where inbound goes; `None`: it is left alone.
    pub inbound: Option<u16>,
    /// Whether IPv6 is left alone.
    pub ipv4_only: bool,
    /// Where DNS queries go.
    pub dns: Option<u16>,
    /// Of the proxy's own connections.
    pub mark: u32,
    /// More marks that are left alone.
    pub marks: Vec<u32>,
    /// Users whose connections are left alone.
    pub uids: Vec<u32>,
    /// Groups whose connections are left alone.
    pub gids: Vec<u32>,
    /// Of outbound.
    pub not_outbound: Exclusions,
    /// Of inbound.
    pub not_inbound: Exclusions,
    /// All inbound ports that are intercepted; empty: every port.
    pub only_inbound: Vec<Ports>,
}

impl Options {
    pub(super) fn needs_policy_routing(&self) -> bool {
        self.mode == Mode::Tproxy && self.inbound.is_some()
    }
}

impl TryFrom<Up> for Options {
    type Error = InterceptError;

    fn try_from(up: Up) -> Result<Self, InterceptError> {
        let port = |option, port: u16| {
            let expected = "expected a port from 1 to 65535";
            let bad = || InterceptError::Option { option, value: port.to_string(), expected };
            if port == 0 { Err(bad()) } else { Ok(port) }
        };
        for (option, value) in [("--mark", up.mark)]
            .into_iter()
            .chain(up.exclude_mark.iter().map(|mark| ("--exclude-mark", *mark)))
        {
            if value == 0 || value == REPLY_MARK {
                let expected = "0 is no mark at all, and 1502 is what --mode tproxy marks replies with";
                return Err(InterceptError::Option { option, value: value.to_string(), expected });
            }
        }
        let options = Options {
            mode: up.mode,
            outbound: (!up.no_outbound).then_some(up.outbound_port),
            inbound: (!up.no_inbound).then_some(up.inbound_port),
            ipv4_only: up.ipv4_only,
            dns: up.dns_port.map(|number| port("--dns-port", number)).transpose()?,
            mark: up.mark,
            marks: up.exclude_mark,
            uids: up.exclude_uid,
            gids: up.exclude_gid,
            not_outbound: Exclusions {
                ports: ports("--exclude-outbound-port", &up.exclude_outbound_port)?,
                networks: networks(&up.exclude_outbound_cidr),
                interfaces: interfaces("--exclude-outbound-interface", up.exclude_outbound_interface)?,
            },
            not_inbound: Exclusions {
                ports: ports("--exclude-inbound-port", &up.exclude_inbound_port)?,
                networks: networks(&up.exclude_inbound_cidr),
                interfaces: interfaces("--exclude-inbound-interface", up.exclude_inbound_interface)?,
            },
            only_inbound: ports("--only-inbound-port", &up.only_inbound_port)?,
        };
        port("--outbound-port", up.outbound_port)?;
        port("--inbound-port", up.inbound_port)?;
        if options.outbound.is_some() && options.outbound == options.inbound {
            let expected = "expected another port than --outbound-port";
            let value = up.inbound_port.to_string();
            return Err(InterceptError::Option { option: "--inbound-port", value, expected });
        }
        if options.dns.is_some() && [options.outbound, options.inbound].contains(&options.dns) {
            let expected = "expected another port than --outbound-port and --inbound-port";
            let value = options.dns.unwrap_or_default().to_string();
            return Err(InterceptError::Option { option: "--dns-port", value, expected });
        }
        if (options.outbound, options.inbound, options.dns) == (None, None, None) {
            let expected =
                "expected one direction at least, or --dns-port; `intercept down` removes what there is";
            let value = String::from("with --no-inbound");
            return Err(InterceptError::Option { option: "--no-outbound", value, expected });
        }
        let rules = [&options.not_outbound, &options.not_inbound]
            .iter()
            .map(|not| not.ports.len() + not.networks.len() + not.interfaces.len())
            .sum::<usize>()
            + options.only_inbound.len()
            + options.marks.len()
            + options.uids.len()
            + options.gids.len();
        if rules > MOST_RULES {
            let expected = "expected 500 at most";
            return Err(InterceptError::Option { option: "--exclude-*", value: rules.to_string(), expected });
        }
        Ok(options)
    }
}

fn mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| String::from("expected a number of 32 bits, as 1501 or 0x5dd"))
}

/// Bits beyond the prefix do not count.
fn networks(written: &[IpNet]) -> Vec<IpNet> {
    written.iter().map(IpNet::trunc).collect()
}

fn ports(option: &'static str, written: &[String]) -> Result<Vec<Ports>, InterceptError> {
    let one = |text: &String| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Ports { first, last }),
            _ => {
                let expected = "expected a port or a range of them, as 3306 or 8000-8100";
                Err(InterceptError::Option { option, value: text.clone(), expected })
            }
        }
    };
    written.iter().map(one).collect()
}

fn interfaces(option: &'static str, names: Vec<String>) -> Result<Vec<String>, InterceptError> {
    for name in &names {
        let stem = name.strip_suffix('*').unwrap_or(name);
        let good = !stem.is_empty()
            && stem.len() <= MAX_INTERFACE_BYTES
            && stem
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'"' | b'*' | b'\\'));
        if !good {
            let expected = "expected the name of an interface, as eth0, or eth* for all that begin so";
            return Err(InterceptError::Option { option, value: name.clone(), expected });
        }
    }
    Ok(names)
}
