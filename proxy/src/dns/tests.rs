//! The resolver over real sockets, with an upstream that does as a test needs it.

mod upstream;

use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{Name, RData, Record};
use http::Uri;
use pontoon_xds::client::{Config, Handler as _, Update};
use pontoon_xds::pb::envoy::config::core::v3::Node;
use pontoon_xds::{Resource, ResourceType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::*;
use crate::discovery::naming::Naming;
use crate::discovery::{self, Sidecar};
use upstream::Upstream;

/// A condition that does not hold by then never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// A resolver without a control plane.
struct Rig {
    dns: Arc<Dns>,
    discovery: Shared,
    serving: Serving,
}

impl Rig {
    /// `also` go before the upstream.
    fn start(upstream: &Upstream, also: &[SocketAddr]) -> Rig {
        let upstreams = also.iter().copied().chain([upstream.address]).collect();
        Rig::with(Settings { upstreams, timeout: Duration::from_millis(500), ..Settings::default() })
    }

    fn with(settings: Settings) -> Rig {
        let config = Config::new(Uri::from_static("http://127.0.0.1:1"), Node::default());
        let naming = Naming { search: vec!["corp.example".into()], ..Naming::default() };
        let sidecar = Sidecar { naming, ..Sidecar::default() };
        let discovery = discovery::start(Some(config), Some(sidecar), Vec::new()).unwrap();
        let dns = Dns::new(&settings, &discovery).unwrap();
        let serving = dns
            .serve(bind(&["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()], false).unwrap())
            .unwrap();
        Rig { dns, discovery, serving }
    }

    fn udp(&self) -> SocketAddr {
        self.serving.addresses()[0]
    }

    async fn ask(&self, name: &str, ty: RecordType) -> Message {
        by_udp(self.udp(), &query(name, ty)).await
    }

    /// A name of the mesh, as the control plane would have said it.
    async fn learn(&self, name: &str, addresses: &[&str]) {
        let names = self.discovery.on_demand().unwrap().clone();
        let name: Arc<str> = name.into();
        let wanted = name.clone();
        let asked = tokio::spawn(async move { names.address(&wanted, Instant::now(), PATIENCE).await });
        let listener = upstream::api_listener(&name, addresses);
        while !asked.is_finished() {
            let changed = vec![Resource::encode(&listener)];
            let update = Update { ty: ResourceType::Listener, changed, removed: Vec::new() };
            assert!(self.discovery.clone().apply(update).is_empty());
            tokio::task::yield_now().await;
        }
        assert!(asked.await.unwrap().unwrap().is_some());
    }

    fn count(&self, row: &str) -> u64 {
        let mut text = String::new();
        self.dns.render_metrics(&mut text);
        let value = text.lines().find_map(|line| line.strip_prefix(row)).unwrap();
        value.trim().parse().unwrap()
    }
}

fn query(name: &str, ty: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), ty));
    query
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

async fn socket(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if server.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" }).await.unwrap();
    socket.connect(server).await.unwrap();
    socket
}

async fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = vec![0; 65_535];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("no answer").unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn by_udp(server: SocketAddr, query: &Message) -> Message {
    let socket = socket(server).await;
    socket.send(&query.to_vec().unwrap()).await.unwrap();
    let answer = receive(&socket).await;
    assert_eq!((answer.metadata.id, &answer.queries), (query.metadata.id, &query.queries));
    assert!(answer.metadata.recursion_available && answer.metadata.message_type == MessageType::Response);
    answer
}

fn framed(query: &Message) -> Vec<u8> {
    let bytes = query.to_vec().unwrap();
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes.as_slice()].concat()
}

async fn read(stream: &mut TcpStream) -> Message {
    let mut buffer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut buffer).await.unwrap();
    Message::from_vec(&buffer).unwrap()
}

#[tokio::test]
async fn what_is_not_the_meshs_is_asked_once_and_kept() {
    let upstream = Upstream::start().await;
    let rig = Rig::start(&upstream, &[]);
    let first = rig.ask("A.example.", RecordType::A).await;
    assert_eq!(first.answers[0].data.ip_addr().unwrap().to_string(), "192.0.2.1");
    assert!(!first.metadata.authoritative && first.edns.is_none());
    let again = by_udp(rig.serving.addresses()[1], &query("a.EXAMPLE.", RecordType::A)).await;
    assert_eq!(again.answers, first.answers, "by IPv6 too, in any case");
    assert_eq!(upstream.asked("a.example."), 1);

    let gone = rig.ask("gone.example.", RecordType::A).await;
    assert_eq!((code(&gone), gone.authorities.len()), (ResponseCode::NXDomain, 1));
    assert_eq!(code(&rig.ask("gone.example.", RecordType::A).await), ResponseCode::NXDomain);
    assert_eq!(upstream.asked("gone.example."), 1);

    let many = (0..50).map(|_| rig.ask("slow.example.", RecordType::A));
    let answers = futures_util::future::join_all(many).await;
    assert!(answers.iter().all(|answer| answer.answers.len() == 1));
    assert_eq!(upstream.asked("slow.example."), 1, "those who ask at the same time share an answer");
    let row = |result| rig.count(&format!("pontoon_dns_queries_total{{result=\"{result}\"}}"));
    assert_eq!((row("forwarded") + row("cached"), row("failed")), (54, 0));
    assert_eq!(rig.count("pontoon_dns_cache_entries"), 3);
}

#[tokio::test]
async fn a_long_answer_comes_by_tcp() {
    let upstream = Upstream::start().await;
    let rig = Rig::start(&upstream, &[]);
    let short = rig.ask("long.example.", RecordType::TXT).await;
    assert!(short.metadata.truncation);
    let some = short.answers.len();
    assert!(some > 0 && some < upstream::LONG, "as many as fit: {some}");
    let mut more = short.clone();
    more.answers.push(more.answers[0].clone());
    assert!(more.to_vec().unwrap().len() > LEAST_UDP_BYTES.into(), "and no fewer");
    assert_eq!(upstream.asked("long.example."), 2, "by UDP, then by TCP");

    let mut wide = query("long.example.", RecordType::TXT);
    let mut edns = Edns::new();
    edns.set_max_payload(4_096);
    wide.set_edns(edns);
    let answer = by_udp(rig.udp(), &wide).await;
    assert!(!answer.metadata.truncation && answer.edns.is_some());
    assert_eq!(answer.answers.len(), upstream::LONG);

    let mut stream = TcpStream::connect(rig.udp()).await.unwrap();
    // Two at once, of which one comes in pieces.
    let both =
        [framed(&query("long.example.", RecordType::TXT)), framed(&query("a.example.", RecordType::A))];
    let both = both.concat();
    stream.write_all(&both[..20]).await.unwrap();
    stream.write_all(&both[20..]).await.unwrap();
    assert_eq!(read(&mut stream).await.answers.len(), upstream::LONG);
    assert_eq!(read(&mut stream).await.answers.len(), 1);
}

#[tokio::test]
async fn the_next_upstream_is_asked_and_a_failure_keeps_its_code() {
    let (upstream, broken) = (Upstream::start().await, Upstream::start().await);
    broken.fail_all();
    // Nobody listens there: the kernel says so.
    let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let rig = Rig::start(&upstream, &[nobody, broken.address]);
    assert_eq!(rig.ask("a.example.", RecordType::A).await.answers.len(), 1);
    assert_eq!((broken.asked("a.example."), upstream.asked("a.example.")), (1, 1));
    assert_eq!(rig.count("pontoon_dns_upstream_failures_total"), 2);
    assert!(rig.dns.describe().contains(&format!("upstream {nobody}: failed")));
    assert_eq!(
        code(&rig.ask("refused.example.", RecordType::A).await),
        ResponseCode::ServFail,
        "the first that said why"
    );

    let alone = Rig::start(&upstream, &[]);
    assert_eq!(code(&alone.ask("refused.example.", RecordType::A).await), ResponseCode::Refused);
    assert_eq!(code(&alone.ask("silent.example.", RecordType::A).await), ResponseCode::ServFail);
    assert_eq!(upstream.asked("silent.example."), 2, "one alone is asked twice");
    assert_eq!(
        alone.ask("forged.example.", RecordType::A).await.answers.len(),
        1,
        "what does not belong is passed over"
    );
}

#[tokio::test]
async fn without_an_upstream_what_has_run_out_is_told() {
    let upstream = Upstream::start().await;
    let rig = Rig::start(&upstream, &[]);
    assert_eq!(rig.ask("short.example.", RecordType::A).await.answers[0].ttl, 1);
    upstream.fail_all();
    let stale = async {
        loop {
            let answer = rig.ask("short.example.", RecordType::A).await;
            assert_eq!(answer.answers.len(), 1);
            if answer.answers[0].ttl == 30 {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, stale).await.expect("it never runs out");
    assert!(rig.count("pontoon_dns_queries_total{result=\"stale\"}") > 0);
    let none = Rig::with(Settings { max_stale: Duration::ZERO, ..Settings::default() });
    assert_eq!(
        code(&none.ask("short.example.", RecordType::A).await),
        ResponseCode::ServFail,
        "no upstream at all"
    );
}

#[tokio::test]
async fn names_of_the_mesh_are_answered_without_a_control_plane_and_others_at_once() {
    let upstream = Upstream::start().await;
    let rig = Rig::start(&upstream, &[]);
    assert_eq!(rig.ask("orders.", RecordType::A).await.answers.len(), 1, "not known: it is the upstream's");
    assert_eq!(code(&rig.ask("orders.mesh.internal.", RecordType::A).await), ResponseCode::ServFail);
    rig.learn("orders", &["240.240.0.7"]).await;

    let answer = rig.ask("Orders.", RecordType::A).await;
    assert_eq!(answer.answers[0].data.ip_addr().unwrap().to_string(), "240.240.0.7");
    assert!(answer.metadata.authoritative);
    for ty in [RecordType::AAAA, RecordType::TXT, RecordType::HTTPS] {
        let empty = rig.ask("orders.", ty).await;
        assert_eq!((code(&empty), empty.answers.len()), (ResponseCode::NoError, 0), "{ty}");
        assert!(matches!(empty.authorities[0].data, RData::SOA(_)), "{ty}");
    }
    let searched = rig.ask("orders.corp.example.", RecordType::A).await;
    let RData::CNAME(target) = &searched.answers[0].data else { panic!("{searched:?}") };
    assert_eq!((target.to_ascii(), searched.answers.len()), ("orders.".into(), 2));
    assert_eq!(searched.answers[1].name, target.0);
    let zoned = rig.ask("orders.mesh.internal.", RecordType::A).await;
    assert_eq!(addresses(&zoned), ["240.240.0.7"]);
    let reverse = rig.ask("7.0.240.240.in-addr.arpa.", RecordType::PTR).await;
    assert!(matches!(&reverse.answers[0].data, RData::PTR(name) if name.to_ascii() == "orders."));
    assert_eq!(code(&rig.ask("8.0.240.240.in-addr.arpa.", RecordType::PTR).await), ResponseCode::ServFail);
    rig.ask("9.2.0.192.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(upstream.asked("9.2.0.192.in-addr.arpa."), 1, "not an address of ours");
    assert_eq!(upstream.asked("7.0.240.240.in-addr.arpa."), 0);
    assert!(rig.dns.describe().contains("name orders: 240.240.0.7"));
    let names = rig.discovery.on_demand().unwrap();
    assert_eq!(names.name_of("240.240.0.7".parse().unwrap()).as_deref(), Some("orders"));
}

fn addresses(answer: &Message) -> Vec<String> {
    answer.answers.iter().filter_map(|record| Some(record.data.ip_addr()?.to_string())).collect()
}

#[tokio::test]
async fn what_is_not_served_is_said_and_what_is_no_query_is_dropped() {
    let rig = Rig::with(Settings::default());
    let plain = || query("a.example.", RecordType::A);
    let with = |change: &dyn Fn(&mut Message)| {
        let mut query = plain();
        change(&mut query);
        query
    };
    let mut version = Edns::new();
    version.set_version(1);
    for (query, expected) in [
        (with(&|query| query.metadata.op_code = OpCode::Status), ResponseCode::NotImp),
        (query("a.example.", RecordType::AXFR), ResponseCode::Refused),
        (with(&|query| _ = query.queries[0].set_query_class(DNSClass::CH)), ResponseCode::Refused),
        (with(&|query| query.queries.push(query.queries[0].clone())), ResponseCode::FormErr),
        (with(&|query| query.queries.clear()), ResponseCode::FormErr),
        (with(&|query| query.edns = Some(version.clone())), ResponseCode::BADVERS),
    ] {
        // BADVERS and BADSIG are one number.
        let answer = by_udp(rig.udp(), &query).await;
        assert_eq!(u16::from(code(&answer)), u16::from(expected), "{query:?}");
    }

    let socket = socket(rig.udp()).await;
    let mut answer = plain();
    answer.metadata.message_type = MessageType::Response;
    let cut = &plain().to_vec().unwrap()[..20];
    for dropped in [&[][..], &[0; 11], &[0xff; 400], &answer.to_vec().unwrap()] {
        socket.send(dropped).await.unwrap();
    }
    socket.send(cut).await.unwrap();
    let refused = receive(&socket).await;
    assert_eq!(
        (code(&refused), refused.metadata.id),
        (ResponseCode::FormErr, u16::from_be_bytes([cut[0], cut[1]]))
    );

    let mut stream = TcpStream::connect(rig.udp()).await.unwrap();
    stream.write_all(&u16::MAX.to_be_bytes()).await.unwrap();
    stream.write_all(&[0; 8]).await.unwrap();
    assert!(!matches!(stream.read(&mut [0; 1]).await, Ok(1..)), "a query of 64 KiB ends the connection");
}

/// Who asks several questions on a connection has each answer when it is there (RFC 7766, 6.2.1.1).
#[tokio::test]
async fn a_slow_answer_by_tcp_holds_up_no_other() {
    let upstream = Upstream::start().await;
    let rig = Rig::start(&upstream, &[]);
    let mut stream = TcpStream::connect(rig.udp()).await.unwrap();
    let [slow, quick] = ["silent.example.", "a.example."].map(|name| query(name, RecordType::A));
    stream.write_all(&[framed(&slow), framed(&quick)].concat()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read(&mut stream).await.queries, quick.queries);
    let late = read(&mut stream).await;
    assert_eq!(
        (&late.queries, code(&late)),
        (&slow.queries, ResponseCode::ServFail),
        "after our own end, too"
    );
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);

    // More than are read at once.
    let mut stream = TcpStream::connect(rig.udp()).await.unwrap();
    stream.write_all(&framed(&quick).repeat(100)).await.unwrap();
    for _ in 0..100 {
        assert_eq!(read(&mut stream).await.answers.len(), 1);
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_said_unless_it_is_taken_over() {
    let upstream = Upstream::start().await;
    let rig = Rig::start(&upstream, &[]);
    let error = bind(&[rig.udp()], false).unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains(&rig.udp().to_string()) && said.contains("--dns"), "{said}");

    let next = rig.dns.serve(bind(&[rig.udp()], true).unwrap()).unwrap();
    let address = rig.udp();
    let Rig { serving, discovery, .. } = rig;
    // As many as there may be, none of which says anything.
    let mut silent = Vec::new();
    for _ in 0..130 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let settings = Settings { upstreams: vec![upstream.address], ..Settings::default() };
    // The resolver of the process that takes over is one of its own.
    drop(next);
    let other = Dns::new(&settings, &discovery).unwrap();
    let next = other.serve(bind(&[address], true).unwrap()).unwrap();
    tokio::time::timeout(PATIENCE, serving.stop()).await.expect("it never stops");
    for _ in 0..20 {
        assert_eq!(by_udp(address, &query("a.example.", RecordType::A)).await.answers.len(), 1);
    }
    drop(next);
}

/// What waits in a socket when its process is replaced is answered by the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_loses_no_query() {
    const MORE: usize = 200;
    let upstream = Upstream::start().await;
    let rig = Rig::start(&upstream, &[]);
    let held = bind(&["127.0.0.1:0".parse().unwrap()], false).unwrap().pop().unwrap();
    let serve = || {
        let settings = Settings { upstreams: vec![upstream.address], ..Settings::default() };
        let dns = Dns::new(&settings, &rig.discovery).unwrap();
        dns.serve(vec![Sockets::passed(held.for_successor().unwrap()).unwrap()]).unwrap()
    };
    let mut serving = serve();
    let address = serving.addresses()[0];
    let (answered, mut answers) = watch::channel(0);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let answered = answered.clone();
            tokio::spawn(async move {
                loop {
                    let answer = by_udp(address, &query("a.example.", RecordType::A)).await;
                    assert_eq!(answer.answers.len(), 1);
                    answered.send_modify(|answered| *answered += 1);
                }
            })
        })
        .collect();
    for _ in 0..10 {
        let until = *answers.borrow() + MORE;
        tokio::time::timeout(PATIENCE, answers.wait_for(|answered| *answered >= until))
            .await
            .unwrap()
            .unwrap();
        let before = std::mem::replace(&mut serving, serve());
        tokio::time::timeout(PATIENCE, before.stop()).await.expect("it never stops");
    }
    assert!(clients.iter().all(|client| !client.is_finished()), "one had no answer");
    clients.iter().for_each(JoinHandle::abort);
}
