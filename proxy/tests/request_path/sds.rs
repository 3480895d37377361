//! Certificates and trust by name (SDS): what waits for them, and how they are renewed.

use std::sync::Arc;
use std::time::Duration;

use pontoon_proxy::config::Store;
use pontoon_xds::client::{Rejected, Update};
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use pontoon_xds::pb::envoy::config::core::v3::{
    AggregatedConfigSource, ConfigSource, TransportSocket, transport_socket,
};
use pontoon_xds::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use pontoon_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret,
    SubjectAltNameMatcher, UpstreamTlsContext, secret,
};
use pontoon_xds::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use pontoon_xds::pb::google::protobuf::BoolValue;
use pontoon_xds::{Resource, ResourceType};
use tokio::time::Instant;

use crate::tls::*;

fn named(name: &str) -> SdsSecretConfig {
    let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    let source = ConfigSource { config_source_specifier: Some(ads), ..ConfigSource::default() };
    SdsSecretConfig { name: name.into(), sds_config: Some(source) }
}

fn by_name(name: &str) -> DownstreamTlsContext {
    let mut tls = context(Vec::new());
    tls.common_tls_context.as_mut().unwrap().tls_certificate_sds_secret_configs = vec![named(name)];
    tls
}

fn identity(name: &str, pair: &Pair) -> Secret {
    Secret { name: name.into(), r#type: Some(secret::Type::TlsCertificate(certificate(pair))) }
}

fn trust(name: &str, authority: &Authority) -> Secret {
    let validation = CertificateValidationContext {
        trusted_ca: inline(&authority.pem()),
        ..CertificateValidationContext::default()
    };
    Secret { name: name.into(), r#type: Some(secret::Type::ValidationContext(validation)) }
}

fn give(store: &mut Store, secret: &Secret) -> Vec<Rejected> {
    let changed = vec![Resource::encode(secret)];
    store.apply(Update { ty: ResourceType::Secret, changed, removed: Vec::new() }, Instant::now())
}

fn wanted(store: &Store) -> Vec<Arc<str>> {
    store.wanted(ResourceType::Secret).into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_waits_for_its_secret_and_the_one_before_goes_on() {
    let (old, new) = (Authority::new(), Authority::new());
    let given = context(vec![certificate(&old.sign(&["shop.test"]))]);
    let mut edge = Edge::over(&[], &listener(vec![chain("old", &[], Some(given))])).await;
    let kept = connect(edge.address, &client(&old, None, &[]), "shop.test").await.unwrap();

    assert_eq!(edge.apply(&listener(vec![chain("new", &[], Some(by_name("shop")))])), []);
    assert_eq!(wanted(&edge.store), ["shop".into()]);
    assert_eq!(edge.store.waiting_for(), ["LDS edge: secret shop not received"]);
    let stream = connect(edge.address, &client(&old, None, &[]), "shop.test").await.unwrap();
    assert_eq!(ask(stream).await.unwrap(), "old");

    assert_eq!(give(&mut edge.store, &identity("shop", &new.sign(&["shop.test"]))), []);
    assert_eq!(edge.store.waiting_for(), Vec::<String>::new());
    let stream = connect(edge.address, &client(&new, None, &[]), "shop.test").await.unwrap();
    assert_eq!(ask(stream).await.unwrap(), "new");
    // Its connection stays, and its requests meet the new listener.
    assert_eq!(ask(kept).await.unwrap(), "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_secret_is_used_and_a_bad_one_is_not() {
    let (old, new) = (Authority::new(), Authority::new());
    let given = context(vec![certificate(&old.sign(&["shop.test"]))]);
    let mut edge = Edge::over(&[], &listener(vec![chain("hello", &[], Some(given))])).await;
    edge.apply(&listener(vec![chain("hello", &[], Some(by_name("shop")))]));
    let good = old.sign(&["shop.test"]);
    assert_eq!(give(&mut edge.store, &identity("shop", &good)), []);
    let kept = connect(edge.address, &client(&old, None, &[]), "shop.test").await.unwrap();

    let mixed = Pair { key: new.sign(&["shop.test"]).key, ..good.clone() };
    let garbage = Pair { certificate: "rubbish".into(), ..good };
    for (bad, expected) in [
        (identity("shop", &mixed), "tls_certificate: certificate and private key cannot be used"),
        (identity("shop", &garbage), "tls_certificate: "),
        (trust("shop", &old), "common_tls_context.tls_certificate_sds_secret_configs[0].name: is \"shop\""),
        (Secret { name: "shop".into(), r#type: None }, "type: is missing"),
    ] {
        let rejected = give(&mut edge.store, &bad);
        assert!(rejected.len() == 1 && rejected[0].reason.contains(expected), "{rejected:?}");
        assert_eq!(&*rejected[0].name, "shop");
        connect(edge.address, &client(&old, None, &[]), "shop.test").await.unwrap();
    }

    let renewed = new.sign(&["shop.test"]);
    assert_eq!(give(&mut edge.store, &identity("shop", &renewed)), []);
    let stream = connect(edge.address, &client(&new, None, &[]), "shop.test").await.unwrap();
    assert_eq!(ask(stream).await.unwrap(), "hello");
    assert_eq!(ask(kept).await.unwrap(), "hello");

    // Nobody shows a key: not the store, not the dump.
    let key = renewed.key.lines().nth(1).unwrap();
    assert!(!format!("{:?}", edge.store).contains(key));
    // What is taken away while it is in use goes on; what nobody uses is let go.
    let gone = Update { ty: ResourceType::Secret, changed: Vec::new(), removed: vec!["shop".into()] };
    assert_eq!(edge.store.apply(gone, Instant::now()), []);
    connect(edge.address, &client(&new, None, &[]), "shop.test").await.unwrap();
    let secrets = |store: &Store| store.dump().iter().filter(|d| d.ty == ResourceType::Secret).count();
    assert_eq!(secrets(&edge.store), 1);
    edge.apply(&listener(vec![chain("plain", &[], None)]));
    assert_eq!((secrets(&edge.store), wanted(&edge.store).len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_to_trust_comes_by_name_alone_or_with_names() {
    let authority = Authority::new();
    let clients = Authority::new();
    let server = context(vec![certificate(&authority.sign(&["shop.test"]))]);
    let requiring = |validation: ValidationContextType| {
        let mut tls = server.clone();
        tls.require_client_certificate = Some(BoolValue { value: true });
        tls.common_tls_context.as_mut().unwrap().validation_context_type = Some(validation);
        listener(vec![chain("hello", &[], Some(tls))])
    };
    let exact = string_matcher::MatchPattern::Exact("good.test".into());
    let good = SubjectAltNameMatcher {
        san_type: 2,
        matcher: Some(StringMatcher { match_pattern: Some(exact), ..StringMatcher::default() }),
        ..SubjectAltNameMatcher::default()
    };
    let default = CertificateValidationContext {
        match_typed_subject_alt_names: vec![good],
        ..CertificateValidationContext::default()
    };
    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(default),
        validation_context_sds_secret_config: Some(named("clients")),
        ..CombinedCertificateValidationContext::default()
    };
    let mut edge = Edge::over(&[], &listener(vec![chain("hello", &[], Some(server.clone()))])).await;
    let answers = async |edge: &Edge, own: &Pair| match connect(
        edge.address,
        &client(&authority, Some(own), &[]),
        "shop.test",
    )
    .await
    {
        Ok(stream) => ask(stream).await.is_ok_and(|answer| answer == "hello"),
        Err(_) => false,
    };
    edge.apply(&requiring(ValidationContextType::ValidationContextSdsSecretConfig(named("clients"))));
    assert_eq!(give(&mut edge.store, &trust("clients", &clients)), []);
    let (right, other) = (clients.sign(&["good.test"]), clients.sign(&["other.test"]));
    let stranger = authority.sign(&["good.test"]);
    assert!(answers(&edge, &right).await && answers(&edge, &other).await);
    assert!(!answers(&edge, &stranger).await);
    assert_eq!(edge.apply(&requiring(ValidationContextType::CombinedValidationContext(combined))), []);
    assert!(answers(&edge, &right).await);
    assert!(!answers(&edge, &other).await && !answers(&edge, &stranger).await);
    assert_eq!(give(&mut edge.store, &trust("clients", &authority)), []);
    assert!(!answers(&edge, &right).await);
    assert!(answers(&edge, &stranger).await);
}

#[test]
fn a_cluster_waits_for_its_secrets_and_readiness_only_for_a_while() {
    let authority = Authority::new();
    let common = CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![named("own")],
        validation_context_type: Some(ValidationContextType::ValidationContextSdsSecretConfig(named("ca"))),
        ..CommonTlsContext::default()
    };
    let tls = UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: "shop.test".into(),
        ..UpstreamTlsContext::default()
    };
    let cluster = Cluster {
        name: "shop".into(),
        transport_socket: Some(TransportSocket {
            name: "tls".into(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any(&tls))),
        }),
        ..Cluster::default()
    };
    let (mut store, now) = (Store::default(), Instant::now());
    let changed = vec![Resource::encode(&cluster)];
    store.apply(Update { ty: ResourceType::Listener, changed: Vec::new(), removed: Vec::new() }, now);
    store.apply(Update { ty: ResourceType::Cluster, changed, removed: Vec::new() }, now);
    assert_eq!(wanted(&store), ["ca".into(), "own".into()]);
    assert!(!store.is_ready() && store.all_clusters().is_empty());
    assert_eq!(give(&mut store, &trust("ca", &authority)), []);
    assert!(!store.is_ready() && store.all_clusters().is_empty());
    // As another kind than it is named as, it is refused at once.
    let rejected = give(&mut store, &trust("own", &authority));
    assert!(rejected[0].reason.contains("CDS shop names it as a tls_certificate"), "{rejected:?}");
    let deadline = store.deadline().unwrap();
    assert!(deadline > now + Duration::from_secs(10));
    store.settle(deadline);
    assert!(store.is_ready() && store.deadline().is_none());
    assert_eq!(store.waiting_for(), ["CDS shop: secret own not received"]);
    assert_eq!(give(&mut store, &identity("own", &authority.sign(&["proxy.test"]))), []);
    let cluster = &store.all_clusters()[0];
    assert!(cluster.settings.load().as_ref().is_some_and(|settings| settings.tls.is_some()));
}
