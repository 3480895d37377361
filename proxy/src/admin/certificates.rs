//! `/certs`: the certificates in force.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::config::Store;

pub(super) fn json(store: &Store) -> Value {
    let now = SystemTime::now();
    let mut all = Vec::new();
    for listener in store.live_listeners() {
        for chain in listener.chains.load().iter() {
            let server = chain.tls.as_ref().and_then(|tls| tls.server.load_full());
            for facts in server.iter().flat_map(|server| &server.certificates) {
                all.push(json!({
                    "listener": &*listener.name,
                    "filter_chain": &*chain.name,
                    "source": facts.source,
                    "subject": facts.subject,
                    "subject_alt_names": facts.names,
                    "serial_number": facts.serial,
                    "expiration_time": facts.not_after,
                    "days_until_expiration": facts.days_left(now),
                }));
            }
        }
    }
    json!({ "certificates": all })
}
