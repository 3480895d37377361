//! Messages to bytes and back. prost's code for that is generic, so every crate that calls it gets a copy of its own:
//! here it is compiled once, and for size, as only changes of configuration run through it.

use prost::{DecodeError, Message, Name};

use crate::pb::envoy::admin::v3::{
    BootstrapConfigDump, ClustersConfigDump, EndpointsConfigDump, ListenersConfigDump, RoutesConfigDump,
    ScopedRoutesConfigDump, SecretsConfigDump,
};
use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::{FilterConfig, RouteConfiguration, VirtualHost};
use crate::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use crate::pb::envoy::extensions::access_loggers::stream::v3::{StderrAccessLog, StdoutAccessLog};
use crate::pb::envoy::extensions::filters::http::buffer::v3::{Buffer, BufferPerRoute};
use crate::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use crate::pb::envoy::extensions::filters::http::ext_authz::v3::{ExtAuthz, ExtAuthzPerRoute};
use crate::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use crate::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use crate::pb::envoy::extensions::filters::http::router::v3::Router;
use crate::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute,
};
use crate::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use crate::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use crate::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use crate::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use crate::pb::envoy::extensions::filters::network::connection_limit::v3::ConnectionLimit;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use crate::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use crate::pb::envoy::extensions::http::header_validators::envoy_default::v3::HeaderValidatorConfig;
use crate::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use crate::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use crate::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use crate::pb::envoy::extensions::resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig;
use crate::pb::envoy::extensions::resource_monitors::fixed_heap::v3::FixedHeapConfig;
use crate::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use crate::pb::envoy::extensions::transport_sockets::tls::v3::{
    DownstreamTlsContext, Secret, UpstreamTlsContext,
};
use crate::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use crate::pb::google::protobuf::Any;

/// A message that this crate encodes and decodes for others.
pub trait Coded: Message + Name + Default {
    /// From its bytes.
    ///
    /// # Errors
    /// When the bytes are not of this type.
    fn decoded(bytes: &[u8]) -> Result<Self, DecodeError>;

    /// Its bytes.
    fn encoded(&self) -> Vec<u8>;
}

/// The message as an extension is written.
pub fn pack<M: Coded>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encoded() }
}

macro_rules! coded {
    ($($message:ty,)+) => {$(
        impl Coded for $message {
            fn decoded(bytes: &[u8]) -> Result<Self, DecodeError> {
                Self::decode(bytes)
            }

            fn encoded(&self) -> Vec<u8> {
                self.encode_to_vec()
            }
        }
    )+

    /// The full names of all of them.
    pub fn names() -> Vec<String> {
        vec![$(<$message>::full_name()),+]
    }
    };
}

coded! {
    Bootstrap,
    BootstrapConfigDump,
    Buffer,
    BufferPerRoute,
    Cluster,
    ClusterLoadAssignment,
    ClustersConfigDump,
    ConnectionLimit,
    CookieBasedSessionState,
    CorsPolicy,
    DownstreamConnectionsConfig,
    DownstreamTlsContext,
    EndpointsConfigDump,
    ExtAuthz,
    ExtAuthzPerRoute,
    FileAccessLog,
    FilterConfig,
    FixedHeapConfig,
    HeaderBasedSessionState,
    HeaderValidatorConfig,
    HttpConnectionManager,
    HttpInspector,
    HttpProtocolOptions,
    Listener,
    ListenersConfigDump,
    LocalRateLimit,
    OriginalDst,
    ProxyProtocol,
    ProxyProtocolUpstreamTransport,
    Rbac,
    RbacPerRoute,
    RouteConfiguration,
    Router,
    RoutesConfigDump,
    ScopedRoutesConfigDump,
    Secret,
    SecretsConfigDump,
    StatefulSession,
    StatefulSessionPerRoute,
    StderrAccessLog,
    StdoutAccessLog,
    TcpProxy,
    TlsInspector,
    UpstreamTlsContext,
    UriTemplateMatchConfig,
    VirtualHost,
}
