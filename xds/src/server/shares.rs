//! Who has which of so many places, by address: while there is room anybody has as many as it likes; when there is none, a
//! newcomer takes the newest of whoever has most, if that one keeps more than the newcomer then has. So nobody is kept out by
//! one that has much, and what is many behind one address (a NAT) is served as long as there is room.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// The places, the newest of each address last.
#[derive(Debug)]
pub(super) struct Shares<K>(HashMap<IpAddr, BTreeSet<K>>);

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Shares(HashMap::new())
    }
}

impl<K: Ord> Shares<K> {
    pub(super) fn add(&mut self, address: IpAddr, place: K) {
        self.0.entry(address).or_default().insert(place);
    }

    /// Says whether it was there.
    pub(super) fn remove(&mut self, address: IpAddr, place: &K) -> bool {
        let Some(places) = self.0.get_mut(&address) else { return false };
        let was_there = places.remove(place);
        if places.is_empty() {
            self.0.remove(&address);
        }
        was_there
    }

    /// Takes a place away for a newcomer, where that is fair. One without an address has no other place.
    pub(super) fn make_room(&mut self, newcomer: Option<IpAddr>) -> Option<K> {
        let has = newcomer.and_then(|address| self.0.get(&address)).map_or(0, BTreeSet::len);
        let most = self.0.values_mut().max_by_key(|places| places.len())?;
        // More than one is left of it.
        (most.len() > has + 1).then(|| most.pop_last()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_takes_the_newest_of_whoever_has_most_until_both_have_as_many() {
        let [greedy, other, third] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let mut shares = Shares::default();
        (0..9).for_each(|place| shares.add(greedy, place));
        shares.add(other, 9);
        assert_eq!(shares.make_room(Some(greedy)), None, "it has most itself");
        let mut taken = Vec::new();
        while let Some(place) = shares.make_room(Some(other)) {
            taken.push(place);
            shares.add(other, 10 + place);
        }
        assert_eq!(taken, [8, 7, 6, 5], "five and five");
        assert!(shares.make_room(None).is_some() && shares.make_room(Some(third)).is_some());
        assert!(shares.remove(greedy, &0) && !shares.remove(greedy, &8) && !shares.remove(third, &0));
    }

    #[test]
    fn where_each_has_one_nobody_yields() {
        let mut shares = Shares::default();
        (0..5).for_each(|last| shares.add(IpAddr::from([10, 0, 0, last]), last));
        assert_eq!(shares.make_room(None), None);
        assert!(shares.remove(IpAddr::from([10, 0, 0, 1]), &1));
        assert_eq!(shares.0.len(), 4);
    }
}
