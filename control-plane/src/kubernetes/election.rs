//! Which of several replicas leads, by a `Lease` (coordination.k8s.io/v1): it writes statuses, drives migrations, and has
//! the proxies (docs/decisions/the-leader-serves.md). A leader that cannot renew steps down before another can take over,
//! so there are never two; the clocks of the replicas need not agree, for each counts from when it saw the lease change.

use std::time::Duration;

use tokio::time::Instant;

/// How long a lease holds after it was last seen renewed.
pub const DURATION: Duration = Duration::from_secs(10);
/// A leader that could not renew for so long leads no more.
pub const DEADLINE: Duration = Duration::from_secs(7);
/// Between looks at the lease. A leader that is killed is followed after at most [`DURATION`] and twice this.
pub const RETRY: Duration = Duration::from_secs(2);

/// What a lease says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// By whom; empty: by nobody.
    pub holder: String,
    /// Any text that changes with each renewal.
    pub renewed: String,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is ours: say so again.
    Renew,
    /// It is nobody's any more, or not there: make it ours.
    Take,
    /// It is another's.
    Wait,
}

/// One replica's view of the lease.
#[derive(Debug)]
pub struct Election {
    identity: String,
    seen: Option<(Held, Instant)>,
    renewed_at: Option<Instant>,
}

impl Election {
    /// Of a replica by this name, which no other has.
    pub fn new(identity: String) -> Self {
        Self { identity, seen: None, renewed_at: None }
    }

    /// Who this is.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What follows from the lease as it was read just now.
    pub fn read(&mut self, lease: Option<Held>, now: Instant) -> Step {
        let Some(held) = lease.filter(|held| !held.holder.is_empty()) else {
            self.seen = None;
            return Step::Take;
        };
        if held.holder == self.identity {
            return Step::Renew;
        }
        self.renewed_at = None;
        match &self.seen {
            Some((before, at)) if *before == held => {
                if now.saturating_duration_since(*at) >= DURATION {
                    Step::Take
                } else {
                    Step::Wait
                }
            }
            _ => {
                self.seen = Some((held, now));
                Step::Wait
            }
        }
    }

    /// The lease was written at `asked`: it is ours, and was at that moment.
    pub fn written(&mut self, asked: Instant) {
        self.renewed_at = Some(asked);
    }

    /// Until when this replica leads unless the lease is written again.
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed_at.map(|at| at + DEADLINE)
    }

    /// Whether this replica leads.
    pub fn leads(&self, now: Instant) -> bool {
        self.leads_until().is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str, renewed: u64) -> Option<Held> {
        Some(Held { holder: holder.to_owned(), renewed: renewed.to_string() })
    }

    #[test]
    fn what_nobody_holds_is_taken() {
        let now = Instant::now();
        let mut a = Election::new("a".into());
        assert!(!a.leads(now));
        assert_eq!(a.read(None, now), Step::Take);
        assert_eq!(a.read(held("", 1), now), Step::Take, "the last leader gave it back");
        a.written(now);
        assert!(a.leads(now));
        assert_eq!(a.read(held("a", 2), now), Step::Renew);
    }

    #[test]
    fn another_s_is_taken_when_it_was_not_renewed_for_its_duration() {
        let start = Instant::now();
        let mut b = Election::new("b".into());
        assert_eq!(b.read(held("a", 1), start), Step::Wait);
        assert_eq!(b.read(held("a", 1), start + DURATION - RETRY), Step::Wait);
        let renewed = start + DURATION;
        assert_eq!(b.read(held("a", 2), renewed), Step::Wait, "it was renewed");
        assert_eq!(b.read(held("a", 2), renewed + DURATION), Step::Take);
    }

    #[test]
    fn a_leader_that_cannot_renew_steps_down_before_another_takes_over() {
        let start = Instant::now();
        let mut a = Election::new("a".into());
        a.written(start);
        assert!(a.leads(start + DEADLINE - Duration::from_millis(1)));
        assert!(!a.leads(start + DEADLINE));
        const { assert!(DEADLINE.as_secs() < DURATION.as_secs()) };
        // It may renew again where nobody took over,
        assert_eq!(a.read(held("a", 1), start + DEADLINE), Step::Renew);
        // and does not lead where somebody did, even before its deadline.
        a.written(start + DURATION);
        assert_eq!(a.read(held("b", 2), start + DURATION), Step::Wait);
        assert!(!a.leads(start + DURATION));
    }
}
