use hickory_proto::op::OpCode;
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MIB: usize = 1024 * 1024;
const DAY: Duration = Duration::from_secs(86_400);

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn key(text: &str) -> Key {
    Key { name: text.into(), ty: RecordType::A, dnssec: false, unchecked: false }
}

fn response(code: ResponseCode) -> Message {
    Message::error_msg(7, OpCode::Query, code)
}

fn a(ttl: u32) -> Record {
    Record::from_rdata(name("a.example."), ttl, RData::A(A::new(192, 0, 2, 1)))
}

fn answer(ttls: &[u32]) -> Message {
    let mut message = response(ResponseCode::NoError);
    message.add_answers(ttls.iter().map(|ttl| a(*ttl)));
    message
}

fn nothing(code: ResponseCode, ttl: u32, minimum: u32) -> Message {
    let soa = SOA::new(name("example."), name("h.example."), 1, 60, 60, 60, minimum);
    let mut message = response(code);
    message.add_authority(Record::from_rdata(name("example."), ttl, RData::SOA(soa)));
    message
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn an_answer_holds_for_its_shortest_ttl_and_says_what_is_left() {
    let (now, mut cache) = (Instant::now(), Cache::new(MIB, DAY));
    cache.put(key("a.example."), &answer(&[300, 60]), now);
    let Found::Fresh(found) = cache.get(&key("a.example."), now + seconds(59)) else { panic!("not fresh") };
    assert_eq!(found.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [241, 1]);
    assert!(matches!(cache.get(&key("a.example."), now + seconds(60)), Found::Stale { ask: true, .. }));
    assert!(matches!(cache.get(&Key { dnssec: true, ..key("a.example.") }, now), Found::Nothing));
}

#[test]
fn what_has_run_out_is_kept_for_a_bounded_time_and_not_asked_for_at_once_again() {
    let (now, mut cache) = (Instant::now(), Cache::new(MIB, DAY));
    cache.put(key("a.example."), &answer(&[60]), now);
    let later = now + seconds(100);
    let Found::Stale { answer, ask: true } = cache.get(&key("a.example."), later) else {
        panic!("not stale")
    };
    assert_eq!(answer.answers[0].ttl, 30);
    cache.not_renewed(&key("a.example."), later);
    assert!(matches!(cache.get(&key("a.example."), later + seconds(29)), Found::Stale { ask: false, .. }));
    assert!(matches!(cache.get(&key("a.example."), later + seconds(30)), Found::Stale { ask: true, .. }));
    assert!(matches!(cache.get(&key("a.example."), now + seconds(60) + DAY), Found::Nothing));
    assert_eq!(cache.size(), (0, 0));
}

#[test]
fn what_does_not_exist_is_kept_as_its_zone_says() {
    for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
        let (now, mut cache) = (Instant::now(), Cache::new(MIB, DAY));
        cache.put(key("a.example."), &nothing(code, 900, 40), now);
        let Found::Fresh(found) = cache.get(&key("a.example."), now + seconds(39)) else {
            panic!("not fresh")
        };
        assert_eq!(found.metadata.response_code, code);
        assert!(matches!(cache.get(&key("a.example."), now + seconds(40)), Found::Stale { .. }));
    }
    // An alias for what does not exist.
    let mut alias = nothing(ResponseCode::NoError, 900, 40);
    alias.add_answer(Record::from_rdata(name("a.example."), 20, RData::CNAME(CNAME(name("b.example.")))));
    assert_eq!(ttl(&alias, RecordType::A), Some(seconds(20)));
    assert_eq!(
        ttl(&nothing(ResponseCode::NXDomain, 1 << 20, 1 << 20), RecordType::A),
        Some(LONGEST_NEGATIVE)
    );
}

#[test]
fn what_may_not_be_kept_is_not() {
    let mut truncated = answer(&[60]);
    truncated.metadata.truncation = true;
    let not_kept = [
        truncated,
        answer(&[60, 0]),
        answer(&[u32::MAX]),
        response(ResponseCode::NXDomain),
        response(ResponseCode::NoError),
        nothing(ResponseCode::ServFail, 60, 60),
        nothing(ResponseCode::Refused, 60, 60),
    ];
    for message in not_kept {
        let (now, mut cache) = (Instant::now(), Cache::new(MIB, DAY));
        cache.put(key("a.example."), &message, now);
        assert_eq!(cache.size(), (0, 0), "{message:?}");
    }
}

#[test]
fn what_was_asked_for_least_recently_goes_first() {
    let (now, mut cache) = (Instant::now(), Cache::new(3 * (OVERHEAD + 64), DAY));
    for number in 0..3 {
        cache.put(key(&format!("{number}.")), &answer(&[60]), now);
    }
    assert_eq!(cache.size().0, 3);
    cache.get(&key("0."), now);
    cache.put(key("3."), &answer(&[60]), now);
    let here = |cache: &mut Cache, name| matches!(cache.get(&key(name), now), Found::Fresh(_));
    assert_eq!(["0.", "1.", "2.", "3."].map(|name| here(&mut cache, name)), [true, false, true, true]);
}

proptest! {
    /// Whatever is asked for and answered, and whenever: the bytes are within the bound and are those of the entries.
    #[test]
    fn memory_is_bounded(steps in vec((0_u8..20, 0_u32..90, 0_usize..40, 0_u64..40), 0..200)) {
        let (mut now, mut cache) = (Instant::now(), Cache::new(4_000, seconds(60)));
        for (number, ttl, records, later) in steps {
            now += seconds(later);
            let key = key(&format!("{number}."));
            if matches!(cache.get(&key, now), Found::Nothing) {
                cache.put(key, &answer(&vec![ttl; records]), now);
            }
            let (entries, bytes) = cache.size();
            prop_assert!(bytes <= 4_000);
            prop_assert_eq!(entries, cache.order.len());
            let sum: usize = cache.entries.iter().map(|(key, entry)| cost(key, &entry.answer)).sum();
            prop_assert_eq!(bytes, sum);
        }
    }
}
