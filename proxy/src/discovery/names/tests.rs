use std::cell::RefCell;
use std::time::SystemTime;

use pontoon_xds::client::Status;
use tokio::sync::oneshot::{self, Receiver};
use tokio::sync::watch;

use super::*;
use crate::discovery::naming::Naming;
use crate::route::RouteTable;

type Answer = Receiver<Result<Arc<RouteTable>, Error>>;

/// Names with a store that has what it is told.
struct Rig {
    names: Names,
    shared: Arc<OnDemand>,
    has: RefCell<HashMap<String, Lookup>>,
    now: Instant,
    status: watch::Sender<Status>,
}

/// To a control plane that is there, or that has been gone since long ago.
fn connection(connected: bool) -> watch::Receiver<Status> {
    watch::channel(status(connected)).1
}

fn status(connected: bool) -> Status {
    Status { connected, since: SystemTime::UNIX_EPOCH, ..Status::default() }
}

impl Rig {
    fn new(limits: Limits) -> Rig {
        let (sender, status) = watch::channel(status(true));
        let (shared, _asked) = OnDemand::new(limits, Naming::default(), status);
        let names = Names::new(shared.clone());
        Rig { names, shared, has: RefCell::default(), now: Instant::now(), status: sender }
    }

    fn ask(&mut self, name: &str) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.names.ask(Ask { name: name.into(), reply: Reply::Table(reply) }, self.now);
        answer
    }

    fn arrives(&mut self, name: &str) {
        let handle = RouteHandle { name: name.into(), table: Default::default() };
        handle.table.store(Some(Arc::new(RouteTable::new("r".into(), "1".into(), true, vec![]).unwrap())));
        self.has.borrow_mut().insert(name.into(), Lookup::Routes(Arc::new(handle), None));
        self.settle();
    }

    fn settle(&mut self) {
        let has = self.has.borrow();
        self.names.settle(self.now, |name| has.get(name).cloned().unwrap_or(Lookup::Pending));
    }

    fn goes(&mut self, name: &str) {
        self.has.borrow_mut().remove(name);
        self.names.removed(&[name.into()], self.now);
        self.settle();
    }

    fn passes(&mut self, seconds: u64) -> Vec<String> {
        self.now += Duration::from_secs(seconds);
        self.names.sweep(self.now).iter().map(ToString::to_string).collect()
    }

    fn wanted(&self) -> Vec<String> {
        self.names.wanted().iter().map(ToString::to_string).collect()
    }
}

fn error(mut answer: Answer) -> Option<Error> {
    answer.try_recv().unwrap().err()
}

#[test]
fn all_who_wait_are_answered_when_it_arrives_and_the_next_need_not_wait() {
    let mut rig = Rig::new(Limits::default());
    let (first, second) = (rig.ask("orders"), rig.ask("orders"));
    assert_eq!(rig.wanted(), ["orders"]);
    rig.arrives("orders");
    assert_eq!((error(first), error(second)), (None, None));
    let third = rig.ask("orders");
    assert_eq!(error(third), None);
}

#[test]
fn what_does_not_exist_is_said_at_once_and_remembered_until_it_appears() {
    let mut rig = Rig::new(Limits::default());
    let first = rig.ask("nobody");
    rig.goes("nobody");
    assert_eq!(error(first), Some(Error::UnknownName));
    let second = rig.ask("nobody");
    assert_eq!(error(second), Some(Error::UnknownName));
    rig.arrives("nobody");
    let third = rig.ask("nobody");
    assert_eq!(error(third), None);
}

#[test]
fn a_refused_listener_is_an_answer_but_not_where_a_good_one_serves() {
    let mut rig = Rig::new(Limits::default());
    let first = rig.ask("orders");
    rig.has.borrow_mut().insert("orders".into(), Lookup::Refused);
    rig.settle();
    assert_eq!(error(first), Some(Error::NameRefused));
    rig.arrives("orders");
    let second = rig.ask("orders");
    assert_eq!(error(second), None);
}

#[test]
fn names_nobody_serves_make_room_for_others_and_those_in_use_do_not() {
    let mut rig = Rig::new(Limits { max_names: 3, ..Limits::default() });
    let _in_use = rig.ask("orders");
    rig.arrives("orders");
    for host in 0..10_000 {
        let name = format!("hostile-{host}");
        let answer = rig.ask(&name);
        rig.goes(&name);
        assert_eq!(error(answer), Some(Error::UnknownName), "{name}");
        assert!(rig.wanted().len() <= 3 && rig.wanted().contains(&"orders".to_owned()));
    }
    let mut rig = Rig::new(Limits { max_names: 1, ..Limits::default() });
    let _in_use = rig.ask("orders");
    rig.arrives("orders");
    let refused = rig.ask("stock");
    assert_eq!(error(refused), Some(Error::TooManyNames));
}

#[tokio::test(start_paused = true)]
async fn idle_names_are_dropped_and_used_ones_are_not() {
    let limits =
        Limits { idle: Duration::from_secs(60), absent: Duration::from_secs(10), ..Limits::default() };
    let mut rig = Rig::new(limits);
    let _asked = [rig.ask("orders"), rig.ask("stock"), rig.ask("nobody")];
    rig.arrives("orders");
    rig.arrives("stock");
    rig.goes("nobody");
    assert_eq!(rig.passes(9), [""; 0]);
    assert_eq!(rig.passes(1), ["nobody"]);
    rig.now += Duration::from_secs(40);
    rig.shared.table("stock", rig.now).await.unwrap();
    assert_eq!(rig.passes(10), ["orders"]);
    assert_eq!(rig.wanted(), ["stock"]);
    assert_eq!(rig.passes(50), ["stock"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_stays_while_there_is_no_control_plane() {
    let limits =
        Limits { idle: Duration::from_secs(60), absent: Duration::from_secs(10), ..Limits::default() };
    let mut rig = Rig::new(limits);
    let _asked = [rig.ask("orders"), rig.ask("nobody")];
    rig.arrives("orders");
    rig.goes("nobody");
    rig.status.send_replace(status(false));
    assert_eq!(rig.passes(3600), [""; 0]);
    rig.status.send_replace(status(true));
    assert_eq!(rig.passes(9), [""; 0], "the time begins when it is back");
    assert_eq!(rig.passes(1), ["nobody"]);
    assert_eq!(rig.passes(50), ["orders"]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_bounded_in_time_and_number() {
    let (shared, asked) =
        OnDemand::new(Limits { max_waiting: 2, ..Limits::default() }, Naming::default(), connection(true));
    let now = Instant::now();
    let wait = || shared.table("orders", now);
    let answers = tokio::join!(wait(), wait(), wait());
    let of = |answer: Result<Arc<RouteTable>, Error>| answer.err();
    assert_eq!(
        [of(answers.0), of(answers.1), of(answers.2)],
        [Some(Error::NameTimeout), Some(Error::NameTimeout), Some(Error::TooManyNames)]
    );
    assert_eq!(now.elapsed(), Limits::default().resolve);
    drop(asked);
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_stays_away_is_not_waited_for() {
    let (shared, _asked) = OnDemand::new(Limits::default(), Naming::default(), connection(false));
    let now = Instant::now();
    assert_eq!(shared.table("orders", now).await.err(), Some(Error::NameTimeout));
    assert!(now.elapsed() < Duration::from_millis(10));
}

/// A destination of an intercepted connection.
const DESTINATION: &str = "10.96.0.1:80";

#[tokio::test(start_paused = true)]
async fn a_destination_is_found_by_its_address_and_port_alone() {
    let mut rig = Rig::new(Limits::default());
    drop(rig.ask(DESTINATION));
    rig.arrives(DESTINATION);
    let to = |text: &str| text.parse::<std::net::SocketAddr>().unwrap();
    assert!(rig.shared.table_to(to(DESTINATION), rig.now).await.is_ok());
    rig.goes(DESTINATION);
    assert!(matches!(rig.shared.table_to(to(DESTINATION), rig.now).await, Err(Error::UnknownName)));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_say_that_there_is_no_such_destination_is_not_asked_again_until_it_does() {
    let (shared, mut asked) = OnDemand::new(Limits::default(), Naming::default(), connection(true));
    let mut names = Names::new(shared.clone());
    let to = |port: u16| std::net::SocketAddr::from(([10, 96, 0, 1], port));
    let begin = Instant::now();
    assert!(matches!(shared.table_to(to(80), begin).await, Err(Error::NameTimeout)));
    assert_eq!(begin.elapsed(), Duration::from_secs(1));
    assert!(matches!(shared.table_to(to(81), begin).await, Err(Error::NameTimeout)));
    assert_eq!(begin.elapsed(), Duration::from_secs(1), "it was not waited for");
    names.ask(asked.try_recv().unwrap(), begin);
    assert!(asked.try_recv().is_err(), "nor asked for");

    names.removed(&["10.96.0.1:80".into()], begin);
    assert!(matches!(shared.table_to(to(82), begin).await, Err(Error::NameTimeout)));
    assert_eq!(&*asked.try_recv().unwrap().name, "10.96.0.1:82");
}

#[tokio::test(start_paused = true)]
async fn a_host_means_its_port_or_that_of_http() {
    let shared = || OnDemand::new(Limits::default(), Naming::default(), connection(true));
    for (host, name) in [
        ("Orders", "orders:80"),
        ("orders.shop.mesh.internal.:8080", "orders.shop:8080"),
        ("10.96.0.1", "10.96.0.1:80"),
        ("[fd00::1]:8080", "[fd00::1]:8080"),
    ] {
        let (shared, mut asked) = shared();
        // Nobody answers.
        drop(shared.table_of_port(host, Instant::now()).await);
        assert_eq!(&*asked.try_recv().unwrap().name, name, "{host}");
    }
    assert!(matches!(shared().0.table_of_port("", Instant::now()).await, Err(Error::UnknownName)));
}
