//! The bootstrap's file, read again while the process runs: what can be taken up then, and what of the rest is not as it
//! was.

use std::fmt::Debug;
use std::net::SocketAddr;

use pontoon_xds::{Resource, ResourceType};

use super::{Args, Bootstrap, BootstrapError, read, sidecar};
use crate::allocator::apart;
use crate::config::differing::{Met, noting};
use crate::discovery::Sidecar;
use crate::dns::Settings;

/// What a process that runs takes up of its file.
#[derive(Debug)]
pub(crate) struct Again {
    pub(crate) log: Option<String>,
    pub(crate) dns_upstreams: Option<Vec<SocketAddr>>,
    /// Static resources, of a bootstrap of Envoy's.
    pub(crate) resources: Vec<(ResourceType, Resource)>,
    /// Fields that are ignored unlike in Envoy.
    pub(crate) differing: Met,
    /// The fields that take another process; or why it could not be had with the flags of this one.
    pub(crate) others: Result<Vec<&'static str>, BootstrapError>,
}

impl Bootstrap {
    /// Reads the file again.
    ///
    /// # Errors
    /// When it cannot be read, or is of the other kind than at the start: half a bootstrap of Envoy's, as an editor
    /// leaves it for a moment, would be one of ours without a word in it.
    pub(crate) fn again(&self) -> Result<Again, BootstrapError> {
        let args = Args::clone(&self.args);
        let reads = || noting(|| read(args.config.as_deref(), args.config_yaml.as_deref()));
        let (reads, differing) = apart(reads);
        let (file, envoy) = reads?;
        if envoy.is_some() != self.envoy.is_some() {
            let path = args.config.unwrap_or_default();
            let (was, is) = ("a bootstrap of Envoy's", "settings of Pontoon's own");
            let (was, is) = if self.envoy.is_some() { (was, is) } else { (is, was) };
            let why = format!("{}: has {is}, and had {was} at the start", path.display());
            return Err(BootstrapError::Parse(why));
        }
        let resources = envoy.as_ref().map(|(resources, _)| resources.clone()).unwrap_or_default();
        let (log, dns_upstreams) = (file.log.clone(), file.dns.upstreams.clone());
        let others = Bootstrap::with(args, file, envoy).map(|now| self.differences(&now));
        Ok(Again { log, dns_upstreams, resources, differing, others })
    }

    /// Who is asked by DNS now, where the file says this of it; `None`: that is not for file or system to say.
    pub(crate) fn dns_upstreams(
        &self,
        written: Option<Vec<SocketAddr>>,
    ) -> Result<Option<Vec<SocketAddr>>, BootstrapError> {
        let dns = self.sidecar.as_ref().and_then(|sidecar| sidecar.dns.as_ref());
        let dns = dns.filter(|dns| !dns.by_flag);
        dns.map(|dns| sidecar::upstreams_now(written, &dns.addresses)).transpose()
    }

    /// The fields, as the file calls them, whose values are others there and stay as they are here.
    fn differences(&self, now: &Bootstrap) -> Vec<&'static str> {
        let (was, is) = (self.unchanging(), now.unchanging());
        let differing = was.into_iter().zip(is).filter(|((_, was), (_, is))| was != is);
        let mut names: Vec<&'static str> = differing.map(|((name, _), _)| name).collect();
        names.dedup();
        names
    }

    /// What a process cannot change while it runs.
    fn unchanging(&self) -> [(&'static str, String); 21] {
        fn told(value: impl Debug) -> String {
            format!("{value:?}")
        }
        let or = |ours, envoys| if self.envoy.is_some() { envoys } else { ours };
        let ads = "dynamic_resources.ads_config";
        let overload = "overload_manager";
        let of_sidecar = |part: fn(&Sidecar) -> String| self.sidecar.as_ref().map(part).unwrap_or_default();
        let dns = |sidecar: &Sidecar| {
            let settings = sidecar.dns.clone().map(|dns| Settings { upstreams: Vec::new(), ..dns });
            told((settings, &sidecar.naming))
        };
        [
            (or("xdsServer", ads), told(&self.xds_server)),
            (or("xdsVariant", ads), told(self.xds_variant)),
            (or("nodeId", "node.id"), told(&self.node_id)),
            (or("cluster", "node.cluster"), told(&self.cluster)),
            ("zone", told(&self.zone)),
            ("admin", told(self.admin)),
            ("health", told(self.health)),
            ("refuseLocalEndpoints", told(self.refuse_local_endpoints)),
            ("workers", told(self.workers)),
            ("drainSeconds", told(self.drain)),
            (or("maxConnections", overload), told(self.max_connections)),
            (or("maxMemoryMib", overload), told((self.max_memory_mib, self.memory_shares))),
            ("maxConnectionsPerSource", told(self.max_connections_per_source)),
            ("maxLagMs", told(self.max_lag)),
            ("maxHandshakesPerSecond", told(self.max_handshakes)),
            ("minBodyRate", told(self.min_body_rate)),
            ("outbound", of_sidecar(|sidecar| told(sidecar.outbound))),
            ("inbound", of_sidecar(|sidecar| told(&sidecar.inbound))),
            ("dns", of_sidecar(dns)),
            ("mark", told(self.mark)),
            ("upgradeSocket", told(&self.upgrade_socket)),
        ]
    }
}
