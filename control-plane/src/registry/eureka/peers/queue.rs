//! What one peer is still to be told. Of each instance only what still matters: a renewal says nothing beside a
//! registration, and nothing before a cancellation counts. So a peer that is away costs no more than the instances.

use std::collections::{HashMap, VecDeque};

use crate::model::instance::InstanceStatus;
use crate::registry::eureka::state::Key;

/// Beyond it the oldest are dropped: whoever is not told hears it by the instance's next renewal.
const MOST_INSTANCES: usize = 50_000;

/// Something that a client did here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Deed {
    /// Registered, or changed what it says of itself.
    Register,
    /// Renewed.
    Renew,
    /// Left.
    Cancel,
    /// Was given a status by an operator.
    Override(InstanceStatus),
    /// Was relieved of that; with the status that is left, where it was said.
    EndOverride(Option<InstanceStatus>),
}

impl Deed {
    /// Whether this still matters once `next` has happened.
    fn outlives(self, next: Deed) -> bool {
        let is_override = |deed| matches!(deed, Deed::Override(_) | Deed::EndOverride(_));
        let is_said_again = self == next || is_override(self) && is_override(next);
        next != Deed::Cancel && self != Deed::Renew && !is_said_again
    }
}

/// In the order in which the instances came to have something to tell.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: VecDeque<Key>,
    deeds: HashMap<Key, Vec<Deed>>,
}

impl Queue {
    pub(super) fn push(&mut self, key: Key, deed: Deed) {
        if let Some(deeds) = self.deeds.get_mut(&key) {
            if deed != Deed::Renew {
                deeds.retain(|earlier| earlier.outlives(deed));
                deeds.push(deed);
            }
            return;
        }
        if self.order.len() >= MOST_INSTANCES
            && let Some(oldest) = self.order.pop_front()
        {
            self.deeds.remove(&oldest);
        }
        self.order.push_back(key.clone());
        self.deeds.insert(key, vec![deed]);
    }

    /// The deeds of the first `most` instances, each instance's in order.
    pub(super) fn take(&mut self, most: usize) -> Vec<(Key, Deed)> {
        let keys: Vec<Key> = self.order.drain(..most.min(self.order.len())).collect();
        let of = |key: Key| {
            let deeds = self.deeds.remove(&key).unwrap_or_default();
            deeds.into_iter().map(move |deed| (key.clone(), deed))
        };
        keys.into_iter().flat_map(of).collect()
    }

    /// Takes back what could not be told; what has happened since comes after it.
    pub(super) fn give_back(&mut self, untold: Vec<(Key, Deed)>) {
        let mut since = std::mem::take(self);
        for (key, deed) in untold {
            self.push(key, deed);
        }
        for (key, deed) in since.take(usize::MAX) {
            self.push(key, deed);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        ("SHOP".into(), id.into())
    }

    fn told(queue: &mut Queue) -> Vec<Deed> {
        queue.take(usize::MAX).into_iter().map(|(_, deed)| deed).collect()
    }

    #[test]
    fn only_what_still_matters_is_told() {
        use Deed::*;
        let (up, out) = (InstanceStatus::Up, InstanceStatus::OutOfService);
        for (done, left) in [
            (vec![Renew, Renew], vec![Renew]),
            (vec![Renew, Register, Renew], vec![Register]),
            (vec![Register, Override(out), Renew], vec![Register, Override(out)]),
            (vec![Override(out), Override(up), Register], vec![Override(up), Register]),
            (vec![Override(out), EndOverride(Some(up))], vec![EndOverride(Some(up))]),
            (vec![Register, Override(out), Cancel], vec![Cancel]),
            (vec![Cancel, Register, Renew], vec![Cancel, Register]),
        ] {
            let mut queue = Queue::default();
            done.iter().for_each(|deed| queue.push(key("1"), *deed));
            assert_eq!(told(&mut queue), left, "{done:?}");
        }
    }

    #[test]
    fn what_could_not_be_told_goes_before_what_came_since() {
        let mut queue = Queue::default();
        queue.push(key("1"), Deed::Register);
        queue.push(key("2"), Deed::Renew);
        queue.push(key("3"), Deed::Register);
        let untold = queue.take(2);
        assert_eq!(untold, [(key("1"), Deed::Register), (key("2"), Deed::Renew)]);
        queue.push(key("1"), Deed::Cancel);
        queue.push(key("2"), Deed::Renew);
        queue.give_back(untold);
        let all = [(key("1"), Deed::Cancel), (key("2"), Deed::Renew), (key("3"), Deed::Register)];
        assert_eq!(queue.take(usize::MAX), all);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_peer_that_is_away_costs_no_more_than_so_much() {
        let mut queue = Queue::default();
        for id in 0..MOST_INSTANCES + 10 {
            queue.push(key(&id.to_string()), Deed::Cancel);
        }
        assert_eq!((queue.len(), queue.deeds.len()), (MOST_INSTANCES, MOST_INSTANCES));
        assert_eq!(queue.take(1), [(key("10"), Deed::Cancel)]);
    }
}
