//! What each run has stored and dropped: what the retained `delivery` message says.
//!
//! A run is listed while something of its stream waits, and for as long as it is remembered that something of it was
//! dropped; and the last [`OTHERS`] besides.

use std::collections::{BTreeMap, BTreeSet};

use limpet_wire::dropped::Reason;
use limpet_wire::id::Serial;
use limpet_wire::message::{Delivery, DroppedRange, Message as _, RunDelivery, StreamDelivery};

use super::item::LaneKey;
use super::ranges::Range;

/// Runs that are listed though nothing of them waits or was dropped.
const OTHERS: usize = 8;
/// Ranges of a run that are remembered, the newest.
const RANGES: usize = 64;
/// Runs of one stream that are remembered, the newest.
const OF_A_STREAM: usize = 256;
/// Longest message.
const BYTES: usize = 64 * 1024;

/// The runs of an outbox.
#[derive(Debug, Default)]
pub struct Runs {
    by_key: BTreeMap<LaneKey, Vec<Run>>,
    /// Counts what happens, to tell old runs from new ones.
    clock: u64,
}

/// A run as the database remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Its stream.
    pub key: LaneKey,
    /// Its number.
    pub run: u64,
    /// The last number that was stored.
    pub last: u64,
    /// What was dropped; none if that is what it was when the database was told last.
    pub dropped: Option<Vec<DroppedRange>>,
}

/// A run.
#[derive(Debug, Clone)]
struct Run {
    run: u64,
    last: u64,
    dropped: Vec<DroppedRange>,
    /// When something happened to it last.
    touched: u64,
    /// Whether the database knows less of it…
    dirty: bool,
    /// …and of what was dropped.
    dirty_dropped: bool,
}

impl Runs {
    /// Takes up what the database remembers, the oldest first.
    pub fn restore(&mut self, runs: Vec<Remembered>) {
        for Remembered { key, run, last, dropped } in runs {
            let found = self.of(&key, run);
            (found.last, found.dirty) = (last.max(found.last), false);
            let new: Vec<_> = dropped.into_iter().flatten().filter(|range| !found.dropped.contains(range)).collect();
            found.dirty_dropped = !found.dropped.is_empty();
            found.dropped.extend(new);
        }
    }

    fn of(&mut self, key: &LaneKey, run: u64) -> &mut Run {
        self.clock += 1;
        if !self.by_key.contains_key(key) {
            self.by_key.insert(key.clone(), Vec::new());
        }
        let runs = self.by_key.get_mut(key).expect("it is there now");
        let at = runs.iter().rposition(|known| known.run == run).unwrap_or_else(|| {
            runs.push(Run { run, last: 0, dropped: Vec::new(), touched: 0, dirty: true, dirty_dropped: true });
            runs.len() - 1
        });
        let found = &mut runs[at];
        (found.touched, found.dirty) = (self.clock, true);
        found
    }

    /// A result was stored.
    pub fn stored(&mut self, key: &LaneKey, serial: Serial) {
        let run = self.of(key, serial.run);
        run.last = run.last.max(serial.seq);
    }

    /// Results were dropped.
    pub fn dropped(&mut self, range: &Range, reason: Reason) {
        let Range { key, run, first, last, every } = range;
        let run = self.of(key, *run);
        run.last = run.last.max(*last);
        // One that grew takes the place of what it was.
        run.dropped.retain(|known| !(known.every == *every && *first <= known.first && known.last <= *last));
        run.dropped.push(DroppedRange { first: *first, last: *last, every: *every, reason });
        let over = run.dropped.len().saturating_sub(RANGES);
        run.dropped.drain(..over);
        run.dirty_dropped = true;
    }

    /// What was dropped of all runs of these streams.
    pub fn dropped_of(&self, keys: &BTreeSet<LaneKey>) -> Vec<(LaneKey, u64, Vec<DroppedRange>)> {
        let of = |key: &LaneKey| {
            self.by_key
                .get(key)
                .into_iter()
                .flatten()
                .map(|run| (key.clone(), run.run, run.dropped.clone()))
                .collect::<Vec<_>>()
        };
        keys.iter().flat_map(of).collect()
    }

    /// These were not dropped after all, and what was dropped is what it was `before`, and what came meanwhile.
    pub fn not_dropped(&mut self, told: &[(Range, Reason)], before: Vec<(LaneKey, u64, Vec<DroppedRange>)>) {
        for (Range { key, run, first, last, every }, reason) in told {
            let range = DroppedRange { first: *first, last: *last, every: *every, reason: *reason };
            let run = self.of(key, *run);
            run.dropped.retain(|known| *known != range);
            run.dirty_dropped = true;
        }
        for (key, run, ranges) in before {
            let run = self.of(&key, run);
            let gone: Vec<DroppedRange> = ranges.into_iter().filter(|range| !run.dropped.contains(range)).collect();
            run.dropped.splice(..0, gone);
        }
    }

    /// Runs of these lanes that the database knows less of; it is told of them now.
    pub fn take_dirty(&mut self, keys: &BTreeSet<LaneKey>) -> Vec<Remembered> {
        let mut dirty = Vec::new();
        for (key, runs) in self.by_key.iter_mut().filter(|(key, _)| keys.contains(key)) {
            for found in runs.iter_mut().filter(|run| run.dirty) {
                found.dirty = false;
                let dropped = std::mem::take(&mut found.dirty_dropped).then(|| found.dropped.clone());
                dirty.push(Remembered { key: key.clone(), run: found.run, last: found.last, dropped });
            }
        }
        dirty
    }

    /// It could not be told.
    pub fn still_dirty(&mut self, runs: &[Remembered]) {
        for Remembered { key, run, dropped, .. } in runs {
            let found = self.by_key.get_mut(key).and_then(|runs| runs.iter_mut().find(|known| known.run == *run));
            let Some(found) = found else { continue };
            found.dirty = true;
            found.dirty_dropped |= dropped.is_some();
        }
    }

    /// The streams that it knows runs of.
    pub fn keys(&self) -> BTreeSet<LaneKey> {
        self.by_key.keys().cloned().collect()
    }

    /// There is a new database, which remembers nothing.
    pub fn all_dirty(&mut self) {
        for run in self.by_key.values_mut().flatten() {
            (run.dirty, run.dirty_dropped) = (true, true);
        }
    }

    /// Forgets runs that need not be listed. `waiting` says how much of a stream waits.
    fn prune(&mut self, waiting: &impl Fn(&LaneKey) -> u64) {
        let mut others: Vec<u64> = Vec::new();
        for (key, runs) in &self.by_key {
            if waiting(key) == 0 {
                others.extend(runs.iter().filter(|run| run.dropped.is_empty()).map(|run| run.touched));
            }
        }
        others.sort_unstable();
        let since = others.len().checked_sub(OTHERS).map_or(0, |over| others[over]);
        for (key, runs) in &mut self.by_key {
            let waits = waiting(key) > 0;
            runs.retain(|run| waits || !run.dropped.is_empty() || run.touched >= since);
            // A stream that comes and goes while the link is dead has a new one each time.
            let over = runs.len().saturating_sub(OF_A_STREAM);
            runs.drain(..over);
        }
        self.by_key.retain(|_, runs| !runs.is_empty());
    }

    /// All streams of results, those first to which something happened last. `waiting` says how much of a stream waits.
    pub fn streams(&mut self, waiting: impl Fn(&LaneKey) -> u64) -> Vec<StreamDelivery> {
        self.prune(&waiting);
        let mut streams: Vec<(u64, StreamDelivery)> = Vec::new();
        for (key, runs) in &self.by_key {
            let LaneKey::Results(pipeline, stream) = key else { continue };
            let touched = runs.iter().map(|run| run.touched).max().unwrap_or(0);
            let run = |run: &Run| RunDelivery { run: run.run, last: run.last, dropped: run.dropped.clone() };
            let (pipeline, stream) = (pipeline.as_ref().to_owned(), stream.as_ref().to_owned());
            let runs = runs.iter().map(run).collect();
            streams.push((touched, StreamDelivery { pipeline, stream, waiting: waiting(key), runs }));
        }
        streams.sort_by_key(|(touched, _)| std::cmp::Reverse(*touched));
        streams.into_iter().map(|(_, stream)| stream).collect()
    }
}

/// The `delivery` message of these streams, at most `most` and [`BYTES`] long: the first streams, as many as fit; of one that alone is
/// too long, its newest runs.
pub fn message(gateway: &str, at: Option<String>, streams: Vec<StreamDelivery>, most: usize) -> Vec<u8> {
    let most = most.min(BYTES);
    let mut message = Delivery { gateway: gateway.to_owned(), at, streams, omitted: 0 };
    loop {
        let json = message.to_json();
        if json.len() <= most {
            return json;
        }
        let share = |of: usize| (of * most / json.len()).clamp(1, of - 1);
        match message.streams.as_mut_slice() {
            [one] if one.runs.len() > 1 => {
                let over = one.runs.len() - share(one.runs.len());
                one.runs.drain(..over);
                // Who reads it is to know that this is not all.
                message.omitted = message.omitted.max(1);
            }
            // A run has so few ranges that names would have to be longer than any topic.
            [] | [_] => return json,
            more => {
                let keep = share(more.len());
                message.omitted += (more.len() - keep) as u64;
                message.streams.truncate(keep);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(stream: &str) -> LaneKey {
        LaneKey::Results("p".into(), stream.into())
    }

    fn message(runs: &mut Runs, waiting: u64) -> Delivery {
        serde_json::from_slice(&super::message("g", None, runs.streams(|_| waiting), BYTES)).unwrap()
    }

    #[test]
    fn a_stream_tells_what_it_stored_what_waits_and_what_was_dropped() {
        let mut runs = Runs::default();
        (1..=5).for_each(|seq| runs.stored(&key("s"), Serial { run: 7, seq }));
        for last in [2, 3] {
            runs.dropped(&Range { key: key("s"), run: 7, first: 1, last, every: 1 }, Reason::Full);
        }
        let told = message(&mut runs, 2);
        assert_eq!((told.streams[0].waiting, &told.streams[0].stream[..]), (2, "s"));
        let dropped = vec![DroppedRange { first: 1, last: 3, every: 1, reason: Reason::Full }];
        assert_eq!(told.streams[0].runs, [RunDelivery { run: 7, last: 5, dropped }]);
    }

    #[test]
    fn of_runs_with_which_nothing_is_the_matter_the_last_eight_are_listed() {
        let mut runs = Runs::default();
        runs.stored(&key("old"), Serial { run: 1, seq: 1 });
        runs.dropped(&Range { key: key("old"), run: 1, first: 1, last: 1, every: 1 }, Reason::Age);
        (2..=20).for_each(|run| runs.stored(&key("s"), Serial { run, seq: 1 }));
        assert_eq!(message(&mut runs, 1).streams.iter().map(|stream| stream.runs.len()).sum::<usize>(), 20);
        let told = message(&mut runs, 0);
        let listed: Vec<u64> = told.streams.iter().flat_map(|stream| &stream.runs).map(|run| run.run).collect();
        assert_eq!(listed, (13..=20).chain([1]).collect::<Vec<_>>());
    }

    #[test]
    fn a_message_has_its_bound_and_says_what_is_left_out() {
        let mut runs = Runs::default();
        for stream in 0..2000 {
            runs.stored(&key(&format!("stream-with-a-long-name-{stream}")), Serial { run: 1, seq: 1 });
        }
        let json = super::message("g", None, runs.streams(|_| 1), BYTES);
        assert!(json.len() <= BYTES && json.len() > BYTES / 2, "{}", json.len());
        let told: Delivery = serde_json::from_slice(&json).unwrap();
        assert_eq!(told.streams.len() as u64 + told.omitted, 2000);
        assert_eq!(told.streams[0].stream, "stream-with-a-long-name-1999");
    }

    #[test]
    fn of_a_stream_that_alone_is_too_long_the_newest_runs_are_told() {
        let mut runs = Runs::default();
        for run in 1..=1000 {
            runs.stored(&key("s"), Serial { run, seq: 1 });
            for seq in (1..=40).step_by(2) {
                runs.dropped(&Range { key: key("s"), run, first: seq, last: seq, every: 1 }, Reason::TooLarge);
            }
        }
        let streams = runs.streams(|_| 1);
        assert_eq!(streams[0].runs.len(), OF_A_STREAM);
        let json = super::message("g", None, streams, BYTES);
        assert!(json.len() <= BYTES && json.len() > BYTES / 2, "{}", json.len());
        let told: Delivery = serde_json::from_slice(&json).unwrap();
        assert_eq!(told.streams[0].runs.last().map(|run| run.run), Some(1000));
    }

    #[test]
    fn what_could_not_be_dropped_is_told_as_before() {
        let mut runs = Runs::default();
        let range = |first, last| Range { key: key("s"), run: 7, first, last, every: 1 };
        runs.dropped(&range(1, 5), Reason::Full);
        let before = runs.dropped_of(&BTreeSet::from([key("s")]));
        let told = [(range(1, 9), Reason::Full), (range(20, 21), Reason::Full)];
        told.iter().for_each(|(range, reason)| runs.dropped(range, *reason));
        runs.dropped(&range(30, 31), Reason::Disk);
        runs.not_dropped(&told, before);
        let dropped = |first, last, reason| DroppedRange { first, last, every: 1, reason };
        let left = runs.dropped_of(&BTreeSet::from([key("s")])).remove(0).2;
        assert_eq!(left, [dropped(1, 5, Reason::Full), dropped(30, 31, Reason::Disk)]);
    }

    #[test]
    fn the_database_is_told_once_and_again_if_it_did_not_hear() {
        let mut runs = Runs::default();
        runs.stored(&key("s"), Serial { run: 7, seq: 1 });
        let all = BTreeSet::from([key("s")]);
        let dirty = runs.take_dirty(&all);
        assert_eq!((dirty.len(), runs.take_dirty(&all).len()), (1, 0));
        runs.still_dirty(&dirty);
        assert_eq!(runs.take_dirty(&all), dirty);
        // What was dropped is written only when there is more of it.
        runs.stored(&key("s"), Serial { run: 7, seq: 2 });
        assert_eq!(runs.take_dirty(&all)[0].dropped, None);
        runs.dropped(&Range { key: key("s"), run: 7, first: 1, last: 1, every: 1 }, Reason::Full);
        assert_eq!(runs.take_dirty(&all)[0].dropped.as_ref().map(Vec::len), Some(1));
    }
}
