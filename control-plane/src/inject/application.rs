//! What changes in the pod's own containers: probes that interception would answer itself, the end, and where the
//! application sends its requests when nothing intercepts them.

use serde_json::{Map, Value, json};

use super::containers::{HEALTH, OUTBOUND};
use super::options::{Interception, Options};
use super::set;

/// Names that never go to a proxy.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
/// Java knows no `HTTP_PROXY`. What it has here is added to.
const JAVA: &str = "JAVA_TOOL_OPTIONS";
/// What tells an application of the sidecar.
pub(super) const VARIABLES: [&str; 5] = ["HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", JAVA];

pub(super) fn adapt(spec: &mut Map<String, Value>, options: &Options) {
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers.iter_mut().filter(|container| container.is_object()) {
            match options.interception {
                Interception::Redirect => see_through_probes(container, options),
                Interception::None if options.environment => send_to_sidecar(container),
                Interception::None => {}
            }
            if is_waited_for(list, container, options) && container["lifecycle"]["preStop"].is_null() {
                begin_the_end(container);
            }
        }
    }
}

/// A TCP probe only asks whether somebody accepts, which by interception is always the sidecar. So the sidecar is
/// asked whether the application does. Probes of HTTP and gRPC pass through it to the application.
fn see_through_probes(container: &mut Value, options: &Options) {
    for name in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let Some(socket) = container[name].get("tcpSocket") else { continue };
        let Some(port) = port_of(container, &socket["port"]) else { continue };
        if socket.get("host").is_some() || is_excluded(port, &options.inbound_ports) {
            continue;
        }
        let Some(probe) = container[name].as_object_mut() else { continue };
        probe.remove("tcpSocket");
        probe.insert("httpGet".to_owned(), json!({ "path": format!("/tcp/{port}"), "port": HEALTH }));
    }
}

/// A port that is said by number, or by the name of one of the container's.
fn port_of(container: &Value, port: &Value) -> Option<u16> {
    let number = match port.as_str() {
        None => port.as_u64()?,
        Some(name) => {
            let mut ports = container["ports"].as_array()?.iter();
            ports.find(|port| port["name"] == name)?["containerPort"].as_u64()?
        }
    };
    u16::try_from(number).ok()
}

fn is_excluded(port: u16, excluded: &[String]) -> bool {
    excluded.iter().any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().is_ok_and(|first: u16| first <= port)
            && last.parse().is_ok_and(|last: u16| port <= last)
    })
}

/// Whether the container's callers are to be waited for at its end. One that runs to its end has none.
pub(super) fn is_waited_for(list: &str, container: &Value, options: &Options) -> bool {
    options.drain_seconds > 0 && (list == "containers" || container["restartPolicy"] == "Always")
}

/// Before the application is told to end, its callers are told to go elsewhere, and waited for. An own hook stays.
fn begin_the_end(container: &mut Value) {
    let hook = json!({ "httpGet": { "path": "/end", "port": HEALTH } });
    set(container, &["lifecycle", "preStop"], hook);
}

fn send_to_sidecar(container: &mut Value) {
    let proxy = format!("http://127.0.0.1:{OUTBOUND}");
    let none = LOCAL.join(",");
    for (name, value) in
        [("HTTP_PROXY", &proxy), ("http_proxy", &proxy), ("NO_PROXY", &none), ("no_proxy", &none)]
    {
        if variable(container, name).is_none() {
            add(container, name, value);
        }
    }
    let java = format!(
        "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort={OUTBOUND} -Dhttp.nonProxyHosts={}",
        LOCAL.join("|")
    );
    match variable(container, JAVA) {
        None => add(container, JAVA, &java),
        Some(own) => {
            // A value from a ConfigMap or a Secret is not known here.
            if let Some(said) = own.get("value").and_then(Value::as_str).map(str::to_owned) {
                own["value"] = json!(format!("{java} {said}"));
            }
        }
    }
}

fn variable<'a>(container: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    container.get_mut("env")?.as_array_mut()?.iter_mut().find(|one| one["name"] == name)
}

fn add(container: &mut Value, name: &str, value: &str) {
    let one = json!({ "name": name, "value": value });
    match container.get_mut("env").and_then(Value::as_array_mut) {
        Some(environment) => environment.push(one),
        None => container["env"] = json!([one]),
    }
}
