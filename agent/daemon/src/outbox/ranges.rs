//! What was dropped, as ranges of numbers.

use std::collections::BTreeMap;

use limpet_wire::WireError;
use limpet_wire::binary::{self, Item};
use limpet_wire::dropped::{Dropped, Origin, Reason};
use limpet_wire::id::Serial;

use super::EventIds;
use super::book::Payload;
use super::item::{self, LaneKey};

/// What was dropped of a run, in a row of numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Where the results would have gone.
    pub key: LaneKey,
    /// The run.
    pub run: u64,
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
    /// Numbers that this divides were kept; 1: none.
    pub every: u64,
}

/// What a stored item stands for when it is dropped.
#[derive(Debug)]
pub enum Held {
    /// A result or an event.
    Serial(LaneKey, Serial),
    /// What was dropped before; it is recorded anew, together with what follows it.
    Range(Range, Reason),
}

impl Held {
    /// Reads it from the item.
    ///
    /// # Errors
    /// [`WireError`] if it is none.
    pub fn of(payload: &[u8]) -> Result<Self, WireError> {
        let item::Label { lane, serial } = item::label(payload)?;
        if let Some(serial) = serial {
            return Ok(Self::Serial(lane, serial));
        }
        match binary::read(payload)? {
            Item::Dropped(Dropped { run, first, last, every, reason, .. }) => {
                Ok(Self::Range(Range { key: lane, run, first, last, every }, reason))
            }
            Item::Result(_) => Err(WireError::Payload("a result without an id".into())),
        }
    }
}

/// What is dropped for a reason, as ranges, each with its reason. `every`: numbers that it divides were kept.
pub fn fold(held: impl IntoIterator<Item = Held>, every: u64, reason: Reason) -> Vec<(Range, Reason)> {
    let mut by_reason: BTreeMap<Reason, Vec<Range>> = BTreeMap::new();
    for held in held {
        let (range, reason) = match held {
            Held::Serial(key, Serial { run, seq }) => (Range { key, run, first: seq, last: seq, every }, reason),
            // What was thinned out less, or is part of what all goes, is told of as what follows it.
            Held::Range(range, reason) if range.every > 1 => (Range { every, ..range }, reason),
            Held::Range(range, reason) => (range, reason),
        };
        by_reason.entry(reason).or_default().push(range);
    }
    let joined = |(reason, ranges)| join(ranges).into_iter().map(move |range| (range, reason));
    by_reason.into_iter().flat_map(joined).collect()
}

/// Ranges that follow each other as one.
fn join(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_by(|a, b| (&a.key, a.run, a.every, a.first).cmp(&(&b.key, b.run, b.every, b.first)));
    ranges.dedup_by(|next, range| {
        let same = next.key == range.key && next.run == range.run && next.every == range.every;
        let kept = |number: u64| range.every > 1 && number.is_multiple_of(range.every);
        // A gap of kept numbers is one number wide.
        let follows =
            next.first <= range.last.saturating_add(1) || next.first == range.last + 2 && kept(range.last + 1);
        if same && follows {
            range.last = range.last.max(next.last);
        }
        same && follows
    });
    ranges
}

/// What was dropped, as it is stored and delivered.
pub fn record(range: &Range, reason: Reason, ids: &EventIds) -> Payload {
    let of = match &range.key {
        LaneKey::Events => None,
        LaneKey::Results(pipeline, stream) => {
            Some(Origin { pipeline: pipeline.as_ref().to_owned(), stream: stream.as_ref().to_owned() })
        }
    };
    let Range { run, first, last, every, .. } = *range;
    let gateway = ids.gateway().as_ref().to_owned();
    item::of_dropped(&Dropped { id: ids.next(), gateway, of, run, first, last, every, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> LaneKey {
        LaneKey::Results("p".into(), "s".into())
    }

    fn range(run: u64, first: u64, last: u64, every: u64) -> Range {
        Range { key: key(), run, first, last, every }
    }

    fn ranges(numbers: impl IntoIterator<Item = (u64, u64)>, every: u64) -> Vec<Range> {
        let held = numbers.into_iter().map(|(run, seq)| Held::Serial(key(), Serial { run, seq }));
        fold(held, every, Reason::Full).into_iter().map(|(range, _)| range).collect()
    }

    #[test]
    fn numbers_that_follow_each_other_are_one_range() {
        let found = ranges([(1, 3), (1, 1), (1, 2), (1, 5), (2, 6)], 1);
        assert_eq!(found, [range(1, 1, 3, 1), range(1, 5, 5, 1), range(2, 6, 6, 1)]);
    }

    #[test]
    fn numbers_that_were_kept_are_no_gap() {
        let thinned = (1..40).filter(|seq| seq % 10 != 0).map(|seq| (1, seq));
        assert_eq!(ranges(thinned, 10), [range(1, 1, 39, 10)]);
    }

    #[test]
    fn what_was_dropped_before_grows_with_what_follows_it() {
        let ids = EventIds::new("g".into());
        let before = Held::of(&record(&range(7, 1, 9, 1), Reason::Age, &ids)).unwrap();
        let more = [10, 11, 13].map(|seq| Held::Serial(key(), Serial { run: 7, seq }));
        let other = Held::Range(range(7, 20, 29, 1), Reason::TooLarge);
        let found = fold(more.into_iter().chain([before, other]), 1, Reason::Age);
        assert_eq!(
            found,
            [
                (range(7, 1, 11, 1), Reason::Age),
                (range(7, 13, 13, 1), Reason::Age),
                (range(7, 20, 29, 1), Reason::TooLarge)
            ]
        );
    }
}
