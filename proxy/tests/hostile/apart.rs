//! A test's proxy in a process of its own, where the process is what is looked at: this program again, with that test
//! alone, which then only serves.

use std::io::{BufRead as _, BufReader, Lines};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::fixture::Proxy;

/// Says that a process is one of those.
const SERVES: &str = "PONTOON_TEST_SERVES";

/// The process, as the test sees it.
pub(crate) struct Apart {
    child: Child,
    /// As long as it is open the process serves.
    input: Option<ChildStdin>,
    said: Lines<BufReader<ChildStdout>>,
    pub(crate) address: SocketAddr,
}

/// Whether this process is one that [`Apart::start`] has started.
pub(crate) fn serves() -> bool {
    std::env::var_os(SERVES).is_some()
}

/// Says where the proxy is, until the test has seen enough.
pub(crate) async fn serve(proxy: &Proxy) {
    println!("address {}", proxy.address);
    let wait = || std::io::stdin().read_line(&mut String::new());
    tokio::task::spawn_blocking(wait).await.unwrap().unwrap();
}

impl Apart {
    /// `test` is the test's full name.
    pub(crate) fn start(test: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(SERVES, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = said.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once("address ")?;
            Some(address.parse().unwrap())
        });
        let input = child.stdin.take();
        Self { child, input, said, address: address.expect("an address") }
    }

    /// The processor time that it has taken, in hundredths of a second.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Has it end well; gives what it says at its end.
    pub(crate) fn end(mut self) -> Vec<String> {
        drop(self.input.take());
        let last = self.said.by_ref().map_while(Result::ok).collect();
        assert!(self.child.wait().unwrap().success());
        last
    }
}
