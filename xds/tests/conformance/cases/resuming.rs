//! A client that returns, and several of one node.

use super::*;

/// Delta: it says what it has of each resource.
pub(crate) async fn by_initial_versions_only_what_changed_is_sent(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1), (ty, "b", 1), (ty, "c", 1)]).await;
        let (earlier, got) = with_all(target, on, ty).await?;
        drop(earlier);
        target.publish(&[(ty, "a", 1), (ty, "b", 2)]).await;
        let mut peer = Peer::open(target, on, ty).await?;
        peer.resume(ty, &["*"], &got).await?;
        while peer.held(ty) != held(&[("a", 1), ("b", 2)]) {
            let got = peer.next_accepted().await?;
            ensure!(!got.resources.contains_key("a"), "{:?}", got.resources);
        }
    }
    Ok(())
}

/// Delta, by names: also that one has gone.
pub(crate) async fn by_initial_versions_of_names_only_what_changed_is_sent(
    target: &Target,
    on: On,
) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1), (ty, "b", 1), (ty, "c", 1)]).await;
        let (earlier, got) = with(target, on, ty, &["a", "b", "c"]).await?;
        drop(earlier);
        target.publish(&[(ty, "a", 1), (ty, "b", 2)]).await;
        let mut peer = Peer::open(target, on, ty).await?;
        peer.resume(ty, &["a", "b", "c"], &got).await?;
        while peer.held(ty) != held(&[("a", 1), ("b", 2)]) {
            let got = peer.next_accepted().await?;
            ensure!(!got.resources.contains_key("a"), "{}: {:?}", ty.short_name(), got.resources);
        }
    }
    Ok(())
}

/// State of the world: it says the version of the last response.
pub(crate) async fn by_version_info_what_changed_is_sent(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (earlier, got) = with_all(target, on, ty).await?;
        drop(earlier);
        target.publish(&[(ty, "b", 2)]).await;
        let mut peer = Peer::open(target, on, ty).await?;
        peer.resume(ty, &[], &got).await?;
        peer.until_held(ty, &[("b", 2)]).await?;
    }
    Ok(())
}

/// Whether or not what is unchanged is sent again, what changes afterwards is.
pub(crate) async fn who_resumes_with_the_newest_goes_on(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (earlier, got) = with(target, on, ty, &["a", "b"]).await?;
        drop(earlier);
        let mut peer = Peer::open(target, on, ty).await?;
        peer.resume(ty, &["a", "b"], &got).await?;
        target.publish(&[(ty, "a", 2), (ty, "b", 1)]).await;
        peer.until_held(ty, &[("a", 2), ("b", 1)]).await?;
    }
    Ok(())
}

pub(crate) async fn streams_of_one_node_do_not_disturb_each_other(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (mut all, _) = with_all(target, on, ty).await?;
        let (mut one, _) = with(target, on, ty, &["a"]).await?;
        target.publish(&[(ty, "a", 2), (ty, "b", 2)]).await;
        let refused = one.next().await?;
        one.nack(&refused).await?;
        all.until_held(ty, &[("a", 2), ("b", 2)]).await?;
        target.publish(&[(ty, "a", 3), (ty, "b", 3)]).await;
        all.until_held(ty, &[("a", 3), ("b", 3)]).await?;
        one.until_held(ty, &[("a", 3)]).await?;
    }
    Ok(())
}
