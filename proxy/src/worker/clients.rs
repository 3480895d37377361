//! A worker's connections whose clients are known by certificate. One that ends, or that the listener would no longer
//! accept, ends its connection: a handshake vouches for no longer than its certificate does.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, UnixTime};

use crate::listener::chain::ChainLocal;
use crate::tls::material;

/// Those of a worker.
#[derive(Default)]
pub(crate) struct Clients {
    next: Cell<u64>,
    connections: RefCell<BTreeMap<u64, Client>>,
}

struct Client {
    certificates: Rc<[CertificateDer<'static>]>,
    not_after: i64,
    chain: Rc<ChainLocal>,
    /// The fingerprint of what it was last checked against.
    trust: u64,
    waker: Waker,
}

/// A connection among them.
pub(crate) struct Known<'c> {
    of: &'c Clients,
    number: u64,
}

impl Clients {
    /// One more, with the certificates that it has shown, its own first. `None`: they were good in the session that
    /// was `resumed`, and are no longer.
    pub(crate) fn add(
        &self,
        chain: &Rc<ChainLocal>,
        certificates: &Rc<[CertificateDer<'static>]>,
        resumed: bool,
    ) -> Option<Known<'_>> {
        let number = self.next.replace(self.next.get() + 1);
        let mut client = Client {
            certificates: Rc::clone(certificates),
            // rustls has read it; were it unreadable, it would have ended.
            not_after: certificates.first().map_or(Ok(0), material::not_after).unwrap_or(0),
            chain: Rc::clone(chain),
            // The listener may trust others by now than when the handshake began.
            trust: 0,
            waker: Waker::noop().clone(),
        };
        // rustls takes a ticket's word for them.
        if resumed && !client.is_good(since_1970()) {
            return None;
        }
        self.connections.borrow_mut().insert(number, client);
        Some(Known { of: self, number })
    }

    /// Looks at all. Checks only what has reached its end or whose listener trusts others than before.
    pub(crate) fn sweep(&self) {
        let now = since_1970();
        self.connections.borrow_mut().retain(|_, client| {
            let good = client.is_good(now);
            if !good {
                client.waker.wake_by_ref();
            }
            good
        });
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

impl Client {
    fn is_good(&mut self, now: Duration) -> bool {
        if i64::try_from(now.as_secs()).is_ok_and(|now| now > self.not_after) {
            tracing::info!("a client's certificate has ended, and its connection with it");
            return false;
        }
        let server = self.chain.chain.tls.as_ref().and_then(|tls| tls.server.load_full());
        let Some(server) = server.filter(|server| server.trust != self.trust) else { return true };
        self.trust = server.trust;
        match server.accepts(&self.certificates, UnixTime::since_unix_epoch(now)) {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(%error, "a client's certificate is no longer accepted; its connection ends");
                false
            }
        }
    }
}

impl Known<'_> {
    /// Ends when the client's certificate is no longer good.
    pub(crate) async fn lost(&self) {
        poll_fn(|cx| match self.of.connections.borrow_mut().get_mut(&self.number) {
            Some(client) => {
                client.waker.clone_from(cx.waker());
                Poll::Pending
            }
            None => Poll::Ready(()),
        })
        .await;
    }
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.of.connections.borrow_mut().remove(&self.number);
    }
}
