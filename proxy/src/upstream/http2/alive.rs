//! Whether an endpoint is still there: one that says nothing while streams wait for it, or the connection for its end, is
//! asked (PING). Who is gone without a word is found within the sum of the two times.

use std::future::Future as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

use super::Known;

/// How long it may say nothing.
pub(crate) const PING_SECONDS: u16 = 30;
const INTERVAL: Duration = Duration::from_secs(PING_SECONDS as u64);
/// The same once it has answered and said nothing else: servers of gRPC end connections on which they are asked more often
/// than every five minutes.
const QUIET: Duration = Duration::from_secs(310);
/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Alive {
    pings: PingPong,
    known: Rc<Known>,
    /// When it has last said something.
    heard: Instant,
    /// It has been asked and has not answered.
    asked: bool,
    /// From what was last heard until it is asked.
    interval: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Alive {
    pub(super) fn new(pings: PingPong, known: Rc<Known>) -> Self {
        let timer = Box::pin(sleep(INTERVAL));
        Self { pings, known, heard: Instant::now(), asked: false, interval: INTERVAL, timer }
    }

    /// Ready when it is gone. To be polled behind the connection, of which not all may have been `written` that was to be.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, written: bool) -> Poll<()> {
        if self.known.heard.take() {
            self.heard = Instant::now();
            if self.asked {
                // Its answer may be behind much else.
                self.timer.as_mut().reset(self.heard + TIMEOUT);
            } else {
                self.interval = INTERVAL;
            }
        }
        loop {
            if self.asked {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.asked = false;
                        self.interval = QUIET;
                        self.timer.as_mut().reset(self.heard + INTERVAL);
                    }
                    // The connection has ended, and says so itself.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => return self.timer.as_mut().poll(cx),
                }
            }
            // Nobody waits for it. Who begins to has the connection polled, unless it waits to be written.
            if written && self.known.streams.get() == 0 && !self.known.forgotten.get() {
                return Poll::Pending;
            }
            ready!(self.timer.as_mut().poll(cx));
            let (now, due) = (Instant::now(), self.heard + self.interval);
            if due > now {
                self.timer.as_mut().reset(due);
            } else if self.pings.send_ping(Ping::opaque()).is_ok() {
                self.asked = true;
                self.timer.as_mut().reset(now + TIMEOUT);
            } else {
                return Poll::Pending;
            }
        }
    }
}
