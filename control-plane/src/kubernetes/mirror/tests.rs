use super::Heard::{Applied, Deleted, ListBegins, ListEnds, Listed};
use super::*;

/// A mirror of numbers, and the time as the test has it.
struct Case {
    mirror: Mirror<u32, u32>,
    now: Instant,
}

impl Case {
    fn new() -> Case {
        Case { mirror: Mirror::default(), now: Instant::now() }
    }

    fn list(&mut self, keys: impl IntoIterator<Item = u32>) -> Change<u32> {
        self.mirror.hear(ListBegins, self.now);
        for key in keys {
            assert_eq!(self.mirror.hear(Listed(key, key), self.now).keys, BTreeSet::new());
        }
        self.mirror.hear(ListEnds, self.now)
    }

    fn hear(&mut self, heard: Heard<u32, u32>) -> Change<u32> {
        self.mirror.hear(heard, self.now)
    }

    fn known(&self) -> Vec<u32> {
        self.mirror.iter().map(|(key, _)| *key).collect()
    }

    fn after(&mut self, seconds: u64) -> &mut Case {
        self.now += Duration::from_secs(seconds);
        self
    }
}

#[test]
fn a_list_counts_when_it_is_complete() {
    let mut case = Case::new();
    assert!(!case.mirror.is_complete());
    case.hear(ListBegins);
    case.hear(Listed(1, 1));
    assert_eq!(case.known(), [0; 0]);
    // The connection broke: it begins anew, and what the broken one had does not count.
    assert_eq!(case.list([2, 3]).keys, [2, 3].into());
    assert!(case.mirror.is_complete());
    assert_eq!(case.known(), [2, 3]);
}

#[test]
fn a_relist_says_only_what_differs() {
    let mut case = Case::new();
    case.list([1, 2, 3]);
    assert_eq!(case.list([1, 2, 3]), Change::default());
    assert_eq!(case.list([1, 3, 4]), Change { keys: [2, 4].into(), doubted: 0 });
    assert_eq!(case.known(), [1, 3, 4]);
}

#[test]
fn what_is_deleted_under_our_eyes_is_gone_at_once() {
    let mut case = Case::new();
    case.list([1, 2]);
    assert_eq!(case.hear(Deleted(1)).keys, [1].into());
    assert_eq!(case.hear(Deleted(2)).keys, [2].into());
    assert_eq!(case.hear(Deleted(2)).keys, [].into());
    assert_eq!(case.known(), [0; 0]);
    assert_eq!(case.list([]), Change::default(), "nothing is taken away by it");
}

#[test]
fn an_empty_list_is_doubted_until_lists_have_said_so_for_long_enough() {
    let mut case = Case::new();
    case.list([1, 2]);
    assert_eq!(case.list([]), Change { keys: [].into(), doubted: 2 });
    assert_eq!(case.known(), [1, 2]);
    assert_eq!(case.after(119).list([]).doubted, 2);
    assert_eq!(case.known(), [1, 2]);
    assert_eq!(case.after(1).list([]), Change { keys: [1, 2].into(), doubted: 0 });
    assert_eq!(case.known(), [0; 0]);
}

#[test]
fn a_doubt_is_over_when_a_list_has_it_again() {
    let mut case = Case::new();
    case.list([1, 2]);
    case.list([]);
    assert_eq!(case.after(60).list([1, 2]), Change::default());
    // The next outage is a doubt of its own.
    assert_eq!(case.after(60).list([]).doubted, 2);
    assert_eq!(case.known(), [1, 2]);
}

#[test]
fn a_list_that_takes_away_most_is_doubted_and_what_it_has_is_not() {
    let mut case = Case::new();
    case.list(0..20);
    let change = case.list((0..9).chain([30]));
    assert_eq!(change, Change { keys: [30].into(), doubted: 11 });
    assert_eq!(case.known().len(), 21);
    // Half is believed, and so are the few.
    let mut case = Case::new();
    case.list(0..20);
    assert_eq!(case.list(0..10).doubted, 0);
    assert_eq!(case.known().len(), 10);
    assert_eq!(case.list(0..1).keys.len(), 9);
}

#[test]
fn events_settle_the_doubt_about_what_they_speak_of() {
    let mut case = Case::new();
    case.list([1, 2, 3]);
    case.list([]);
    assert_eq!(case.hear(Applied(1, 10)).doubted, 2);
    assert_eq!(case.hear(Deleted(2)), Change { keys: [2].into(), doubted: 1 });
    assert_eq!(case.hear(Applied(3, 3)), Change { keys: [].into(), doubted: 0 });
    assert_eq!(case.known(), [1, 3]);
}

/// Whatever comes: nothing that was applied and not deleted is lost but by lists, and a mirror that is asked for
/// another list for as long as it doubts ends up with what lists say.
#[test]
fn any_sequence_converges_on_what_lists_say() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut case = Case::new();
        let mut truth: BTreeSet<u32> = (0..random.u32(0..30)).collect();
        case.list(truth.clone());
        for _ in 0..random.usize(0..40) {
            let key = random.u32(0..40);
            match random.u8(0..4) {
                0 => drop((truth.insert(key), case.hear(Applied(key, key)))),
                1 => drop((truth.remove(&key), case.hear(Deleted(key)))),
                2 => {
                    // An outage in which things happen.
                    let gone = random.u32(0..20);
                    truth.retain(|key| *key >= gone);
                    case.list(truth.clone());
                }
                _ => drop(case.after(random.u64(0..60))),
            }
            assert!(truth.iter().all(|key| case.mirror.get(key).is_some()), "seed {seed}");
        }
        while case.list(truth.clone()).doubted > 0 {
            case.after(20);
        }
        assert_eq!(case.known(), truth.into_iter().collect::<Vec<_>>(), "seed {seed}");
    }
}
