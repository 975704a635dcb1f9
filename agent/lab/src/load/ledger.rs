//! What was sent and what came back. No I/O and no clock: the caller says when.

use std::time::Instant;

use serde::Serialize;

use crate::answer::Answer;
use crate::latency::{Parts, Quantiles, Times};

/// Messages by tag, and the figures of the measured time.
pub struct Ledger {
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
}

#[derive(Clone, Copy)]
enum Slot {
    Open(Instant),
    Answered,
    Lost,
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
}

impl Ledger {
    pub fn new() -> Self {
        Self {
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
        }
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
    pub fn receive(&mut self, answer: Answer, at: Instant) {
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
            if let Some(latency) = answer.latency {
                self.parts.record(latency);
            }
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
                self.lost += u64::from(self.is_measured(sent));
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
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    fn answer(tag: u64) -> Answer {
        Answer { tag, latency: None }
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
