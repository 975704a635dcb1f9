//! Messages between the client library and the broker: no input or output, no clock of its own.
//!
//! A message is *handed* to the client, which gives it an id when it goes out, in the order in which they were handed over;
//! then it is *numbered* until the broker has acknowledged it. One that wants no acknowledgement ends when it goes out.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::outbox::book::Custody;

/// A message on its way.
#[derive(Debug)]
pub struct Flying {
    /// Its topic.
    pub topic: String,
    /// Whether the broker acknowledges it.
    pub acknowledged: bool,
    /// What is settled then.
    pub kept: Option<Custody>,
}

/// The messages of one connection that are on their way.
#[derive(Debug, Default)]
pub struct Flight {
    /// In the order in which they were handed over.
    handed: VecDeque<Flying>,
    /// With their ids, and since when.
    numbered: HashMap<u16, (Flying, Instant)>,
    /// When the broker acknowledged one last.
    acknowledged: Option<Instant>,
}

impl Flight {
    /// A message is with the client.
    pub fn hand(&mut self, message: Flying) {
        self.handed.push_back(message);
    }

    /// The message that was handed over first has gone out, with this id.
    pub fn went_out(&mut self, id: u16, now: Instant) {
        if let Some(message) = self.handed.pop_front()
            && message.acknowledged
        {
            self.numbered.insert(id, (message, now));
        }
    }

    /// The broker has answered the message with this id.
    pub fn answered(&mut self, id: u16, now: Instant) -> Option<Flying> {
        self.acknowledged = Some(now);
        self.numbered.remove(&id).map(|(message, _)| message)
    }

    /// Messages that the client has and that did not go out.
    pub fn handed(&self) -> usize {
        self.handed.len()
    }

    /// Messages without acknowledgement.
    pub fn len(&self) -> usize {
        self.numbered.len() + self.handed.iter().filter(|message| message.acknowledged).count()
    }

    /// Until when the broker is to acknowledge one more, if it does so at least once in so long; none if all are
    /// acknowledged. It is enough that one is: on a slow line each waits for all before it.
    pub fn due(&self, patience: Duration) -> Option<Instant> {
        let oldest = self.numbered.values().map(|(_, since)| *since).min()?;
        Some(self.acknowledged.map_or(oldest, |last| last.max(oldest)) + patience)
    }

    /// Everything that was not settled.
    pub fn ground(&mut self) -> Vec<Custody> {
        let numbered = self.numbered.drain().map(|(_, (message, _))| message);
        self.handed.drain(..).chain(numbered).filter_map(|message| message.kept).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(75);

    fn message(number: u64) -> Flying {
        let kept = Custody { lane: 1, backlog: false, numbers: vec![number] };
        Flying { topic: "t".into(), acknowledged: true, kept: Some(kept) }
    }

    #[test]
    fn a_broker_that_acknowledges_nothing_is_due_and_one_that_is_slow_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut flight = Flight::default();
        flight.hand(message(1));
        assert_eq!(flight.due(PATIENCE), None, "it did not go out");
        flight.went_out(1, at(10));
        flight.hand(message(2));
        flight.went_out(2, at(12));
        assert_eq!(flight.due(PATIENCE), Some(at(85)));
        _ = flight.answered(1, at(80));
        assert_eq!(flight.due(PATIENCE), Some(at(155)));
        _ = flight.answered(2, at(81));
        assert_eq!(flight.due(PATIENCE), None);
        flight.hand(message(3));
        flight.went_out(1, at(500));
        assert_eq!(flight.due(PATIENCE), Some(at(575)), "a silence in which nothing was sent is none");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Hand { acknowledged: bool },
        WentOut,
        Answer(usize),
        Strange(u16),
        Lost,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<bool>().prop_map(|acknowledged| Step::Hand { acknowledged }),
            4 => Just(Step::WentOut),
            4 => (0..8_usize).prop_map(Step::Answer),
            1 => any::<u16>().prop_map(Step::Strange),
            1 => Just(Step::Lost),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: what is kept comes out exactly once, by its answer or when the connection is
        /// lost, and an id that is used again stands for the message that has it now.
        #[test]
        fn what_is_kept_comes_out_once(steps in prop::collection::vec(step(), 1..200)) {
            let mut now = Instant::now();
            let mut flight = Flight::default();
            let (mut next, mut inside, mut ids) = (0, BTreeSet::new(), Vec::<(u16, u64)>::new());
            // What the client would do: ids from 1 to 8, each free again when it is answered.
            let mut handed = VecDeque::new();
            for step in steps {
                now += Duration::from_millis(1);
                match step {
                    Step::Hand { acknowledged } => {
                        next += 1;
                        let kept = message(next).kept.filter(|_| acknowledged);
                        inside.extend(kept.iter().map(|_| next));
                        flight.hand(Flying { topic: "t".into(), acknowledged, kept });
                        handed.push_back(acknowledged.then_some(next));
                    }
                    Step::WentOut => {
                        let free = (1..=8).find(|id| !ids.iter().any(|(used, _)| used == id));
                        let Some((id, first)) = free.zip(handed.front().copied()) else { continue };
                        handed.pop_front();
                        // QoS 0 has id 0.
                        flight.went_out(first.map_or(0, |_| id), now);
                        ids.extend(first.map(|number| (id, number)));
                    }
                    Step::Answer(at) => {
                        if ids.is_empty() {
                            continue;
                        }
                        let (id, number) = ids.remove(at % ids.len());
                        let out = flight.answered(id, now).and_then(|message| message.kept).unwrap();
                        prop_assert_eq!(out.numbers, [number]);
                        prop_assert!(inside.remove(&number));
                    }
                    Step::Strange(id) => {
                        if !ids.iter().any(|(used, _)| *used == id) {
                            prop_assert!(flight.answered(id, now).is_none());
                        }
                    }
                    Step::Lost => {
                        let out: BTreeSet<u64> = flight.ground().into_iter().flat_map(|kept| kept.numbers).collect();
                        prop_assert_eq!(&out, &inside);
                        inside.clear();
                        handed.clear();
                        ids.clear();
                    }
                }
                prop_assert_eq!(flight.len(), inside.len());
                prop_assert_eq!(flight.due(PATIENCE).is_some(), !ids.is_empty());
            }
        }
    }
}
