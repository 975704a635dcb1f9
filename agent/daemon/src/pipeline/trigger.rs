//! When a run of results becomes a trigger.
//!
//! The score must lie above `above` in `for` consecutive results by window index; a missing index starts anew. After
//! a trigger there is none until the score was at or below `above` once and `quiet` has passed in capture time.

use std::time::Duration;

use limpet_runtime::Moment;

/// The manifest's rule.
#[derive(Debug, Clone, PartialEq)]
pub struct TriggerRule {
    /// The label whose score counts, as its index; none for an anomaly's own score.
    pub label: Option<usize>,
    /// The score to be exceeded.
    pub above: f32,
    /// In how many consecutive results.
    pub consecutive: u32,
    /// How long it stays quiet after a trigger.
    pub quiet: Duration,
}

/// Where one stream stands.
#[derive(Debug, Clone, Default)]
pub struct TriggerState {
    /// Results in a row above the threshold.
    run: u32,
    /// First sample of the last result's window.
    last: Option<u64>,
    /// When it triggered last, and whether the score has been low since.
    fired: Option<(Moment, bool)>,
}

impl TriggerState {
    /// Another version's scores are no part of a run. What triggered a moment ago still stays quiet.
    pub fn start_anew(&mut self) {
        (self.run, self.last) = (0, None);
    }

    /// Takes the next result in: the first sample of its window, samples from one window to the next, its score and
    /// its capture time. Says whether it is
    /// a trigger.
    pub fn take(&mut self, rule: &TriggerRule, first: u64, hop: u64, score: f32, captured: Moment) -> bool {
        if self.last.is_none_or(|last| last + hop != first) {
            self.run = 0;
        }
        self.last = Some(first);
        if score > rule.above {
            self.run = self.run.saturating_add(1);
        } else {
            self.run = 0;
            if let Some((_, low_since)) = &mut self.fired {
                *low_since = true;
            }
        }
        let armed = self.fired.is_none_or(|(at, low_since)| low_since && captured.since(at) >= rule.quiet);
        let fires = armed && self.run >= rule.consecutive;
        if fires {
            self.fired = Some((captured, false));
        }
        fires
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: TriggerRule = TriggerRule { label: Some(0), above: 0.8, consecutive: 3, quiet: Duration::from_secs(1) };

    fn play(results: &[(u64, f32)]) -> Vec<u64> {
        let mut state = TriggerState::default();
        let captured = |index: u64| Moment(index * 100_000_000);
        results.iter().filter(|(i, s)| state.take(&RULE, *i * 160, 160, *s, captured(*i))).map(|(i, _)| *i).collect()
    }

    #[test]
    fn three_in_a_row_are_a_trigger_and_more_are_not_another() {
        let loud: Vec<_> = (0..40).map(|i| (i, 0.9)).collect();
        assert_eq!(play(&loud), [2]);
    }

    #[test]
    fn the_threshold_itself_is_not_above_it() {
        assert_eq!(play(&[(0, 0.8), (1, 0.8), (2, 0.8), (3, 0.8)]), [0_u64; 0]);
    }

    #[test]
    fn a_missing_index_starts_anew() {
        assert_eq!(play(&[(0, 0.9), (1, 0.9), (3, 0.9), (4, 0.9)]), [0_u64; 0]);
        assert_eq!(play(&[(0, 0.9), (1, 0.9), (3, 0.9), (4, 0.9), (5, 0.9)]), [5]);
    }

    #[test]
    fn after_a_trigger_the_score_must_fall_and_the_quiet_time_pass() {
        let mut results: Vec<_> = (0..5).map(|i| (i, 0.9)).collect();
        results.push((5, 0.1));
        // Loud again before a second has passed since the trigger at 2: it fires once the second is over.
        results.extend((6..20).map(|i| (i, 0.9)));
        assert_eq!(play(&results), [2, 12]);
    }
}
