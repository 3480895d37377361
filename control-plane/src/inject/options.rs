//! What a pod's annotations say about its sidecar.

use clap::ValueEnum;
use serde_json::Value;

use super::Settings;
use super::image::is_image;

/// How the application's connections come to the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Interception {
    /// An init container with the capability NET_ADMIN lets the kernel redirect them.
    #[default]
    Redirect,
    /// No privilege: environment variables tell the application to send its HTTP requests to the sidecar, and what
    /// it receives does not pass the sidecar.
    None,
}

/// An annotation with a value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata.annotations[{name}] is {value}: {expected}")]
pub struct InvalidAnnotation {
    /// Which.
    pub name: &'static str,
    /// What it says, in JSON.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

pub(super) const INTERCEPTION: &str = "pontoon.dev/interception";
const DRAIN: &str = "pontoon.dev/drain-seconds";
const IMAGE: &str = "pontoon.dev/proxy-image";
const LOG: &str = "pontoon.dev/proxy-log";
const WORKERS: &str = "pontoon.dev/proxy-workers";
const CPU_REQUEST: &str = "pontoon.dev/proxy-cpu-request";
const CPU_LIMIT: &str = "pontoon.dev/proxy-cpu-limit";
const MEMORY_REQUEST: &str = "pontoon.dev/proxy-memory-request";
const MEMORY_LIMIT: &str = "pontoon.dev/proxy-memory-limit";
const OUTBOUND_PORTS: &str = "pontoon.dev/exclude-outbound-ports";
const OUTBOUND_CIDRS: &str = "pontoon.dev/exclude-outbound-cidrs";
const INBOUND_PORTS: &str = "pontoon.dev/exclude-inbound-ports";
const DNS: &str = "pontoon.dev/dns";
pub(super) const ENVIRONMENT: &str = "pontoon.dev/environment";

/// Every annotation that tunes a sidecar. One that is not here and begins as they do is a mistake, or newer.
const ALL: [&str; 15] = [
    INTERCEPTION,
    DRAIN,
    IMAGE,
    LOG,
    WORKERS,
    CPU_REQUEST,
    CPU_LIMIT,
    MEMORY_REQUEST,
    MEMORY_LIMIT,
    OUTBOUND_PORTS,
    OUTBOUND_CIDRS,
    INBOUND_PORTS,
    DNS,
    ENVIRONMENT,
    super::INJECTED,
];
const PREFIX: &str = "pontoon.dev/";

/// Kubernetes' own default.
const GRACE_SECONDS: u64 = 30;
/// A longer one is never meant: an hour.
const MOST_DRAIN: u64 = 3600;

/// What a sidecar is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub interception: Interception,
    pub image: String,
    pub log: Option<String>,
    pub workers: u16,
    /// So long at most callers are waited for before the application is told to end: by [`drain_of`] the pod's grace
    /// period.
    pub drain_seconds: u64,
    pub cpu_request: String,
    pub cpu_limit: Option<String>,
    pub memory_request: String,
    pub memory_limit: Option<String>,
    pub outbound_ports: Vec<String>,
    pub outbound_cidrs: Vec<String>,
    pub inbound_ports: Vec<String>,
    /// Whether the sidecar answers the application's DNS queries.
    pub dns: bool,
    /// Whether variables tell the application to send its requests to the sidecar.
    pub environment: bool,
}

impl Options {
    pub(super) fn of(pod: &Value, settings: &Settings) -> Result<Options, InvalidAnnotation> {
        let annotations = pod["metadata"]["annotations"].as_object();
        for name in ALL {
            match annotations.and_then(|annotations| annotations.get(name)) {
                None | Some(Value::Null | Value::String(_)) => {}
                Some(value) => {
                    let expected = "expected a string, which has quotes in YAML";
                    return Err(InvalidAnnotation { name, value: value.to_string(), expected });
                }
            }
        }
        let text =
            |name: &str| annotations?.get(name)?.as_str().map(str::trim).filter(|text| !text.is_empty());
        let grace = grace_of(pod);
        let interception = match text(INTERCEPTION) {
            None => settings.interception,
            Some(said) => Interception::from_str(said, false)
                .map_err(|_| invalid(INTERCEPTION, said, "expected redirect or none"))?,
        };
        let switch = |name, with, expected| match text(name) {
            None => Ok(interception == with),
            Some("enabled") if interception == with => Ok(true),
            Some("disabled") => Ok(false),
            Some(said) => Err(invalid(name, said, expected)),
        };
        let dns = switch(
            DNS,
            Interception::Redirect,
            "expected enabled (only where interception is redirect) or disabled",
        )?;
        let environment = switch(
            ENVIRONMENT,
            Interception::None,
            "expected enabled (only where interception is none) or disabled",
        )?;
        let list = |name, valid: fn(&str) -> bool, expected| -> Result<Vec<String>, InvalidAnnotation> {
            let Some(said) = text(name) else { return Ok(Vec::new()) };
            let items: Vec<String> = said.split(',').map(|item| item.trim().to_owned()).collect();
            if items.iter().all(|item| valid(item)) { Ok(items) } else { Err(invalid(name, said, expected)) }
        };
        let ports = "expected ports or ranges of them, as in 5432,8000-8100";
        let image = match text(IMAGE) {
            None => &settings.image,
            Some(said) if is_image(said) => said,
            Some(said) => return Err(invalid(IMAGE, said, "expected an image, as example.com/proxy:1.2")),
        };
        let quantity = |name| match text(name).map(|said| (said, amount(said))) {
            None => Ok(None),
            Some((said, Some(amount))) => Ok(Some(Quantity { said, amount })),
            Some((said, None)) => Err(invalid(name, said, "expected a quantity, as 100m or 64Mi")),
        };
        let (cpu_request, cpu_limit) = requested_and_limited(
            (quantity(CPU_REQUEST)?, quantity(CPU_LIMIT)?),
            (DEFAULT_CPU_REQUEST, None),
            (CPU_REQUEST, "expected no more than pontoon.dev/proxy-cpu-limit"),
        )?;
        let (memory_request, memory_limit) = requested_and_limited(
            (quantity(MEMORY_REQUEST)?, quantity(MEMORY_LIMIT)?),
            (DEFAULT_MEMORY_REQUEST, Some(DEFAULT_MEMORY_LIMIT)),
            (MEMORY_REQUEST, "expected no more than pontoon.dev/proxy-memory-limit"),
        )?;
        Ok(Options {
            interception,
            image: image.to_owned(),
            log: text(LOG).map(str::to_owned),
            workers: number(WORKERS, text(WORKERS), 1..=1024, "expected 1 to 1024")?.unwrap_or(2) as u16,
            drain_seconds: number(DRAIN, text(DRAIN), 0..=MOST_DRAIN, "expected seconds, 3600 at most")?
                .unwrap_or(drain_of(grace)),
            cpu_request,
            cpu_limit,
            memory_request,
            memory_limit,
            outbound_ports: list(OUTBOUND_PORTS, is_port_range, ports)?,
            outbound_cidrs: list(
                OUTBOUND_CIDRS,
                |item| item.parse::<ipnet::IpNet>().is_ok(),
                "expected networks, as in 10.0.0.0/8,fd00::/8",
            )?,
            inbound_ports: list(INBOUND_PORTS, is_port_range, ports)?,
            dns,
            environment,
        })
    }
}

/// What is said of annotations that look like ours and have no effect, or not the whole of it. A newer version may know
/// them; a pod is not kept from running for that.
pub(super) fn warnings(pod: &Value) -> Vec<String> {
    let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
    let grace = grace_of(pod);
    let drain =
        pod["metadata"]["annotations"][DRAIN].as_str().and_then(|text| text.trim().parse::<u64>().ok());
    let cut = drain.filter(|drain| *drain > 0 && *drain >= grace).map(|drain| {
        format!(
            "annotation {DRAIN} is {drain}, and the pod's terminationGracePeriodSeconds {grace}: the application may be \
             killed before it is told to end"
        )
    });
    let unknown = annotations.filter(|(name, _)| name.starts_with(PREFIX) && !ALL.contains(&name.as_str()));
    unknown
        .map(|(name, _)| {
            format!("annotation {name} has no effect: the reference of injection lists those that have")
        })
        .chain(cut)
        .collect()
}

fn grace_of(pod: &Value) -> u64 {
    pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(GRACE_SECONDS)
}

/// A third of the grace period, which leaves the application twice as much. Of a short one more: it takes 3 s until
/// everybody knows that a pod is going and the last of them is answered.
fn drain_of(grace_seconds: u64) -> u64 {
    let least = grace_seconds.saturating_sub(2).clamp(1, 3);
    (grace_seconds / 3).clamp(least, MOST_DRAIN)
}

fn invalid(name: &'static str, value: &str, expected: &'static str) -> InvalidAnnotation {
    InvalidAnnotation { name, value: Value::from(value).to_string(), expected }
}

fn number(
    name: &'static str,
    said: Option<&str>,
    range: std::ops::RangeInclusive<u64>,
    expected: &'static str,
) -> Result<Option<u64>, InvalidAnnotation> {
    let Some(said) = said else { return Ok(None) };
    match said.parse().ok().filter(|number| range.contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(invalid(name, said, expected)),
    }
}

fn is_port_range(text: &str) -> bool {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    match text.split_once('-') {
        None => port(text).is_some(),
        Some((first, last)) => port(first).zip(port(last)).is_some_and(|(first, last)| first <= last),
    }
}

/// An amount of CPU or memory.
#[derive(Clone, Copy)]
struct Quantity<'a> {
    said: &'a str,
    amount: f64,
}

const DEFAULT_CPU_REQUEST: Quantity<'_> = Quantity { said: "10m", amount: 0.01 };
const DEFAULT_MEMORY_REQUEST: Quantity<'_> = Quantity { said: "32Mi", amount: 32.0 * MEBI };
const DEFAULT_MEMORY_LIMIT: Quantity<'_> = Quantity { said: "256Mi", amount: 256.0 * MEBI };
const MEBI: f64 = 1024.0 * 1024.0;

/// The API server takes no request above its limit: of the two, the one that is not said follows the other. `invalid` names the
/// annotation of the request, and what is right where both are said.
fn requested_and_limited(
    (request, limit): (Option<Quantity<'_>>, Option<Quantity<'_>>),
    (default_request, default_limit): (Quantity<'_>, Option<Quantity<'_>>),
    (name, expected): (&'static str, &'static str),
) -> Result<(String, Option<String>), InvalidAnnotation> {
    let is_above = |request: Quantity<'_>, limit: Quantity<'_>| request.amount > limit.amount;
    let (request, limit) = match (request, limit) {
        (Some(request), Some(limit)) if is_above(request, limit) => {
            return Err(invalid(name, request.said, expected));
        }
        (Some(request), None) => {
            (request, default_limit.map(|limit| if is_above(request, limit) { request } else { limit }))
        }
        (None, Some(limit)) if is_above(default_request, limit) => (limit, Some(limit)),
        (request, limit) => (request.unwrap_or(default_request), limit.or(default_limit)),
    };
    Ok((request.said.to_owned(), limit.map(|limit| limit.said.to_owned())))
}

/// By the letters; the API server has the last word. Divided where it is less than one: 700m are 0.7 to the last bit.
fn amount(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number = digits.parse::<f64>().ok().filter(|number| *number >= 0.0)?;
    Some(match &text[digits.len()..] {
        "" => number,
        "m" => number / 1e3,
        "k" => number * 1e3,
        "M" => number * 1e6,
        "G" => number * 1e9,
        "Ki" => number * 1024.0,
        "Mi" => number * MEBI,
        "Gi" => number * 1024.0 * MEBI,
        _ => return None,
    })
}
