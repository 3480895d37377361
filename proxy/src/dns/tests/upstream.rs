//! A server that answers by the first label of a name, by UDP and TCP, and counts who was asked for.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::listener::v3::{ApiListener, Listener};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};
use envoy_types::util::pack_any;
use hickory_proto::rr::rdata::{A, SOA};
use tokio::net::TcpListener;

use super::*;

/// Records of `long`, which do not fit a datagram of 1,232 bytes.
pub(super) const LONG: usize = 20;

pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    asked: Mutex<HashMap<String, usize>>,
    fails: AtomicBool,
}

impl Upstream {
    pub(super) async fn start() -> Upstream {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let address = tcp.local_addr().unwrap();
        let state = Arc::new(State::default());
        tokio::spawn(by_udp(udp, state.clone()));
        tokio::spawn(by_tcp(tcp, state.clone()));
        Upstream { address, state }
    }

    /// From now on it says of everything that it cannot answer.
    pub(super) fn fail_all(&self) {
        self.state.fails.store(true, Relaxed);
    }

    /// How often a name was asked for.
    pub(super) fn asked(&self, name: &str) -> usize {
        self.state.asked.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

async fn by_udp(socket: UdpSocket, state: Arc<State>) {
    let mut buffer = vec![0; 4_096];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
        let query = Message::from_vec(&buffer[..length]).unwrap();
        let Some(answer) = state.answer(&query) else { continue };
        let first = first_label(&query);
        if first == "slow" {
            // Until all who ask at the same time have asked.
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
        }
        if first == "forged" {
            let mut forged = answer.clone();
            forged.metadata.id = answer.metadata.id.wrapping_add(1);
            forged.answers.clear();
            socket.send_to(&forged.to_vec().unwrap(), client).await.unwrap();
            forged.metadata.id = answer.metadata.id;
            forged.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
            socket.send_to(&forged.to_vec().unwrap(), client).await.unwrap();
        }
        let most = query.edns.as_ref().map_or(512, |edns| edns.max_payload().into());
        let mut bytes = answer.to_vec().unwrap();
        if bytes.len() > most {
            bytes = answer.truncate().to_vec().unwrap();
        }
        socket.send_to(&bytes, client).await.unwrap();
    }
}

async fn by_tcp(listener: TcpListener, state: Arc<State>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let query = read(&mut stream).await;
        if let Some(answer) = state.answer(&query) {
            stream.write_all(&framed(&answer)).await.unwrap();
        }
    }
}

fn first_label(query: &Message) -> String {
    query.queries[0].name().to_lowercase().to_ascii().split('.').next().unwrap().to_owned()
}

impl State {
    fn answer(&self, query: &Message) -> Option<Message> {
        let name = query.queries[0].name().clone();
        *self.asked.lock().unwrap().entry(name.to_lowercase().to_ascii()).or_default() += 1;
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.queries.clone_from(&query.queries);
        if self.fails.load(Relaxed) {
            answer.metadata.response_code = ResponseCode::ServFail;
            return Some(answer);
        }
        let record = |ttl, data| Record::from_rdata(name.clone(), ttl, data);
        let a = |ttl| record(ttl, RData::A(A::new(192, 0, 2, 1)));
        match first_label(query).as_str() {
            "silent" => return None,
            "refused" => answer.metadata.response_code = ResponseCode::Refused,
            "gone" => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                let zone = Name::from_ascii("example.").unwrap();
                let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, 60);
                answer.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
            }
            "long" => {
                let text = |n| record(300, RData::TXT(TXT::new(vec![format!("{n:0>100}")])));
                answer.add_answers((0..LONG).map(text));
            }
            "short" => _ = answer.add_answer(a(1)),
            _ => _ = answer.add_answer(a(300)),
        }
        Some(answer)
    }
}

/// The API listener of a service with these addresses.
pub(super) fn api_listener(name: &str, addresses: &[&str]) -> Listener {
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(Router::default()))),
        ..HttpFilter::default()
    };
    let routes = RouteConfiguration { name: name.to_owned(), ..RouteConfiguration::default() };
    let manager = HttpConnectionManager {
        http_filters: vec![router],
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        ..HttpConnectionManager::default()
    };
    let value = |kind| Value { kind: Some(kind) };
    let values = addresses.iter().map(|address| value(Kind::StringValue((*address).to_owned()))).collect();
    let fields = [(name.to_owned(), value(Kind::ListValue(ListValue { values })))].into();
    let filter_metadata = [("pontoon.dev/addresses".to_owned(), Struct { fields })].into();
    Listener {
        name: name.to_owned(),
        metadata: Some(Metadata { filter_metadata, ..Metadata::default() }),
        api_listener: Some(ApiListener { api_listener: Some(pack_any(manager)) }),
        ..Listener::default()
    }
}
