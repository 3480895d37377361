use super::*;
use crate::config::listener::{
    Codec, DownstreamTimeouts, ForwardedTrust, Limits, PathOptions, RouteHandle, Underscores,
};

fn http() -> HttpSettings {
    HttpSettings {
        routes: Arc::new(RouteHandle { name: "r".into(), table: ArcSwapOption::empty() }),
        forwarded: ForwardedTrust::default(),
        limits: Limits {
            max_header_bytes: 60 * 1024,
            max_headers: 100,
            max_body_bytes: 0,
            max_concurrent_streams: 100,
            max_requests: 0,
        },
        timeouts: DownstreamTimeouts {
            request_headers: Duration::from_secs(10),
            idle: Duration::from_secs(3600),
            stream_idle: None,
            drain: Duration::from_secs(5),
            request: None,
            longest_stream: None,
            longest_connection: None,
            end_with_answer: false,
        },
        path: PathOptions::default(),
        underscores: Underscores::Reject,
        client_certificates: Default::default(),
        upgrades: Vec::new(),
        grpc_web: false,
        codec: Codec::Auto,
        cors: Vec::new(),
        rbac: Vec::new(),
        buffers: Vec::new(),
        sessions: Vec::new(),
        rate_limits: Vec::new(),
        authz: Vec::new(),
        http10: false,
        extended_connect: false,
        generate_request_id: true,
        preserve_external_request_id: false,
        access_log: Vec::new(),
        server_name: "pontoon".into(),
        max_connections: 0,
        on_demand: None,
    }
}

fn chain(name: &str, matches: ChainMatch) -> Arc<Chain> {
    Arc::new(Chain {
        name: name.into(),
        matches,
        tls: None,
        serves: Serves::Http(Arc::new(ArcSwap::from_pointee(http()))),
    })
}

fn chains(all: Vec<Arc<Chain>>, default: Option<Arc<Chain>>) -> Chains {
    let inspect = Inspect {
        announced: None,
        tls: true,
        http: false,
        origin_form: false,
        timeout: Duration::from_secs(1),
        proceed: false,
    };
    Chains { inspect, original: None, keepalive: Clients::Usual, all, default }
}

fn named(names: &[&str]) -> ChainMatch {
    ChainMatch { server_names: names.iter().map(|name| (*name).into()).collect(), ..ChainMatch::default() }
}

fn seen(name: Option<&str>) -> Seen {
    Seen {
        destination: "192.0.2.1:443".parse().unwrap(),
        source: "198.51.100.7:5000".parse().unwrap(),
        direct_source: "198.51.100.7".parse().unwrap(),
        transport: if name.is_some() { Transport::Tls } else { Transport::RawBuffer },
        server_name: name.map(Into::into),
        protocols: Vec::new(),
    }
}

fn chosen(chains: &Chains, seen: &Seen) -> String {
    chains.select(seen).map_or_else(String::new, |chain| chain.name.to_string())
}

#[test]
fn the_most_specific_name_wins() {
    let all = vec![
        chain("star", named(&["*.example"])),
        chain("longer star", named(&["*.shop.example"])),
        chain("exact", named(&["a.shop.example", "b.example"])),
        chain("no name", ChainMatch::default()),
    ];
    let chains = chains(all, Some(chain("default", ChainMatch::default())));
    for (name, expected) in [
        (Some("a.shop.example"), "exact"),
        (Some("b.shop.example"), "longer star"),
        (Some("c.example"), "star"),
        (Some("b.example"), "exact"),
        (Some("example"), "no name"),
        (None, "no name"),
    ] {
        assert_eq!(chosen(&chains, &seen(name)), expected, "{name:?}");
    }
}

#[test]
fn an_earlier_criterion_is_not_taken_back() {
    // Envoy's rule: the port's chain is chosen first, and where its name does not match, no other is looked at.
    let ported = ChainMatch { destination_port: Some(443), ..named(&["a.example"]) };
    let all = vec![chain("ported", ported), chain("any", ChainMatch::default())];
    let chains = chains(all, Some(chain("default", ChainMatch::default())));
    assert_eq!(chosen(&chains, &seen(Some("a.example"))), "ported");
    assert_eq!(chosen(&chains, &seen(Some("b.example"))), "default");
    let elsewhere = Seen { destination: "192.0.2.1:80".parse().unwrap(), ..seen(Some("b.example")) };
    assert_eq!(chosen(&chains, &elsewhere), "any");
}

#[test]
fn transport_protocol_source_and_networks_choose() {
    let nets = |text: &str| vec![text.parse().unwrap()];
    let all = vec![
        chain("plain", ChainMatch { transport: Some(Transport::RawBuffer), ..ChainMatch::default() }),
        chain("tls", ChainMatch { transport: Some(Transport::Tls), ..ChainMatch::default() }),
        chain(
            "h2",
            ChainMatch {
                transport: Some(Transport::Tls),
                protocols: vec![b"h2".as_slice().into()],
                ..ChainMatch::default()
            },
        ),
        chain(
            "office",
            ChainMatch {
                transport: Some(Transport::Tls),
                sources: nets("198.51.100.0/24"),
                ..ChainMatch::default()
            },
        ),
    ];
    let chains = chains(all, None);
    assert_eq!(chosen(&chains, &seen(None)), "plain");
    assert_eq!(chosen(&chains, &seen(Some("x"))), "office");
    let elsewhere = Seen { source: "203.0.113.1:1".parse().unwrap(), ..seen(Some("x")) };
    assert_eq!(chosen(&chains, &elsewhere), "tls");
    let h2 = Seen { protocols: vec![b"h3".as_slice().into(), b"h2".as_slice().into()], ..seen(Some("x")) };
    assert_eq!(chosen(&chains, &h2), "h2");
}

#[test]
fn nothing_is_chosen_where_nothing_matches() {
    assert_eq!(chosen(&chains(vec![chain("a", named(&["a"]))], None), &seen(Some("b"))), "");
}
