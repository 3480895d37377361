//! Peers take turns: one is loaded while the others are halted, and not before the proxies' processor is idle. The order
//! is another in each round and the same in each run. A load that fails, or while which something else has that
//! processor, is repeated: what a round lost or was kept in spite of is said.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::Instant;

use crate::configuration::Scenario;
use crate::measure::{Processor, cpu_time, wakes};
use crate::peer::{Bench, Name, Running, pause};
use crate::report::Row;

/// Loads until one counts. A short run takes them as they come.
const TRIES: usize = 3;
/// Of the processor, while a proxy is loaded.
const MOST_TAKEN: f64 = 0.05;
/// To wake a proxy takes the idle processor so long, which is in nobody's CPU time: 0.04 s of a second with 19,000 wakes,
/// on an otherwise idle one.
const WAKE: Duration = Duration::from_micros(2);
/// What counting in ticks may be wrong by, at both ends of a time.
const ROUNDING: Duration = Duration::from_millis(20);
/// What the processor must be idle for.
const IDLE: Duration = Duration::from_millis(200);
/// A JVM may go on compiling for long.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_QUICK_WAIT: Duration = Duration::from_secs(1);

/// One peer of a phase: its proxies, and what comes of its turns.
#[derive(Debug)]
pub(crate) struct Contender {
    pub(crate) name: Name,
    pub(crate) row: Row,
    /// In a row; the load goes to the first. They are halted but in their turn.
    proxies: Vec<Running>,
    lost: Vec<Lost>,
    measured: usize,
    /// How much of the processor something else had, for each that counts all the same.
    disturbed: Vec<f64>,
}

/// Rounds of one load.
#[derive(Debug)]
struct Lost {
    what: String,
    rounds: usize,
    /// The first of them.
    why: String,
}

/// What a load gave.
#[derive(Debug)]
pub(crate) struct Measured<T> {
    pub(crate) seen: T,
    pub(crate) elapsed: Duration,
    /// That the peer's proxies used.
    pub(crate) cpu: Duration,
}

impl<T> Measured<T> {
    /// CPU time of one of so many, in µs.
    pub(crate) fn micros_per(&self, count: f64) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / count
    }
}

/// Each peer with so many proxies in a row before `upstream`.
pub(crate) fn contenders(
    bench: &Bench,
    names: &[Name],
    scenario: &Scenario,
    hops: usize,
    upstream: u16,
) -> anyhow::Result<Vec<Contender>> {
    let start = |name: &Name| {
        let mut proxies = Vec::new();
        let mut next = upstream;
        for _ in 0..hops {
            let proxy = bench.proxy(*name, scenario, next)?;
            next = proxy.port;
            proxies.insert(0, proxy);
        }
        Contender::new(*name, proxies)
    };
    names.iter().map(start).collect()
}

/// Every peer's turn, with its place among them.
pub(crate) fn round(
    seed: &str,
    number: usize,
    peers: &mut [Contender],
    mut turn: impl FnMut(usize, &mut Contender) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for at in order(seed, number, peers.len()) {
        peers[at].turn(|peer| turn(at, peer))?;
    }
    Ok(())
}

fn order(seed: &str, round: usize, peers: usize) -> Vec<usize> {
    let seed = seed.bytes().fold(round as u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let mut order: Vec<usize> = (0..peers).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    order
}

impl Contender {
    /// Halts its proxies.
    pub(crate) fn new(name: Name, proxies: Vec<Running>) -> anyhow::Result<Contender> {
        proxies.iter().try_for_each(Running::halt)?;
        let row = Row::new(name.text());
        Ok(Contender { name, row, proxies, lost: Vec::new(), measured: 0, disturbed: Vec::new() })
    }

    pub(crate) fn port(&self) -> u16 {
        self.proxies.first().map_or(0, |proxy| proxy.port)
    }

    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        self.proxies.iter().map(|proxy| cpu_time(proxy.pid())).sum()
    }

    /// Its proxies go on for as long as this takes.
    pub(crate) fn turn(
        &mut self,
        turn: impl FnOnce(&mut Contender) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.proxies.iter().try_for_each(Running::go_on)?;
        turn(self).with_context(|| format!("through {}", self.name.text()))?;
        self.proxies.iter().try_for_each(Running::halt)
    }

    /// Loads it in its turn. None: it failed each time, which is said at the end.
    ///
    /// # Errors
    /// When a load of ours fails. A peer that fails now and then is measured by its other rounds; we are not to fail.
    pub(crate) fn measure<T>(
        &mut self,
        bench: &Bench,
        what: &str,
        mut load: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<Measured<T>>> {
        self.measure_after(bench, what, || Ok(()), |()| load())
    }

    /// The same, with something that each load needs and that is not measured.
    pub(crate) fn measure_after<P, T>(
        &mut self,
        bench: &Bench,
        what: &str,
        mut prepare: impl FnMut() -> anyhow::Result<P>,
        mut load: impl FnMut(P) -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<Measured<T>>> {
        let mut failed = None;
        let mut calmest: Option<(f64, Measured<T>)> = None;
        for _ in 0..if bench.quick { 1 } else { TRIES } {
            match self.once(bench, &mut prepare, &mut load) {
                Ok((taken, measured)) if taken <= MOST_TAKEN => {
                    self.measured += 1;
                    return Ok(Some(measured));
                }
                Ok((taken, measured)) => {
                    let percent = taken * 100.0;
                    eprintln!(
                        "{}, {what}: something else had {percent:.0} % of the processor",
                        self.row.peer
                    );
                    if calmest.as_ref().is_none_or(|(least, _)| taken < *least) {
                        calmest = Some((taken, measured));
                    }
                }
                Err(error) if self.name == Name::Pontoon => return Err(error.context(what.to_owned())),
                Err(error) => {
                    eprintln!("{}, {what}: {error:#}", self.row.peer);
                    failed.get_or_insert(error);
                }
            }
        }
        if let Some((taken, measured)) = calmest {
            self.measured += 1;
            self.disturbed.push(taken);
            return Ok(Some(measured));
        }
        match self.lost.iter_mut().find(|lost| lost.what == what) {
            Some(lost) => lost.rounds += 1,
            None => {
                let why = failed.map_or_else(String::new, |error| format!("{error:#}"));
                self.lost.push(Lost { what: what.to_owned(), rounds: 1, why });
            }
        }
        Ok(None)
    }

    /// One load, and how much of the processor something else had meanwhile.
    fn once<P, T>(
        &self,
        bench: &Bench,
        prepare: &mut impl FnMut() -> anyhow::Result<P>,
        load: &mut impl FnMut(P) -> anyhow::Result<T>,
    ) -> anyhow::Result<(f64, Measured<T>)> {
        let prepared = prepare()?;
        let processor = || bench.last.map(Processor::now).transpose();
        if let Some(last) = bench.last {
            wait_idle(last, if bench.quick { LONGEST_QUICK_WAIT } else { LONGEST_WAIT })?;
        }
        let wakes = || self.proxies.iter().map(|proxy| wakes(proxy.pid())).sum::<u64>();
        let (begin, since, wakes_before, before) = (Instant::now(), processor()?, wakes(), self.cpu_time()?);
        let seen = load(prepared)?;
        let (cpu, now) = (self.cpu_time()?.saturating_sub(before), processor()?);
        let elapsed = begin.elapsed();
        let waking = WAKE.mul_f64(wakes().saturating_sub(wakes_before) as f64);
        // With one processor for all, the load is on it too.
        let taken =
            now.zip(since).map_or(Duration::ZERO, |(now, since)| now.taken(since, elapsed, cpu + waking));
        let share = taken.saturating_sub(ROUNDING).as_secs_f64() / elapsed.as_secs_f64();
        Ok((share, Measured { seen, elapsed, cpu }))
    }

    /// Its figures, and what a reader must know of them.
    pub(crate) fn into_row(self) -> Row {
        let Contender { mut row, lost, measured, disturbed, .. } = self;
        for Lost { what, rounds, why } in lost {
            row.note(format!("{what}: lost in {rounds} of the rounds; the first time: {why}"));
        }
        if let Some(most) = disturbed.iter().copied().max_by(f64::total_cmp) {
            let (count, percent) = (disturbed.len(), most * 100.0);
            row.note(format!(
                "{count} of {measured} loads count though something else had the processor, {percent:.0} % of it at most"
            ));
        }
        row
    }
}

/// Waits until a processor has nothing to do, but not longer than this.
fn wait_idle(number: usize, at_most: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + at_most;
    loop {
        let (begin, since) = (Instant::now(), Processor::now(number)?);
        pause(IDLE);
        let busy = Processor::now(number)?.busy(since, begin.elapsed());
        if busy <= ROUNDING || Instant::now() > until {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::tests::{becomes_halted, bench, sleeping};

    fn sleeper(name: Name) -> Contender {
        Contender::new(name, vec![sleeping()]).unwrap()
    }

    #[test]
    fn each_round_has_an_order_of_its_own_and_each_run_the_same() {
        let rounds: Vec<Vec<usize>> = (0..4).map(|round| order("http1", round, 8)).collect();
        for (number, order_of_round) in rounds.iter().enumerate() {
            let mut sorted = order_of_round.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..8).collect::<Vec<_>>());
            assert_eq!(*order_of_round, order("http1", number, 8));
        }
        // Nobody comes always behind the same one.
        let before = |round: &Vec<usize>| {
            round.iter().position(|at| *at == 0).and_then(|at| at.checked_sub(1).map(|at| round[at]))
        };
        assert!(rounds.iter().any(|round| before(round) != before(&rounds[0])), "{rounds:?}");
        assert_ne!(order("http1", 0, 8), order("tcp", 0, 8));
    }

    #[test]
    fn only_whose_turn_it_is_runs() {
        let mut peers = [sleeper(Name::Pontoon), sleeper(Name::Nginx)];
        let pids: Vec<u32> = peers.iter().map(|peer| peer.proxies[0].pid()).collect();
        let mut turns = 0;
        round("test", 0, &mut peers, |at, _| {
            turns += 1;
            assert!(becomes_halted(pids[at], false) && becomes_halted(pids[1 - at], true));
            Ok(())
        })
        .unwrap();
        assert_eq!(turns, 2);
        assert!(pids.iter().all(|pid| becomes_halted(*pid, true)));
        let began = Instant::now();
        drop(peers);
        // A halted one hears nothing until it goes on.
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_load_is_tried_again_and_what_is_lost_is_said() {
        let bench = bench();
        let mut peer = sleeper(Name::Nginx);
        let mut times = 0;
        let second = || {
            times += 1;
            anyhow::ensure!(times > 1, "not the first time");
            Ok(times)
        };
        assert_eq!(peer.measure(&bench, "one", second).unwrap().map(|done| done.seen), Some(2));
        for _ in 0..2 {
            let never = peer.measure(&bench, "other", || -> anyhow::Result<()> { anyhow::bail!("closed") });
            assert!(never.unwrap().is_none());
        }
        assert_eq!(peer.into_row().notes, ["other: lost in 2 of the rounds; the first time: closed"]);
        let mut ours = sleeper(Name::Pontoon);
        let failed = ours.measure(&bench, "one", || -> anyhow::Result<()> { anyhow::bail!("closed") });
        assert_eq!(format!("{:#}", failed.unwrap_err()), "one: closed");
    }
}
