//! What the agent said that it decided and stored, held against what the broker has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use limpet_wire::dropped::{Dropped, Reason};
use limpet_wire::id::Serial;
use limpet_wire::message::DroppedRange;
use rangemap::RangeInclusiveSet;
use serde::Serialize;

use crate::audit::ledger::{Said, is_plausible, length, pieces, read_line};

/// A run of a stream: `pipeline/stream`, and the run.
type RunName = (Arc<str>, u64);

/// The judge.
#[derive(Debug, Default)]
pub struct Judge {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct State {
    runs: BTreeMap<RunName, Run>,
    repeated: u64,
    unreadable: u64,
    /// The last numbers of runs at a moment after which a result is waited for.
    since: HashMap<RunName, u64>,
    has_news: bool,
    /// Messages of results that the broker has acknowledged.
    arrivals: u64,
    /// How each start of the agent ended, but for the one that runs.
    ends: Vec<End>,
    /// Whether all marks that were left before the end was marked have been read.
    ended: bool,
}

/// How a start of the agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By SIGKILL.
    Killed,
    /// In order, after SIGTERM.
    Stopped,
}

impl End {
    /// The line that the harness leaves among the marks when it has come: all marks of that start stand before it.
    pub fn line(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Stopped => "stopped",
        }
    }
}

/// The last line that the harness leaves among the marks.
pub const END: &str = "end";

#[derive(Debug, Default)]
struct Run {
    /// In which start of the agent it was, as far as its marks have been read: a run does not outlive a process.
    start: Option<usize>,
    decided: RangeInclusiveSet<u64>,
    stored: RangeInclusiveSet<u64>,
    delivered: RangeInclusiveSet<u64>,
    dropped: Vec<DroppedRange>,
}

/// What came of it all.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Results that the agent decided to publish.
    pub decided: u64,
    /// Those that it stored.
    pub stored: u64,
    /// Those that the broker acknowledged.
    pub delivered: u64,
    /// How often one was acknowledged once more.
    pub repeated: u64,
    /// Those that range records tell of, by reason.
    pub dropped: BTreeMap<Reason, u64>,
    /// Decided, and killed before they were stored: at most one of each start that was killed, since there is one worker.
    pub unstored: u64,
    /// The same, though later ones of the run were stored, or nobody killed that start, or it has its one already: there is
    /// no excuse for these.
    pub skipped: u64,
    /// Stored, and neither delivered nor told of by a range record.
    pub lost: u64,
    /// Delivered, and never decided.
    pub unknown: u64,
    /// Messages that are no results.
    pub unreadable: u64,
    /// Which ones were lost, skipped or unknown: `pipeline/stream/run: first to last`.
    pub which: Vec<String>,
}

impl Judge {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line of the agent's marks.
    pub fn marked(&self, line: &str) {
        let parsed = || {
            let (what, rest) = line.split_once(' ')?;
            let (stream, serial) = rest.rsplit_once('/')?;
            Some((what, stream, serial.parse::<Serial>().ok()?))
        };
        let mut state = self.lock();
        match parsed() {
            Some(("decided", stream, serial)) => {
                let start = state.ends.len();
                let run = state.run(stream, serial.run);
                run.start.get_or_insert(start);
                run.decided.insert(serial.seq..=serial.seq);
            }
            // The harness's own, to know that all before it was read.
            _ if line == END => state.ended = true,
            _ if line == End::Killed.line() => state.ends.push(End::Killed),
            _ if line == End::Stopped.line() => state.ends.push(End::Stopped),
            Some(("stored", stream, serial)) => state.run(stream, serial.run).stored.insert(serial.seq..=serial.seq),
            _ => state.unreadable += 1,
        }
    }

    /// Takes a message on a result topic that the broker has acknowledged. What is of another stream than its topic says has
    /// not arrived.
    pub fn delivered(&self, topic: &str, payload: &[u8]) {
        let mut state = self.lock();
        state.arrivals += 1;
        for line in payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            state.line(topic, line);
        }
        if state.has_news {
            self.bell.notify_all();
        }
    }

    /// How many messages of results the broker has acknowledged.
    pub fn arrivals(&self) -> u64 {
        self.lock().arrivals
    }

    /// News is from now on what is stored later than this.
    pub fn expect_news(&self) {
        let mut state = self.lock();
        state.since = state
            .runs
            .iter()
            .map(|(name, run)| (name.clone(), run.stored.last().map_or(0, |last| *last.end())))
            .collect();
        state.has_news = false;
    }

    /// Waits until the broker has news, at most so long. Says whether it has.
    pub fn has_news_within(&self, most: Duration) -> bool {
        let state = self.bell.wait_timeout_while(self.lock(), most, |state| !state.has_news);
        state.unwrap_or_else(PoisonError::into_inner).0.has_news
    }

    /// Whether the end of the marks, left by the harness, has been read.
    pub fn has_read_all(&self) -> bool {
        self.lock().ended
    }

    /// How many results are stored and not accounted for.
    pub fn outstanding(&self) -> u64 {
        self.tally().lost
    }

    /// What came of it so far. Of a start that has not ended, nothing is excused.
    pub fn tally(&self) -> Tally {
        let state = self.lock();
        let killed = state.ends.iter().enumerate().filter(|(_, end)| **end == End::Killed);
        let mut excuses: BTreeSet<usize> = killed.map(|(start, _)| start).collect();
        let mut tally = Tally { repeated: state.repeated, unreadable: state.unreadable, ..Tally::default() };
        for ((stream, name), run) in &state.runs {
            run.add_to(&mut tally, &mut excuses, &format!("{stream}/{name:016x}"));
        }
        tally.dropped.retain(|_, count| *count > 0);
        tally
    }
}

impl State {
    fn run(&mut self, stream: &str, run: u64) -> &mut Run {
        self.runs.entry((stream.into(), run)).or_default()
    }

    fn line(&mut self, topic: &str, line: &[u8]) {
        let is_of = |pipeline: &str, stream: &str| topic.ends_with(&format!("/result/{pipeline}/{stream}"));
        read_line(line, |said| match said {
            Said::Result(id) if !is_of(id.pipeline, id.stream) => self.unreadable += 1,
            Said::Result(id) => {
                let (stream, Serial { run, seq }) = (format!("{}/{}", id.pipeline, id.stream), id.serial);
                self.has_news |= self.since.get(&(stream.as_str().into(), run)).is_none_or(|last| *last < seq);
                let delivered = &mut self.run(&stream, run).delivered;
                let again = delivered.contains(&seq);
                delivered.insert(seq..=seq);
                self.repeated += u64::from(again);
            }
            Said::Dropped(Dropped { of: Some(of), .. }) if !is_of(&of.pipeline, &of.stream) => self.unreadable += 1,
            Said::Dropped(Dropped { of: Some(of), run, first, last, every, reason, .. }) => {
                let range = DroppedRange { first, last, every, reason };
                if is_plausible(&range) {
                    self.run(&format!("{}/{}", of.pipeline, of.stream), run).dropped.push(range);
                } else {
                    self.unreadable += 1;
                }
            }
            // Of events, which are not judged here.
            Said::Dropped(_) => {}
            Said::Unreadable => self.unreadable += 1,
        });
    }
}

fn count(set: &RangeInclusiveSet<u64>) -> u64 {
    set.iter().map(length).sum()
}

impl Run {
    /// `excuses`: the starts that were killed, of which no result that was not stored has been found yet.
    fn add_to(&self, tally: &mut Tally, excuses: &mut BTreeSet<usize>, name: &str) {
        tally.decided += count(&self.decided);
        tally.stored += count(&self.stored);
        tally.delivered += count(&self.delivered);
        let mut accounted = self.delivered.clone();
        for range in &self.dropped {
            for piece in pieces(range) {
                // Ranges overlap as they grow, and what was delivered already was not dropped.
                let fresh: u64 = accounted.gaps(&piece).map(|gap| length(&gap)).sum();
                *tally.dropped.entry(range.reason).or_default() += fresh;
                accounted.insert(piece);
            }
        }
        let mut missing = |of: &RangeInclusiveSet<u64>, among: &RangeInclusiveSet<u64>, what: &str| {
            let gaps: Vec<_> = of.iter().flat_map(|range| among.gaps(range).collect::<Vec<_>>()).collect();
            let named = gaps.iter().filter(|_| !what.is_empty());
            tally.which.extend(named.map(|gap| format!("{what} {name}: {} to {}", gap.start(), gap.end())));
            gaps
        };
        let sum = |gaps: &[std::ops::RangeInclusive<u64>]| gaps.iter().map(length).sum::<u64>();
        let lost = sum(&missing(&self.stored, &accounted, "lost"));
        let unknown = sum(&missing(&self.delivered, &self.decided, "unknown"));
        let mut arrived = accounted;
        arrived.extend(self.stored.iter().cloned());
        let unstored = missing(&self.decided, &arrived, "");
        let last = self.decided.last().map_or(0, |last| *last.end());
        // Only the last one of a run may have been on its way when the agent was killed, and of all its runs only one.
        let is_last = unstored.last().is_some_and(|gap| *gap.end() == last);
        let excused = u64::from(is_last && self.start.is_some_and(|start| excuses.remove(&start)));
        tally.lost += lost;
        tally.unknown += unknown;
        tally.unstored += excused;
        tally.skipped += sum(&unstored) - excused;
        if sum(&unstored) > excused {
            tally.which.extend(unstored.iter().map(|gap| format!("skipped {name}: {} to {}", gap.start(), gap.end())));
        }
    }
}

impl Tally {
    /// Whether everything is as it should be.
    pub fn is_clean(&self) -> bool {
        self.lost + self.skipped + self.unknown + self.unreadable == 0 && self.delivered > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "0000000000000007";
    const TOPIC: &str = "limpet/1/g/result/p/s";

    fn marked(judge: &Judge, what: &str, numbers: impl IntoIterator<Item = u64>) {
        numbers.into_iter().for_each(|seq| judge.marked(&format!("{what} p/s/{RUN}-{seq}")));
    }

    fn delivered(judge: &Judge, numbers: impl IntoIterator<Item = u64>) {
        let line = |seq| format!("{{\"v\":1,\"type\":\"result\",\"id\":\"g/p/s/{RUN}-{seq}\",\"x\":{{}}}}\n");
        judge.delivered(TOPIC, numbers.into_iter().map(line).collect::<String>().as_bytes());
    }

    fn dropped(judge: &Judge, first: u64, last: u64) {
        judge.delivered(
            TOPIC,
            format!("{{\"v\":1,\"type\":\"dropped\",\"id\":\"g/event/{RUN}-1\",\"gateway\":\"g\",\"pipeline\":\"p\",\"stream\":\"s\",\"run\":\"{RUN}\",\"first\":{first},\"last\":{last},\"reason\":\"full\"}}").as_bytes(),
        );
    }

    #[test]
    fn stored_and_neither_delivered_nor_dropped_is_lost() {
        let judge = Judge::default();
        marked(&judge, "decided", 1..=10);
        marked(&judge, "stored", 1..=9);
        delivered(&judge, [1, 2, 2, 3, 9]);
        dropped(&judge, 3, 6);
        judge.marked(End::Killed.line());
        let tally = judge.tally();
        assert_eq!((tally.decided, tally.stored, tally.delivered, tally.repeated), (10, 9, 4, 1));
        assert_eq!((tally.lost, tally.unstored, tally.skipped, tally.unknown, tally.unreadable), (2, 1, 0, 0, 0));
        assert_eq!(tally.dropped.into_iter().collect::<Vec<_>>(), [(Reason::Full, 3)]);
        assert_eq!(tally.which, [format!("lost p/s/{RUN}: 7 to 8")]);
        delivered(&judge, [7, 8]);
        assert!(judge.tally().is_clean());
    }

    #[test]
    fn what_was_skipped_or_never_decided_is_no_accident_of_a_kill() {
        let judge = Judge::default();
        marked(&judge, "decided", [1, 2, 3]);
        marked(&judge, "stored", [1, 3]);
        delivered(&judge, [1, 3, 4]);
        judge.marked(End::Killed.line());
        let tally = judge.tally();
        assert_eq!((tally.skipped, tally.unstored, tally.unknown, tally.lost), (1, 0, 1, 0));
        assert!(!tally.is_clean());
    }

    #[test]
    fn each_kill_excuses_one_result_and_a_start_that_ended_otherwise_none() {
        let judge = Judge::default();
        let decided = |stream: &str, run: u64| judge.marked(&format!("decided p/{stream}/{run:016x}-1"));
        let counts = || (judge.tally().unstored, judge.tally().skipped);
        decided("s", 1);
        assert_eq!(counts(), (0, 1), "it may be stored yet");
        judge.marked(End::Killed.line());
        assert_eq!(counts(), (1, 0));
        // Killed before its first result: its excuse is not there for others.
        judge.marked(End::Killed.line());
        for stream in ["s", "t"] {
            decided(stream, 2);
        }
        judge.marked(End::Killed.line());
        assert_eq!(counts(), (2, 1), "one worker has one result in its hands");
        decided("s", 3);
        judge.marked(End::Stopped.line());
        judge.marked(End::Killed.line());
        assert_eq!(counts(), (2, 2), "who is asked to stop stores what was decided");
    }

    #[test]
    fn a_run_that_is_delivered_before_its_marks_are_read_belongs_to_the_start_that_decided_it() {
        let judge = Judge::default();
        delivered(&judge, [1]);
        judge.marked(End::Stopped.line());
        marked(&judge, "decided", [1, 2]);
        marked(&judge, "stored", [1]);
        judge.marked(End::Killed.line());
        assert_eq!((judge.tally().unstored, judge.tally().skipped), (1, 0));
    }

    #[test]
    fn news_is_what_was_stored_later() {
        let judge = Judge::default();
        marked(&judge, "stored", 1..=5);
        judge.expect_news();
        delivered(&judge, [4, 5]);
        assert!(!judge.has_news_within(Duration::ZERO));
        delivered(&judge, [6]);
        assert!(judge.has_news_within(Duration::ZERO));
    }

    #[test]
    fn marks_and_messages_that_are_none_are_counted() {
        let judge = Judge::default();
        for line in ["", "decided", "decided p/s/x", "forgot p/s/0000000000000007-1"] {
            judge.marked(line);
        }
        judge.delivered(TOPIC, b"{}\nnothing");
        // One of another stream.
        let line = format!("{{\"v\":1,\"type\":\"result\",\"id\":\"g/p/s/{RUN}-1\",\"gateway\":\"g\"}}");
        judge.delivered("limpet/1/g/result/p/t", line.as_bytes());
        assert_eq!(judge.tally().unreadable, 7);
    }
}
