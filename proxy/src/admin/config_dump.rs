//! What is in force, as Envoy's `config_dump` says it: its messages in protobuf's JSON, so that what reads Envoy's dumps
//! reads these. What the proto files mark as sensitive is `[redacted]`.

mod wanted;

use std::time::SystemTime;

use envoy_types::pb::envoy::admin::v3::{
    BootstrapConfigDump, ClientResourceStatus, ClustersConfigDump, EndpointsConfigDump, ListenersConfigDump,
    RoutesConfigDump, ScopedRoutesConfigDump, SecretsConfigDump, UpdateFailureState,
    clusters_config_dump as clusters, endpoints_config_dump as endpoints, listeners_config_dump as listeners,
    routes_config_dump as routes, secrets_config_dump as secrets,
};
use envoy_types::pb::envoy::config::bootstrap::v3::{Admin, Bootstrap as EnvoyBootstrap};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{
    Address, Locality, Node, SocketAddress, address, socket_address,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, cluster_load_assignment, endpoint,
};
use envoy_types::pb::envoy::config::listener::v3::{Listener, filter};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use envoy_types::pb::google::protobuf::{Any, Timestamp, UInt32Value};
use pontoon_xds::json::{redacted, to_json};
use pontoon_xds::messages::Coded;
use pontoon_xds::{Resource, ResourceType};
use prost::Name;
use serde_json::{Value, json};

use crate::bootstrap::Bootstrap;
use crate::config::{Dumped, OwnEndpoints, Refused};
use crate::upstream::cluster::EndpointHealth;
pub(super) use wanted::{Unusable, Wanted};

/// All that is shown.
pub(super) struct Shown<'a> {
    pub(super) bootstrap: &'a Bootstrap,
    pub(super) node: Node,
    pub(super) started: SystemTime,
    pub(super) resources: Vec<Dumped>,
    pub(super) endpoints: Vec<OwnEndpoints>,
}

impl Shown<'_> {
    /// The dump, or the part of it that is wanted.
    pub(super) fn render(&self, wanted: &Wanted) -> Result<Value, Unusable> {
        let named = |dumped: &&Dumped| wanted.takes(&dumped.name);
        let all: Vec<&Dumped> = self.resources.iter().filter(named).collect();
        let mut sections = vec![shown(&self.bootstrap()), shown(&clusters(&all))];
        if wanted.include_eds {
            sections.push(shown(&self.endpoints(&all, wanted)));
        }
        sections.push(shown(&listeners(&all)));
        sections.push(shown(&ScopedRoutesConfigDump::default()));
        sections.push(shown(&self.routes(&all, wanted)));
        sections.push(shown(&secrets(&all)));
        let configs = wanted.cut(sections)?;
        // As protobuf's JSON leaves out what is empty.
        Ok(if configs.is_empty() { json!({}) } else { json!({ "configs": configs }) })
    }

    /// Flags and environment go before the file: what is shown is what counts.
    fn bootstrap(&self) -> BootstrapConfigDump {
        let encoded = self.bootstrap.envoy.as_deref().unwrap_or_default();
        let mut message = EnvoyBootstrap::decoded(encoded).unwrap_or_default();
        message.node = Some(self.node.clone());
        let admin = message.admin.get_or_insert_with(Admin::default);
        admin.address = Some(socket(self.bootstrap.admin));
        BootstrapConfigDump { bootstrap: Some(message), last_updated: stamp(self.started) }
    }

    fn endpoints(&self, all: &[&Dumped], wanted: &Wanted) -> EndpointsConfigDump {
        let own = self.endpoints.iter().filter(|own| wanted.takes(&own.cluster));
        let dynamic = of(all, ResourceType::Endpoint).map(|dumped| {
            let (version_info, endpoint_config, last_updated) = active(dumped);
            endpoints::DynamicEndpointConfig {
                version_info,
                endpoint_config: endpoint_config.or_else(|| Some(only_named(dumped))),
                client_status: status(dumped).into(),
                last_updated,
                error_state: error(dumped),
            }
        });
        EndpointsConfigDump {
            static_endpoint_configs: own.map(static_endpoints).collect(),
            dynamic_endpoint_configs: dynamic.collect(),
        }
    }

    fn routes(&self, all: &[&Dumped], wanted: &Wanted) -> RoutesConfigDump {
        // As in Envoy, routes that are written in a listener are static, wherever that is from.
        let of_listeners = self.resources.iter().filter(|dumped| dumped.ty == ResourceType::Listener);
        let inline = of_listeners.flat_map(|dumped| {
            let in_force = dumped.in_force.as_ref();
            let tables = in_force.map(|(resource, _)| inline_routes(resource)).unwrap_or_default();
            let last_updated = in_force.and_then(|(_, since)| stamp(*since));
            tables.into_iter().map(move |table| (table, last_updated))
        });
        let inline = inline.filter(|(table, _)| wanted.takes(&table.name)).map(|(table, last_updated)| {
            let route_config = Some(any(&RouteConfiguration::type_url(), table.encoded()));
            routes::StaticRouteConfig { route_config, last_updated }
        });
        let dynamic = of(all, ResourceType::Route).map(|dumped| {
            let (version_info, route_config, last_updated) = active(dumped);
            routes::DynamicRouteConfig {
                version_info,
                route_config: route_config.or_else(|| Some(only_named(dumped))),
                client_status: status(dumped).into(),
                last_updated,
                error_state: error(dumped),
            }
        });
        RoutesConfigDump { static_route_configs: inline.collect(), dynamic_route_configs: dynamic.collect() }
    }
}

fn clusters(all: &[&Dumped]) -> ClustersConfigDump {
    let mut dump = ClustersConfigDump::default();
    for dumped in of(all, ResourceType::Cluster) {
        let (version_info, cluster, last_updated) = active(dumped);
        if dumped.is_static {
            dump.static_clusters.push(clusters::StaticCluster { cluster, last_updated });
            continue;
        }
        let is_active = cluster.is_some();
        if is_active {
            dump.dynamic_active_clusters.push(clusters::DynamicCluster {
                version_info,
                cluster,
                last_updated,
                error_state: error(dumped),
                client_status: status(dumped).into(),
            });
        }
        let warming = dumped.warming.as_ref();
        if warming.is_some() || !is_active {
            dump.dynamic_warming_clusters.push(clusters::DynamicCluster {
                version_info: warming.map(|resource| resource.version.to_string()).unwrap_or_default(),
                cluster: Some(warming.map_or_else(|| only_named(dumped), |of| any_of(dumped.ty, of))),
                error_state: error(dumped).filter(|_| !is_active),
                client_status: status(dumped).into(),
                ..Default::default()
            });
        }
    }
    dump.version_info = version(dump.dynamic_active_clusters.iter().map(|cluster| &*cluster.version_info));
    dump
}

fn listeners(all: &[&Dumped]) -> ListenersConfigDump {
    let mut dump = ListenersConfigDump::default();
    for dumped in of(all, ResourceType::Listener) {
        let (version_info, listener, last_updated) = active(dumped);
        if dumped.is_static {
            dump.static_listeners.push(listeners::StaticListener { listener, last_updated });
            continue;
        }
        let state = |version_info, listener, last_updated| listeners::DynamicListenerState {
            version_info,
            listener,
            last_updated,
        };
        let warming = dumped.warming.as_ref();
        dump.dynamic_listeners.push(listeners::DynamicListener {
            name: dumped.name.to_string(),
            active_state: listener.is_some().then(|| state(version_info, listener, last_updated)),
            warming_state: warming
                .map(|resource| state(resource.version.to_string(), Some(any_of(dumped.ty, resource)), None)),
            error_state: error(dumped),
            client_status: status(dumped).into(),
            draining_state: None,
        });
    }
    let active = dump.dynamic_listeners.iter().filter_map(|listener| listener.active_state.as_ref());
    dump.version_info = version(active.map(|state| &*state.version_info));
    dump
}

fn secrets(all: &[&Dumped]) -> SecretsConfigDump {
    let mut dump = SecretsConfigDump::default();
    for dumped in of(all, ResourceType::Secret) {
        let (version_info, secret, last_updated) = active(dumped);
        let name = dumped.name.to_string();
        if dumped.is_static {
            dump.static_secrets.push(secrets::StaticSecret { name, last_updated, secret });
        } else {
            let error_state = error(dumped);
            let list = match secret {
                Some(_) => &mut dump.dynamic_active_secrets,
                None => &mut dump.dynamic_warming_secrets,
            };
            list.push(secrets::DynamicSecret {
                name,
                version_info,
                last_updated,
                secret: secret.or_else(|| Some(only_named(dumped))),
                error_state,
                client_status: status(dumped).into(),
            });
        }
    }
    dump
}

/// Every resource has a version of its own here. One for all is said where they agree, as they do with servers that
/// number their states.
fn version<'v>(mut versions: impl Iterator<Item = &'v str>) -> String {
    let Some(first) = versions.next() else { return String::new() };
    if versions.all(|version| version == first) { first.to_owned() } else { String::new() }
}

fn of<'d>(all: &'d [&'d Dumped], ty: ResourceType) -> impl Iterator<Item = &'d Dumped> {
    all.iter().copied().filter(move |dumped| dumped.ty == ty)
}

fn active(dumped: &Dumped) -> (String, Option<Any>, Option<Timestamp>) {
    match &dumped.in_force {
        Some((resource, since)) => {
            (resource.version.to_string(), Some(any_of(dumped.ty, resource)), stamp(*since))
        }
        None => (String::new(), None, None),
    }
}

/// In place of a resource of which nothing is in force, for readers that expect one: it has its name, and nothing else.
/// (Envoy shows a secret so that has not come.)
fn only_named(dumped: &Dumped) -> Any {
    let name = dumped.name.to_string();
    let value = match dumped.ty {
        ResourceType::Secret => Secret { name, ..Default::default() }.encoded(),
        ResourceType::Cluster => Cluster { name, ..Default::default() }.encoded(),
        ResourceType::Endpoint => {
            ClusterLoadAssignment { cluster_name: name, ..Default::default() }.encoded()
        }
        ResourceType::Listener => Listener { name, ..Default::default() }.encoded(),
        ResourceType::Route => RouteConfiguration { name, ..Default::default() }.encoded(),
    };
    any(dumped.ty.type_url(), value)
}

/// Envoy leaves it at the default; here a refusal is told, as a client of gRPC's tells it.
fn status(dumped: &Dumped) -> ClientResourceStatus {
    match dumped.refused {
        Some(_) => ClientResourceStatus::Nacked,
        None => ClientResourceStatus::Unknown,
    }
}

/// What was refused last.
pub(super) fn error(dumped: &Dumped) -> Option<UpdateFailureState> {
    let Refused { resource, reason, at } = dumped.refused.as_ref()?;
    let type_url = dumped.ty.type_url();
    Some(UpdateFailureState {
        failed_configuration: Some(any(type_url, redacted(type_url, &resource.body).to_vec())),
        last_update_attempt: stamp(*at),
        details: reason.clone(),
        version_info: resource.version.to_string(),
    })
}

fn inline_routes(resource: &Resource) -> Vec<RouteConfiguration> {
    let Ok(listener) = resource.decode::<Listener>() else { return Vec::new() };
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let configs = chains.flat_map(|chain| &chain.filters).filter_map(|filter| match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(any)) => Some(any),
        _ => None,
    });
    let of_api = listener.api_listener.iter().filter_map(|api| api.api_listener.as_ref());
    let managers = configs.chain(of_api).filter(|any| any.type_url == HttpConnectionManager::type_url());
    managers
        .filter_map(|any| match HttpConnectionManager::decoded(&any.value).ok()?.route_specifier? {
            RouteSpecifier::RouteConfig(routes) => Some(routes),
            _ => None,
        })
        .collect()
}

fn static_endpoints(own: &OwnEndpoints) -> endpoints::StaticEndpointConfig {
    let one = |(at, weight, health): &(std::net::SocketAddr, u32, EndpointHealth)| LbEndpoint {
        health_status: match health {
            EndpointHealth::Healthy => 1,
            EndpointHealth::Unhealthy => 2,
            EndpointHealth::Draining => 3,
        },
        load_balancing_weight: Some(UInt32Value { value: *weight }),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(*at)),
            health_check_config: Some(endpoint::HealthCheckConfig::default()),
            ..Default::default()
        })),
        ..Default::default()
    };
    let lb_endpoints: Vec<LbEndpoint> = own.endpoints.iter().map(one).collect();
    // Envoy writes out what is the default here, too.
    let locality = LocalityLbEndpoints {
        locality: Some(Locality::default()),
        lb_endpoints,
        load_balancing_weight: Some(UInt32Value { value: 0 }),
        ..Default::default()
    };
    let policy = cluster_load_assignment::Policy {
        overprovisioning_factor: Some(UInt32Value { value: 140 }),
        ..Default::default()
    };
    let assignment = ClusterLoadAssignment {
        cluster_name: own.cluster.to_string(),
        endpoints: if own.endpoints.is_empty() { Vec::new() } else { vec![locality] },
        policy: Some(policy),
        ..Default::default()
    };
    let endpoint_config = Some(any(&ClusterLoadAssignment::type_url(), assignment.encoded()));
    endpoints::StaticEndpointConfig { endpoint_config, last_updated: None }
}

fn socket(at: std::net::SocketAddr) -> Address {
    let socket = SocketAddress {
        address: at.ip().to_string(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(at.port().into())),
        ..Default::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

fn any_of(ty: ResourceType, resource: &Resource) -> Any {
    any(ty.type_url(), resource.body.to_vec())
}

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value }
}

fn shown<M: Coded>(message: &M) -> Value {
    to_json(&M::type_url(), &message.encoded())
}

/// As protobuf has it. None before 1970.
pub(super) fn stamp(at: SystemTime) -> Option<Timestamp> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let nanos = since.subsec_nanos().try_into().ok()?;
    Some(Timestamp { seconds: since.as_secs().try_into().ok()?, nanos })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{TlsCertificate, secret};

    use super::*;
    use crate::bootstrap::Args;

    /// Of each type one that is in force, one that was only refused and one that waits: whatever reads a dump finds a
    /// resource wherever Envoy would have one.
    #[test]
    fn each_entry_has_a_resource() {
        let bootstrap = Bootstrap::from_args(Args::parse_from(["pontoon-proxy"])).unwrap();
        let mut resources = Vec::new();
        for ty in ResourceType::ALL {
            let of = |name: &str| Resource {
                name: name.into(),
                version: "1".into(),
                body: only_named(&Dumped::of(ty, name)).value.into(),
            };
            let refused =
                Refused { resource: of("refused"), reason: "no".into(), at: SystemTime::UNIX_EPOCH };
            let in_force = Some((of("used"), SystemTime::UNIX_EPOCH));
            resources.extend([
                Dumped { in_force, ..Dumped::of(ty, "used") },
                Dumped { refused: Some(refused), ..Dumped::of(ty, "refused") },
            ]);
            if matches!(ty, ResourceType::Cluster | ResourceType::Listener) {
                resources.push(Dumped { warming: Some(of("waits")), ..Dumped::of(ty, "waits") });
            }
        }
        let shown = Shown {
            bootstrap: &bootstrap,
            node: Node::default(),
            started: SystemTime::UNIX_EPOCH,
            resources,
            endpoints: Vec::new(),
        };
        let wanted = Wanted::new(None, None, None, true).unwrap();
        let dump = shown.render(&wanted).unwrap();
        let all = dump["configs"].as_array().unwrap();
        let section =
            |name: &str| all.iter().find_map(|section| section.get(name)).unwrap().as_array().unwrap();
        for (list, resource, name, names) in [
            ("dynamic_active_clusters", "cluster", "name", &["used"][..]),
            ("dynamic_warming_clusters", "cluster", "name", &["refused", "waits"]),
            ("dynamic_endpoint_configs", "endpoint_config", "cluster_name", &["refused", "used"]),
            ("dynamic_route_configs", "route_config", "name", &["refused", "used"]),
            ("dynamic_active_secrets", "secret", "name", &["used"]),
            ("dynamic_warming_secrets", "secret", "name", &["refused"]),
        ] {
            let mut found: Vec<&str> =
                section(list).iter().map(|entry| entry[resource][name].as_str().unwrap()).collect();
            found.sort_unstable();
            assert_eq!(found, names, "{list}: {dump:#}");
            for entry in section(list).iter().filter(|entry| entry[resource][name] == "refused") {
                assert_eq!(entry["error_state"]["failed_configuration"][name], "refused", "{entry:#}");
                assert_eq!(entry["client_status"], "NACKED");
            }
        }
        let listeners = section("dynamic_listeners");
        let of = |name: &str| listeners.iter().find(|listener| listener["name"] == name).unwrap();
        assert_eq!(of("used")["active_state"]["listener"]["name"], "used");
        assert_eq!(of("waits")["warming_state"]["listener"]["name"], "waits");
        assert_eq!(of("refused")["error_state"]["failed_configuration"]["name"], "refused");
    }

    #[test]
    fn keys_are_not_shown_and_refusals_are() {
        let inline = |text: &str| {
            let specifier = Some(Specifier::InlineString(text.into()));
            Some(DataSource { specifier, ..Default::default() })
        };
        let certificate = TlsCertificate {
            certificate_chain: inline("the chain"),
            private_key: inline("the key"),
            ..Default::default()
        };
        let secret = Secret { name: "shop".into(), r#type: Some(secret::Type::TlsCertificate(certificate)) };
        let bootstrap = Bootstrap::from_args(Args::parse_from(["pontoon-proxy", "--node-id=n"])).unwrap();
        let resource = Resource::encode(&secret);
        let refused = Refused { resource: resource.clone(), reason: "no".into(), at: SystemTime::UNIX_EPOCH };
        let dumped = Dumped {
            ty: ResourceType::Secret,
            name: "shop".into(),
            in_force: Some((resource.clone(), SystemTime::UNIX_EPOCH)),
            refused: Some(refused),
            warming: None,
            is_static: false,
        };
        let shown = Shown {
            bootstrap: &bootstrap,
            node: Node { id: "n".into(), ..Default::default() },
            started: SystemTime::UNIX_EPOCH,
            resources: vec![dumped],
            endpoints: Vec::new(),
        };
        let dump = shown.render(&Wanted::default()).unwrap();
        let text = dump.to_string();
        assert!(text.contains("the chain") && !text.contains("the key"), "{dump:#}");
        assert_eq!(dump["configs"][0]["bootstrap"]["node"]["id"], "n");
        let secrets = &dump["configs"].as_array().unwrap().last().unwrap()["dynamic_active_secrets"];
        assert_eq!(secrets[0]["version_info"], *resource.version);
        assert_eq!(secrets[0]["error_state"]["details"], "no");
        assert_eq!(secrets[0]["last_updated"], "1970-01-01T00:00:00Z");
    }
}
