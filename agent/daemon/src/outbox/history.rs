//! The last results of each pipeline, delivered or not, for whoever asks at the gateway itself.
//!
//! They are in memory, as the very bytes that the outbox stores, and end with the process. What is kept is bounded by a
//! number of results a pipeline.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use limpet_runtime::Moment;
use limpet_wire::result::ResultRecord;

use super::book::Payload;

/// The results.
#[derive(Debug)]
pub struct History {
    most: usize,
    by_pipeline: HashMap<Arc<str>, VecDeque<Kept>>,
}

#[derive(Debug)]
struct Kept {
    stream: Arc<str>,
    at: Moment,
    payload: Payload,
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
        Self { most, by_pipeline: HashMap::new() }
    }

    /// Keeps a result, and the bytes that it is stored as.
    pub fn keep(&mut self, record: &ResultRecord, payload: Payload, now: Moment) {
        if self.most == 0 {
            return;
        }
        let kept = self.by_pipeline.entry(Arc::clone(&record.pipeline)).or_default();
        if kept.len() >= self.most {
            kept.pop_front();
        }
        kept.push_back(Kept { stream: Arc::clone(&record.stream), at: now, payload });
    }

    /// Those of a pipeline that are wanted, the oldest first.
    pub fn of(&self, pipeline: &str, wanted: &Wanted, now: Moment) -> Vec<Payload> {
        let recent = |kept: &&Kept| wanted.since.is_none_or(|since| now.since(kept.at) <= since);
        let of_stream = |kept: &&Kept| wanted.stream.as_ref().is_none_or(|stream| **stream == *kept.stream);
        let kept = self.by_pipeline.get(pipeline).into_iter().flatten();
        let newest = kept.rev().take_while(recent).filter(of_stream).take(wanted.last.unwrap_or(usize::MAX));
        let mut found: Vec<Payload> = newest.map(|kept| Arc::clone(&kept.payload)).collect();
        found.reverse();
        found
    }
}

#[cfg(test)]
mod tests {
    use limpet_wire::result::Verdict;

    use super::super::item::fixture;
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
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
    fn nothing_is_kept_where_nothing_is_wanted() {
        let mut history = History::new(0);
        let record = fixture::record("p", "s", 1, Verdict::Anomaly { score: 0.5, threshold: None });
        history.keep(&record, Arc::from([1]), at(1));
        assert!(history.of("p", &Wanted::default(), at(1)).is_empty());
    }
}
