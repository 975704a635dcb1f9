//! What happened to the windows of a pipeline, and where their time went.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;

/// How a completed window ended. Every window ends in exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The session ran and the decision was made.
    Result,
    /// Not started, because it could not have been ready before its deadline.
    Expired,
    /// A newer window took its place.
    Replaced,
    /// Its queue was full.
    Rejected,
    /// The model's output was not finite.
    Invalid,
    /// The session gave an error.
    Failed,
}

impl Outcome {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 6] =
        [Self::Result, Self::Expired, Self::Replaced, Self::Rejected, Self::Invalid, Self::Failed];

    /// The word for it in telemetry.
    pub fn word(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Expired => "expired",
            Self::Replaced => "replaced",
            Self::Rejected => "rejected",
            Self::Invalid => "invalid",
            Self::Failed => "failed",
        }
    }
}

/// A part of a result's latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// From capture to the window being complete in the agent.
    Wait,
    /// Front end.
    Features,
    /// From features to the start of the session.
    Queue,
    /// The session.
    Compute,
    /// Decision.
    Decide,
    /// All of them.
    Total,
}

impl Stage {
    /// All of them, in the order in which a window passes them.
    pub const ALL: [Self; 6] = [Self::Wait, Self::Features, Self::Queue, Self::Compute, Self::Decide, Self::Total];

    /// The word for it in results and telemetry.
    pub fn word(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Features => "features",
            Self::Queue => "queue",
            Self::Compute => "compute",
            Self::Decide => "decide",
            Self::Total => "total",
        }
    }
}

/// 50th and 99th percentile and maximum of a stage, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StageQuantiles {
    /// Half are below.
    pub p50: u64,
    /// All but one in a hundred are below.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

/// Longest time that a histogram tells apart, in microseconds: ten minutes. What is longer counts as this.
const LONGEST_US: u64 = 600_000_000;

/// Counters and histograms of one pipeline or one stream of it, shared between workers and whoever reports. What a
/// stream's ledger counts, its pipeline's counts too.
///
/// Histograms have one significant digit and 32-bit counters and are made at first use, so that a pipeline that never
/// ran costs nothing for them.
#[derive(Debug, Default)]
pub struct Ledger {
    parent: Option<Arc<Ledger>>,
    windows: AtomicU64,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    late: AtomicU64,
    /// Windows by the power of two that the size of their batch reaches: 1, 2, 4, …
    batches: [AtomicU64; BATCHES],
    stages: Mutex<Stages>,
}

#[derive(Debug, Default)]
struct Stages {
    now: Option<Box<[Histogram<u32>; Stage::ALL.len()]>>,
    before: Option<[StageQuantiles; Stage::ALL.len()]>,
}

/// Sizes of batches that are told apart: powers of two up to 64.
const BATCHES: usize = 7;

impl Ledger {
    /// A ledger whose counts go to `parent` too.
    pub fn within(parent: Arc<Self>) -> Self {
        Self { parent: Some(parent), ..Self::default() }
    }

    fn up(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |ledger| ledger.parent.as_deref())
    }

    /// Counts a window that was completed.
    pub fn completed(&self) {
        self.up().for_each(|ledger| _ = ledger.windows.fetch_add(1, Ordering::Relaxed));
    }

    /// Counts how a completed window ended.
    pub fn ended(&self, outcome: Outcome) {
        self.up().for_each(|ledger| _ = ledger.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed));
    }

    /// Counts a window that ran in a batch of this many; alone, in one of 1.
    pub fn batch(&self, size: usize) {
        let class = (size.max(1).ilog2() as usize).min(BATCHES - 1);
        self.up().for_each(|ledger| _ = ledger.batches[class].fetch_add(1, Ordering::Relaxed));
    }

    /// Records the latency parts of a result, in microseconds, in the order of [`Stage::ALL`] without the total, and
    /// whether it came after its deadline.
    pub fn record(&self, parts: [u64; 5], late: bool) {
        let total = parts.iter().sum();
        for ledger in self.up() {
            ledger.late.fetch_add(u64::from(late), Ordering::Relaxed);
            let mut stages = ledger.stages.lock().unwrap_or_else(PoisonError::into_inner);
            let histograms = stages.now.get_or_insert_with(|| {
                let empty = Histogram::new_with_bounds(1, LONGEST_US, 1).expect("these bounds are valid");
                Box::new(std::array::from_fn(|_| empty.clone()))
            });
            for (histogram, value) in histograms.iter_mut().zip(parts.into_iter().chain([total])) {
                histogram.saturating_record(value);
            }
        }
    }

    /// Windows completed since the start.
    pub fn windows(&self) -> u64 {
        self.windows.load(Ordering::Relaxed)
    }

    /// Windows that ended so, since the start.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    /// Results that came after their deadline, since the start.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// Windows since the start by the size of the batch that they ran in: those of 1, of 2 to 3, of 4 to 7, and so on, each by its smallest size, as far
    /// as there were any.
    pub fn batches(&self) -> impl Iterator<Item = (usize, u64)> {
        let counts = self.batches.iter().enumerate();
        counts.map(|(power, count)| (1 << power, count.load(Ordering::Relaxed))).filter(|(_, count)| *count > 0)
    }

    /// Quantiles since the last call, stage by stage; none if there was no result since. Then the histograms go, and come
    /// back with the next result.
    pub fn take_quantiles(&self) -> Option<[StageQuantiles; Stage::ALL.len()]> {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let quantiles = stages.quantiles();
        match (&mut stages.now, quantiles) {
            (Some(histograms), Some(_)) => histograms.iter_mut().for_each(Histogram::reset),
            // Nothing for a whole span: what is idle costs nothing.
            _ => stages.now = None,
        }
        stages.before = quantiles;
        quantiles
    }

    /// What [`Ledger::take_quantiles`] gave last, so that a whole span is covered; what there is since, if it was none
    /// or never called.
    pub fn quantiles(&self) -> Option<[StageQuantiles; Stage::ALL.len()]> {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages.before.or_else(|| stages.quantiles())
    }
}

impl Stages {
    fn quantiles(&self) -> Option<[StageQuantiles; Stage::ALL.len()]> {
        let histograms = self.now.as_ref().filter(|histograms| !histograms[0].is_empty())?;
        Some(std::array::from_fn(|stage| StageQuantiles {
            p50: histograms[stage].value_at_quantile(0.5),
            p99: histograms[stage].value_at_quantile(0.99),
            max: histograms[stage].max(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_the_sum_of_the_parts() {
        let ledger = Ledger::default();
        assert_eq!(ledger.take_quantiles(), None);
        ledger.record([100, 20, 3, 40, 5], false);
        let quantiles = ledger.take_quantiles().unwrap();
        let total = quantiles[Stage::Total as usize].p50;
        // One significant digit: within a tenth.
        assert!((151..=185).contains(&total), "{total}");
        assert_eq!(ledger.take_quantiles(), None, "taking starts anew");
    }

    #[test]
    fn what_was_idle_for_a_span_holds_no_histograms() {
        let ledger = Ledger::default();
        ledger.record([1; 5], false);
        ledger.take_quantiles();
        assert!(ledger.stages.lock().unwrap().now.is_some());
        ledger.take_quantiles();
        assert!(ledger.stages.lock().unwrap().now.is_none());
        ledger.record([1; 5], false);
        assert!(ledger.take_quantiles().is_some());
    }

    #[test]
    fn a_time_beyond_the_range_counts_as_the_longest() {
        let ledger = Ledger::default();
        ledger.record([u64::MAX / 8, 0, 0, 0, 0], true);
        assert_eq!(ledger.late(), 1);
        assert!(ledger.take_quantiles().unwrap()[0].max >= LONGEST_US);
    }

    #[test]
    fn what_a_stream_counts_its_pipeline_counts_too() {
        let pipeline = Arc::new(Ledger::default());
        let (one, two) = (Ledger::within(Arc::clone(&pipeline)), Ledger::within(Arc::clone(&pipeline)));
        for (ledger, outcome) in [(&one, Outcome::Result), (&two, Outcome::Expired), (&two, Outcome::Result)] {
            ledger.completed();
            ledger.ended(outcome);
        }
        one.record([1, 2, 3, 4, 5], false);
        two.batch(9);
        two.batch(1);
        assert_eq!((one.windows(), two.windows(), pipeline.windows()), (1, 2, 3));
        assert_eq!((one.count(Outcome::Result), pipeline.count(Outcome::Result)), (1, 2));
        assert!(pipeline.quantiles().is_some() && two.quantiles().is_none());
        assert_eq!(pipeline.batches().collect::<Vec<_>>(), [(1, 1), (8, 1)]);
    }

    #[test]
    fn quantiles_of_the_last_span_stay_until_the_next_is_over() {
        let ledger = Ledger::default();
        ledger.record([100, 0, 0, 0, 0], false);
        assert!(ledger.quantiles().is_some(), "the first span is not over");
        ledger.take_quantiles();
        ledger.record([900, 0, 0, 0, 0], false);
        assert!(ledger.quantiles().unwrap()[0].max < 200, "the span that is over");
        ledger.take_quantiles();
        assert!(ledger.quantiles().unwrap()[0].max > 800);
    }

    #[test]
    fn a_histogram_is_small() {
        let histogram = Histogram::<u32>::new_with_bounds(1, LONGEST_US, 1).unwrap();
        assert!(histogram.distinct_values() * 4 <= 2048, "{} counters", histogram.distinct_values());
    }
}
