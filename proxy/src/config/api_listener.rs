//! A `Listener` with an `api_listener`: no socket, only where the routes of a service are. gRPC's clients ask
//! for it by the authority of their requests, and so does a sidecar.

use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

use super::hcm::{self, Routes};
use super::lds::unpack;
use super::problem::{Problem, Under};
use super::virtual_address::{self, VirtualAddress};

/// Where the routes of an API listener are, and the address that its name resolves to. What else a connection manager can say belongs to sockets, of which
/// it has none: where it is said it is refused, for the sidecar's own listener would not do it.
pub(super) fn compile(message: &Listener) -> Result<(Routes, Option<VirtualAddress>), Problem> {
    let alone = Listener {
        name: message.name.clone(),
        api_listener: message.api_listener.clone(),
        stat_prefix: message.stat_prefix.clone(),
        metadata: message.metadata.clone(),
        ..Listener::default()
    };
    if *message != alone {
        return Err(Problem::new("api_listener", "stands alone: such a listener has no socket of its own"));
    }
    let api = message.api_listener.as_ref().and_then(|api| api.api_listener.as_ref());
    let at = || "api_listener.api_listener".into();
    let api = api.ok_or_else(|| Problem::new("", "is missing")).under(at)?;
    let address = virtual_address::read(message.metadata.as_ref())?;
    Ok((manager(&unpack(api).under(at)?).under(at)?, address))
}

fn manager(message: &HttpConnectionManager) -> Result<Routes, Problem> {
    let read = HttpConnectionManager {
        stat_prefix: message.stat_prefix.clone(),
        codec_type: message.codec_type,
        http_filters: message.http_filters.clone(),
        route_specifier: message.route_specifier.clone(),
        ..HttpConnectionManager::default()
    };
    if *message != read {
        let reason = "says more than routes and http_filters, which only a listener with a socket could do";
        return Err(Problem::new("", reason));
    }
    let manager = hcm::compile(message)?;
    if !manager.rbac.is_empty() || !manager.authz.is_empty() {
        let reason = "has a filter for RBAC or ext_authz; the sidecar's own listener, which serves the requests, would \
                      not ask it";
        return Err(Problem::new("http_filters", reason));
    }
    Ok(manager.routes)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
    use envoy_types::pb::envoy::extensions::filters::http::{rbac::v3::Rbac, router::v3::Router};
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpFilter, http_connection_manager::RouteSpecifier, http_filter::ConfigType,
    };
    use pontoon_xds::messages::pack;

    use super::*;

    #[test]
    fn a_filter_that_nobody_would_ask_is_refused() {
        let filter =
            |config| HttpFilter { config_type: Some(ConfigType::TypedConfig(config)), ..Default::default() };
        let mut message = HttpConnectionManager {
            http_filters: vec![filter(pack(&Router::default()))],
            route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration::default())),
            ..HttpConnectionManager::default()
        };
        assert!(manager(&message).is_ok());
        message.http_filters.insert(0, filter(pack(&Rbac::default())));
        assert_eq!(manager(&message).unwrap_err().path, "http_filters");
    }
}
