//! Wildcards and names.

use super::*;

pub(crate) async fn an_empty_first_request_means_all(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (_peer, got) = with_all(target, on, ty).await?;
        ensure!(got.resources == held(&[("a", 1), ("b", 1)]), "{:?}", got.resources);
    }
    Ok(())
}

pub(crate) async fn a_star_means_all(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (_peer, got) = with(target, on, ty, &["*"]).await?;
        ensure!(got.resources == held(&[("a", 1), ("b", 1)]), "{:?}", got.resources);
    }
    Ok(())
}

pub(crate) async fn all_of_nothing_is_said_to_be_nothing(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[]).await;
        let (_peer, got) = with_all(target, on, ty).await?;
        ensure!(got.resources.is_empty(), "{:?}", got.resources);
    }
    Ok(())
}

pub(crate) async fn names_are_answered_with_just_these(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1), (ty, "b", 1), (ty, "c", 1)]).await;
        let (_peer, got) = with(target, on, ty, &["a", "c"]).await?;
        ensure!(got.resources == held(&[("a", 1), ("c", 1)]), "{}: {:?}", ty.short_name(), got.resources);
    }
    Ok(())
}

pub(crate) async fn a_name_is_added(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a"]).await?;
        peer.want(ty, &["a", "b"]).await?;
        peer.until_held(ty, &[("a", 1), ("b", 1)]).await?;
    }
    Ok(())
}

pub(crate) async fn a_dropped_name_is_told_no_more(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1), (ty, "b", 1), (ty, "c", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a", "b"]).await?;
        // That c is here says that the request has been read.
        peer.want(ty, &["a", "c"]).await?;
        while !peer.held(ty).contains_key("c") {
            peer.next_accepted().await?;
        }
        target.publish(&[(ty, "a", 1), (ty, "b", 2), (ty, "c", 1)]).await;
        target.publish(&[(ty, "a", 2), (ty, "b", 2), (ty, "c", 1)]).await;
        while peer.held(ty).get("a") != Some(&2) {
            let got = peer.next_accepted().await?;
            ensure!(!got.resources.contains_key("b"), "{}: {:?}", ty.short_name(), got.resources);
        }
    }
    Ok(())
}

pub(crate) async fn a_dropped_name_that_is_taken_up_again_is_sent_again(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a", "b"]).await?;
        peer.want(ty, &["a"]).await?;
        peer.want(ty, &["a", "b"]).await?;
        let mut got = peer.next_accepted().await?;
        while !got.resources.contains_key("b") {
            got = peer.next_accepted().await?;
        }
    }
    Ok(())
}

pub(crate) async fn a_name_that_is_subscribed_twice_is_sent_again(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a"]).await?;
        peer.change(ty, &["a"], &[]).await?;
        let got = peer.next_accepted().await?;
        ensure!(got.resources == held(&[("a", 1)]), "{}: {:?}", ty.short_name(), got.resources);
    }
    Ok(())
}

pub(crate) async fn the_last_dropped_name_leaves_nothing_and_not_all(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1), (ty, "b", 1), (ty, "c", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a"]).await?;
        peer.want(ty, &[]).await?;
        peer.want(ty, &["c"]).await?;
        let mut got = peer.next_accepted().await?;
        while !got.resources.contains_key("c") {
            ensure!(got.resources.is_empty(), "{:?}", got.resources);
            got = peer.next_accepted().await?;
        }
        ensure!(got.resources == held(&[("c", 1)]), "{:?}", got.resources);
    }
    Ok(())
}

/// Delta says so of each; a state of the world lacks it.
pub(crate) async fn a_name_that_does_not_exist_is_answered(target: &Target, on: On) -> Checked {
    let delta = on.variant == Variant::Delta;
    for ty in if delta { &ALL[..] } else { &WHOLE[..] } {
        target.publish(&[(*ty, "a", 1)]).await;
        let (_peer, got) = with(target, on, *ty, &["ghost"]).await?;
        let is_told = got.removed.contains("ghost") || !delta;
        ensure!(got.resources.is_empty() && is_told, "{}: {got:?}", ty.short_name());
    }
    Ok(())
}

pub(crate) async fn a_name_that_comes_to_exist_is_sent(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a", "late"]).await?;
        target.publish(&[(ty, "a", 1), (ty, "late", 1)]).await;
        peer.until_held(ty, &[("a", 1), ("late", 1)]).await?;
    }
    Ok(())
}

/// Delta: it still matches, so the client, which has forgotten it, is sent it again.
pub(crate) async fn a_name_dropped_under_a_wildcard_is_sent_again(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["*", "a"]).await?;
        peer.change(ty, &[], &["a"]).await?;
        let got = peer.next_accepted().await?;
        ensure!(got.resources == held(&[("a", 1)]), "{:?}", got.resources);
    }
    Ok(())
}

/// Delta: names stay, the rest is told no more. What another type answers says that the request has been read.
pub(crate) async fn a_dropped_wildcard_leaves_the_names(target: &Target, on: On) -> Checked {
    let world = |a, b| [(Cluster, "a", a), (Cluster, "b", b), (Endpoint, "e", 1)];
    target.publish(&world(1, 1)).await;
    let (mut peer, _) = with(target, on, Cluster, &["*", "a"]).await?;
    peer.change(Cluster, &[], &["*"]).await?;
    peer.want(Endpoint, &["e"]).await?;
    peer.until_held(Endpoint, &[("e", 1)]).await?;
    target.publish(&world(1, 2)).await;
    target.publish(&world(2, 2)).await;
    let got = peer.next_accepted().await?;
    ensure!(got.resources == held(&[("a", 2)]), "{:?}", got.resources);
    Ok(())
}

pub(crate) async fn who_comes_before_anything_is_published_waits_for_it(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        let mut peer = Peer::open(target, on, ty).await?;
        peer.want(ty, &[]).await?;
        target.publish(&[(ty, "a", 1)]).await;
        peer.until_held(ty, &[("a", 1)]).await?;
    }
    Ok(())
}

pub(crate) async fn a_stream_for_one_type_needs_no_type_url(target: &Target, on: On) -> Checked {
    target.publish(&[(Cluster, "a", 1)]).await;
    let mut peer = Peer::open(target, on, Cluster).await?;
    peer.want_untyped().await?;
    peer.until_held(Cluster, &[("a", 1)]).await
}

pub(crate) async fn an_ads_stream_without_type_url_is_refused(target: &Target, on: On) -> Checked {
    target.publish(&[(Cluster, "a", 1)]).await;
    let mut peer = Peer::open(target, on, Cluster).await?;
    peer.want_untyped().await?;
    let answer = peer.next().await;
    ensure!(answer.as_ref().is_err_and(|said| said.starts_with("InvalidArgument")), "{answer:?}");
    Ok(())
}
