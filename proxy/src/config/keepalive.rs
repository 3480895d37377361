//! `envoy.config.core.v3.TcpKeepalive`: probes by which the system finds a peer that is gone without a word.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TcpKeepalive;
use envoy_types::pb::google::protobuf::UInt32Value;
use socket2::SockRef;

use super::problem::Problem;
use super::support::{Message, support};

pub(super) const MESSAGES: &[Message] = &[KEEPALIVE];

support! {
    KEEPALIVE, keepalive: TcpKeepalive = "envoy.config.core.v3.TcpKeepalive";
    read: keepalive_probes, keepalive_time, keepalive_interval;
    ignored:;
    refused: ;
}

/// Linux takes no more seconds, and no more probes.
const MOST_SECONDS: u16 = 32_767;
const MOST_PROBES: u8 = 127;

/// When a connection is probed. What is not said is as the system has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keepalive {
    /// So many seconds nothing has come before the first probe.
    pub time: Option<u16>,
    /// Between two probes, in seconds.
    pub interval: Option<u16>,
    /// So many without an answer, and the connection is broken.
    pub probes: Option<u8>,
}

/// What a listener says of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clients {
    /// Nothing: accepted sockets have what the listening one has, so that it costs them nothing: after 300 s,
    /// five times, 60 s apart.
    #[default]
    Usual,
    /// That they are not probed.
    Never,
    /// When they are.
    When(Keepalive),
}

/// As listening sockets have it. A client that has gone without a word is found within ten minutes, also where no idle time ends what it has: without
/// it a stream that waits for an event would wait for ever.
pub(crate) const CLIENTS: Keepalive = Keepalive { time: Some(300), interval: Some(60), probes: Some(5) };

/// Of a listener.
pub(super) fn clients(message: Option<&TcpKeepalive>) -> Result<Clients, Problem> {
    let said = message.map(compile).transpose()?;
    Ok(said.map_or(Clients::Usual, |said| said.map_or(Clients::Never, Clients::When)))
}

impl Clients {
    /// Has an accepted connection probed, or not.
    pub(crate) fn set<'s, S>(self, socket: &'s S)
    where
        SockRef<'s>: From<&'s S>,
    {
        match self {
            Clients::Usual => {}
            // It is not worth a connection when the system will not.
            Clients::Never => drop(SockRef::from(socket).set_keepalive(false)),
            Clients::When(keepalive) => keepalive.set(socket),
        }
    }
}

/// `None`: there are to be no probes, as Envoy has it where one of the numbers is 0.
pub(super) fn compile(message: &TcpKeepalive) -> Result<Option<Keepalive>, Problem> {
    keepalive(message)?;
    let time = number("keepalive_time", message.keepalive_time, MOST_SECONDS)?;
    let interval = number("keepalive_interval", message.keepalive_interval, MOST_SECONDS)?;
    let probes = number("keepalive_probes", message.keepalive_probes, MOST_PROBES)?;
    let is_off = time == Some(0) || interval == Some(0) || probes == Some(0);
    Ok((!is_off).then_some(Keepalive { time, interval, probes }))
}

fn number<N>(field: &str, value: Option<UInt32Value>, most: N) -> Result<Option<N>, Problem>
where
    N: TryFrom<u32> + PartialOrd + std::fmt::Display,
{
    let Some(UInt32Value { value, .. }) = value else { return Ok(None) };
    let number = N::try_from(value).ok().filter(|number| *number <= most);
    let number = number.ok_or_else(|| Problem::new(field, format!("is {value}; must be at most {most}")))?;
    Ok(Some(number))
}

impl Keepalive {
    /// Has a connection probed. It is not worth a connection when the system will not.
    pub(crate) fn set<'s, S>(self, socket: &'s S)
    where
        SockRef<'s>: From<&'s S>,
    {
        let mut options = socket2::TcpKeepalive::new();
        if let Some(time) = self.time {
            options = options.with_time(Duration::from_secs(time.into()));
        }
        if let Some(interval) = self.interval {
            options = options.with_interval(Duration::from_secs(interval.into()));
        }
        if let Some(probes) = self.probes {
            options = options.with_retries(probes.into());
        }
        let socket = SockRef::from(socket);
        let _ = socket.set_keepalive(true);
        let _ = socket.set_tcp_keepalive(&options);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(
        probes: Option<u32>,
        time: Option<u32>,
        interval: Option<u32>,
    ) -> Result<Option<Keepalive>, Problem> {
        let value = |value: Option<u32>| value.map(|value| UInt32Value { value });
        compile(&TcpKeepalive {
            keepalive_probes: value(probes),
            keepalive_time: value(time),
            keepalive_interval: value(interval),
        })
    }

    #[test]
    fn zero_is_off_and_too_much_is_refused() {
        assert_eq!(of(None, None, None).unwrap(), Some(Keepalive::default()));
        assert_eq!(of(Some(3), Some(0), None).unwrap(), None);
        assert_eq!(of(Some(200), None, None).unwrap_err().path, "keepalive_probes");
        assert_eq!(of(None, None, Some(40_000)).unwrap_err().path, "keepalive_interval");
    }

    #[test]
    fn a_socket_is_probed_as_it_is_said() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!SockRef::from(&stream).keepalive().unwrap());
        of(Some(3), Some(7), Some(5)).unwrap().unwrap().set(&stream);
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let seconds = Duration::from_secs;
        assert_eq!(
            (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap()),
            (seconds(7), seconds(5))
        );
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    }
}
