//! In turn. Equal weights are a counter; unequal ones an earliest-deadline queue, in which an endpoint of weight
//! w comes up again after 1/w: smooth, and O(log n) a pick.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// One turn of the heaviest possible endpoint: deadlines are whole numbers of 1/2^32.
const TURN: u64 = 1 << 32;

#[derive(Debug)]
pub(super) enum RoundRobin {
    Equal { count: usize, next: usize },
    Weighted { queue: BinaryHeap<Reverse<(u64, usize)>>, weights: Vec<u32> },
}

impl RoundRobin {
    pub(super) fn new(weights: impl Iterator<Item = u32>, start: u32) -> Self {
        let weights: Vec<u32> = weights.map(|weight| weight.max(1)).collect();
        if weights.iter().all(|weight| Some(weight) == weights.first()) {
            let count = weights.len();
            return Self::Equal { count, next: if count == 0 { 0 } else { start as usize % count } };
        }
        let queue =
            weights.iter().enumerate().map(|(i, weight)| Reverse((TURN / u64::from(*weight), i))).collect();
        let mut this = Self::Weighted { queue, weights };
        for _ in 0..start % 1_024 {
            this.next();
        }
        this
    }

    /// The index of the next in turn; `None` without endpoints.
    pub(super) fn next(&mut self) -> Option<usize> {
        match self {
            Self::Equal { count: 0, .. } => None,
            Self::Equal { count, next } => {
                let index = *next;
                *next = if index + 1 == *count { 0 } else { index + 1 };
                Some(index)
            }
            Self::Weighted { queue, weights } => {
                let mut top = queue.peek_mut()?;
                let Reverse((deadline, index)) = *top;
                let weight = u64::from(*weights.get(index)?);
                *top = Reverse((deadline.saturating_add(TURN / weight), index));
                Some(index)
            }
        }
    }
}
