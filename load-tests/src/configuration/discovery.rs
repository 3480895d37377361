//! A configuration by xDS whose endpoints can be changed while a proxy runs: the same server and the same resources
//! for our proxy and for Envoy.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::{AggregatedConfigSource, ApiVersion, ConfigSource};
use pontoon_xds::Snapshot;
use pontoon_xds::server::{Options, Server};

use super::{Scenario, ours};

/// One proxy's configuration.
pub(crate) struct Discovery {
    server: Server,
    scenario: Scenario,
    /// Where the proxy is to listen.
    port: u16,
    /// Where it is served.
    pub(crate) address: SocketAddr,
}

impl Discovery {
    /// Serves it until the runtime ends.
    pub(crate) async fn serve(
        scenario: &Scenario,
        port: u16,
        upstreams: &[u16],
    ) -> anyhow::Result<Discovery> {
        let server = Server::new(Options::new(|_| Ok(String::from("bench"))));
        let address = ours::listen(&server).await?;
        let discovery = Discovery { server, scenario: scenario.clone(), port, address };
        discovery.publish(upstreams);
        Ok(discovery)
    }

    /// From now on these endpoints.
    pub(crate) fn publish(&self, upstreams: &[u16]) {
        let ads = ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource::default())),
            resource_api_version: ApiVersion::V3.into(),
            ..ConfigSource::default()
        };
        let cluster = Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            eds_cluster_config: Some(EdsClusterConfig {
                eds_config: Some(ads),
                ..EdsClusterConfig::default()
            }),
            load_assignment: None,
            ..ours::cluster(&self.scenario, 0)
        };
        let mut snapshot = Snapshot::default();
        snapshot.insert(&cluster);
        snapshot.insert(&ours::listener(&self.scenario, self.port));
        snapshot.insert(&ours::assignment(upstreams));
        self.server.publish("bench", snapshot);
    }
}
