//! The last results of each pipeline, delivered or not, for whoever asks at the gateway itself.
//!
//! They are in memory, as the very bytes that the outbox stores, and end with the process, unless they are kept on the disk
//! too ([`disk`]): then the next process has them again. What is kept is bounded by a number of results a pipeline.

pub mod disk;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use limpet_runtime::Moment;
use limpet_wire::result::ResultRecord;

use self::disk::Disk;
use super::book::Payload;

/// The results.
#[derive(Debug)]
pub struct History {
    most: usize,
    by_pipeline: HashMap<Arc<str>, VecDeque<Kept>>,
    disk: Option<Disk>,
}

/// A result that is kept.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its pipeline.
    pub pipeline: Arc<str>,
    /// Its stream.
    pub stream: Arc<str>,
    /// The time since this boot at which it was decided, in nanoseconds; before 0 under an earlier one. None if nobody
    /// knows.
    pub at: Option<i64>,
    /// What is stored of it.
    pub payload: Payload,
}

/// Which results are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Decided within this time until now; none: however long ago.
    pub since: Option<Duration>,
    /// Of this stream; none: of all.
    pub stream: Option<String>,
    /// The last so many of these.
    pub last: Option<usize>,
}

impl History {
    /// Nothing yet; `most` results of each pipeline are kept.
    pub fn new(most: usize) -> Self {
        Self { most, by_pipeline: HashMap::new(), disk: None }
    }

    /// The same, and on the disk too; with what that has, the oldest first.
    pub fn on(mut self, disk: Disk, found: Vec<Kept>) -> Self {
        found.into_iter().for_each(|kept| self.push(kept));
        self.disk = Some(disk);
        self
    }

    /// Keeps a result that is decided now, and the bytes that it is stored as.
    pub fn keep(&mut self, record: &ResultRecord, payload: Payload, now: i64) {
        if self.most == 0 {
            return;
        }
        let (pipeline, stream) = (Arc::clone(&record.pipeline), Arc::clone(&record.stream));
        let kept = Kept { pipeline, stream, at: Some(now), payload };
        self.disk.iter().for_each(|disk| disk.keep(kept.clone()));
        self.push(kept);
    }

    fn push(&mut self, kept: Kept) {
        let of_pipeline = self.by_pipeline.entry(Arc::clone(&kept.pipeline)).or_default();
        if of_pipeline.len() >= self.most {
            of_pipeline.pop_front();
        }
        of_pipeline.push_back(kept);
    }

    /// Those of a pipeline that are wanted, the oldest first.
    pub fn of(&self, pipeline: &str, wanted: &Wanted, now: i64) -> Vec<Payload> {
        let since = wanted.since.map(|since| i128::from(now) - since.as_nanos().cast_signed());
        let recent = |kept: &&Kept| since.is_none_or(|since| kept.at.is_some_and(|at| i128::from(at) >= since));
        let of_stream = |kept: &&Kept| wanted.stream.as_ref().is_none_or(|stream| **stream == *kept.stream);
        let kept = self.by_pipeline.get(pipeline).into_iter().flatten();
        let newest = kept.rev().take_while(recent).filter(of_stream).take(wanted.last.unwrap_or(usize::MAX));
        let mut found: Vec<Payload> = newest.map(|kept| Arc::clone(&kept.payload)).collect();
        found.reverse();
        found
    }

    /// Writes what is to be on the disk, until then at the latest.
    pub fn close(&mut self, until: Instant) {
        if let Some(disk) = self.disk.take() {
            disk.close(until);
        }
    }
}

/// The boot time of now, in nanoseconds.
pub fn now() -> i64 {
    i64::try_from(Moment::now().0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use limpet_wire::result::Verdict;

    use super::super::item::fixture;
    use super::*;

    fn at(seconds: u64) -> i64 {
        seconds as i64 * 1_000_000_000
    }

    #[test]
    fn the_last_of_a_pipeline_are_kept_and_given_by_age_stream_and_number() {
        let mut history = History::new(4);
        for (seconds, stream) in [(1, "a"), (2, "b"), (3, "a"), (4, "a"), (5, "b")] {
            let record = fixture::record("p", stream, seconds, Verdict::Anomaly { score: 0.5, threshold: None });
            history.keep(&record, Arc::from([seconds as u8]), at(seconds));
        }
        let ask = |pipeline: &str, since: Option<u64>, stream: Option<&str>, last: Option<usize>| {
            let wanted = Wanted { since: since.map(Duration::from_secs), stream: stream.map(Into::into), last };
            history.of(pipeline, &wanted, at(6)).iter().map(|payload| payload[0]).collect::<Vec<_>>()
        };
        assert_eq!(ask("p", None, None, None), [2, 3, 4, 5]);
        assert_eq!(ask("p", Some(2), None, None), [4, 5]);
        assert_eq!(ask("p", None, Some("a"), None), [3, 4]);
        assert_eq!(ask("p", None, Some("b"), Some(1)), [5]);
        assert_eq!(ask("other", None, None, None), [0_u8; 0]);
    }

    #[test]
    fn of_what_an_earlier_boot_left_the_age_counts_as_far_as_it_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, _) = Disk::open(folder.path(), 4, Duration::from_secs(1)).unwrap();
        let kept = |at, number: u8| Kept { pipeline: "p".into(), stream: "s".into(), at, payload: Arc::from([number]) };
        let mut history = History::new(4).on(disk, vec![kept(None, 1), kept(Some(at(1) - at(100)), 2)]);
        let ask = |history: &History, since: Option<u64>| {
            let wanted = Wanted { since: since.map(Duration::from_secs), ..Wanted::default() };
            history.of("p", &wanted, at(10)).iter().map(|payload| payload[0]).collect::<Vec<_>>()
        };
        assert_eq!(ask(&history, None), [1, 2]);
        assert_eq!(ask(&history, Some(200)), [2]);
        assert_eq!(ask(&history, Some(60)), [0_u8; 0]);
        history.close(Instant::now() + Duration::from_secs(60));
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_wanted() {
        let mut history = History::new(0);
        let record = fixture::record("p", "s", 1, Verdict::Anomaly { score: 0.5, threshold: None });
        history.keep(&record, Arc::from([1]), at(1));
        assert!(history.of("p", &Wanted::default(), at(1)).is_empty());
    }
}
