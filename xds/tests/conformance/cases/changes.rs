//! What is published anew.

use super::*;

pub(crate) async fn an_update_is_sent(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a", "b"]).await?;
        target.publish(&[(ty, "a", 2), (ty, "b", 1)]).await;
        peer.until_held(ty, &[("a", 2), ("b", 1)]).await?;
    }
    Ok(())
}

pub(crate) async fn an_update_brings_just_what_changed_or_all(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (mut peer, _) = with_all(target, on, ty).await?;
        target.publish(&[(ty, "a", 2), (ty, "b", 1)]).await;
        let got = peer.next_accepted().await?;
        brings(on, ty, &got, &[("a", 2)], &[("a", 2), ("b", 1)])?;
        ensure!(got.removed.is_empty(), "{:?}", got.removed);
    }
    Ok(())
}

pub(crate) async fn an_addition_is_sent(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, _) = with_all(target, on, ty).await?;
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let got = peer.next_accepted().await?;
        brings(on, ty, &got, &[("b", 1)], &[("a", 1), ("b", 1)])?;
    }
    Ok(())
}

pub(crate) async fn a_removal_is_told(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (mut peer, _) = with_all(target, on, ty).await?;
        target.publish(&[(ty, "a", 1)]).await;
        let got = peer.next_accepted().await?;
        brings(on, ty, &got, &[], &[("a", 1)])?;
        ensure!(peer.held(ty) == held(&[("a", 1)]), "{got:?}");
    }
    Ok(())
}

pub(crate) async fn the_removal_of_the_last_one_is_told(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, _) = with_all(target, on, ty).await?;
        target.publish(&[]).await;
        peer.until_held(ty, &[]).await?;
    }
    Ok(())
}

/// In state of the world there are words for it for clusters and listeners only.
pub(crate) async fn the_removal_of_a_named_one_is_told(target: &Target, on: On) -> Checked {
    let delta = on.variant == Variant::Delta;
    for ty in if delta { &ALL[..] } else { &WHOLE[..] } {
        target.publish(&[(*ty, "a", 1), (*ty, "b", 1)]).await;
        let (mut peer, _) = with(target, on, *ty, &["a", "b"]).await?;
        target.publish(&[(*ty, "a", 1)]).await;
        peer.until_held(*ty, &[("a", 1)]).await?;
    }
    Ok(())
}

/// State of the world: what is missing in such a response has not gone.
pub(crate) async fn a_missing_endpoint_set_is_no_removal(target: &Target, on: On) -> Checked {
    for ty in [Secret, Endpoint, Route] {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a", "b"]).await?;
        target.publish(&[(ty, "a", 2)]).await;
        peer.until_held(ty, &[("a", 2), ("b", 1)]).await?;
    }
    Ok(())
}

pub(crate) async fn what_was_removed_comes_again(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        for names in [&[][..], &["a", "b"]] {
            target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
            let (mut peer, _) = with(target, on, ty, names).await?;
            for _ in 0..2 {
                target.publish(&[(ty, "a", 1)]).await;
                peer.until_held(ty, &[("a", 1)]).await?;
                target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
                peer.until_held(ty, &[("a", 1), ("b", 1)]).await?;
            }
        }
    }
    Ok(())
}

pub(crate) async fn many_changes_end_with_the_last(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a", "b"]).await?;
        for revision in 2..=30 {
            target.publish(&[(ty, "a", revision), (ty, "b", 1)]).await;
        }
        peer.until_held(ty, &[("a", 30), ("b", 1)]).await?;
    }
    Ok(())
}

/// Of the response in state of the world, of the resource in delta.
pub(crate) async fn versions_change_with_the_content_and_only_then(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        let mut versions = Vec::new();
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, mut got) = with_all(target, on, ty).await?;
        for revision in [2, 1] {
            versions.push(if on.variant == Variant::Delta { got.versions["a"].clone() } else { got.version });
            target.publish(&[(ty, "a", revision)]).await;
            got = peer.next_accepted().await?;
        }
        versions.push(if on.variant == Variant::Delta { got.versions["a"].clone() } else { got.version });
        ensure!(versions[0] != versions[1] && versions[0] == versions[2], "{versions:?}");
    }
    Ok(())
}

pub(crate) async fn types_are_told_apart_on_one_stream(target: &Target, on: On) -> Checked {
    target.publish(&[(Cluster, "x", 1), (Endpoint, "x", 1), (Route, "x", 1)]).await;
    let (mut peer, _) = with_all(target, on, Cluster).await?;
    for ty in [Endpoint, Route] {
        peer.want(ty, &["x"]).await?;
        peer.until_held(ty, &[("x", 1)]).await?;
    }
    target.publish(&[(Cluster, "x", 1), (Endpoint, "x", 2), (Route, "x", 1)]).await;
    let got = peer.next_accepted().await?;
    ensure!(got.ty == Endpoint.type_url(), "{got:?}");
    target.publish(&[(Cluster, "x", 2), (Endpoint, "x", 2), (Route, "x", 2)]).await;
    for ty in [Cluster, Route] {
        peer.until_held(ty, &[("x", 2)]).await?;
    }
    Ok(())
}
