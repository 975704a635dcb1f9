//! Whether the agent saw what the motor had. No I/O and no clock.
//!
//! A window is *whole* if all its samples lie in one phase; only for such a window there is one right label. A phase is
//! missed if none of its first [`DETECT_WITHIN`] whole windows has the right label, or if no whole window came at all.
//! It is wrong if more than [`WRONG_SHARE`] of its whole windows, and at least two, have another label: one borderline
//! window is what a model with an accuracy of 95 % gives now and then, a steady wrong label is not. A phase that the
//! demo ended in is judged only if it was run to its end.

use std::ops::Range;

use super::schedule::Schedule;
use crate::motor::Condition;

/// A right label must be among this many whole windows from the start of a phase: the first, and four more.
pub const DETECT_WITHIN: u64 = 5;
/// Share of whole windows that may have another label.
pub const WRONG_SHARE: f64 = 0.2;

/// What is known of one phase.
#[derive(Debug, Clone)]
pub struct Phase {
    /// What the motor has.
    pub condition: Condition,
    /// Its samples.
    pub samples: Range<u64>,
    /// Whole windows that came.
    pub whole: u64,
    /// Those of them with the right label.
    pub right: u64,
    /// Number of whole windows that had come when the first right label did, itself included; none before it is 0.
    first_right: Option<u64>,
    /// Seconds from the start of the phase to the first result with its label.
    pub detected_after: Option<f64>,
    /// The labels of whole windows that were wrong, with how often.
    pub confused_with: Vec<(String, u64)>,
}

/// What is wrong with a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No whole window came.
    Silent,
    /// The label did not come in time.
    Missed,
    /// Another label came too often.
    Wrong,
}

/// One result, as the judge sees it.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Number of the first sample of the message that completed the window.
    pub message_start: u64,
    /// Samples in a message.
    pub message_samples: u64,
    /// Samples in the window.
    pub window_samples: u64,
    /// What the agent says.
    pub label: &'a str,
    /// Seconds since the sensor started when the result came.
    pub at: f64,
}

/// What became known by a result.
#[derive(Debug, PartialEq)]
pub struct Note {
    /// The phase in which the window ends.
    pub phase: u64,
    /// Whether the label is that of the phase.
    pub right: bool,
    /// Whether the whole window lies in the phase.
    pub whole: bool,
    /// Seconds since the start of the phase, if this is the first result with its label.
    pub detected_after: Option<f64>,
}

/// Keeps the account.
#[derive(Debug)]
pub struct Judge {
    schedule: Schedule,
    phases: Vec<Phase>,
}

impl Judge {
    /// Nothing seen yet.
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule, phases: Vec::new() }
    }

    /// Takes a result into account.
    pub fn see(&mut self, seen: &Seen<'_>) -> Note {
        // The window's last sample lies somewhere in the message, so its samples lie within these bounds.
        let last = seen.message_start + seen.message_samples - 1;
        let first = (seen.message_start + 1).saturating_sub(seen.window_samples);
        let number = self.schedule.phase_at(last);
        self.reach(number);
        let phase = &mut self.phases[number as usize];
        let right = seen.label == phase.condition.label();
        let whole = first >= phase.samples.start;
        phase.whole += u64::from(whole);
        if right {
            phase.right += u64::from(whole);
        } else if whole {
            match phase.confused_with.iter_mut().find(|(label, _)| label == seen.label) {
                Some((_, times)) => *times += 1,
                None => phase.confused_with.push((seen.label.to_owned(), 1)),
            }
        }
        let mut detected_after = None;
        if right && phase.first_right.is_none() {
            phase.first_right = Some(phase.whole);
            phase.detected_after = Some(seen.at - self.schedule.seconds(phase.samples.start));
            detected_after = phase.detected_after;
        }
        Note { phase: number, right, whole, detected_after }
    }

    /// The sensor has come to this phase, whether or not a result has.
    pub fn reach(&mut self, number: u64) {
        while self.phases.len() as u64 <= number {
            let number = self.phases.len() as u64;
            self.phases.push(Phase {
                condition: self.schedule.condition(number),
                samples: self.schedule.samples(number),
                whole: 0,
                right: 0,
                first_right: None,
                detected_after: None,
                confused_with: Vec::new(),
            });
        }
    }

    /// The phases that were reached.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }
}

impl Phase {
    /// What is wrong with the phase, once all its results have come. `sent`: samples that the sensor has sent.
    /// `None` too if it was not run to its end.
    pub fn fault(&self, sent: u64) -> Option<Fault> {
        if sent < self.samples.end {
            return None;
        }
        let wrong = self.whole - self.right;
        if self.whole == 0 {
            Some(Fault::Silent)
        } else if self.first_right.is_none_or(|windows| windows > DETECT_WITHIN) {
            Some(Fault::Missed)
        } else if wrong >= 2 && wrong as f64 > WRONG_SHARE * self.whole as f64 {
            Some(Fault::Wrong)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: f64 = 1000.0;
    const MESSAGE: u64 = 50;
    const WINDOW: u64 = 1000;
    const HOP: u64 = 500;

    /// Plays three phases of about 6.7 s through the judge; `label` says what the agent answers to a window by its end.
    fn play(label: impl Fn(u64, Condition) -> &'static str) -> Judge {
        let schedule = Schedule::new(RATE, Some(20.0));
        let mut judge = Judge::new(schedule);
        let mut end = WINDOW;
        while end <= schedule.end().unwrap() {
            let truth = schedule.condition(schedule.phase_at(end - 1));
            judge.see(&Seen {
                message_start: (end - 1) / MESSAGE * MESSAGE,
                message_samples: MESSAGE,
                window_samples: WINDOW,
                label: label(end, truth),
                at: schedule.seconds(end) + 0.01,
            });
            end += HOP;
        }
        judge
    }

    fn faults(judge: &Judge) -> Vec<Option<Fault>> {
        judge.phases().iter().map(|phase| phase.fault(u64::MAX)).collect()
    }

    #[test]
    fn an_agent_that_is_always_right_passes() {
        let judge = play(|_, truth| truth.label());
        assert_eq!(faults(&judge), [None; 3]);
        for phase in judge.phases() {
            assert!(phase.whole >= 10 && phase.right == phase.whole, "{phase:?}");
        }
        // The fault begins at 6.666 s; the first window that ends in its phase ends at 7 s.
        let after = judge.phases()[1].detected_after.unwrap();
        assert!((after - 0.344).abs() < 0.01, "{after}");
    }

    #[test]
    fn an_agent_that_always_says_healthy_misses_the_fault_and_nothing_else() {
        assert_eq!(faults(&play(|_, _| "healthy")), [None, Some(Fault::Missed), None]);
    }

    #[test]
    fn an_agent_that_sees_faults_where_there_are_none_fails_the_healthy_phases() {
        assert_eq!(faults(&play(|_, _| "bearing")), [Some(Fault::Missed), None, Some(Fault::Missed)]);
    }

    #[test]
    fn one_wrong_window_is_forgiven_and_a_third_of_them_is_not() {
        assert_eq!(faults(&play(|end, truth| if end == 10_000 { "looseness" } else { truth.label() })), [None; 3]);
        let often = play(|end, truth| if (end / HOP).is_multiple_of(3) { "looseness" } else { truth.label() });
        assert_eq!(faults(&often), [Some(Fault::Wrong); 3]);
    }

    #[test]
    fn a_label_that_comes_after_five_whole_windows_comes_too_late() {
        let schedule = Schedule::new(RATE, Some(20.0));
        let start = schedule.samples(1).start;
        let late = |windows: u64| {
            play(move |end, truth| match truth {
                Condition::Bearing if end < start + WINDOW + windows * HOP => "healthy",
                _ => truth.label(),
            })
        };
        assert_eq!(faults(&late(9))[1], Some(Fault::Missed));
        assert_ne!(faults(&late(3))[1], Some(Fault::Missed));
    }

    #[test]
    fn an_agent_that_says_nothing_fails_and_a_phase_that_was_cut_short_is_not_judged() {
        let schedule = Schedule::new(RATE, Some(20.0));
        let mut judge = Judge::new(schedule);
        judge.reach(1);
        let sent = schedule.samples(1).end - 1;
        let faults: Vec<_> = judge.phases().iter().map(|phase| phase.fault(sent)).collect();
        assert_eq!(faults, [Some(Fault::Silent), None]);
    }

    #[test]
    fn a_window_that_reaches_back_into_the_phase_before_is_not_whole() {
        let schedule = Schedule::new(RATE, Some(20.0));
        let start = schedule.samples(1).start;
        let mut judge = Judge::new(schedule);
        let mut whole_at = |message_start| {
            let seen =
                Seen { message_start, message_samples: MESSAGE, window_samples: WINDOW, label: "bearing", at: 0.0 };
            judge.see(&seen).whole
        };
        assert!(!whole_at(start + WINDOW - 2));
        assert!(whole_at(start + WINDOW - 1));
    }
}
