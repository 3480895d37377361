//! Nonces, acknowledgements and refusals.

use super::*;

pub(crate) async fn each_response_has_a_nonce_of_its_own(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, got) = with_all(target, on, ty).await?;
        let mut nonces = vec![got.nonce];
        for revision in 2..5 {
            target.publish(&[(ty, "a", revision)]).await;
            let got = peer.next_accepted().await?;
            ensure!(
                !got.nonce.is_empty() && !nonces.contains(&got.nonce),
                "{:?} after {nonces:?}",
                got.nonce
            );
            nonces.push(got.nonce);
        }
    }
    Ok(())
}

pub(crate) async fn what_was_accepted_is_not_sent_again(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a"]).await?;
        target.publish(&[(ty, "a", 2)]).await;
        let got = peer.next_accepted().await?;
        ensure!(got.resources == held(&[("a", 2)]), "{}: {:?}", ty.short_name(), got.resources);
    }
    Ok(())
}

pub(crate) async fn a_refused_version_is_not_sent_again(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a"]).await?;
        target.publish(&[(ty, "a", 2)]).await;
        let got = peer.next().await?;
        peer.nack(&got).await?;
        // What a new name is answered with says that the refusal has been read.
        target.publish(&[(ty, "a", 2), (ty, "b", 1)]).await;
        peer.want(ty, &["a", "b"]).await?;
        let mut repeats = 0;
        while !peer.held(ty).contains_key("b") {
            let got = peer.next_accepted().await?;
            repeats += usize::from(got.resources == held(&[("a", 2)]));
        }
        ensure!(repeats == 0, "{}: it was sent again", ty.short_name());
    }
    Ok(())
}

pub(crate) async fn after_a_refusal_the_next_version_is_sent(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, _) = with(target, on, ty, &["a"]).await?;
        target.publish(&[(ty, "a", 2)]).await;
        let got = peer.next().await?;
        peer.nack(&got).await?;
        target.publish(&[(ty, "a", 3)]).await;
        peer.until_held(ty, &[("a", 3)]).await?;
    }
    Ok(())
}

pub(crate) async fn the_very_first_response_may_be_refused(target: &Target, on: On) -> Checked {
    for ty in WHOLE {
        target.publish(&[(ty, "a", 1), (ty, "b", 1)]).await;
        let mut peer = Peer::open(target, on, ty).await?;
        peer.want(ty, &[]).await?;
        let got = peer.next().await?;
        peer.nack(&got).await?;
        target.publish(&[(ty, "a", 2), (ty, "b", 2)]).await;
        peer.until_held(ty, &[("a", 2), ("b", 2)]).await?;
    }
    Ok(())
}

/// A request that answers an earlier response says nothing about the last one, which is neither sent again, as it might
/// be to one who refuses it, nor held to be refused.
pub(crate) async fn an_answer_with_an_old_nonce_is_none(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, first) = with(target, on, ty, &["a"]).await?;
        target.publish(&[(ty, "a", 2)]).await;
        let second = peer.next().await?;
        for (nonce, refusal) in
            [(&*first.nonce, Some("too late")), (&*first.nonce, None), ("never given", None)]
        {
            peer.answer(ty, nonce, refusal).await?;
            peer.is_told_nothing().await?;
        }
        peer.ack(&second).await?;
        target.publish(&[(ty, "a", 3)]).await;
        let third = peer.next_accepted().await?;
        ensure!(third.resources == held(&[("a", 3)]), "{}: {:?}", ty.short_name(), third.resources);
    }
    Ok(())
}

/// Who has not answered is sent no more, and an answer to something else is none.
pub(crate) async fn the_next_response_waits_for_the_answer(target: &Target, on: On) -> Checked {
    for ty in ALL {
        target.publish(&[(ty, "a", 1)]).await;
        let (mut peer, first) = with(target, on, ty, &["a"]).await?;
        target.publish(&[(ty, "a", 2)]).await;
        let second = peer.next().await?;
        target.publish(&[(ty, "a", 3)]).await;
        peer.answer(ty, &first.nonce, None).await?;
        peer.answer(ty, "never given", None).await?;
        peer.is_told_nothing().await?;
        peer.ack(&second).await?;
        peer.until_held(ty, &[("a", 3)]).await?;
    }
    Ok(())
}

pub(crate) async fn a_refusal_of_one_type_holds_up_no_other(target: &Target, on: On) -> Checked {
    target.publish(&[(Cluster, "x", 1), (Endpoint, "x", 1)]).await;
    let (mut peer, _) = with_all(target, on, Cluster).await?;
    peer.want(Endpoint, &["x"]).await?;
    peer.until_held(Endpoint, &[("x", 1)]).await?;
    target.publish(&[(Cluster, "x", 2), (Endpoint, "x", 1)]).await;
    let got = peer.next().await?;
    peer.nack(&got).await?;
    for revision in 2..5 {
        target.publish(&[(Cluster, "x", 2), (Endpoint, "x", revision)]).await;
        peer.until_held(Endpoint, &[("x", revision)]).await?;
    }
    Ok(())
}

pub(crate) async fn an_unanswered_type_holds_up_no_other(target: &Target, on: On) -> Checked {
    target.publish(&[(Cluster, "x", 1), (Endpoint, "x", 1)]).await;
    let mut peer = Peer::open(target, on, Cluster).await?;
    peer.want(Cluster, &[]).await?;
    peer.next().await?;
    peer.want(Endpoint, &["x"]).await?;
    peer.until_held(Endpoint, &[("x", 1)]).await?;
    target.publish(&[(Cluster, "x", 1), (Endpoint, "x", 2)]).await;
    peer.until_held(Endpoint, &[("x", 2)]).await
}
