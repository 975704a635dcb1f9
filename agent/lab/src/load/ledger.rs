//! What was sent and what came back. No I/O and no clock: the caller says when.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use limpet_runtime::Moment;
use limpet_wire::result::LatencyUs;
use serde::Serialize;

use crate::answer::Answer;
use crate::latency::{Parts, Quantiles, Times};

/// Most messages of which it is told when they were sent.
const TOLD: usize = 1000;

/// Messages by tag, and the figures of the measured time.
pub struct Ledger {
    /// One moment on both clocks.
    origin: (Instant, Moment),
    /// One slot a message; its index is its tag.
    slots: Vec<Slot>,
    /// All slots before this one are settled.
    first_open: usize,
    unanswered: usize,
    most_unanswered: usize,
    opened: Option<Instant>,
    closed: Option<Instant>,
    sent: u64,
    received: u64,
    lost: u64,
    repeated: u64,
    strange: u64,
    /// From sending to receiving.
    trip: Times,
    parts: Parts<Times>,
    /// Queue and decide together.
    around: Times,
    late: u64,
    missed: Vec<Missed>,
    /// The longest in the agent, the longest first.
    longest: Vec<Long>,
    /// First sample of each window that an answer was about, warm-up included.
    windows: Vec<u64>,
    versions: BTreeMap<String, u64>,
}

#[derive(Clone, Copy)]
enum Slot {
    Open(Instant),
    Answered,
    Lost,
}

/// A message whose answer did not come, or came after its deadline.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Missed {
    /// Its tag.
    pub tag: u64,
    /// When it was sent, in nanoseconds of CLOCK_BOOTTIME.
    pub sent_ns: u64,
    /// Whether there was an answer, but late.
    pub late: bool,
}

/// An answer that took long in the agent.
#[derive(Debug, Clone, Serialize)]
pub struct Long {
    /// When its message was sent, in nanoseconds of CLOCK_BOOTTIME.
    pub sent_ns: u64,
    /// From sending to receiving.
    pub trip_us: f64,
    /// From capture to decision, as the result says.
    pub total_us: u64,
    /// What that is made of.
    pub parts: LatencyUs,
    /// Version of the model, if the answer names it.
    pub version: Option<String>,
}

/// Which windows answers were about.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Windows {
    /// Different windows.
    pub count: u64,
    /// First sample of the first.
    pub first: u64,
    /// First sample of the last.
    pub last: u64,
    /// Samples from one to the next: the shortest distance that occurs.
    pub step: u64,
    /// Windows between the first and the last that no answer was about.
    pub missing: u64,
    /// Answers about a window that there was an answer about already.
    pub repeated: u64,
}

impl Windows {
    fn of(firsts: &[u64]) -> Option<Self> {
        let mut sorted = firsts.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let (&first, &last) = (sorted.first()?, sorted.last()?);
        let step = sorted.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap_or(1);
        let count = sorted.len() as u64;
        let missing = ((last - first) / step + 1).saturating_sub(count);
        Some(Self { count, first, last, step, missing, repeated: firsts.len() as u64 - count })
    }
}

/// What the measured time gave.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Length of the measured time.
    pub seconds: f64,
    /// Messages sent in it.
    pub sent: u64,
    /// Answers received in it.
    pub received: u64,
    /// Messages sent in it whose answer never came.
    pub lost: u64,
    /// Answers to what was answered already, or given up as lost.
    pub repeated: u64,
    /// Answers with a tag that was never sent.
    pub strange: u64,
    /// Most messages that were on their way at once.
    pub most_unanswered: usize,
    /// Answers a second.
    pub per_second: f64,
    /// From sending to receiving, of messages sent in the measured time.
    pub trip_us: Option<Quantiles>,
    /// Where the results say their time went.
    pub latency_us: Option<Parts<Quantiles>>,
    /// Of each, queue and decide together: what the runtime adds around the session.
    pub around_us: Option<Quantiles>,
    /// Answers to messages sent in it that were ready only after their deadline.
    pub late: u64,
    /// Of what was lost or late, when it was sent; at most a thousand.
    pub missed: Vec<Missed>,
    /// The answers that took longest in the agent, the longest first; at most a thousand.
    pub longest: Vec<Long>,
    /// Which windows the answers were about, warm-up included.
    pub windows: Option<Windows>,
    /// Answers by the version of the model that gave them.
    pub versions: BTreeMap<String, u64>,
}

impl Ledger {
    pub fn new() -> Self {
        Self {
            origin: (Instant::now(), Moment::now()),
            slots: Vec::new(),
            first_open: 0,
            unanswered: 0,
            most_unanswered: 0,
            opened: None,
            closed: None,
            sent: 0,
            received: 0,
            lost: 0,
            repeated: 0,
            strange: 0,
            trip: Times::new(),
            parts: Parts::new(),
            around: Times::new(),
            late: 0,
            missed: Vec::new(),
            longest: Vec::new(),
            windows: Vec::new(),
            versions: BTreeMap::new(),
        }
    }

    fn boottime_ns(&self, at: Instant) -> u64 {
        let (origin, moment) = self.origin;
        moment.after(at.saturating_duration_since(origin)).0
    }

    /// Begins the measured time.
    pub fn open(&mut self, at: Instant) {
        self.opened = Some(at);
    }

    /// Ends the measured time.
    pub fn close(&mut self, at: Instant) {
        self.closed = Some(at);
    }

    /// Whether messages are still to be sent: until the measured time has ended.
    pub fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    fn is_measured(&self, at: Instant) -> bool {
        self.opened.is_some_and(|opened| at >= opened) && self.closed.is_none_or(|closed| at < closed)
    }

    /// Messages on their way.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// A message is sent; gives its tag.
    pub fn send(&mut self, at: Instant) -> u64 {
        let tag = self.slots.len() as u64;
        self.slots.push(Slot::Open(at));
        self.unanswered += 1;
        self.most_unanswered = self.most_unanswered.max(self.unanswered);
        self.sent += u64::from(self.is_measured(at));
        tag
    }

    /// An answer has come.
    pub fn receive(&mut self, answer: Answer<'_>, at: Instant) {
        self.windows.extend(answer.first);
        let slot = usize::try_from(answer.tag).ok().and_then(|index| self.slots.get_mut(index));
        let sent = match slot {
            None => {
                self.strange += 1;
                return;
            }
            Some(Slot::Answered | Slot::Lost) => {
                self.repeated += 1;
                return;
            }
            Some(slot @ &mut Slot::Open(sent)) => {
                *slot = Slot::Answered;
                sent
            }
        };
        self.unanswered -= 1;
        self.received += u64::from(self.is_measured(at));
        if self.is_measured(sent) {
            self.trip.record(at.duration_since(sent));
            let sent_ns = self.boottime_ns(sent);
            if let Some(latency) = answer.latency {
                self.parts.record(latency);
                self.around.record(Duration::from_micros(latency.queue + latency.decide));
                if self.is_long(latency.total()) {
                    let (trip_us, total_us) = (at.duration_since(sent).as_secs_f64() * 1e6, latency.total());
                    let version = answer.version.map(str::to_owned);
                    self.keep_long(Long { sent_ns, trip_us, total_us, parts: latency, version });
                }
            }
            if answer.late {
                self.late += 1;
                self.miss(Missed { tag: answer.tag, sent_ns, late: true });
            }
            if let Some(version) = answer.version {
                match self.versions.get_mut(version) {
                    Some(count) => *count += 1,
                    None => _ = self.versions.insert(version.to_owned(), 1),
                }
            }
        }
    }

    /// Whether an answer is one of the longest so far.
    fn is_long(&self, total_us: u64) -> bool {
        self.longest.len() < TOLD || self.longest.last().is_some_and(|last| last.total_us < total_us)
    }

    fn keep_long(&mut self, long: Long) {
        let at = self.longest.partition_point(|other| other.total_us >= long.total_us);
        self.longest.truncate(TOLD - 1);
        self.longest.insert(at, long);
    }

    fn miss(&mut self, missed: Missed) {
        if self.missed.len() < TOLD {
            self.missed.push(missed);
        }
    }

    /// Gives up what was sent before `before`, or all that is unanswered if `None`.
    pub fn expire(&mut self, before: Option<Instant>) {
        while let Some(&slot) = self.slots.get(self.first_open) {
            if let Slot::Open(sent) = slot {
                if before.is_some_and(|before| sent >= before) {
                    break;
                }
                self.slots[self.first_open] = Slot::Lost;
                self.unanswered -= 1;
                if self.is_measured(sent) {
                    self.lost += 1;
                    let (tag, sent_ns) = (self.first_open as u64, self.boottime_ns(sent));
                    self.miss(Missed { tag, sent_ns, late: false });
                }
            }
            self.first_open += 1;
        }
    }

    /// The figures of the measured time; `open` and `close` must have been called.
    pub fn figures(&self) -> Figures {
        let seconds = match (self.opened, self.closed) {
            (Some(opened), Some(closed)) => closed.duration_since(opened).as_secs_f64(),
            _ => 0.0,
        };
        Figures {
            seconds,
            sent: self.sent,
            received: self.received,
            lost: self.lost,
            repeated: self.repeated,
            strange: self.strange,
            most_unanswered: self.most_unanswered,
            per_second: if seconds > 0.0 { self.received as f64 / seconds } else { 0.0 },
            trip_us: self.trip.quantiles(),
            latency_us: self.parts.quantiles(),
            around_us: self.around.quantiles(),
            late: self.late,
            missed: self.missed.clone(),
            longest: self.longest.clone(),
            windows: Windows::of(&self.windows),
            versions: self.versions.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(tag: u64) -> Answer<'static> {
        Answer { tag, ..Answer::default() }
    }

    #[test]
    fn a_window_that_is_missing_or_comes_twice_is_counted() {
        assert_eq!(Windows::of(&[]), None);
        let windows = Windows::of(&[20, 0, 10, 40, 10]).unwrap();
        assert_eq!(windows, Windows { count: 4, first: 0, last: 40, step: 10, missing: 1, repeated: 1 });
    }

    #[test]
    fn what_was_late_or_lost_is_told_with_its_moment_and_what_took_long_in_order() {
        let mut ledger = Ledger::new();
        let start = ledger.origin.0;
        ledger.open(start);
        for (ms, wait) in [(1, 50), (2, 900), (3, 400)] {
            let tag = ledger.send(start + Duration::from_millis(ms));
            let latency = Some(LatencyUs { wait, ..Default::default() });
            let answer = Answer { tag, latency, late: wait > 500, version: Some("1.0.0"), ..Answer::default() };
            ledger.receive(answer, start + Duration::from_millis(ms + 1));
        }
        let lost = ledger.send(start + Duration::from_millis(4));
        ledger.expire(None);
        let figures = ledger.figures();
        let since = |missed: &Missed| (missed.tag, missed.sent_ns - ledger.origin.1.0, missed.late);
        let missed: Vec<_> = figures.missed.iter().map(since).collect();
        assert_eq!(missed, [(1, 2_000_000, true), (lost, 4_000_000, false)]);
        assert_eq!(figures.longest.iter().map(|long| long.total_us).collect::<Vec<_>>(), [900, 400, 50]);
        assert_eq!((figures.late, figures.versions["1.0.0"]), (1, 3));
    }

    #[test]
    fn what_is_sent_before_the_measured_time_is_not_measured() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut ledger = Ledger::new();
        let early = ledger.send(at(0));
        ledger.open(at(10));
        ledger.receive(answer(early), at(11));
        let inside = ledger.send(at(12));
        ledger.close(at(20));
        ledger.receive(answer(inside), at(22));
        let figures = ledger.figures();
        // An answer counts for the rate when it comes, and for the latency when its message was sent.
        assert_eq!((figures.sent, figures.received, figures.lost), (1, 1, 0));
        let trip = figures.trip_us.unwrap();
        assert!((trip.p50 - 10_000.0).abs() < 20.0 && trip.p50 == trip.max, "{trip:?}");
    }

    #[test]
    fn a_late_answer_to_a_lost_message_is_repeated_and_not_received() {
        let start = Instant::now();
        let mut ledger = Ledger::new();
        ledger.open(start);
        let tag = ledger.send(start);
        ledger.expire(Some(start + Duration::from_secs(1)));
        ledger.receive(answer(tag), start + Duration::from_secs(2));
        ledger.receive(answer(77), start + Duration::from_secs(2));
        let figures = ledger.figures();
        assert_eq!((figures.lost, figures.received, figures.repeated, figures.strange), (1, 0, 1, 1));
        assert_eq!(ledger.unanswered(), 0);
    }

    proptest! {
        /// Whatever the order of sending, answering, repeating and giving up: each message ends as exactly one of
        /// answered and lost.
        #[test]
        fn every_message_is_answered_or_lost_once(steps in proptest::collection::vec((0u8..4, 0u64..40), 1..200)) {
            let start = Instant::now();
            let mut ledger = Ledger::new();
            ledger.open(start);
            let mut now = start;
            for (step, value) in steps {
                now += Duration::from_millis(1);
                match step {
                    0 | 1 => { ledger.send(now); }
                    2 => ledger.receive(answer(value), now),
                    _ => ledger.expire(Some(now - Duration::from_millis(value))),
                }
                let open = ledger.slots.iter().filter(|slot| matches!(slot, Slot::Open(_))).count();
                prop_assert_eq!(open, ledger.unanswered());
            }
            ledger.expire(None);
            let figures = ledger.figures();
            prop_assert_eq!(figures.sent, figures.received + figures.lost);
            prop_assert_eq!(ledger.unanswered(), 0);
        }
    }
}
