//! One kind's watch, for as long as the program runs: it lists, follows, and begins anew where that breaks off. It
//! hands on what it hears and decides nothing.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Error, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};

/// The API server ends a watch after this, and we take it up again where it ended. A connection that died without a
/// word is found out at the latest then.
pub const LIFETIME_SECONDS: u32 = 60;
/// Waiting times after failures double from here
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// to here: when the API server is back, we are soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between looks for a kind that the API server does not know: its CRD may be installed later.
const ABSENT_PAUSE: Duration = Duration::from_secs(10);
/// After which a doubted list is asked for again.
const DOUBT_PAUSE: Duration = Duration::from_secs(20);
/// Events that wait to be taken up. The API server waits beyond.
pub const QUEUE: usize = 1024;

/// What a watch says.
#[derive(Debug)]
pub enum Said<T> {
    /// As the API server said it.
    Event(Event<T>),
    /// The API server does not know the kind.
    Absent,
}

/// Asks for another list.
#[derive(Debug, Clone, Default)]
pub struct Relist(Arc<Notify>);

impl Relist {
    /// Lets the watch list anew, after a pause.
    pub fn ask(&self) {
        self.0.notify_one();
    }
}

/// Follows a kind until nobody listens any more.
pub async fn follow<T, M>(
    api: Api<T>,
    config: watcher::Config,
    kind: &'static str,
    relist: Relist,
    hand_on: mpsc::Sender<M>,
    message: impl Fn(Said<T>) -> M,
) where
    T: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let config = config.timeout(LIFETIME_SECONDS);
    let mut pause = FIRST_PAUSE;
    let mut failing = false;
    loop {
        let mut stream = std::pin::pin!(watcher::watcher(api.clone(), config.clone()));
        let mut again = std::pin::pin!(async {
            relist.0.notified().await;
            tokio::time::sleep(DOUBT_PAUSE).await;
        });
        loop {
            let item = tokio::select! {
                () = &mut again => break,
                () = hand_on.closed() => return,
                item = stream.next() => item,
            };
            match item {
                None => break,
                Some(Ok(event)) => {
                    // The begin of a list is said before the API server is asked for it.
                    if !matches!(event, Event::Init) {
                        pause = FIRST_PAUSE;
                        if std::mem::take(&mut failing) {
                            tracing::info!(kind, "the API server answers again");
                        }
                    }
                    if hand_on.send(message(Said::Event(event))).await.is_err() {
                        return;
                    }
                }
                Some(Err(error)) if is_absent(&error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(kind, "the API server does not know this kind; is its CRD installed?");
                    }
                    if hand_on.send(message(Said::Absent)).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(ABSENT_PAUSE).await;
                }
                Some(Err(error)) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(kind, %error, "the API server cannot be watched; what is known goes on");
                    }
                    // Not all replicas at once.
                    tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
            }
        }
    }
}

fn is_absent(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(Error::Api(status))
        | watcher::Error::WatchStartFailed(Error::Api(status)) => status.code == 404,
        _ => false,
    }
}
