//! Eureka's XML. Read by hand, because what is dangerous in XML is then plainly not there: no document type, no
//! entities but the five predefined ones, no depth. Metadata whose key is no XML name is left out of XML.

use std::collections::BTreeMap;
use std::fmt::Write;

use quick_xml::escape::escape;
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use super::incoming::{Incoming, Scalar};
use super::{Detail, Listed, ListedApplication, Listing};
use crate::registry::eureka::instance::{InstanceInfo, Port};
use crate::registry::eureka::refusal::Refusal;

/// Elements within each other. Eureka needs four.
const DEPTH: usize = 16;

/// The body of a registration: `<instance>...</instance>`.
pub fn read_instance(body: &[u8]) -> Result<InstanceInfo, Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| Refusal::unparsable("the XML is not UTF-8"))?;
    let mut reader = Reader::from_str(text);
    let mut incoming = Incoming::default();
    let mut path: Vec<String> = Vec::new();
    let mut value = String::new();
    let mut seen = false;
    loop {
        match reader.read_event().map_err(Refusal::unparsable)? {
            Event::Start(start) => {
                open(&mut incoming, &mut path, &start)?;
                value.clear();
                seen = true;
            }
            Event::Empty(start) => {
                open(&mut incoming, &mut path, &start)?;
                set(&mut incoming, &path, String::new());
                path.pop();
                value.clear();
                seen = true;
            }
            Event::Text(part) => value.push_str(&part.xml10_content()),
            Event::CData(part) => value.push_str(&part.xml10_content()),
            Event::GeneralRef(reference) => {
                match reference.resolve_char_ref().map_err(Refusal::unparsable)? {
                    Some(character) => value.push(character),
                    None => value.push(match &*reference.xml10_content() {
                        "lt" => '<',
                        "gt" => '>',
                        "amp" => '&',
                        "apos" => '\'',
                        "quot" => '"',
                        _ => return Err(Refusal::unparsable("an entity that is not predefined")),
                    }),
                }
            }
            Event::End(_) => {
                set(&mut incoming, &path, std::mem::take(&mut value));
                path.pop();
            }
            Event::DocType(_) => return Err(Refusal::unparsable("a document type is not read")),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => (),
            Event::Eof => break,
        }
    }
    if !path.is_empty() || !seen {
        return Err(Refusal::unparsable("the XML ends too early"));
    }
    incoming.check()
}

fn open(incoming: &mut Incoming, path: &mut Vec<String>, start: &BytesStart<'_>) -> Result<(), Refusal> {
    if path.len() >= DEPTH {
        return Err(Refusal::unparsable(format!("elements lie deeper than {DEPTH}")));
    }
    path.push(start.name().into_inner().to_owned());
    if path[0] != "instance" {
        return Err(Refusal::unparsable("the outermost element must be <instance>"));
    }
    let attribute = |name: &str| -> Result<Scalar, Refusal> {
        let attribute = start.try_get_attribute(name).map_err(Refusal::unparsable)?;
        let value = attribute
            .map(|found| found.normalized_value(XmlVersion::Implicit1_0).map(|value| value.into_owned()));
        value.transpose().map(Scalar).map_err(Refusal::unparsable)
    };
    if path.len() == 2 {
        match path[1].as_str() {
            "port" => incoming.port.get_or_insert_default().enabled = attribute("enabled")?,
            "securePort" => incoming.secure_port.get_or_insert_default().enabled = attribute("enabled")?,
            "dataCenterInfo" => {
                incoming.data_center_info.get_or_insert_default().class = attribute("class")?;
            }
            _ => (),
        }
    }
    Ok(())
}

fn set(incoming: &mut Incoming, path: &[String], value: String) {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let value = Scalar(Some(value));
    match path.as_slice() {
        ["instance", field] => {
            let slot = match *field {
                "instanceId" => &mut incoming.instance_id,
                "hostName" => &mut incoming.host_name,
                "app" => &mut incoming.app,
                "appGroupName" => &mut incoming.app_group_name,
                "ipAddr" => &mut incoming.ip_addr,
                "status" => &mut incoming.status,
                "overriddenstatus" => &mut incoming.overridden_lower,
                "overriddenStatus" => &mut incoming.overridden_status,
                "port" => &mut incoming.port.get_or_insert_default().number,
                "securePort" => &mut incoming.secure_port.get_or_insert_default().number,
                "countryId" => &mut incoming.country_id,
                "homePageUrl" => &mut incoming.home_page_url,
                "statusPageUrl" => &mut incoming.status_page_url,
                "healthCheckUrl" => &mut incoming.health_check_url,
                "secureHealthCheckUrl" => &mut incoming.secure_health_check_url,
                "vipAddress" => &mut incoming.vip_address,
                "secureVipAddress" => &mut incoming.secure_vip_address,
                "isCoordinatingDiscoveryServer" => &mut incoming.is_coordinating_discovery_server,
                "lastUpdatedTimestamp" => &mut incoming.last_updated_timestamp,
                "lastDirtyTimestamp" => &mut incoming.last_dirty_timestamp,
                "asgName" => &mut incoming.asg_name,
                "actionType" => &mut incoming.action_type,
                _ => return,
            };
            *slot = value;
        }
        ["instance", "leaseInfo", field] => {
            let lease = incoming.lease_info.get_or_insert_default();
            let slot = match *field {
                "renewalIntervalInSecs" => &mut lease.renewal_interval_in_secs,
                "durationInSecs" => &mut lease.duration_in_secs,
                "registrationTimestamp" => &mut lease.registration_timestamp,
                "lastRenewalTimestamp" => &mut lease.last_renewal_timestamp,
                "evictionTimestamp" => &mut lease.eviction_timestamp,
                "serviceUpTimestamp" => &mut lease.service_up_timestamp,
                _ => return,
            };
            *slot = value;
        }
        ["instance", "metadata", key] => {
            incoming.metadata.get_or_insert_default().insert((*key).to_owned(), value);
        }
        ["instance", "dataCenterInfo", "name"] => {
            incoming.data_center_info.get_or_insert_default().name = value;
        }
        ["instance", "dataCenterInfo", "metadata", key] => {
            let center = incoming.data_center_info.get_or_insert_default();
            center.metadata.get_or_insert_default().insert((*key).to_owned(), value);
        }
        _ => (),
    }
}

/// `<applications>...</applications>`.
pub fn applications(listing: &Listing, detail: Detail) -> Vec<u8> {
    let mut out = String::from("<applications>");
    if detail == Detail::Full {
        element(&mut out, "versions__delta", &listing.version);
        element(&mut out, "apps__hashcode", &listing.hash);
    }
    for of in &listing.applications {
        write_application(&mut out, of, detail);
    }
    out.push_str("</applications>");
    out.into_bytes()
}

/// `<application>...</application>`.
pub fn application(of: &ListedApplication, detail: Detail) -> Vec<u8> {
    let mut out = String::new();
    write_application(&mut out, of, detail);
    out.into_bytes()
}

/// `<instance>...</instance>`.
pub fn instance(of: &Listed, detail: Detail) -> Vec<u8> {
    let mut out = String::new();
    write_instance(&mut out, of, detail);
    out.into_bytes()
}

fn write_application(out: &mut String, of: &ListedApplication, detail: Detail) {
    out.push_str("<application>");
    element(out, "name", &of.name);
    for listed in &of.instances {
        write_instance(out, listed, detail);
    }
    out.push_str("</application>");
}

fn write_instance(out: &mut String, of: &Listed, detail: Detail) {
    let info = &*of.info;
    out.push_str("<instance>");
    element(out, "instanceId", &info.id);
    element(out, "hostName", &info.host_name);
    element(out, "app", &info.app);
    optional(out, "appGroupName", &info.app_group);
    element(out, "ipAddr", &info.ip);
    element(out, "status", info.status.as_str());
    element(out, "overriddenstatus", info.overridden.as_str());
    port(out, "port", info.port);
    port(out, "securePort", info.secure_port);
    number(out, "countryId", info.country_id);
    let _ = write!(out, "<dataCenterInfo class=\"{}\">", escape(&info.data_center.class));
    element(out, "name", &info.data_center.name);
    if !info.data_center.metadata.is_empty() {
        metadata(out, &info.data_center.metadata);
    }
    out.push_str("</dataCenterInfo>");
    if detail == Detail::Full {
        out.push_str("<leaseInfo>");
        number(out, "renewalIntervalInSecs", info.lease.renewal_interval_s);
        number(out, "durationInSecs", info.lease.duration_s);
        number(out, "registrationTimestamp", info.lease.registration_ms);
        number(out, "lastRenewalTimestamp", of.last_renewal_ms);
        number(out, "evictionTimestamp", info.lease.eviction_ms);
        number(out, "serviceUpTimestamp", info.lease.service_up_ms);
        out.push_str("</leaseInfo>");
        metadata(out, &info.metadata);
        optional(out, "homePageUrl", &info.urls.home_page);
        optional(out, "statusPageUrl", &info.urls.status_page);
        optional(out, "healthCheckUrl", &info.urls.health_check);
        optional(out, "secureHealthCheckUrl", &info.urls.secure_health_check);
    }
    optional(out, "vipAddress", &info.vip);
    optional(out, "secureVipAddress", &info.secure_vip);
    element(out, "isCoordinatingDiscoveryServer", if info.coordinating { "true" } else { "false" });
    number(out, "lastUpdatedTimestamp", info.last_updated_ms);
    number(out, "lastDirtyTimestamp", info.last_dirty_ms);
    optional(out, "asgName", &info.asg_name);
    element(out, "actionType", info.action.as_str());
    out.push_str("</instance>");
}

fn metadata(out: &mut String, entries: &BTreeMap<String, String>) {
    let mut entries = entries.iter().filter(|(key, _)| is_name(key)).peekable();
    if entries.peek().is_none() {
        out.push_str("<metadata class=\"java.util.Collections$EmptyMap\"/>");
        return;
    }
    out.push_str("<metadata>");
    for (key, value) in entries {
        element(out, key, value);
    }
    out.push_str("</metadata>");
}

/// Whether XML takes it for an element's name. Narrower than XML itself: what any parser takes.
pub fn is_name(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

fn element(out: &mut String, name: &str, value: &str) {
    let _ = write!(out, "<{name}>{}</{name}>", escape(value));
}

fn optional(out: &mut String, name: &str, value: &Option<String>) {
    if let Some(value) = value {
        element(out, name, value);
    }
}

fn number(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = write!(out, "<{name}>{value}</{name}>");
}

fn port(out: &mut String, name: &str, port: Port) {
    let _ = write!(out, "<{name} enabled=\"{}\">{}</{name}>", port.enabled, port.number);
}
