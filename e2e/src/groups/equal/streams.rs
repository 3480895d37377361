//! Connections rather than requests: TLS on either side, filter chains by the name that a client asks for, and TCP
//! without HTTP. What the client sees and what the upstreams receive must be the same.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::wire::{Exchange, exchange_on};
use super::{Proxy, TCP_PROXY, Upstreams, socket};

const LIMIT: Duration = Duration::from_secs(10);
const DOWNSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const UPSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const INSPECTOR: &str = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";

/// One connection and what is sent on it.
pub(super) struct Case {
    /// The listener, as [`super::PURPOSES`] names it.
    at: &'static str,
    /// The name that is asked for under TLS; empty: there is no TLS.
    name: &'static str,
    with: With,
    /// As the table of requests writes it. `; end` after it: the client then ends its side.
    request: &'static str,
}

/// The certificate that a client shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    None,
    Own,
    /// Of an authority that nobody trusts.
    Stranger,
}

const fn plain(at: &'static str, request: &'static str) -> Case {
    Case { at, name: "", with: With::None, request }
}

const fn tls(at: &'static str, name: &'static str, request: &'static str) -> Case {
    Case { at, name, with: With::None, request }
}

const fn mutual(with: With, request: &'static str) -> Case {
    Case { at: "mutual", name: "a.test", with, request }
}

/// At a listener that tells the upstream of certificates.
const fn told(at: &'static str, with: With, request: &'static str) -> Case {
    Case { at, name: "a.test", with, request }
}

pub(super) const CASES: &[Case] = &[
    tls("https", "a.test", "GET / | Host: methods.test"),
    tls("https", "a.test", "POST / | Host: methods.test | = hello"),
    tls("https", "a.test", "HEAD / | Host: methods.test"),
    tls("https", "a.test", "GET / | Host: hops.test | X-Forwarded-Proto: http"),
    tls("https", "a.test", "GET / | Host: hops.test | X-Forwarded-For: 1.2.3.4"),
    tls("https", "a.test", "GET /https | Host: redirects.test"),
    tls("https", "a.test", "GET /port | Host: redirects.test"),
    tls("https", "a.test", "GET /path | Host: redirects.test"),
    tls("https", "a.test", "GET /text | Host: direct.test"),
    tls("https", "a.test", "GET /dead | Host: failures.test"),
    tls("https", "x.b.test", "GET / | Host: methods.test"),
    tls("https", "unknown.test", "GET / | Host: methods.test"),
    plain("https", "GET / | Host: methods.test"),
    mutual(With::Own, "GET / | Host: methods.test"),
    mutual(With::Own, "GET / | Host: methods.test | x-forwarded-client-cert: By=me"),
    mutual(With::None, "GET / | Host: methods.test"),
    mutual(With::Stranger, "GET / | Host: methods.test"),
    told("told", With::Own, "GET / | Host: methods.test | x-forwarded-client-cert: By=me"),
    told("told", With::None, "GET / | Host: methods.test | x-forwarded-client-cert: By=me"),
    told("told-too", With::Own, "GET / | Host: methods.test | x-forwarded-client-cert: By=me"),
    told("told-too", With::Own, "GET / | Host: methods.test"),
    told("told-too", With::None, "GET / | Host: methods.test | x-forwarded-client-cert: By=me"),
    tls("names", "a.test", "GET /by-name"),
    tls("names", "x.b.test", "GET /by-name"),
    tls("names", "x.y.b.test", "GET /by-name"),
    tls("names", "b.test", "GET /by-name"),
    tls("names", "unknown.test", "GET /by-name"),
    tls("names", "pass.test", "GET /not-opened"),
    plain("names", "GET /by-name"),
    plain("tcp", "GET /raw | X-Case: KEPT | = body"),
    plain("tcp", "GET /raw | x-do: close"),
    plain("tcp", "GET /raw | x-do: chunked"),
    plain("tcp", "GET /raw ; end"),
    plain("tcp-dead", "GET /raw"),
    plain("tcp-none", "GET /raw"),
    plain("tcp-full", "GET /raw"),
    plain("tcp-half", "GET /raw"),
];

/// The cases of [`CASES`] that get no answer from either.
const UNANSWERED: &[&str] = &[
    "https as unknown.test: GET / | Host: methods.test",
    "https: GET / | Host: methods.test",
    "mutual as a.test: GET / | Host: methods.test",
    "mutual as a.test, certificate Stranger: GET / | Host: methods.test",
    "names as x.y.b.test: GET /by-name",
    "names as b.test: GET /by-name",
    "names as unknown.test: GET /by-name",
    "names: GET /by-name",
    "tcp: GET /raw | x-do: close",
    "tcp-dead: GET /raw",
    "tcp-none: GET /raw",
    "tcp-full: GET /raw",
];

impl Case {
    pub(super) fn title(&self) -> String {
        match (self.name, self.with) {
            ("", _) => format!("{}: {}", self.at, self.request),
            (name, With::None) => format!("{} as {name}: {}", self.at, self.request),
            (name, with) => format!("{} as {name}, certificate {with:?}: {}", self.at, self.request),
        }
    }

    /// Both proxies in turn.
    pub(super) async fn same(
        &self,
        envoy: &Proxy,
        ours: &Proxy,
        upstreams: &Upstreams,
    ) -> anyhow::Result<String> {
        let mut seen = Vec::new();
        for proxy in [envoy, ours] {
            upstreams.take();
            // How a refusal is worded is each one's own; what an upstream received before it is not.
            let answer = self.exchange(proxy, &upstreams.keys).await.ok();
            seen.push((answer, upstreams.take()));
        }
        if seen.iter().any(|(answer, _)| answer.as_ref().is_some_and(Exchange::is_error)) {
            for (answer, _) in &mut seen {
                *answer = answer.take().map(Exchange::without_words);
            }
        }
        ensure!(seen[0] == seen[1], "Envoy: {:#?}\npontoon-proxy: {:#?}", seen[0], seen[1]);
        // No answer twice is the same only where none is right: else both may have failed for a reason of the test's.
        let (answered, title) = (seen[0].0.is_some(), self.title());
        ensure!(answered != UNANSWERED.contains(&&*title), "{title}: answered: {answered}");
        Ok(seen[0].0.as_ref().map_or(String::from("refused"), |exchange| exchange.status.to_string()))
    }

    async fn exchange(&self, proxy: &Proxy, keys: &Keys) -> anyhow::Result<Exchange> {
        let stream = TcpStream::connect(proxy.at(self.at)).await?;
        let (request, ends) = match self.request.strip_suffix(" ; end") {
            Some(request) => (request, true),
            None => (self.request, false),
        };
        if self.name.is_empty() {
            return exchange_on(stream, "raw.test", request, ends).await;
        }
        let connector = TlsConnector::from(Arc::new(keys.client(self.with)?));
        let shake = connector.connect(ServerName::try_from(self.name)?, stream);
        exchange_on(tokio::time::timeout(LIMIT, shake).await??, "raw.test", request, ends).await
    }
}

/// A certificate and its key.
struct Pair {
    certificate: String,
    key: String,
}

/// Whom everybody here trusts, whom nobody does, and what they have signed.
pub(super) struct Keys {
    authority: String,
    stranger: String,
    server: Pair,
    upstream: Pair,
    own: Pair,
    strange: Pair,
}

impl Keys {
    pub(super) fn new() -> anyhow::Result<Keys> {
        let (authority, stranger) = (authority("authority")?, authority("stranger")?);
        Ok(Keys {
            server: signed(&authority, &["a.test", "b.test", "*.b.test"])?,
            upstream: signed(&authority, &["upstream.test", "pass.test"])?,
            own: signed(&authority, &["client.test"])?,
            strange: signed(&stranger, &["client.test"])?,
            authority: authority.pem(),
            stranger: stranger.pem(),
        })
    }

    /// What an upstream with TLS needs.
    pub(super) fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let (chain, key) = self.upstream.read()?;
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn client(&self, with: With) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.as_bytes())?)?;
        let config = ClientConfig::builder().with_root_certificates(roots);
        let pair = match with {
            With::None => return Ok(config.with_no_client_auth()),
            With::Own => &self.own,
            With::Stranger => &self.strange,
        };
        let (chain, key) = pair.read()?;
        Ok(config.with_client_auth_cert(chain, key)?)
    }

    /// TLS of a listener.
    fn downstream(&self, mutual: bool) -> Value {
        let mut common = json!({"alpn_protocols": ["http/1.1"], "tls_certificates": [{
            "certificate_chain": {"inline_string": self.server.certificate},
            "private_key": {"inline_string": self.server.key},
        }]});
        if mutual {
            common["validation_context"] = json!({"trusted_ca": {"inline_string": self.authority}});
        }
        json!({"name": "envoy.transport_sockets.tls", "typed_config": {"@type": DOWNSTREAM,
            "common_tls_context": common, "require_client_certificate": mutual}})
    }

    /// Clusters with TLS to the upstream at this port: one that is trusted, one that is not, one under another name.
    pub(super) fn clusters(&self, port: u16) -> Vec<Value> {
        let all = [
            ("secure", &self.authority, "upstream.test"),
            ("distrusted", &self.stranger, "upstream.test"),
            ("misnamed", &self.authority, "other.test"),
        ];
        let cluster = |(name, authority, expected): (&str, &String, &str)| {
            let mut cluster = super::cluster(name, &[port]);
            cluster["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": UPSTREAM, "sni": "upstream.test", "common_tls_context": {"validation_context": {
                "trusted_ca": {"inline_string": authority},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": expected}}],
            }}}});
            cluster
        };
        all.map(cluster).into()
    }

    /// The listeners of the cases. `manager`: the filter that serves the table's requests.
    pub(super) fn listeners(&self, manager: &Value, port: impl Fn(&str) -> u16) -> Vec<Value> {
        let to = |cluster: &str| {
            json!([{"name": "envoy.filters.network.tcp_proxy", "typed_config":
                {"@type": TCP_PROXY, "stat_prefix": cluster, "cluster": cluster}}])
        };
        let with_chains = |name: &str, chains: Value| json!({"name": name, "address": socket(port(name)), "filter_chains": chains});
        let by_name = |names: &str, cluster: &str| {
            json!({"filter_chain_match": {"server_names": [names]}, "filters": to(cluster),
                "transport_socket": self.downstream(false)})
        };
        let passed = json!({"filter_chain_match": {"server_names": ["pass.test"]}, "filters": to("passed")});
        let mut names =
            with_chains("names", json!([by_name("a.test", "a"), by_name("*.b.test", "b"), passed]));
        names["listener_filters"] =
            json!([{"name": "envoy.filters.listener.tls_inspector", "typed_config": {"@type": INSPECTOR}}]);
        let mut optional = self.downstream(true);
        optional["typed_config"]["require_client_certificate"] = false.into();
        vec![
            with_chains("https", json!([{"filters": [manager], "transport_socket": self.downstream(false)}])),
            with_chains("mutual", json!([{"filters": [manager], "transport_socket": self.downstream(true)}])),
            with_chains(
                "told",
                json!([{"filters": [telling(manager, "SANITIZE_SET")], "transport_socket": optional}]),
            ),
            with_chains(
                "told-too",
                json!([{"filters": [telling(manager, "APPEND_FORWARD")], "transport_socket": optional}]),
            ),
            names,
            with_chains("tcp", json!([{"filters": to("a")}])),
            with_chains("tcp-dead", json!([{"filters": to("dead")}])),
            with_chains("tcp-none", json!([{"filters": to("none")}])),
            with_chains("tcp-full", json!([{"filters": to("full")}])),
            with_chains(
                "tcp-half",
                json!([{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config":
                {"@type": TCP_PROXY, "stat_prefix": "half", "cluster": "half", "max_connect_attempts": 2}}]}]),
            ),
        ]
    }
}

/// The same, and it tells the upstream all of the client's certificate.
fn telling(manager: &Value, how: &str) -> Value {
    let mut manager = manager.clone();
    manager["typed_config"]["forward_client_cert_details"] = how.into();
    manager["typed_config"]["set_current_client_cert_details"] =
        json!({"subject": true, "cert": true, "chain": true, "dns": true, "uri": true, "issuer": true});
    manager
}

impl Pair {
    fn read(&self) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = vec![CertificateDer::from_pem_slice(self.certificate.as_bytes())?];
        Ok((chain, PrivateKeyDer::from_pem_slice(self.key.as_bytes())?))
    }
}

fn authority(name: &str) -> anyhow::Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    // Where issuer and subject are one, Envoy takes a certificate for one that signed itself.
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate()?).context("an authority")
}

fn signed(authority: &CertifiedIssuer<'static, KeyPair>, names: &[&str]) -> anyhow::Result<Pair> {
    let key = KeyPair::generate()?;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    // Has to be escaped where it is written down.
    params.distinguished_name.push(DnType::OrganizationName, "Köhler, \"Sons\" + <Co>");
    let certificate = params.signed_by(&key, authority)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}
