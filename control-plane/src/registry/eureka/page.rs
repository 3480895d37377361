//! The page for people, and Eureka's own status as JSON. Everything that came from a client is escaped; nothing
//! is loaded from elsewhere.

use std::fmt::Write;

use quick_xml::escape::escape;
use serde_json::{Value, json};

use super::state::Summary;
use super::wire::ListedApplication;
use super::{Eureka, now};
use crate::model::instance::{InstanceStatus, RegistryView};

/// Instances that one page lists. More would not be read; the rest is counted.
const ROWS: usize = 2_000;

const STYLE: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width\"><style>\
:root{color-scheme:light dark}body{font:1rem/1.4 system-ui,sans-serif;margin:1rem auto;max-width:75rem;padding:0 1rem}\
table{border-collapse:collapse;width:100%}caption{text-align:left;font-weight:bold;padding:.5rem 0}\
th,td{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #8888;overflow-wrap:anywhere}\
.note{border-left:.3rem solid #c60;padding-left:.75rem}</style>";

/// `/`: what is registered.
pub(super) fn front(eureka: &Eureka) -> String {
    let at = now();
    let (summary, listing, view) = {
        let mut registry = eureka.registry();
        (registry.summary(at), registry.full(), registry.view().clone())
    };
    let mut out = String::from(STYLE);
    let _ = write!(
        out,
        "<title>Registry: {0} instances</title></head><body><main><h1>Registry</h1>\
         <p>{0} instances of {1} applications. Up for {2}. Hash code <code>{3}</code>.</p>",
        summary.instances,
        summary.applications,
        span(at.instant.saturating_duration_since(eureka.shared.started).as_secs()),
        escape(listing.hash.as_str()),
    );
    preservation(&mut out, &summary);
    if eureka.counters().is_store_failing() {
        out.push_str(
            "<p class=\"note\" role=\"status\">The registry cannot be written to disk; a restart would forget \
             what changed since. The log says why.</p>",
        );
    }
    held(&mut out, &view);
    table(&mut out, &listing.applications, at.unix_ms);
    out.push_str(
        "<nav aria-label=\"More\"><p><a href=\"/lastn\">What happened lately</a> · \
         <a href=\"/eureka/apps/\">All instances as XML</a> · <a href=\"/eureka/status\">Status as JSON</a></p></nav>\
         </main></body></html>",
    );
    out
}

/// `/lastn`: registrations and departures.
pub(super) fn lately(eureka: &Eureka) -> String {
    let mut out = String::from(STYLE);
    out.push_str(
        "<title>What happened lately</title></head><body><main><h1>What happened lately</h1><table>\
         <caption>The newest first</caption><thead><tr><th scope=\"col\">When<th scope=\"col\">What\
         <th scope=\"col\">Application<th scope=\"col\">Instance</tr></thead><tbody>",
    );
    let at_ms = now().unix_ms;
    for recent in eureka.registry().recent() {
        let _ = write!(
            out,
            "<tr><td>{} ago<td>{}<td>{}<td>{}</tr>",
            age(recent.unix_ms, at_ms),
            recent.what,
            escape(&*recent.app),
            escape(&*recent.id),
        );
    }
    out.push_str("</tbody></table><p><a href=\"/\">All instances</a></p></main></body></html>");
    out
}

/// `/eureka/status`.
pub(super) fn status(eureka: &Eureka) -> Value {
    let at = now();
    let mut registry = eureka.registry();
    let summary = registry.summary(at);
    json!({
        "generalStats": {
            "server": format!("pontoon {}", env!("CARGO_PKG_VERSION")),
            "server-uptime": span(at.instant.saturating_duration_since(eureka.shared.started).as_secs()),
        },
        "applicationStats": {
            "registered-replicas": "", "available-replicas": "", "unavailable-replicas": "",
            "instances": summary.instances,
            "applications": summary.applications,
            "applications-held": summary.held,
            "instances-expired": summary.expired,
            "renewals-per-minute": summary.renewals_per_minute,
            "renewals-per-minute-expected": summary.renewals_expected_per_minute,
            "self-preservation-enabled": summary.self_preservation,
            "self-preservation-active": summary.preserving,
            "apps-hashcode": registry.hash(),
        },
        "instanceInfo": {"status": "UP"},
        // Spelled so by the server whose place this takes.
        "isHeathly": true,
    })
}

fn preservation(out: &mut String, summary: &Summary) {
    let text = match (summary.self_preservation, summary.preserving) {
        (false, _) => "off: every lease that runs out is evicted".to_owned(),
        (true, false) => "on, not active".to_owned(),
        (true, true) => format!(
            "<strong>active</strong>: {} leases have run out at once, so none is evicted. They take no traffic \
             where their application has others. Look whether clients are cut off from this registry; \
             instances that are really gone can be deleted one by one",
            summary.expired
        ),
    };
    let class = if summary.preserving { " class=\"note\" role=\"status\"" } else { "" };
    let _ = write!(
        out,
        "<p{class}>Self-preservation is {text}. Renewals in the last minute: {} of about {:.0} expected.</p>",
        summary.renewals_per_minute, summary.renewals_expected_per_minute
    );
}

fn held(out: &mut String, view: &RegistryView) {
    let mut applications = view.applications.iter().filter(|(_, of)| of.held).peekable();
    if applications.peek().is_none() {
        return;
    }
    out.push_str(
        "<section class=\"note\"><h2>Held</h2><p>No lease of these is left, but no client said that it goes, \
         so their last known instances stay in the balancing.</p><ul>",
    );
    for (name, of) in applications {
        let ids: Vec<&str> = of.instances.keys().map(|id| &**id).take(20).collect();
        let _ = write!(out, "<li>{}: {}</li>", escape(&**name), escape(ids.join(", ")));
    }
    out.push_str("</ul></section>");
}

fn table(out: &mut String, applications: &[ListedApplication], at_ms: u64) {
    out.push_str(
        "<table><caption>Instances</caption><thead><tr><th scope=\"col\">Application<th scope=\"col\">Instance\
         <th scope=\"col\">Status<th scope=\"col\">Override<th scope=\"col\">Address\
         <th scope=\"col\">Last renewal</tr></thead><tbody>",
    );
    let all = applications.iter().flat_map(|of| of.instances.iter());
    let mut rest = 0;
    for (row, listed) in all.enumerate() {
        if row >= ROWS {
            rest += 1;
            continue;
        }
        let info = &listed.info;
        let overriding = match info.overridden {
            InstanceStatus::Unknown => "",
            status => status.as_str(),
        };
        let _ = write!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{overriding}<td>{}:{}<td>{} ago</tr>",
            escape(&*info.app),
            escape(&*info.id),
            info.status.as_str(),
            escape(info.ip.as_str()),
            info.port.number,
            age(listed.last_renewal_ms, at_ms),
        );
    }
    out.push_str("</tbody></table>");
    if rest > 0 {
        let _ = write!(out, "<p>And {rest} more.</p>");
    }
}

fn age(then_ms: u64, at_ms: u64) -> String {
    span(at_ms.saturating_sub(then_ms) / 1000)
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
