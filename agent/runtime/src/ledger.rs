//! What happened to the windows of a pipeline, and where their time went.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// Counters and histograms of one pipeline, shared between its workers and whoever reports.
///
/// Histograms have one significant digit and 32-bit counters and are made at first use, so that a pipeline that never
/// ran costs nothing for them.
#[derive(Debug, Default)]
pub struct Ledger {
    windows: AtomicU64,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    stages: Mutex<Option<Box<[Histogram<u32>; Stage::ALL.len()]>>>,
}

impl Ledger {
    /// Counts a window that was completed.
    pub fn completed(&self) {
        self.windows.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts how a completed window ended.
    pub fn ended(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Records the latency parts of a result, in microseconds, in the order of [`Stage::ALL`] without the total.
    pub fn record(&self, parts: [u64; 5]) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let stages = stages.get_or_insert_with(|| {
            let empty = Histogram::new_with_bounds(1, LONGEST_US, 1).expect("these bounds are valid");
            Box::new(std::array::from_fn(|_| empty.clone()))
        });
        let total = parts.iter().sum();
        for (histogram, value) in stages.iter_mut().zip(parts.into_iter().chain([total])) {
            histogram.saturating_record(value);
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

    /// Quantiles since the last call, stage by stage; none if there was no result since.
    pub fn take_quantiles(&self) -> Option<[StageQuantiles; Stage::ALL.len()]> {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let stages = stages.as_mut().filter(|s| !s[0].is_empty())?;
        let quantiles = std::array::from_fn(|i| StageQuantiles {
            p50: stages[i].value_at_quantile(0.5),
            p99: stages[i].value_at_quantile(0.99),
            max: stages[i].max(),
        });
        stages.iter_mut().for_each(Histogram::reset);
        Some(quantiles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_the_sum_of_the_parts() {
        let ledger = Ledger::default();
        assert_eq!(ledger.take_quantiles(), None);
        ledger.record([100, 20, 3, 40, 5]);
        let quantiles = ledger.take_quantiles().unwrap();
        let total = quantiles[Stage::Total as usize].p50;
        // One significant digit: within a tenth.
        assert!((151..=185).contains(&total), "{total}");
        assert_eq!(ledger.take_quantiles(), None, "taking starts anew");
    }

    #[test]
    fn a_time_beyond_the_range_counts_as_the_longest() {
        let ledger = Ledger::default();
        ledger.record([u64::MAX / 8, 0, 0, 0, 0]);
        assert!(ledger.take_quantiles().unwrap()[0].max >= LONGEST_US);
    }

    #[test]
    fn a_histogram_is_small() {
        let histogram = Histogram::<u32>::new_with_bounds(1, LONGEST_US, 1).unwrap();
        assert!(histogram.distinct_values() * 4 <= 2048, "{} counters", histogram.distinct_values());
    }
}
