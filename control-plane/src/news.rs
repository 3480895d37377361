//! What others follow, told where it is another.

use std::sync::Arc;

use tokio::sync::watch;

/// Tells what is so now, unless it was so before.
pub(crate) fn tell<T: PartialEq>(followers: &watch::Sender<Arc<T>>, now: T) {
    followers.send_if_modified(|before| {
        let changed = **before != now;
        if changed {
            *before = Arc::new(now);
        }
        changed
    });
}
