//! A network that is late, cuts what it carries into pieces, stands still now and then, and breaks connections: what
//! a lost packet becomes above TCP. (Packets that are really lost are `cargo xtask e2e network`'s.)

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use socket2::SockRef;

use crate::running::{PATIENCE, Running, Stop, cluster, listener, until};
use crate::tls::get;
use crate::upstream::{Upstream, answer};

/// Of each piece, at most.
const LATE: Duration = Duration::from_millis(10);
/// As long as the first retransmission takes.
const STALL: Duration = Duration::from_millis(200);
const PIECE: usize = 16 * 1024;
/// In a hundred pieces, and in a thousand.
const STALLS: u32 = 5;
const BREAKS: u32 = 5;

/// Passes connections on, through a storm while there is one.
fn relay(to: SocketAddr, storm: &Arc<AtomicBool>) -> SocketAddr {
    let near = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = near.local_addr().unwrap();
    let storm = Arc::clone(storm);
    std::thread::spawn(move || {
        for client in near.incoming().flatten() {
            let Ok(server) = TcpStream::connect(to) else { continue };
            for (from, into) in [(&client, &server), (&server, &client)] {
                let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                let storm = Arc::clone(&storm);
                std::thread::spawn(move || drop(carry(&from, &into, &storm)));
            }
        }
    });
    address
}

fn carry(mut from: &TcpStream, mut into: &TcpStream, storm: &AtomicBool) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let stormy = storm.load(Ordering::Relaxed);
        let most = if stormy { fastrand::usize(1..=PIECE) } else { PIECE };
        let length = from.read(&mut piece[..most])?;
        if length == 0 {
            return into.shutdown(Shutdown::Write);
        }
        if stormy {
            let late = if fastrand::u32(..100) < STALLS { STALL } else { LATE.mul_f64(fastrand::f64()) };
            #[allow(clippy::disallowed_methods, reason = "the time on the way is what is made")]
            std::thread::sleep(late);
            if fastrand::u32(..1_000) < BREAKS {
                for end in [from, into] {
                    SockRef::from(end).set_linger(Some(Duration::ZERO))?;
                    end.shutdown(Shutdown::Both)?;
                }
                return Ok(());
            }
        }
        into.write_all(&piece[..length])?;
    }
}

/// What became of requests.
#[derive(Default)]
struct Seen {
    whole: AtomicUsize,
    /// Answered by the proxy, in want of one.
    refused: AtomicUsize,
    /// Cut off, and to be seen as such.
    cut: AtomicUsize,
}

fn client(proxy: SocketAddr, number: usize, seen: &Seen, stop: &AtomicBool) {
    let mut stream = TcpStream::connect(proxy).unwrap();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let path = format!("/{number}/{count}?{}", fastrand::usize(10..200_000));
        match get(&mut stream, &path) {
            Ok((200, body)) => {
                assert!(body == answer("far", &path), "{path}: another's answer, or not whole");
                seen.whole.fetch_add(1, Ordering::Relaxed);
            }
            Ok((status, body)) => {
                assert!(matches!(status, 502..=504) && body.contains(": "), "{path}: {status} {body}");
                seen.refused.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                assert_ne!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock,
                    "{path}: neither an answer nor an end"
                );
                seen.cut.fetch_add(1, Ordering::Relaxed);
                stream = TcpStream::connect(proxy).unwrap();
            }
        }
    }
}

/// Nothing is mixed up, what is cut looks cut, and all comes back: answers when the storm is over, files when the
/// connections are.
#[test]
fn chaos_of_a_late_and_broken_network() {
    let upstream = Upstream::start("far");
    let storm = Arc::<AtomicBool>::default();
    let far = cluster("far", &[relay(upstream.address, &storm)]);
    let edge = listener("edge", &json!({"match": {"prefix": "/"}, "route": {"cluster": "far"}}));
    let bootstrap = json!({"node": {"id": "a", "cluster": "b"},
        "static_resources": {"listeners": [edge], "clusters": [far]}});
    let proxy = Running::start(|command| {
        command.args(["--workers", "2", "--config-yaml", &bootstrap.to_string()]);
    });
    proxy.until_ready();
    let at_start = proxy.files();
    let address = proxy.listener("edge");
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));
    let load = |what: &AtomicUsize| what.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let ended = Stop(&stop);
        for number in 0..16 {
            let (seen, stop) = (&seen, &stop);
            scope.spawn(move || client(address, number, seen, stop));
        }
        until("answers", || load(&seen.whole) > 200);
        assert_eq!((load(&seen.refused), load(&seen.cut)), (0, 0), "before the storm");
        storm.store(true, Ordering::Relaxed);
        until("a storm", || load(&seen.cut) > 20 && load(&seen.whole) > 500);
        storm.store(false, Ordering::Relaxed);
        let calm = load(&seen.whole);
        until("answers after it", || load(&seen.whole) > calm + 2_000);
        drop(ended);
    });
    println!("{} whole, {} refused, {} cut", load(&seen.whole), load(&seen.refused), load(&seen.cut));
    upstream.close_all();
    until("all files are back", || proxy.files() <= at_start);
    assert_eq!(proxy.metric("pontoon_downstream_connections{listener=\"edge\"}"), 0);
}
