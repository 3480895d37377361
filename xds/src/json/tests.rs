use super::*;
use crate::pb::envoy::config::core::v3::data_source::Specifier;
use crate::pb::envoy::config::core::v3::{DataSource, TransportSocket, transport_socket};
use crate::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use crate::pb::envoy::extensions::filters::http::router::v3::Router;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use crate::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, TlsCertificate,
};
use crate::pb::google::protobuf::Any;
use crate::resource::ResourceType;

fn any<M: prost::Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

fn listener(http_filter: Any) -> Listener {
    let manager = HttpConnectionManager {
        stat_prefix: "edge".into(),
        http_filters: vec![HttpFilter {
            name: "router".into(),
            config_type: Some(http_filter::ConfigType::TypedConfig(http_filter)),
            ..Default::default()
        }],
        ..Default::default()
    };
    let filter =
        Filter { name: "http".into(), config_type: Some(filter::ConfigType::TypedConfig(any(&manager))) };
    Listener {
        name: "edge".into(),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    }
}

fn shown(listener: &Listener) -> Value {
    to_json(ResourceType::Listener.type_url(), &listener.encode_to_vec())
}

#[test]
fn messages_inside_any_are_shown_with_the_names_of_the_proto_files() {
    let value = shown(&listener(any(&Router { suppress_envoy_headers: true, ..Default::default() })));
    assert_eq!(value["@type"], ResourceType::Listener.type_url());
    let manager = &value["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(manager["stat_prefix"], "edge");
    assert_eq!(manager["http_filters"][0]["typed_config"]["suppress_envoy_headers"], true);
}

#[test]
fn an_unknown_type_inside_is_shown_as_bytes_and_the_rest_as_always() {
    let strange = Any { type_url: "type.googleapis.com/nobody.knows.This".into(), value: vec![1, 2, 3] };
    let value = shown(&listener(strange));
    let manager = &value["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(manager["stat_prefix"], "edge");
    let unknown = &manager["http_filters"][0]["typed_config"];
    assert_eq!(unknown["@type"], "type.googleapis.com/nobody.knows.This");
    assert_eq!(unknown["undecoded"], "AQID");
}

#[test]
fn bytes_of_another_type_are_shown_as_bytes() {
    let value = to_json(ResourceType::Cluster.type_url(), &[0xff; 7]);
    assert_eq!(value["@type"], ResourceType::Cluster.type_url());
    assert!(value["undecoded"].is_string() && value["why"].is_string(), "{value}");
    assert!(to_json("", &[])["why"].is_string());
}

#[test]
fn a_private_key_is_not_shown() {
    let inline = |text: &str| {
        Some(DataSource { specifier: Some(Specifier::InlineString(text.into())), ..Default::default() })
    };
    let certificate = TlsCertificate {
        certificate_chain: inline("in public"),
        private_key: inline("in private"),
        ..Default::default()
    };
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: vec![certificate],
            ..Default::default()
        }),
        ..Default::default()
    };
    let socket = TransportSocket {
        name: "tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(any(&context))),
    };
    let chain = FilterChain { transport_socket: Some(socket), ..Default::default() };
    let text = shown(&Listener { filter_chains: vec![chain], ..Default::default() }).to_string();
    assert!(text.contains("in public") && text.contains(REDACTED), "{text}");
    assert!(!text.contains("in private"), "{text}");
}

#[test]
fn every_resource_type_and_every_extension_that_we_send_is_known() {
    for ty in ResourceType::ALL {
        assert!(is_known(ty.type_url()), "{}", ty.type_url());
    }
    for name in [
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        "envoy.extensions.filters.http.router.v3.Router",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    ] {
        assert!(is_known(&format!("type.googleapis.com/{name}")), "{name}");
    }
}

#[test]
fn what_may_hold_a_key_is_not_shown_even_where_it_cannot_be_read() {
    let garbage = [0xff, 0xff, b'k', b'e', b'y'];
    let value = to_json(ResourceType::Secret.type_url(), &garbage);
    assert_eq!(value["undecoded"], "[redacted]");
    let tls = Any {
        type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext".into(),
        value: garbage.to_vec(),
    };
    let socket = TransportSocket {
        name: "tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(tls)),
    };
    let mut listener = listener(any(&Router::default()));
    listener.filter_chains[0].transport_socket = Some(socket);
    let shown = shown(&listener);
    assert_eq!(shown["filter_chains"][0]["transport_socket"]["typed_config"]["undecoded"], "[redacted]");
}

#[test]
fn a_secret_is_shown_without_its_key() {
    use crate::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
    let bytes = |text: &str| {
        Some(DataSource {
            specifier: Some(Specifier::InlineBytes(text.as_bytes().to_vec())),
            ..Default::default()
        })
    };
    let certificate = TlsCertificate {
        certificate_chain: bytes("chain"),
        private_key: bytes("the key"),
        ..Default::default()
    };
    let secret = Secret { name: "shop".into(), r#type: Some(secret::Type::TlsCertificate(certificate)) };
    let value = to_json(ResourceType::Secret.type_url(), &secret.encode_to_vec());
    assert_eq!(value["name"], "shop");
    assert_eq!(value["tls_certificate"]["certificate_chain"]["inline_bytes"], "Y2hhaW4=");
    // In base64, as bytes are.
    assert_eq!(value["tls_certificate"]["private_key"]["inline_bytes"], "W3JlZGFjdGVkXQ==");

    let url = ResourceType::Secret.type_url();
    let has_key = |bytes: &Bytes| bytes.windows(7).any(|part| part == b"the key");
    let whole = Bytes::from(secret.encode_to_vec());
    assert!(has_key(&whole) && !has_key(&redacted(url, &whole)));
    let without = Secret::decode(redacted(url, &whole)).unwrap();
    assert_eq!(without.name, "shop");
    assert_eq!(redacted(url, &Bytes::from_static(b"\xffthe key")), Bytes::new());
}

#[test]
fn what_is_written_for_people_is_read_again() {
    let ty = ResourceType::Cluster.type_url();
    let bytes =
        from_json(ty, &json!({"name": "shop", "connectTimeout": "0.25s", "lb_policy": "MAGLEV"})).unwrap();
    let shown = to_json(ty, &bytes);
    assert_eq!((&shown["connect_timeout"], &shown["lb_policy"]), (&json!("0.250s"), &json!("MAGLEV")));
    assert!(from_json("type.googleapis.com/shop.Unknown", &json!({})).is_err());
}

#[test]
fn a_mistake_has_its_path_and_what_would_be_right() {
    let mistake = |value: serde_json::Value| {
        from_json(ResourceType::Listener.type_url(), &value).unwrap_err().to_string()
    };
    let manager = |field: &str| {
        let ty = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        json!({"filter_chains": [{}, {"filters": [{"name": "m", "typed_config": {
            "@type": ty, "stat_prefix": "m", "route_config": {}, field: "AUTO"}}]}]})
    };
    let port = json!({"address": {"socket_address": {"address": "::", "portValue": "8x"}}});
    for (value, right) in [
        (json!({"nmae": "a"}), "nmae: is no field of envoy.config.listener.v3.Listener; name is one"),
        (json!([]), ": is a list; must be a mapping, envoy.config.listener.v3.Listener"),
        (port, "address.socket_address.portValue: is \"8x\"; must be a whole number of 0 to 4294967295"),
        (json!({"filter_chains": {}}), "filter_chains: is a mapping; must be a list"),
        (
            json!({"filter_chains": ["a"]}),
            "filter_chains[0]: is \"a\"; must be a mapping, envoy.config.listener.v3.FilterChain",
        ),
        (
            json!({"listener_filters_timeout": "5 s"}),
            "listener_filters_timeout: is \"5 s\"; must be seconds with an s behind them, as \"5s\" or \"0.25s\"",
        ),
        (
            json!({"traffic_direction": "UP"}),
            "traffic_direction: is \"UP\"; must be one of UNSPECIFIED, INBOUND, OUTBOUND",
        ),
        (json!({"transparent": "yes"}), "transparent: is \"yes\"; must be true or false"),
        (
            manager("codec_typ"),
            "filter_chains[1].filters[0].typed_config.codec_typ: is no field of envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager; codec_type is one",
        ),
    ] {
        assert_eq!(mistake(value), right);
    }
    assert!(from_json(ResourceType::Listener.type_url(), &manager("codec_type")).is_ok());
}

#[test]
fn a_mistake_does_not_show_a_secret() {
    let key = json!({"name": "a", "tls_certificate": {"private_key": {"inline_string": 7}, "password": {"inline_string": 7}}});
    let said = from_json(ResourceType::Secret.type_url(), &key).unwrap_err().to_string();
    assert!(said.starts_with("tls_certificate.private_key.inline_string: is not shown; must be "), "{said}");
}

#[test]
fn an_extension_of_an_unknown_type_is_kept_and_only_its_type_is_shown() {
    let ty = ResourceType::Listener.type_url();
    let unknown = json!({"@type": "type.googleapis.com/shop.Unknown", "text": "x",
        "inner": {"@type": "type.googleapis.com/shop.Other"}});
    let manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let manager = json!({"@type": format!("type.googleapis.com/{manager}"),
        "stat_prefix": "m", "route_config": {}, "httpFilters": [{"name": "shop", "typed_config": unknown}]});
    let per_route = json!({"name": "v", "domains": ["*"], "typed_per_filter_config": {"shop": unknown}});
    let written = json!({"name": "l", "filter_chains": [{"filters": [{"name": "m", "typed_config": manager}]}],
        // Not an `Any`: what it holds is the user's.
        "metadata": {"filter_metadata": {"shop": {"@type": "type.googleapis.com/shop.Unknown"}}}});
    let encoded = from_json(ty, &written).unwrap();
    assert!(encoded.windows(4).any(|bytes| bytes == b"text"));
    let shown = to_json(ty, &encoded);
    let kept = json!({"@type": "type.googleapis.com/xds.type.v3.TypedStruct",
        "type_url": "type.googleapis.com/shop.Unknown"});
    let manager = &shown["filter_chains"][0]["filters"][0]["typed_config"];
    assert_eq!(manager["http_filters"][0]["typed_config"], kept);
    assert_eq!(shown["metadata"], written["metadata"]);

    let url = "type.googleapis.com/envoy.config.route.v3.VirtualHost";
    assert_eq!(to_json(url, &from_json(url, &per_route).unwrap())["typed_per_filter_config"]["shop"], kept);
}

#[test]
fn an_extension_that_is_told_by_its_fields_is_of_its_type() {
    let ty = ResourceType::Listener.type_url();
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let unknown =
        json!({"@type": TYPED_STRUCT_URL, "type_url": "type.googleapis.com/shop.Unknown", "value": {"x": 1}});
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let listener = |url: &str, more: Value| {
        let mut fields = json!({
            "stat_prefix": "m",
            "route_config": {},
            "max_request_headers_kb": 60,
            "stream_idle_timeout": "1.5s",
            "http_filters": [
                {"name": "shop", "typed_config": unknown},
                {"name": "router", "typed_config": {"@type": url, "type_url": router}},
            ],
        });
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        // Only now is it a message: the types of a file's extensions may be told so too.
        let any = json!({"@type": url, "type_url": hcm, "value": fields});
        from_json(
            ty,
            &json!({"name": "l", "filter_chains": [{"filters": [{"name": "m", "typed_config": any}]}]}),
        )
        .unwrap()
    };
    for url in [TYPED_STRUCT_URL, OLD_TYPED_STRUCT_URL] {
        let unfolded = unfold(ty, &listener(url, json!({}))).unwrap().expect("it has some");
        let manager = to_json(ty, &unfolded)["filter_chains"][0]["filters"][0]["typed_config"].take();
        assert_eq!(
            (&manager["@type"], &manager["max_request_headers_kb"]),
            (&json!(hcm), &json!(60)),
            "{manager}"
        );
        assert_eq!(manager["stream_idle_timeout"], "1.500s");
        assert_eq!(
            manager["http_filters"][0]["typed_config"]["type_url"],
            "type.googleapis.com/shop.Unknown"
        );
        assert_eq!(manager["http_filters"][1]["typed_config"]["@type"], router);
    }
    let mistake = unfold(ty, &listener(TYPED_STRUCT_URL, json!({"stat_prefixx": ""}))).unwrap_err();
    assert_eq!(mistake.path, "filter_chains[0].filters[0].typed_config.stat_prefixx");
    assert_eq!(unfold(ty, b"anything").unwrap(), None);
}

#[test]
fn an_any_with_nothing_in_it_is_written_as_envoy_writes_it() {
    use prost::Name as _;

    use crate::pb::envoy::config::route::v3::FilterConfig;

    let url = FilterConfig::type_url();
    let bytes = from_json(&url, &json!({"is_optional": true, "config": {}})).unwrap();
    assert_eq!(FilterConfig::decode(&*bytes).unwrap().config.unwrap().type_url, EMPTY_URL);
    assert_eq!(to_json(&url, &bytes)["config"], json!({}));
    let empty = FilterConfig { config: Some(Any::default()), ..FilterConfig::default() };
    assert_eq!(to_json(&url, &empty.encode_to_vec())["config"], json!({}));
}
