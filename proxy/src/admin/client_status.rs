//! CSDS on the admin port: what the proxy asks its control plane for, what it has of it, and what it refused, as gRPC's
//! tools read it of any xDS client. Keys are `[redacted]`, as in `/config_dump`.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use envoy_types::pb::envoy::admin::v3::ClientResourceStatus;
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::client_status_discovery_service_server::{
    ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};
use envoy_types::pb::google::protobuf::Any;
use futures_util::{Stream, StreamExt as _};
use pontoon_xds::json::redacted;
use pontoon_xds::{Resource, ResourceType};
use tonic::{Request, Response, Status, Streaming};

use super::Admin;
use super::config_dump::{error, stamp};
use crate::config::Dumped;

/// The paths of the service begin so.
pub(super) const PATH: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/";
/// A request names a node, at most.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The service, over what the admin port shows.
#[derive(Debug, Clone)]
pub(super) struct ClientStatus(Arc<Admin>);

impl ClientStatus {
    pub(super) fn service(admin: &Arc<Admin>) -> ClientStatusDiscoveryServiceServer<ClientStatus> {
        ClientStatusDiscoveryServiceServer::new(ClientStatus(Arc::clone(admin)))
            .max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    fn answer(&self, request: &ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        if !request.node_matchers.is_empty() {
            return Err(Status::invalid_argument("node_matchers are for control planes: this is one client"));
        }
        let with_contents = !request.exclude_resource_contents;
        let resources = self.0.discovery.store().dump();
        let mut configs: Vec<GenericXdsConfig> =
            resources.iter().map(|dumped| config(dumped, with_contents)).collect();
        for ty in ResourceType::ALL {
            let here: BTreeSet<&str> =
                resources.iter().filter(|dumped| dumped.ty == ty).map(|dumped| &*dumped.name).collect();
            let asked = self.0.discovery.asked(ty).into_iter();
            configs.extend(asked.filter(|(name, _)| !here.contains(&**name)).map(|(name, is_absent)| {
                let status = match is_absent {
                    true => ClientResourceStatus::DoesNotExist,
                    false => ClientResourceStatus::Requested,
                };
                GenericXdsConfig {
                    type_url: ty.type_url().to_owned(),
                    name: name.to_string(),
                    client_status: status.into(),
                    ..Default::default()
                }
            }));
        }
        let node = Some(self.0.node.clone());
        let config = ClientConfig { node, generic_xds_configs: configs, ..Default::default() };
        Ok(ClientStatusResponse { config: vec![config] })
    }
}

#[tonic::async_trait]
impl ClientStatusDiscoveryService for ClientStatus {
    type StreamClientStatusStream =
        Pin<Box<dyn Stream<Item = Result<ClientStatusResponse, Status>> + Send + 'static>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        let this = self.clone();
        let answers = request.into_inner().map(move |request| this.answer(&request?));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        self.answer(request.get_ref()).map(Response::new)
    }
}

fn config(dumped: &Dumped, with_contents: bool) -> GenericXdsConfig {
    // One that waits for what it names has been taken: the control plane was told so.
    let resource = dumped.in_force.as_ref().map(|(resource, _)| resource).or(dumped.warming.as_ref());
    let status = match (dumped.is_static, &dumped.refused) {
        (true, _) => ClientResourceStatus::Unknown,
        (false, Some(_)) => ClientResourceStatus::Nacked,
        (false, None) => ClientResourceStatus::Acked,
    };
    let ty = dumped.ty.type_url();
    let contents = |resource: &Resource| {
        let body = redacted(ty, &resource.body);
        Any { type_url: ty.to_owned(), value: body.to_vec() }
    };
    GenericXdsConfig {
        type_url: ty.to_owned(),
        name: dumped.name.to_string(),
        version_info: resource.map(|resource| resource.version.to_string()).unwrap_or_default(),
        xds_config: resource.filter(|_| with_contents).map(contents),
        last_updated: dumped.in_force.as_ref().and_then(|(_, since)| stamp(*since)),
        // What the server would send now only the server knows.
        config_status: ConfigStatus::Unknown.into(),
        client_status: status.into(),
        error_state: error(dumped),
        is_static_resource: dumped.is_static,
    }
}
