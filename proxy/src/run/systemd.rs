//! What systemd is told, and what it passes on. Without systemd all of it does nothing.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::worker::Workers;

/// A worker that has not answered for so long hangs.
pub(crate) const STUCK: Duration = Duration::from_secs(10);

/// Tells systemd; a failure to is worth a line and nothing else.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

/// This process is ready, and the one to watch.
pub(super) fn ready() {
    tell(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]);
}

/// Something is being changed; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "systemd cannot be told of a reload"),
    }
}

/// This process ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The sockets of the unit's `.socket`.
pub(super) fn activated() -> Vec<TcpListener> {
    let mut passed = listenfd::ListenFd::from_env();
    let taken = (0..passed.len()).filter_map(|index| match passed.take_tcp_listener(index) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(index, %error, "a socket of systemd's is not one of TCP that listens");
            None
        }
    });
    taken.collect()
}

/// Feeds the watchdog for as long as every worker answers.
pub(super) async fn feed_watchdog(workers: Arc<Workers>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut interval = tokio::time::interval(limit / 2);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        match workers.stuck(STUCK) {
            0 => tell(&[NotifyState::Watchdog]),
            stuck => tracing::error!(stuck, "workers do not answer; the watchdog is not fed"),
        }
    }
}
