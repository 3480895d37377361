//! What makes a proxy a sidecar: where it takes what its application sends and receives, and where it answers DNS.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Args, BootstrapError, DnsFile, Inbound, Outbound};
use crate::discovery::naming::Naming;
use crate::discovery::on_demand::Limits;
use crate::discovery::{self, Sidecar, To};
use crate::dns::{self, Settings};
use crate::intercept::Mode;

/// The shortest prefix of a range of virtual addresses.
const LARGEST_RANGE: u8 = 8;
/// As `intercept up` has it too.
const DEFAULT_MARK: u32 = 1501;
/// As many as one stream may subscribe to at our own control plane.
const MOST_NAMES: usize = 100_000;

/// What a sidecar listens for, if this is one.
pub(super) fn sidecar(
    args: &Args,
    outbound: Option<Outbound>,
    inbound: Vec<Inbound>,
    dns: DnsFile,
) -> Result<Option<Sidecar>, BootstrapError> {
    let address = args.outbound.or(outbound.as_ref().and_then(|outbound| outbound.address));
    let inbound = if args.inbound.is_empty() { inbound } else { args.inbound.clone() };
    let intercepted =
        args.outbound_intercepted || outbound.as_ref().is_some_and(|outbound| outbound.intercepted);
    let unknown = outbound.as_ref().and_then(|outbound| outbound.unknown);
    if unknown.is_some() && !intercepted {
        let value = format!("{unknown:?}").to_lowercase();
        let expected = "only what is intercepted has somewhere to pass to: set outbound.intercepted too";
        return Err(BootstrapError::Value { setting: "outbound.unknown", value, expected });
    }
    let limits = outbound.map(limits).transpose()?;
    let outbound = match (address, limits) {
        (Some(address), limits) => Some(discovery::Outbound {
            address,
            limits: limits.unwrap_or_default(),
            intercepted,
            unknown: unknown.unwrap_or_default(),
        }),
        (None, None) if !intercepted => None,
        (None, None) => {
            let expected = "expected an address in --outbound too";
            let value = String::from("true");
            return Err(BootstrapError::Value { setting: "--outbound-intercepted", value, expected });
        }
        (None, Some(_)) => {
            let expected = "expected an address in outbound.address or --outbound";
            return Err(BootstrapError::Value { setting: "outbound", value: String::new(), expected });
        }
    };
    let (dns, naming) = dns_of(args, dns)?;
    if outbound.is_none() && inbound.is_empty() && dns.is_none() {
        return Ok(None);
    }
    let inbound = inbound.into_iter().map(destination).collect::<Result<_, _>>()?;
    let sidecar = Sidecar { outbound, inbound, naming, dns };
    check_application(&sidecar)?;
    Ok(Some(sidecar))
}

/// How DNS is answered, where it is, and how names are written.
fn dns_of(args: &Args, written: DnsFile) -> Result<(Option<Settings>, Naming), BootstrapError> {
    let or_written =
        |flags: &Vec<SocketAddr>, file| if flags.is_empty() { file } else { Some(flags.clone()) };
    let addresses = or_written(&args.dns, Some(written.addresses)).unwrap_or_default();
    let default = Naming::default();
    let plain = |name: String| name.trim_matches('.').to_ascii_lowercase();
    let mut naming = Naming {
        zone: written.zone.map_or(default.zone, plain),
        search: written.search.clone().unwrap_or_default().into_iter().map(plain).collect(),
        ranges: written.virtual_ranges.unwrap_or(default.ranges),
    };
    if addresses.is_empty() {
        return Ok((None, naming));
    }
    let said = or_written(&args.dns_upstream, written.upstreams);
    // Read only where it is needed: a file that is not there is then no error.
    let system = match (&said, &written.search) {
        (Some(_), Some(_)) => Ok(Default::default()),
        _ => dns::system(),
    };
    if written.search.is_none() {
        naming.search = system.as_ref().map(|(_, search)| search.clone()).unwrap_or_default();
    }
    let upstreams = upstreams(said, &addresses, || system.map(|(found, _)| found))?;
    if let Some(any) = addresses.iter().find(|address| address.ip().is_unspecified()) {
        let expected = "expected each address by itself: answers must come from the one that was asked";
        return Err(BootstrapError::Value { setting: "--dns", value: any.to_string(), expected });
    }
    if let Some(range) = naming.ranges.iter().find(|range| range.prefix_len() < LARGEST_RANGE) {
        let expected = "expected a range that nobody else has addresses in, of 8 bits prefix or more";
        return Err(BootstrapError::Value {
            setting: "dns.virtualRanges",
            value: range.to_string(),
            expected,
        });
    }
    if written.timeout_ms == Some(0) {
        let expected = "expected the milliseconds that a resolver may take";
        return Err(BootstrapError::Value { setting: "dns.timeoutMs", value: "0".into(), expected });
    }
    let default = Settings::default();
    let seconds = |value: Option<u64>, default| value.map_or(default, Duration::from_secs);
    let settings = Settings {
        addresses,
        upstreams,
        by_flag: !args.dns_upstream.is_empty(),
        ttl: seconds(written.ttl_seconds, default.ttl),
        timeout: written.timeout_ms.map_or(default.timeout, Duration::from_millis),
        max_stale: seconds(written.max_stale_seconds, default.max_stale),
        mark: None,
        cache_bytes: written.cache_bytes.unwrap_or(default.cache_bytes),
    };
    Ok((Some(settings), naming))
}

/// Who is asked for what is not the mesh's: as it is said, else as the system has it. Not this proxy, which answers at
/// `addresses`.
fn upstreams(
    said: Option<Vec<SocketAddr>>,
    addresses: &[SocketAddr],
    system: impl FnOnce() -> Result<Vec<SocketAddr>, String>,
) -> Result<Vec<SocketAddr>, BootstrapError> {
    let Some(said) = said else {
        let expected = "expected dns.upstreams or --dns-upstream, as /etc/resolv.conf names no resolver beside this proxy";
        let nobody = |value| BootstrapError::Value { setting: "dns.upstreams", value, expected };
        let mut found = system().map_err(nobody)?;
        // The file may already send applications to us.
        found.retain(|upstream| !addresses.contains(upstream));
        return if found.is_empty() { Err(nobody(String::new())) } else { Ok(found) };
    };
    if let Some(own) = said.iter().find(|upstream| addresses.contains(upstream)) {
        let expected = "expected other resolvers: this is where the proxy itself answers";
        return Err(BootstrapError::Value { setting: "dns.upstreams", value: own.to_string(), expected });
    }
    Ok(said)
}

/// The same of a process that runs: as its file says it now, and the system.
pub(super) fn upstreams_now(
    written: Option<Vec<SocketAddr>>,
    addresses: &[SocketAddr],
) -> Result<Vec<SocketAddr>, BootstrapError> {
    upstreams(written, addresses, || dns::system().map(|(found, _)| found))
}

/// An application that is this proxy itself would be asked by it for ever.
fn check_application(sidecar: &Sidecar) -> Result<(), BootstrapError> {
    let own = sidecar.inbound.iter().map(|(address, _)| *address);
    let own: Vec<_> = own.chain(sidecar.outbound.as_ref().map(|outbound| outbound.address)).collect();
    let is_at = |own: &SocketAddr, application: &SocketAddr| {
        let here = application.ip().is_loopback() || application.ip().is_unspecified();
        own.port() == application.port()
            && (own.ip() == application.ip() || own.ip().is_unspecified() && here)
    };
    let applications = sidecar.inbound.iter().filter_map(|(_, to)| match to {
        To::Application(application) => Some(application),
        To::Original | To::Transparent => None,
    });
    match applications.into_iter().find(|application| own.iter().any(|own| is_at(own, application))) {
        None => Ok(()),
        Some(application) => {
            let expected = "expected where the application listens: this is where the proxy does";
            Err(BootstrapError::Value { setting: "--inbound", value: application.to_string(), expected })
        }
    }
}

fn destination(inbound: Inbound) -> Result<(SocketAddr, To), BootstrapError> {
    let Inbound { address, application, intercepted } = inbound;
    let to = match (application, intercepted) {
        (Some(application), None) => To::Application(application),
        (None, Some(Mode::Redirect)) => To::Original,
        (None, Some(Mode::Tproxy)) => To::Transparent,
        _ => {
            let expected = "expected one of application and intercepted";
            return Err(BootstrapError::Value { setting: "inbound", value: address.to_string(), expected });
        }
    };
    Ok((address, to))
}

/// What the proxy's own connections are marked with.
pub(super) fn mark(said: Option<u32>, sidecar: Option<&Sidecar>) -> Option<u32> {
    let intercepted = sidecar.is_some_and(Sidecar::is_intercepted);
    match said {
        Some(0) => None,
        Some(mark) => Some(mark),
        None => intercepted.then_some(DEFAULT_MARK),
    }
}

fn limits(written: Outbound) -> Result<Limits, BootstrapError> {
    let default = Limits::default();
    let seconds = |value: Option<u64>, default| value.map_or(default, Duration::from_secs);
    let limits = Limits {
        max_names: written.max_names.unwrap_or(default.max_names),
        max_waiting: written.max_waiting.unwrap_or(default.max_waiting),
        resolve: written.resolve_timeout_ms.map_or(default.resolve, Duration::from_millis),
        idle: seconds(written.idle_seconds, default.idle),
        absent: seconds(written.absent_seconds, default.absent),
    };
    for (setting, value) in
        [("outbound.maxNames", limits.max_names), ("outbound.maxWaiting", limits.max_waiting)]
    {
        if !(1..=MOST_NAMES).contains(&value) {
            let expected = "expected 1 to 100000";
            return Err(BootstrapError::Value { setting, value: value.to_string(), expected });
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_asked_is_said_or_the_systems_but_never_ourselves() {
        let [own, other] = ["127.0.0.1:53", "10.0.0.1:53"].map(|text| text.parse::<SocketAddr>().unwrap());
        let system = |found: &[SocketAddr]| {
            let found = found.to_vec();
            move || Ok(found)
        };
        let never = || -> Result<_, String> { panic!("the system is not asked") };
        assert_eq!(upstreams(Some(vec![other]), &[own], never).unwrap(), [other]);
        assert_eq!(upstreams(Some(vec![]), &[own], never).unwrap(), []);
        assert_eq!(upstreams(None, &[own], system(&[own, other])).unwrap(), [other]);
        for wrong in [upstreams(Some(vec![own]), &[own], never), upstreams(None, &[own], system(&[own]))] {
            assert!(wrong.unwrap_err().to_string().starts_with("dns.upstreams is "));
        }
        let unreadable = upstreams(None, &[own], || Err("no such file".into()));
        assert!(unreadable.unwrap_err().to_string().contains("no such file"));
    }
}
