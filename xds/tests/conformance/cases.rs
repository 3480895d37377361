//! What the protocol asks of a server, by feature. Each case opens streams of its own; it fails with what it saw.

mod answers;
mod changes;
mod resuming;
mod subscriptions;

pub(crate) use answers::*;
pub(crate) use changes::*;
pub(crate) use resuming::*;
pub(crate) use subscriptions::*;

use pontoon_xds::ResourceType::{self, Cluster, Endpoint, Listener, Route, Secret};
use pontoon_xds::Variant;

use crate::peer::{Got, On, Peer};
use crate::world::{Failed, Held, Target};

/// Outcome of a case.
type Checked = Result<(), Failed>;

const ALL: [ResourceType; 5] = [Secret, Cluster, Endpoint, Listener, Route];
/// An empty first request means all of them, and a state of the world has all of them.
const WHOLE: [ResourceType; 2] = [Cluster, Listener];

macro_rules! ensure {
    ($holds:expr, $($said:tt)+) => {
        if !$holds {
            return Err(format!($($said)+));
        }
    };
}
use ensure;

fn held(all: &[(&str, u32)]) -> Held {
    all.iter().map(|(name, revision)| ((*name).to_owned(), *revision)).collect()
}

/// The response brings just these in delta; in state of the world, where all of a type are sent, all.
fn brings(on: On, ty: ResourceType, got: &Got, changed: &[(&str, u32)], all: &[(&str, u32)]) -> Checked {
    let whole = on.variant == Variant::Sotw && ty.is_wildcard_capable();
    let wanted = held(if whole { all } else { changed });
    ensure!(got.resources == wanted, "{}: {:?}, not {wanted:?}", ty.short_name(), got.resources);
    Ok(())
}

/// A stream with all of a type, accepted.
async fn with_all(target: &Target, on: On, ty: ResourceType) -> Result<(Peer, Got), Failed> {
    with(target, on, ty, &[]).await
}

/// A stream with these of a type, accepted.
async fn with(target: &Target, on: On, ty: ResourceType, names: &[&str]) -> Result<(Peer, Got), Failed> {
    let mut peer = Peer::open(target, on, ty).await?;
    peer.want(ty, names).await?;
    let got = peer.next_accepted().await?;
    Ok((peer, got))
}
