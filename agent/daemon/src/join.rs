//! Joins several topics into the channels of one source.
//!
//! Each topic delivers one channel with a time per sample. A row is complete when every channel has a sample and all of
//! them lie within the tolerance; its time is the latest of them. Samples for which no partner came are dropped and
//! counted by channel, and a channel that stays away while others deliver is reported by name, once each time it goes
//! quiet.
//!
//! Pure: times are nanoseconds of any one clock, given by the caller, and memory is bounded.

use std::collections::VecDeque;

/// Most samples that wait for their partners, per channel. At 3,200 Hz and messages of 1,000 samples this lets one
/// channel run four messages ahead of another.
pub const WAITING_MAX: usize = 4096;

/// Rows out of channels, for one stream.
#[derive(Debug, Clone)]
pub struct Joiner {
    tolerance: u64,
    /// How long a channel may be silent while others deliver.
    patience: u64,
    channels: Vec<Channel>,
}

#[derive(Debug, Clone, Default)]
struct Channel {
    /// (time, value), in the order of arrival, times not falling.
    waiting: VecDeque<(u64, f32)>,
    last: Option<u64>,
    dropped: u64,
    missing: bool,
}

/// What [`Joiner::push`] found besides rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Rows that became complete.
    pub rows: usize,
    /// Samples, of any channel, that were dropped without a partner.
    pub dropped: usize,
}

impl Joiner {
    /// For `channels` topics, at least two. `tolerance` and `patience` are in nanoseconds.
    pub fn new(channels: usize, tolerance: u64, patience: u64) -> Self {
        Self { tolerance, patience, channels: vec![Channel::default(); channels] }
    }

    /// Takes a message of one channel: values with the time of each, in order. Rows go to `rows`, channels interleaved,
    /// and their times to `times`; both are appended to.
    ///
    /// A sample older than one of the same channel before it cannot be placed and is dropped.
    ///
    /// # Panics
    /// If there is no such channel.
    pub fn push(
        &mut self,
        channel: usize,
        samples: impl IntoIterator<Item = (u64, f32)>,
        rows: &mut Vec<f32>,
        times: &mut Vec<u64>,
    ) -> Pushed {
        let mut pushed = Pushed::default();
        for (time, value) in samples {
            let own = &mut self.channels[channel];
            if own.last.is_some_and(|last| time < last) {
                own.dropped += 1;
                pushed.dropped += 1;
                continue;
            }
            own.last = Some(time);
            own.missing = false;
            if own.waiting.len() == WAITING_MAX {
                own.waiting.pop_front();
                own.dropped += 1;
                pushed.dropped += 1;
            }
            own.waiting.push_back((time, value));
            // Each sample can complete at most one row, but may free others of being looked at.
            self.join(rows, times, &mut pushed);
        }
        pushed
    }

    /// Emits rows as long as every channel has a sample.
    fn join(&mut self, rows: &mut Vec<f32>, times: &mut Vec<u64>, pushed: &mut Pushed) {
        loop {
            let (mut earliest, mut latest) = ((u64::MAX, 0), 0);
            for (index, channel) in self.channels.iter().enumerate() {
                let Some(&(time, _)) = channel.waiting.front() else { return };
                earliest = earliest.min((time, index));
                latest = latest.max(time);
            }
            if latest - earliest.0 <= self.tolerance {
                for channel in &mut self.channels {
                    let (_, value) = channel.waiting.pop_front().expect("every channel has a sample");
                    rows.push(value);
                }
                times.push(latest);
                pushed.rows += 1;
            } else {
                // Times do not fall, so nothing that is still to come can be a partner of the earliest.
                let channel = &mut self.channels[earliest.1];
                channel.waiting.pop_front();
                channel.dropped += 1;
                pushed.dropped += 1;
            }
        }
    }

    /// Channels that have become silent: nothing from them for longer than the patience before `now`, while another
    /// channel delivered within it. Each is named once until it delivers again. `started` is when the stream began, for
    /// channels that never spoke.
    pub fn silent(&mut self, started: u64, now: u64) -> Vec<usize> {
        let quiet = |last: Option<u64>, patience: u64| now.saturating_sub(last.unwrap_or(started)) > patience;
        let patience = self.patience;
        if self.channels.iter().all(|channel| channel.last.is_none() || quiet(channel.last, patience)) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if quiet(channel.last, patience) && !channel.missing {
                channel.missing = true;
                found.push(index);
            }
        }
        found
    }

    /// Samples of one channel that were dropped so far.
    #[cfg(test)]
    pub fn dropped(&self, channel: usize) -> u64 {
        self.channels[channel].dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn push(joiner: &mut Joiner, channel: usize, samples: &[(u64, f32)]) -> (Vec<f32>, Vec<u64>, Pushed) {
        let (mut rows, mut times) = (Vec::new(), Vec::new());
        let pushed = joiner.push(channel, samples.iter().copied(), &mut rows, &mut times);
        (rows, times, pushed)
    }

    #[test]
    fn a_row_is_complete_when_every_channel_has_spoken() {
        let mut joiner = Joiner::new(3, 2, 100);
        assert_eq!(push(&mut joiner, 0, &[(10, 1.0)]).2, Pushed::default());
        assert_eq!(push(&mut joiner, 2, &[(12, 3.0)]).2.rows, 0);
        let (rows, times, pushed) = push(&mut joiner, 1, &[(11, 2.0)]);
        assert_eq!((rows, times), (vec![1.0, 2.0, 3.0], vec![12]));
        assert_eq!(pushed, Pushed { rows: 1, dropped: 0 });
    }

    #[test]
    fn a_sample_without_partner_is_dropped_and_counted_for_its_channel() {
        let mut joiner = Joiner::new(2, 2, 100);
        push(&mut joiner, 0, &[(10, 1.0), (20, 2.0)]);
        let (rows, times, pushed) = push(&mut joiner, 1, &[(21, 3.0)]);
        assert_eq!((rows, times), (vec![2.0, 3.0], vec![21]));
        assert_eq!(pushed, Pushed { rows: 1, dropped: 1 });
        assert_eq!((joiner.dropped(0), joiner.dropped(1)), (1, 0));
    }

    #[test]
    fn a_sample_that_goes_back_in_time_is_dropped() {
        let mut joiner = Joiner::new(2, 2, 100);
        let (_, _, pushed) = push(&mut joiner, 0, &[(10, 1.0), (9, 2.0), (10, 3.0)]);
        assert_eq!(pushed.dropped, 1);
    }

    #[test]
    fn a_channel_that_stays_away_is_named_once() {
        let mut joiner = Joiner::new(3, 2, 100);
        push(&mut joiner, 0, &[(150, 1.0)]);
        push(&mut joiner, 1, &[(20, 1.0)]);
        assert_eq!(joiner.silent(0, 90), Vec::<usize>::new());
        assert_eq!(joiner.silent(0, 160), [1, 2]);
        assert_eq!(joiner.silent(0, 200), Vec::<usize>::new());
        push(&mut joiner, 1, &[(210, 1.0)]);
        push(&mut joiner, 0, &[(390, 1.0)]);
        assert_eq!(joiner.silent(0, 400), [1]);
        // Where nobody speaks, no single channel is to blame.
        assert_eq!(Joiner::new(2, 2, 100).silent(0, 1_000), Vec::<usize>::new());
    }

    #[test]
    fn a_channel_that_runs_ahead_is_bounded() {
        let mut joiner = Joiner::new(2, 2, 100);
        let many: Vec<_> = (0..WAITING_MAX as u64 + 5).map(|time| (time, 0.0)).collect();
        assert_eq!(push(&mut joiner, 0, &many).2.dropped, 5);
        assert_eq!(joiner.channels[0].waiting.len(), WAITING_MAX);
    }

    proptest! {
        #[test]
        fn samples_that_meet_are_joined_in_whatever_order_messages_arrive(
            jitter in proptest::collection::vec((0u64..3, 0u64..3), 1..40), first_ahead in 1usize..8,
        ) {
            let mut joiner = Joiner::new(2, 2, 1_000);
            let (mut rows, mut times) = (Vec::new(), Vec::new());
            let channel = |pick: fn(&(u64, u64)) -> u64| -> Vec<(u64, f32)> {
                jitter.iter().enumerate().map(|(n, j)| (n as u64 * 10 + pick(j), n as f32)).collect()
            };
            let (a, b) = (channel(|j| j.0), channel(|j| j.1));
            for (x, y) in a.chunks(first_ahead).zip(b.chunks(first_ahead)) {
                joiner.push(0, x.iter().copied(), &mut rows, &mut times);
                joiner.push(1, y.iter().copied(), &mut rows, &mut times);
            }
            prop_assert_eq!(times.len(), jitter.len());
            prop_assert!(rows.chunks(2).all(|row| row[0] == row[1]));
        }

        #[test]
        fn every_sample_is_in_a_row_or_waits_or_is_counted(
            pushes in proptest::collection::vec((0usize..3, 0u64..50), 0..200), tolerance in 0u64..5,
        ) {
            let mut joiner = Joiner::new(3, tolerance, 100);
            let (mut rows, mut times) = (Vec::new(), Vec::new());
            let mut dropped = 0;
            for (channel, time) in &pushes {
                dropped += joiner.push(*channel, [(*time, 0.0)], &mut rows, &mut times).dropped;
            }
            let waiting: usize = joiner.channels.iter().map(|channel| channel.waiting.len()).sum();
            prop_assert_eq!(rows.len() + waiting + dropped, pushes.len());
            prop_assert_eq!(rows.len(), times.len() * 3);
            let counted: u64 = (0..3).map(|channel| joiner.dropped(channel)).sum();
            prop_assert_eq!(counted, dropped as u64);
        }
    }
}
