//! Requests on connections of HTTPS listeners that share a port, for hosts of the others.

use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};

use super::*;

/// What becomes of a request on a listener's connection.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Served,
    Misdirected,
    NotFound,
}

/// A gateway with an HTTPS listener for each of these hosts, `*` for all, and a route on all of them.
fn listening(hosts: &[String]) -> Objects {
    let signed = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).expect("a certificate");
    let secret = serde_json::from_value(json!({
        "metadata": { "name": "shop" },
        "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": signed.cert.pem(), "tls.key": signed.signing_key.serialize_pem() },
    }));
    let listeners: Vec<_> = hosts
        .iter()
        .enumerate()
        .map(|(number, host)| {
            let mut listener = json!({
                "name": format!("l{number}"), "port": 443, "protocol": "HTTPS",
                "tls": { "certificateRefs": [{ "name": "shop" }] },
            });
            if host != "*" {
                listener["hostname"] = json!(host);
            }
            listener
        })
        .collect();
    let gateway = serde_json::from_value(json!({
        "metadata": { "name": "edge" }, "spec": { "gatewayClassName": "pontoon", "listeners": listeners }
    }));
    let route = serde_json::from_value(json!({
        "metadata": { "name": "shop" },
        "spec": { "parentRefs": [{ "name": "edge" }], "rules": [{ "backendRefs": [{ "name": "shop" }] }] }
    }));
    let name = |name: &str| ObjectName::new("default", name);
    Objects {
        gateways: OrdMap::unit(name("edge"), Arc::new(gateway.expect("a gateway"))),
        secrets: OrdMap::unit(name("shop"), Arc::new(secret.expect("a secret"))),
        routes: OrdMap::unit(name("shop"), Arc::new(route.expect("a route"))),
        ..Objects::default()
    }
}

fn tables(compiled: &Compiled) -> BTreeMap<String, RouteConfiguration> {
    let resources = compiled.views["default/edge"].resources(ResourceType::Route).values();
    let table = |resource: &Resource| {
        (resource.name.to_string(), resource.decode::<RouteConfiguration>().expect("routes"))
    };
    resources.map(table).collect()
}

/// As Envoy looks up a host: its name, then the longest suffix, then `*`.
fn answer(table: &RouteConfiguration, host: &str) -> Answer {
    let mut found: Option<(usize, &VirtualHost)> = None;
    for of in &table.virtual_hosts {
        for domain in &of.domains {
            let length = match domain.strip_prefix('*') {
                None if domain == host => usize::MAX,
                Some(suffix) if host.ends_with(suffix) && host.len() > suffix.len() => suffix.len(),
                _ => continue,
            };
            assert!(found.is_none_or(|(before, _)| before != length), "{domain} is there twice");
            if found.is_none_or(|(before, _)| before < length) {
                found = Some((length, of));
            }
        }
    }
    match found.and_then(|(_, of)| of.routes.first()).and_then(|route| route.action.as_ref()) {
        Some(Action::DirectResponse(answer)) if answer.status == 421 => Answer::Misdirected,
        Some(_) => Answer::Served,
        None => Answer::NotFound,
    }
}

fn owner<'h>(hosts: &'h [String], host: &str) -> Option<&'h String> {
    let covers = |pattern: &str| match pattern.strip_prefix('*') {
        Some(suffix) => host.ends_with(suffix) && host.len() > suffix.len(),
        None => pattern == host,
    };
    let covering = hosts.iter().filter(|pattern| covers(pattern));
    covering.max_by_key(|pattern| if pattern.starts_with('*') { pattern.len() } else { usize::MAX })
}

#[test]
fn a_host_is_its_listeners_and_nobody_elses() {
    let all = ["*", "*.a.test", "*.b.a.test", "b.a.test", "c.b.a.test", "*.test", "other.example"];
    let asked = [
        "a.test",
        "x.a.test",
        "b.a.test",
        "c.b.a.test",
        "d.b.a.test",
        "x.test",
        "other.example",
        "x.example",
    ];
    // Every choice of them.
    for choice in 1..1_u32 << all.len() {
        let is_chosen = |(number, _): &(usize, &&str)| choice & (1 << number) != 0;
        let hosts: Vec<String> =
            all.iter().enumerate().filter(is_chosen).map(|(_, host)| (*host).to_owned()).collect();
        let tables = tables(&compile(&Model { objects: Arc::new(listening(&hosts)), ..Model::default() }));
        assert_eq!(tables.len(), hosts.len());
        for (number, own) in hosts.iter().enumerate() {
            let table = &tables[&format!("default/edge/l{number}")];
            for host in asked {
                let expected = match owner(&hosts, host) {
                    Some(owner) if owner == own => Answer::Served,
                    Some(_) => Answer::Misdirected,
                    None => Answer::NotFound,
                };
                assert_eq!(answer(table, host), expected, "{host} on {own} of {hosts:?}");
            }
        }
    }
}

#[test]
fn twice_as_many_listeners_are_twice_as_much() {
    let hosts = |count: usize| -> Vec<String> { (0..count).map(|n| format!("h{n:04}.a.test")).collect() };
    let bytes = |count: usize| -> usize {
        let compiled = compile(&Model { objects: Arc::new(listening(&hosts(count))), ..Model::default() });
        let resources = compiled.views["default/edge"].resources(ResourceType::Route).values();
        resources.map(|resource| resource.body.len()).sum()
    };
    let (some, more) = (bytes(500), bytes(1000));
    assert!(more < some * 2 + some / 10, "{some} bytes of 500 listeners, {more} of 1000");
    // Of so many, whatever is not its own is another's.
    let hosts = hosts(100);
    let tables = tables(&compile(&Model { objects: Arc::new(listening(&hosts)), ..Model::default() }));
    let table = &tables["default/edge/l7"];
    assert_eq!(answer(table, "h0007.a.test"), Answer::Served);
    assert_eq!(answer(table, "h0008.a.test"), Answer::Misdirected);
    assert_eq!(answer(table, "nobody.test"), Answer::Misdirected);
}
