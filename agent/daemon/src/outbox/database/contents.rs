//! Which results and events a database holds, by run.
//!
//! It is on record with each run, in the transaction that adds or deletes the rows. What damage took is then what is on
//! record and cannot be read any more, however many pages, streams and runs it touches.

use std::collections::BTreeMap;

use limpet_wire::id::Serial;
use rangemap::RangeInclusiveSet;

use super::super::item::LaneKey;

/// Ranges of a run that are on record at most. Of more, those with the narrowest gaps between them become one: then what
/// was delivered may be told of as damaged, and never the other way. It ends when nothing of the stream is there any more.
const ON_RECORD: usize = 32;
/// The same in memory: so many that only a backlog that was thinned out for days has more.
pub const IN_MEMORY: usize = 4096;

/// Numbers of a run.
pub type Numbers = RangeInclusiveSet<u64>;

/// Numbers by stream and run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents(BTreeMap<LaneKey, BTreeMap<u64, Numbers>>);

impl Contents {
    /// What is there of a run, to be changed.
    pub fn run(&mut self, key: &LaneKey, run: u64) -> &mut Numbers {
        if !self.0.contains_key(key) {
            self.0.insert(key.clone(), BTreeMap::new());
        }
        self.0.get_mut(key).expect("it is there now").entry(run).or_default()
    }

    /// The same; of a run of which these say nothing yet, what is there is what the others say.
    pub fn run_as_in(&mut self, others: &Self, key: &LaneKey, run: u64) -> &mut Numbers {
        if self.get(key, run).is_none() {
            *self.run(key, run) = others.get(key, run).cloned().unwrap_or_default();
        }
        self.run(key, run)
    }

    /// The runs of a stream.
    pub fn runs(&self, key: &LaneKey) -> impl Iterator<Item = u64> {
        self.0.get(key).into_iter().flat_map(|runs| runs.keys().copied())
    }

    /// What is there of a run, if it was ever looked at.
    pub fn get(&self, key: &LaneKey, run: u64) -> Option<&Numbers> {
        self.0.get(key)?.get(&run)
    }

    /// Adds a result or an event.
    pub fn add(&mut self, key: &LaneKey, Serial { run, seq }: Serial) {
        self.run(key, run).insert(seq..=seq);
    }

    /// All runs.
    pub fn iter(&self) -> impl Iterator<Item = (&LaneKey, u64, &Numbers)> {
        self.0.iter().flat_map(|(key, runs)| runs.iter().map(move |(run, numbers)| (key, *run, numbers)))
    }

    /// All runs, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&LaneKey, u64, &mut Numbers)> {
        self.0.iter_mut().flat_map(|(key, runs)| runs.iter_mut().map(move |(run, numbers)| (key, *run, numbers)))
    }

    /// Runs of which these say something else are as they say. Those of which nothing is there are forgotten.
    pub fn replace(&mut self, by: Self) {
        for (key, changed) in by.0 {
            let runs = self.0.entry(key.clone()).or_default();
            runs.extend(changed);
            runs.retain(|_, numbers| !numbers.is_empty());
            if runs.is_empty() {
                self.0.remove(&key);
            }
        }
    }
}

/// Numbers as text, in at most [`ON_RECORD`] ranges.
pub fn to_text(numbers: &Numbers) -> String {
    let mut few = numbers.clone();
    coalesce(&mut few, ON_RECORD);
    let ranges: Vec<(u64, u64)> = few.iter().map(|range| (*range.start(), *range.end())).collect();
    serde_json::to_string(&ranges).expect("writing plain values into memory cannot fail")
}

/// Reads what [`to_text`] wrote.
///
/// # Errors
/// If it is something else.
pub fn of_text(text: &[u8]) -> Result<Numbers, String> {
    let ranges: Vec<(u64, u64)> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if let Some((first, last)) = ranges.iter().find(|(first, last)| first > last) {
        return Err(format!("a range from {first} to {last}"));
    }
    Ok(ranges.into_iter().map(|(first, last)| first..=last).collect())
}

/// Makes at most so many ranges of them.
pub fn coalesce(numbers: &mut Numbers, most: usize) {
    let over = numbers.iter().count().saturating_sub(most);
    if over == 0 {
        return;
    }
    let ranges: Vec<_> = numbers.iter().cloned().collect();
    let mut gaps: Vec<(u64, u64)> = ranges.windows(2).map(|pair| (*pair[0].end(), *pair[1].start())).collect();
    gaps.sort_by_key(|(end, start)| start - end);
    gaps.into_iter().take(over).for_each(|(end, start)| numbers.insert(end..=start));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(ranges: &[(u64, u64)]) -> Numbers {
        ranges.iter().map(|(first, last)| *first..=*last).collect()
    }

    #[test]
    fn numbers_are_read_as_they_were_written_and_nothing_else_is() {
        for ranges in [&[][..], &[(1, 1)], &[(1, 5), (7, 7), (9, u64::MAX)]] {
            assert_eq!(of_text(to_text(&numbers(ranges)).as_bytes()), Ok(numbers(ranges)));
        }
        for wrong in ["", "[[2,1]]", "[[1]]", "[1,2]", "[[-1,2]]"] {
            assert!(of_text(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn too_many_ranges_become_fewer_where_the_gaps_are_narrow_and_nothing_is_left_out() {
        let scattered: Vec<(u64, u64)> = (0..100).map(|i| (1000 * i + i % 10, 1000 * i + 500)).collect();
        let mut few = numbers(&scattered);
        coalesce(&mut few, ON_RECORD);
        assert_eq!(few.iter().count(), ON_RECORD);
        for (first, last) in &scattered {
            assert_eq!(few.gaps(&(*first..=*last)).count(), 0, "{first} to {last}");
        }
        let mut narrow: Vec<(u64, u64)> = (1..=ON_RECORD as u64).map(|i| (1000 * i, 1000 * i + 5)).collect();
        narrow.push((1007, 1010));
        let mut few = numbers(&narrow);
        coalesce(&mut few, ON_RECORD);
        assert_eq!(few.first(), Some(&(1000..=1010)));
        assert_eq!(few.iter().count(), ON_RECORD);
    }

    #[test]
    fn what_changed_takes_the_place_of_what_was_and_what_is_empty_goes() {
        let (a, b) = (LaneKey::Results("p".into(), "a".into()), LaneKey::Events);
        let mut contents = Contents::default();
        contents.add(&a, Serial { run: 1, seq: 3 });
        contents.add(&a, Serial { run: 2, seq: 1 });
        contents.add(&b, Serial { run: 9, seq: 4 });
        let mut changed = Contents::default();
        *changed.run(&a, 1) = numbers(&[(3, 5)]);
        _ = changed.run(&b, 9);
        contents.replace(changed);
        let found: Vec<_> = contents.iter().map(|(key, run, numbers)| (key, run, numbers.clone())).collect();
        assert_eq!(found, [(&a, 1, numbers(&[(3, 5)])), (&a, 2, numbers(&[(1, 1)]))]);
    }
}
