//! Networks that lose packets and are late, and names that come and go, under a proxy and its load. The kernel knows no
//! such network (`netem`) on every machine; so two hosts have a link whose packets (VXLAN) come to a program on the
//! switch, which passes them on when it pleases.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, ensure};
use pontoon_e2e::process::Process;
use pontoon_e2e::wait::until;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::hosts::{Host, Network};
use super::names::ResolvConf;
use super::traffic::{Identity, Says, connect, dns_server, get, serve};
use super::{HTTP, Lab, NOBODY, START};

/// The ends of the link, on `a` and `b`.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// IANA's, of VXLAN.
const VXLAN: u16 = 4_789;
/// Each way.
const LATE: Duration = Duration::from_millis(100);
/// In a hundred packets, each way.
const LOST: u32 = 5;
const ALL: u32 = 100;

const EDGE: u16 = 8_088;
const BODIES: u16 = 8_089;
/// Some fifty packets.
const BODY: usize = 64 * 1024;
const CLIENTS: usize = 8;
const REQUESTS: usize = 5;

/// A link with weather.
struct Link {
    lost: Arc<AtomicU32>,
    dropped: Arc<AtomicUsize>,
    hosts: [Host; 2],
}

impl Link {
    async fn make(network: &Network) -> anyhow::Result<Link> {
        let (switch, Network { a, b, .. }) = (network.switch(), network);
        let relay = SocketAddr::from((switch.v4, VXLAN));
        switch.run("ip", &format!("addr add {}/24 dev br0", switch.v4))?;
        for (host, own) in [(a, NEAR), (b, FAR)] {
            let kind = format!("type vxlan id 7 remote {} dstport {VXLAN} nolearning", switch.v4);
            host.run("ip", &format!("link add late0 mtu 1400 {kind}"))?;
            // Segment by segment, as a network card would send them.
            host.run("ip", "link set late0 gso_max_segs 1")?;
            host.run("ip", &format!("addr add {own}/24 dev late0"))?;
            host.run("ip", "link set late0 up")?;
        }
        let socket = Arc::new(switch.inside(move || Ok(UdpSocket::bind(relay)?)).await?);
        let link = Link {
            lost: Arc::new(AtomicU32::new(LOST)),
            dropped: Arc::default(),
            hosts: [a.clone(), b.clone()],
        };
        let (queue, on_the_way) = mpsc::channel::<(Instant, Ipv4Addr, Vec<u8>)>();
        let (lost, dropped) = (Arc::clone(&link.lost), Arc::clone(&link.dropped));
        let (taking, ends) = (Arc::clone(&socket), [a.v4, b.v4]);
        std::thread::spawn(move || {
            let mut packet = [0; 2048];
            while let Ok((length, from)) = taking.recv_from(&mut packet) {
                let to = if from.ip() == IpAddr::V4(ends[0]) { ends[1] } else { ends[0] };
                if fastrand::u32(..100) < lost.load(Relaxed) {
                    dropped.fetch_add(1, Relaxed);
                    continue;
                }
                let mut packet = packet[..length].to_vec();
                sum(&mut packet);
                if queue.send((Instant::now() + LATE, to, packet)).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(move || {
            for (due, to, packet) in on_the_way {
                #[allow(clippy::disallowed_methods, reason = "the time on the way is what is made")]
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                // A host that is gone loses what is sent to it.
                let _ = socket.send_to(&packet, (to, VXLAN));
            }
        });
        Ok(link)
    }
}

/// Puts in the checksum of a TCP segment over IPv4 in Ethernet in VXLAN (RFC 7348, RFC 9293, 3.1): the kernel leaves that to
/// a network card, of which there is none on the way.
fn sum(packet: &mut [u8]) {
    const ETHERNET: usize = 8;
    const IP: usize = ETHERNET + 14;
    let Some(ip) = packet.get_mut(IP - 2..).filter(|rest| rest.len() > 22 && rest[..2] == [8, 0]) else {
        return;
    };
    let ip = &mut ip[2..];
    let (head, whole) = (usize::from(ip[0] & 15) * 4, usize::from(u16::from_be_bytes([ip[2], ip[3]])));
    if ip[9] != 6 || head + 20 > whole || whole > ip.len() {
        return;
    }
    let field = head + 16..head + 18;
    ip[field.clone()].fill(0);
    // Addresses, protocol and length stand before the segment.
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
    };
    let mut sum = words(&ip[12..20]) + 6 + (whole - head) as u32 + words(&ip[head..whole]);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    ip[field].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

impl Drop for Link {
    fn drop(&mut self) {
        for host in &self.hosts {
            // It goes with its host in any case.
            let _ = host.run("ip", "link del late0");
        }
    }
}

/// A bootstrap with one listener, for a cluster.
fn bootstrap(cluster: &Value) -> String {
    let of = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let route = |prefix: &str, timeout: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster["name"], "timeout": timeout}});
    let hosts =
        json!([{"name": "all", "domains": ["*"], "routes": [route("/short", "1s"), route("/", "60s")]}]);
    let manager = json!({
        "@type": of("network.http_connection_manager.v3.HttpConnectionManager"), "stat_prefix": "edge",
        "route_config": {"name": "edge", "virtual_hosts": hosts},
        "http_filters": [{"name": "router", "typed_config": {"@type": of("http.router.v3.Router")}}],
    });
    let listener = json!({
        "name": "edge", "address": {"socket_address": {"address": "127.0.0.1", "port_value": EDGE}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    });
    json!({"node": {"id": "a", "cluster": "b"},
        "static_resources": {"listeners": [listener], "clusters": [cluster]}})
    .to_string()
}

/// A cluster of one address or name, whose idle connections do not stay.
fn cluster(kind: &str, host: &str, port: u16) -> Value {
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let options = json!({"@type": format!("type.googleapis.com/{name}"),
        "common_http_protocol_options": {"idle_timeout": "1s"},
        "explicit_http_config": {"http_protocol_options": {}}});
    let address = json!({"socket_address": {"address": host, "port_value": port}});
    json!({"name": "far", "type": kind, "dns_refresh_rate": "1s",
        "typed_extension_protocol_options": {name: options}, "load_assignment": {"cluster_name": "far",
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}})
}

/// What is answered to a target: that again and again.
fn body(target: &str) -> String {
    format!("{target}\n").repeat(BODY / target.len())
}

/// Answers on a connection until its client goes.
fn bodies(mut stream: TcpStream, _: String, _: String) -> anyhow::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut first, mut line) = (String::new(), String::new());
        ensure!(reader.read_line(&mut first)? > 0, "it has gone");
        while line != "\r\n" {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "it has gone");
        }
        let body = body(first.split(' ').nth(1).unwrap_or_default());
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    }
}

/// A request to the proxy on a connection that stays; its status and body.
fn request(stream: &mut TcpStream, target: &str) -> anyhow::Result<(u16, String)> {
    // Longer than the packets of one answer take, lost as they may be.
    stream.set_read_timeout(Some(START))?;
    write!(stream, "GET {target} HTTP/1.1\r\nhost: shop\r\n\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("no answer")?;
        head.extend(byte);
    }
    let head = String::from_utf8(head)?.to_ascii_lowercase();
    let number = |name: &str| head.split_once(name)?.1.split(['\r', ' ']).find_map(|word| word.parse().ok());
    let mut body = vec![0; number("content-length:").unwrap_or(0)];
    stream.read_exact(&mut body).context("cut off")?;
    Ok((u16::try_from(number("http/1.1").context("no status")?)?, String::from_utf8(body)?))
}

fn files(process: &Process) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", process.pid()))?.count())
}

async fn files_are_back(process: &Process, at_start: usize) -> anyhow::Result<()> {
    until("all files to be back", START, async || {
        let now = files(process)?;
        ensure!(now <= at_start, "{now} open, {at_start} at the start");
        Ok(())
    })
    .await
}

impl Lab {
    async fn proxy_for(&self, cluster: &Value) -> anyhow::Result<Process> {
        let a = &self.network.a;
        let mut command = a.command(&self.proxy);
        command.args(["--workers", "1", "--config-yaml", &bootstrap(cluster)]);
        self.when_ready(a, Process::start("weather", command, &self.folder)?).await
    }

    /// Nothing is mixed up or cut while packets are lost; while all are, what waits ends in time; and then all is well
    /// again.
    pub(super) async fn lost_and_late(&self) -> anyhow::Result<String> {
        let Network { a, b, .. } = &self.network;
        let link = Link::make(&self.network).await?;
        serve(b, BODIES, bodies).await?;
        let proxy = self.proxy_for(&cluster("STATIC", &FAR.to_string(), BODIES)).await?;
        let at_start = files(&proxy)?;
        let edge = SocketAddr::from((Ipv4Addr::LOCALHOST, EDGE));
        let open = move || connect(edge, Identity::default());

        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let a = a.clone();
            let all = move || {
                let mut stream = open()?;
                for number in 0..REQUESTS {
                    let target = format!("/{client}/{number}");
                    let (status, text) = request(&mut stream, &target).context(target.clone())?;
                    ensure!(
                        status == 200 && text == body(&target),
                        "{target}: {status}, {} bytes",
                        text.len()
                    );
                }
                Ok(())
            };
            clients.spawn(async move { a.inside(all).await });
        }
        while let Some(ended) = clients.join_next().await {
            ended??;
        }
        let dropped = link.dropped.load(Relaxed);
        ensure!(dropped > CLIENTS * REQUESTS, "{dropped} packets were lost: no bad weather");

        link.lost.store(ALL, Relaxed);
        let in_the_dark = a.inside(move || request(&mut open()?, "/short")).await?;
        ensure!(in_the_dark.0 == 504, "{in_the_dark:?}");
        link.lost.store(LOST, Relaxed);
        until("answers again", START, async || {
            let (status, text) = a.inside(move || request(&mut open()?, "/again")).await?;
            ensure!(status == 200 && text == body("/again"), "{status}: {text}");
            Ok(())
        })
        .await?;
        files_are_back(&proxy, at_start).await?;
        Ok(format!("({dropped} packets lost)"))
    }

    /// A name whose server denies it, fails, says nothing or says another address keeps the address that it had last.
    pub(super) async fn names_flap(&self) -> anyhow::Result<String> {
        let Network { a, b, c, .. } = &self.network;
        let says = Arc::new(Mutex::new(Says::Address(b.v4)));
        let asked = Arc::<AtomicUsize>::default();
        let (said, count) = (Arc::clone(&says), Arc::clone(&asked));
        dns_server(b, move || {
            count.fetch_add(1, Relaxed);
            *said.lock().unwrap_or_else(PoisonError::into_inner)
        })
        .await?;
        let conf = format!("nameserver {}\noptions timeout:1 attempts:1\n", b.v4);
        let _conf = ResolvConf::of(a, &conf)?;
        let proxy = self.proxy_for(&cluster("STRICT_DNS", "shop.test", HTTP)).await?;
        let at_start = files(&proxy)?;

        let edge = SocketAddr::from((Ipv4Addr::LOCALHOST, EDGE));
        let ask = async || -> anyhow::Result<String> {
            let answer = get(a, edge, "shop.test", NOBODY).await?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(answer.local)
        };
        let stop = AtomicBool::new(false);
        let load = async {
            let mut seen = BTreeSet::new();
            while !stop.load(Relaxed) {
                seen.insert(ask().await?);
            }
            anyhow::Ok(seen)
        };
        let weather = async {
            let mut there = b.v4;
            for now in [
                Says::NoName,
                Says::Address(c.v4),
                Says::Failure,
                Says::Address(b.v4),
                Says::Nothing,
                Says::NoName,
                Says::Address(c.v4),
            ] {
                *says.lock().unwrap_or_else(PoisonError::into_inner) = now;
                let before = asked.load(Relaxed);
                // A question each for two kinds of addresses.
                until(&format!("{now:?} to be heard"), START, async || {
                    ensure!(asked.load(Relaxed) >= before + 4, "not asked");
                    Ok(())
                })
                .await?;
                if let Says::Address(address) = now {
                    there = address;
                }
                until(&format!("answers while it says {now:?}"), START, async || {
                    let local = ask().await?;
                    ensure!(local == there.to_string(), "{local} answers, not {there}");
                    Ok(())
                })
                .await?;
            }
            stop.store(true, Relaxed);
            anyhow::Ok(())
        };
        let (seen, weather) = tokio::join!(load, async {
            let end = weather.await;
            stop.store(true, Relaxed);
            end
        });
        weather?;
        let seen = seen.context("a request fails")?;
        let both: BTreeSet<String> = [b.v4, c.v4].map(|address| address.to_string()).into();
        ensure!(seen == both, "{seen:?} answered");
        files_are_back(&proxy, at_start).await?;
        Ok(format!("({} questions)", asked.load(Relaxed)))
    }
}
