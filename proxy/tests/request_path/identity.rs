//! Who a TLS client is, and for how long: no ticket, name or old handshake lets anybody in who would not be let in
//! anew.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pontoon_xds::pb::envoy::config::listener::v3::Listener;
use pontoon_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, DownstreamTlsContext, common_tls_context,
};
use pontoon_xds::pb::google::protobuf::BoolValue;
use rcgen::{
    CertificateParams, CertificateRevocationListParams, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
};
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind, NamedGroup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::*;
use crate::tls::*;

/// Gives any server the session of any other.
#[derive(Debug)]
struct Promiscuous(ClientSessionMemoryCache);

fn anybody() -> ServerName<'static> {
    ServerName::try_from("anybody").unwrap()
}

impl ClientSessionStore for Promiscuous {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(name, group);
    }
    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(name)
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(anybody(), value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&anybody())
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&anybody());
    }
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(anybody(), value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&anybody())
    }
}

fn promiscuous(config: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(config);
    config.resumption = Resumption::store(Arc::new(Promiscuous(ClientSessionMemoryCache::new(8))));
    Arc::new(config)
}

/// Lets in whom `authority` vouches for and `revoked` does not name.
fn requiring(own: &Pair, authority: &Authority, revoked: &str) -> DownstreamTlsContext {
    let mut tls = context(vec![certificate(own)]);
    tls.require_client_certificate = Some(BoolValue { value: true });
    let trust = CertificateValidationContext {
        trusted_ca: inline(&authority.pem()),
        crl: inline(revoked).filter(|_| !revoked.is_empty()),
        ..CertificateValidationContext::default()
    };
    let with = common_tls_context::ValidationContextType::ValidationContext(trust);
    tls.common_tls_context.as_mut().unwrap().validation_context_type = Some(with);
    tls
}

fn one(tls: DownstreamTlsContext) -> Listener {
    listener(vec![chain("hello", &[], Some(tls))])
}

/// A certificate of a serial number, with an end.
fn of(authority: &Authority, serial: u64, ends: SystemTime) -> Pair {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["orders.test".to_owned()]).unwrap();
    params.serial_number = Some(SerialNumber::from(serial));
    params.not_after = ends.into();
    let certificate = params.signed_by(&key, &authority.0).unwrap();
    Pair { certificate: certificate.pem(), key: key.serialize_pem() }
}

fn revoking(authority: &Authority, serials: &[u64]) -> String {
    let now = SystemTime::now();
    let revoked_certs = serials.iter().map(|serial| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: now.into(),
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + Duration::from_secs(3600)).into(),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked_certs.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&authority.0).unwrap().pem().unwrap()
}

/// The session of a name that lets everybody in opens none of one that does not, with the same address and the same
/// client; nor does one of a name that trusts others. A name that no chain has gets none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_policy_bypass() {
    let (authority, other) = (Authority::new(), Authority::new());
    let pair = authority.sign(&["open.test", "closed.test", "others.test", "nobody.test"]);
    let chains = vec![
        chain("open", &["open.test"], Some(context(vec![certificate(&pair)]))),
        chain("closed", &["closed.test"], Some(requiring(&pair, &authority, ""))),
        chain("others", &["others.test"], Some(requiring(&pair, &other, ""))),
    ];
    let edge = Edge::over(&[], &listener(chains)).await;
    let own = authority.sign(&["orders.test"]);
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let visit = async |config: &Arc<ClientConfig>, name: &str| {
            let stream = connect(edge.address, config, name).await?;
            let kind = stream.get_ref().1.handshake_kind();
            std::io::Result::Ok((ask(stream).await?, kind))
        };
        let nobody = promiscuous(&client_speaking(&authority, None, &[], versions));
        assert_eq!(visit(&nobody, "open.test").await.unwrap(), ("open".into(), Some(HandshakeKind::Full)));
        let again = visit(&nobody, "open.test").await.unwrap();
        assert_eq!(again, ("open".into(), Some(HandshakeKind::Resumed)), "the client has a session");
        assert!(visit(&nobody, "closed.test").await.is_err());
        assert!(visit(&nobody, "nobody.test").await.is_err());

        let known = promiscuous(&client_speaking(&authority, Some(&own), &[], versions));
        assert_eq!(visit(&known, "closed.test").await.unwrap().0, "closed");
        let again = visit(&known, "closed.test").await.unwrap();
        assert_eq!(again, ("closed".into(), Some(HandshakeKind::Resumed)));
        assert!(visit(&known, "others.test").await.is_err());
    }
}

/// A ticket vouches for a certificate no longer than the certificate does: not for one request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_session_is_no_better_than_its_certificate() {
    let authority = Authority::new();
    let edge = Edge::over(&[], &one(requiring(&authority.sign(&["shop.test"]), &authority, ""))).await;
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let ends = SystemTime::now() + Duration::from_secs(4);
        let own = of(&authority, 1, ends);
        let config = client_speaking(&authority, Some(&own), &[], versions);
        let visit = async || {
            let stream = connect(edge.address, &config, "shop.test").await?;
            let kind = stream.get_ref().1.handshake_kind();
            std::io::Result::Ok((ask(stream).await?, kind))
        };
        assert_eq!(visit().await.unwrap().0, "hello");
        assert_eq!(visit().await.unwrap(), ("hello".into(), Some(HandshakeKind::Resumed)));
        until("its end", || SystemTime::now() > ends + Duration::from_secs(1)).await;
        let after = visit().await;
        assert!(after.as_ref().map_or(true, |(answer, _)| answer.is_empty()), "{after:?}");
    }
}

/// A live connection ends with its client's certificate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mtls_revoke_live_by_expiry() {
    let authority = Authority::new();
    let edge = Edge::over(&[], &one(requiring(&authority.sign(&["shop.test"]), &authority, ""))).await;
    let visit = async |own: &Pair| {
        connect(edge.address, &client(&authority, Some(own), &[]), "shop.test").await.unwrap()
    };
    let now = SystemTime::now();
    let ends = now + Duration::from_secs(3);
    let mut loses = visit(&of(&authority, 1, ends)).await;
    let keeps = visit(&of(&authority, 2, now + Duration::from_secs(3600))).await;
    let ended = tokio::time::timeout(PATIENCE, loses.read(&mut [0; 1])).await.expect("an end");
    assert_eq!(ended.unwrap_or(0), 0);
    assert!(SystemTime::now() >= ends - Duration::from_secs(1), "not before its time");
    assert_eq!(ask(keeps).await.unwrap(), "hello");
}

/// A live connection ends when its client's certificate is revoked, busy or not; and no session of it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mtls_revoke_live_by_list() {
    let authority = Authority::new();
    let pair = authority.sign(&["shop.test"]);
    let with = |revoked: &[u64]| one(requiring(&pair, &authority, &revoking(&authority, revoked)));
    let mut edge = Edge::over(&[], &with(&[9])).await;
    let later = SystemTime::now() + Duration::from_secs(3600);
    let (own, kept) = (of(&authority, 1, later), of(&authority, 2, later));
    let config = client(&authority, Some(&own), &[]);
    let visit = async |config| connect(edge.address, config, "shop.test").await;
    let (idle, busy) = (visit(&config).await.unwrap(), visit(&config).await.unwrap());
    let keeps = visit(&client(&authority, Some(&kept), &[])).await.unwrap();
    let address = edge.address;
    assert_eq!(edge.apply(&with(&[9, 1])), []);
    let (mut read, mut write) = tokio::io::split(busy);
    let requests = async {
        while write.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    let answers = async {
        let mut part = [0; 4096];
        while read.read(&mut part).await.is_ok_and(|length| length > 0) {}
    };
    let (mut idle_read, _idle_write) = tokio::io::split(idle);
    let idles = async { while idle_read.read(&mut [0; 64]).await.is_ok_and(|length| length > 0) {} };
    let all = futures_util::future::join3(requests, answers, idles);
    tokio::time::timeout(PATIENCE, all).await.expect("both end");
    let again = async {
        let stream = connect(address, &config, "shop.test").await?;
        ask(stream).await
    };
    let again = again.await;
    assert!(again.as_ref().map_or(true, String::is_empty), "{again:?}");
    assert_eq!(ask(keeps).await.unwrap(), "hello");
}
