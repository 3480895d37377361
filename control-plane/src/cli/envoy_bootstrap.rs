//! `pontoon envoy-bootstrap`: what an Envoy has to be started with to serve a Gateway, so that everything else comes
//! from the control plane. It needs no running one.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::output::line;
use super::{CliError, client};

/// The cluster by which Envoy reaches the control plane. No compiled cluster has it: those have a `/`.
const XDS_CLUSTER: &str = "pontoon-xds";
/// Connecting to the control plane; then it is tried again.
const CONNECT_TIMEOUT: &str = "5s";
/// The server asks as often; a control plane that is gone without a word is noticed by both sides alike.
const KEEPALIVE: &str = "10s";
/// As large as Envoy lets a regular expression be, in RE2's instructions. Its own limit of 100 is one that many of those
/// exceed which the control plane has taken, and Envoy refuses all routes for one.
const PROGRAM_SIZE: u32 = 65_536;

#[derive(Debug, Args)]
pub(super) struct EnvoyBootstrapArgs {
    /// The Gateway that Envoy is to serve: NAME or NAMESPACE/NAME.
    #[arg(value_name = "GATEWAY")]
    gateway: String,
    /// Where the control plane serves xDS, as Envoy reaches it.
    #[arg(long, env = "PONTOON_XDS_SERVER", value_name = "HOST:PORT", default_value = "127.0.0.1:18000")]
    xds_server: String,
    /// The protocol's variant.
    #[arg(long, value_enum, default_value_t = Variant::Delta)]
    variant: Variant,
    /// How this Envoy is told from others. Without it: `envoy` and the Gateway's name. Two that run at once need two.
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node_id: Option<String>,
    /// Where Envoy's admin port listens. It has no access control.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
}

/// How resources are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Variant {
    /// What changed; a resource that is refused holds up no other.
    Delta,
    /// All clusters and all listeners each time.
    Sotw,
}

impl Variant {
    /// As Envoy's `ApiConfigSource` spells it.
    fn api_type(self) -> &'static str {
        match self {
            Variant::Delta => "DELTA_GRPC",
            Variant::Sotw => "GRPC",
        }
    }
}

/// Prints it as JSON, which Envoy reads from a file that ends in `.json` or `.yaml`.
pub(super) fn run(args: &EnvoyBootstrapArgs) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(&bootstrap(args)?);
    line(&text.map_err(|error| CliError::Other(error.to_string()))?)
}

fn bootstrap(args: &EnvoyBootstrapArgs) -> Result<Value, CliError> {
    let (namespace, name) = client::split_name(&args.gateway)?;
    let (host, port) = host_and_port(&args.xds_server)?;
    let node_id = match &args.node_id {
        Some(id) => id.clone(),
        None => format!("envoy-{namespace}-{name}"),
    };
    // An address needs no resolver, and a name needs one.
    let discovery = if host.parse::<std::net::IpAddr>().is_ok() { "STATIC" } else { "STRICT_DNS" };
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let ads = json!({ "resource_api_version": "V3", "ads": {} });
    Ok(json!({
        "node": { "id": node_id, "cluster": format!("{namespace}/{name}") },
        "admin": { "address": address(&args.admin.ip().to_string(), args.admin.port()) },
        "dynamic_resources": {
            "ads_config": {
                "api_type": args.variant.api_type(),
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": XDS_CLUSTER } }],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "layered_runtime": { "layers": [{
            "name": "pontoon",
            "static_layer": { "re2.max_program_size.error_level": PROGRAM_SIZE },
        }] },
        "static_resources": { "clusters": [{
            "name": XDS_CLUSTER,
            "type": discovery,
            "connect_timeout": CONNECT_TIMEOUT,
            "typed_extension_protocol_options": { options: {
                "@type": format!("type.googleapis.com/{options}"),
                "explicit_http_config": { "http2_protocol_options": {
                    "connection_keepalive": { "interval": KEEPALIVE, "timeout": KEEPALIVE },
                } },
            } },
            "load_assignment": {
                "cluster_name": XDS_CLUSTER,
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(&host, port) } }] }],
            },
        }] },
    }))
}

fn address(host: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": host, "port_value": port } })
}

/// With or without `http://`, as `pontoon-proxy --xds-server` takes it; an IPv6 address in brackets.
fn host_and_port(text: &str) -> Result<(String, u16), CliError> {
    let wrong = || CliError::Other(format!("--xds-server {text:?}: expected HOST:PORT"));
    let plain = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let (host, port) = plain.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    let (host, is_bare) = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => (host, false),
        None => (host, true),
    };
    if host.is_empty() || host.contains('/') || (is_bare && host.contains(':')) {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(gateway: &str, xds_server: &str, variant: Variant) -> EnvoyBootstrapArgs {
        EnvoyBootstrapArgs {
            gateway: gateway.into(),
            xds_server: xds_server.into(),
            variant,
            node_id: None,
            admin: ([127, 0, 0, 1], 15000).into(),
        }
    }

    #[test]
    fn a_gateway_is_named_with_its_namespace() {
        let made = |gateway| bootstrap(&args(gateway, "127.0.0.1:1", Variant::Delta)).expect("a bootstrap");
        assert_eq!(made("edge")["node"], json!({ "id": "envoy-default-edge", "cluster": "default/edge" }));
        assert_eq!(made("shop/edge")["node"]["cluster"], "shop/edge");
    }

    #[test]
    fn the_variant_is_envoys_api_type() {
        for (variant, api_type) in [(Variant::Delta, "DELTA_GRPC"), (Variant::Sotw, "GRPC")] {
            let made = bootstrap(&args("edge", "127.0.0.1:1", variant)).expect("a bootstrap");
            assert_eq!(made["dynamic_resources"]["ads_config"]["api_type"], api_type);
        }
    }

    #[test]
    fn a_server_is_an_address_or_a_name() {
        for (text, host, discovery) in [
            ("127.0.0.1:18000", "127.0.0.1", "STATIC"),
            ("http://127.0.0.1:18000", "127.0.0.1", "STATIC"),
            ("[::1]:18000", "::1", "STATIC"),
            ("pontoon.mesh.svc:18000", "pontoon.mesh.svc", "STRICT_DNS"),
        ] {
            let made = bootstrap(&args("edge", text, Variant::Delta)).expect("a bootstrap");
            let cluster = &made["static_resources"]["clusters"][0];
            let endpoint = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
            assert_eq!(cluster["type"], discovery, "{text}");
            assert_eq!(
                endpoint["address"]["socket_address"],
                json!({ "address": host, "port_value": 18000 })
            );
        }
        for text in ["", "host", "host:", ":1", "host:0", "host:65536", "::1:18000", "https://host:1"] {
            assert!(bootstrap(&args("edge", text, Variant::Delta)).is_err(), "{text}");
        }
    }
}
