//! What is wrong with the virtual motor, and when.
//!
//! The motor is healthy in every other phase, and in those between it has one fault after the other. All phases are
//! equally long. Time is counted in samples since the sensor started.

use std::ops::Range;

use crate::motor::Condition;

/// Faults in the order in which they come.
const FAULTS: [Condition; 3] = [Condition::Bearing, Condition::Imbalance, Condition::Looseness];
/// Length of a phase where the demo runs until it is stopped, and about the length where it does not.
const PHASE_SECONDS: f64 = 8.0;

/// The phases of a demo.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    rate_hz: f64,
    phase_samples: u64,
    /// Number of phases; endless if none is given.
    phases: Option<u64>,
}

impl Schedule {
    /// Phases for a demo of this length. Their number is odd, so it ends with a healthy motor.
    pub fn new(rate_hz: f64, seconds: Option<f64>) -> Self {
        // 20 s: 3 phases; 40 s: 5; 60 s: 7.
        let phases = seconds.map(|seconds| ((seconds / PHASE_SECONDS / 2.0).floor() as u64).max(1) * 2 + 1);
        let phase_seconds = match (seconds, phases) {
            (Some(seconds), Some(phases)) => seconds / phases as f64,
            _ => PHASE_SECONDS,
        };
        Self { rate_hz, phase_samples: (phase_seconds * rate_hz) as u64, phases }
    }

    /// The phase that a sample lies in; the last one does not end.
    pub fn phase_at(&self, sample: u64) -> u64 {
        let phase = sample / self.phase_samples;
        self.phases.map_or(phase, |phases| phase.min(phases - 1))
    }

    /// What the motor has in a phase.
    pub fn condition(&self, phase: u64) -> Condition {
        if phase.is_multiple_of(2) { Condition::Healthy } else { FAULTS[(phase / 2 % FAULTS.len() as u64) as usize] }
    }

    /// The samples of a phase.
    pub fn samples(&self, phase: u64) -> Range<u64> {
        phase * self.phase_samples..(phase + 1) * self.phase_samples
    }

    /// Number of samples until the end, if there is one.
    pub fn end(&self) -> Option<u64> {
        self.phases.map(|phases| phases * self.phase_samples)
    }

    /// A number of samples in seconds.
    pub fn seconds(&self, samples: u64) -> f64 {
        samples as f64 / self.rate_hz
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_of_any_length_begins_and_ends_healthy_and_lasts_as_long_as_asked() {
        for seconds in [20.0, 21.5, 40.0, 60.0, 3600.0] {
            let schedule = Schedule::new(3200.0, Some(seconds));
            let end = schedule.end().unwrap();
            assert!((schedule.seconds(end) - seconds).abs() < 0.1, "{seconds}");
            assert_eq!(schedule.condition(0), Condition::Healthy);
            assert_eq!(schedule.condition(schedule.phase_at(end - 1)), Condition::Healthy);
            assert_eq!(schedule.condition(1), Condition::Bearing);
            let first = schedule.samples(0);
            assert!((6.0..12.5).contains(&schedule.seconds(first.end - first.start)), "{seconds}");
        }
    }

    #[test]
    fn every_sample_lies_in_the_phase_that_claims_it() {
        let schedule = Schedule::new(3200.0, None);
        for phase in 0..9 {
            let samples = schedule.samples(phase);
            assert_eq!(schedule.phase_at(samples.start), phase);
            assert_eq!(schedule.phase_at(samples.end - 1), phase);
        }
        let faults: Vec<_> = (0..6).map(|k| schedule.condition(2 * k + 1)).collect();
        assert_eq!(faults, [FAULTS, FAULTS].concat());
    }
}
