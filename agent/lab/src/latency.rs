//! Quantiles of times, and of the parts of a result's latency.

use std::time::Duration;

use hdrhistogram::Histogram;
use limpet_wire::result::LatencyUs;
use serde::Serialize;

/// Times that were measured: 1 ns to 60 s in three digits, in 256 KiB, so recording never allocates.
pub struct Times(Histogram<u64>);

/// Quantiles in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are at or below it.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

impl Times {
    /// None yet.
    pub fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("these bounds are valid"))
    }

    /// Adds one; what is longer than 60 s counts as 60 s.
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Adds all of another's.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// The quantiles, if there is any time.
    pub fn quantiles(&self) -> Option<Quantiles> {
        let us = |ns: u64| ns as f64 / 1e3;
        (!self.0.is_empty()).then(|| Quantiles {
            p50: us(self.0.value_at_quantile(0.5)),
            p99: us(self.0.value_at_quantile(0.99)),
            max: us(self.0.max()),
            mean: self.0.mean() / 1e3,
        })
    }
}

/// One value for each part of a result's latency.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Parts<T> {
    /// From capture to the window being complete.
    pub wait: T,
    /// The front end.
    pub features: T,
    /// Waiting for the session.
    pub queue: T,
    /// The session.
    pub compute: T,
    /// The decision.
    pub decide: T,
    /// All of them.
    pub total: T,
}

impl<T> Parts<T> {
    /// The parts in the order in which a window goes through them, with their names on the wire.
    pub fn named(&self) -> [(&'static str, &T); 6] {
        [
            ("wait", &self.wait),
            ("features", &self.features),
            ("queue", &self.queue),
            ("compute", &self.compute),
            ("decide", &self.decide),
            ("total", &self.total),
        ]
    }
}

impl Parts<Times> {
    /// None yet.
    pub fn new() -> Self {
        Self {
            wait: Times::new(),
            features: Times::new(),
            queue: Times::new(),
            compute: Times::new(),
            decide: Times::new(),
            total: Times::new(),
        }
    }

    /// Adds the latency of one result.
    pub fn record(&mut self, latency: LatencyUs) {
        let total = latency.total();
        let LatencyUs { wait, features, queue, compute, decide } = latency;
        let pairs = [
            (&mut self.wait, wait),
            (&mut self.features, features),
            (&mut self.queue, queue),
            (&mut self.compute, compute),
            (&mut self.decide, decide),
            (&mut self.total, total),
        ];
        for (times, us) in pairs {
            times.record(Duration::from_micros(us));
        }
    }

    /// The quantiles of each part, if there is any result.
    pub fn quantiles(&self) -> Option<Parts<Quantiles>> {
        Some(Parts {
            wait: self.wait.quantiles()?,
            features: self.features.quantiles()?,
            queue: self.queue.quantiles()?,
            compute: self.compute.quantiles()?,
            decide: self.decide.quantiles()?,
            total: self.total.quantiles()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_recorded_times() {
        let mut times = Times::new();
        assert!(times.quantiles().is_none());
        for us in 1..=1000 {
            times.record(Duration::from_micros(us));
        }
        let Quantiles { p50, p99, max, mean } = times.quantiles().unwrap();
        for (found, expected) in [(p50, 500.0), (p99, 990.0), (max, 1000.0), (mean, 500.5)] {
            assert!((found - expected).abs() <= expected * 2e-3, "{found} is not {expected}");
        }
    }

    #[test]
    fn the_total_is_of_each_result_and_not_of_the_parts() {
        let mut parts = Parts::new();
        // The longest wait and the longest queue are in different results.
        parts.record(LatencyUs { wait: 100, queue: 1, ..LatencyUs::default() });
        parts.record(LatencyUs { wait: 1, queue: 100, ..LatencyUs::default() });
        assert!((parts.quantiles().unwrap().total.max - 101.0).abs() < 1.0);
    }
}
