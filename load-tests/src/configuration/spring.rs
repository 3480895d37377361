//! Spring Cloud Gateway and Zuul as peers: the end-to-end applications, with routes that this file puts before their
//! own.

use std::path::Path;
use std::process::Command;

use pontoon_e2e::spring::{Generation, java};

use super::{POOL, Scenario, routes};
use crate::peer::Name;

/// The JVM takes itself to have one processor, as in a container of one: one collector thread and one compiler beside
/// what serves. Netty gets one thread; Tomcat has a thread for each request in flight and cannot do with one.
const OPTIONS: [&str; 3] = ["-XX:ActiveProcessorCount=1", "-Xmx1g", "-Dreactor.netty.ioWorkerCount=1"];

/// Its additional configuration, in YAML.
pub(crate) fn spring_cloud_gateway(scenario: &Scenario, upstream: u16) -> String {
    let routes = routes(scenario, |i| {
        format!(
            "  - {{id: route-{i}, uri: \"http://127.0.0.1:{upstream}\", predicates: [\"Path=/route-{i}/**\"]}}"
        )
    });
    format!(
        "eureka.client.enabled: false
# Without it there is no X-Forwarded-For.
spring.cloud.gateway.server.webflux:
  trusted-proxies: .*
  routes:
{routes}"
    )
}

/// Its additional configuration, in YAML.
pub(crate) fn zuul(scenario: &Scenario, upstream: u16) -> String {
    let routes = routes(scenario, |i| {
        format!(
            "    route-{i}: {{path: \"/route-{i}/**\", url: \"http://127.0.0.1:{upstream}\", strip-prefix: false}}"
        )
    });
    format!(
        "eureka.client.enabled: false
# 8192 by default.
server.tomcat.max-connections: 20000
zuul:
  # Else each answer is chunked.
  set-content-length: true
  # 20 by default, as for a route that is not in the registry.
  host: {{max-total-connections: {POOL}, max-per-route-connections: {POOL}}}
  routes:
{routes}"
    )
}

/// Starts one of the two with such a file.
pub(crate) fn spring(name: Name, jars: &Path, port: u16, file: &Path) -> Command {
    let (generation, application) = match name {
        Name::Zuul => (Generation::Legacy, "zuul"),
        _ => (Generation::Modern, "gateway"),
    };
    let mut command = java(jars, generation, application, &OPTIONS);
    command.arg(format!("--spring.config.additional-location=file:{}", file.display()));
    // Nobody is asked there.
    command.env("PORT", port.to_string()).env("EUREKA_URL", "http://localhost/eureka/");
    command
}

/// As a reader of the results would start it.
pub(crate) fn spring_options() -> String {
    format!("java {} -jar", OPTIONS.join(" "))
}
