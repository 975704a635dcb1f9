//! The search for the highest rate that keeps the bound: doubling, bisection, then a run of full length.
//!
//! A state machine: [`Search::next`] says what to try, [`Search::tell`] takes how it went. Short runs bracket the rate
//! to [`PRECISION`]; what they found has to hold in a run of full length, and is lowered until it does.

/// How far apart the highest rate that passed and the lowest that failed may end.
const PRECISION: f64 = 0.02;
/// What is left of a rate that did not hold in a run of full length.
const LOWERED: f64 = 0.95;

/// What to try next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// A short run at this rate, in queries a second.
    Probe(f64),
    /// A run of full length.
    Confirm(f64),
    /// Nothing: this is the highest rate that holds.
    Found(f64),
    /// Nothing: no rate from the lowest on holds.
    None,
}

/// A search that is under way.
#[derive(Debug, Clone)]
pub struct Search {
    step: Step,
    lowest: f64,
    passed: Option<f64>,
    failed: Option<f64>,
}

impl Search {
    /// Starts at a rate; none below `lowest` is tried.
    ///
    /// # Panics
    /// If `lowest` is not above 0 or `start` below it.
    pub fn new(start: f64, lowest: f64) -> Self {
        assert!(lowest > 0.0 && start >= lowest, "a search goes through rates above 0");
        Self { step: Step::Probe(start), lowest, passed: None, failed: None }
    }

    /// What to try.
    pub fn next(&self) -> Step {
        self.step
    }

    /// Takes whether what was to be tried kept the bound.
    pub fn tell(&mut self, kept: bool) {
        self.step = match (self.step, kept) {
            (Step::Probe(rate), _) => {
                *(if kept { &mut self.passed } else { &mut self.failed }) = Some(rate);
                match (self.passed, self.failed) {
                    (Some(passed), None) => Step::Probe(passed * 2.0),
                    (Some(passed), Some(failed)) if failed / passed > 1.0 + PRECISION => {
                        Step::Probe((passed * failed).sqrt())
                    }
                    (Some(passed), Some(_)) => Step::Confirm(passed),
                    (None, _) if rate <= self.lowest => Step::None,
                    (None, _) => Step::Probe((rate / 2.0).max(self.lowest)),
                }
            }
            (Step::Confirm(rate), true) => Step::Found(rate),
            (Step::Confirm(rate), false) if rate * LOWERED < self.lowest => Step::None,
            (Step::Confirm(rate), false) => Step::Confirm(rate * LOWERED),
            (ended @ (Step::Found(_) | Step::None), _) => ended,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a search against what a machine keeps in short and in long runs; how it ended, and after how many steps.
    fn search(start: f64, lowest: f64, short: f64, long: f64) -> (Step, usize) {
        let mut search = Search::new(start, lowest);
        for steps in 0.. {
            match search.next() {
                Step::Probe(rate) => search.tell(rate <= short),
                Step::Confirm(rate) => search.tell(rate <= long),
                ended => return (ended, steps),
            }
        }
        unreachable!()
    }

    #[test]
    fn it_doubles_then_halves_the_distance_then_confirms() {
        let mut search = Search::new(100.0, 1.0);
        for (expected, kept) in [(100.0, true), (200.0, true), (400.0, false), (282.84, true), (336.36, false)] {
            let Step::Probe(rate) = search.next() else { panic!("{:?}", search.next()) };
            assert!((rate - expected).abs() < 0.01, "{rate}");
            search.tell(kept);
        }
    }

    #[test]
    fn a_machine_that_keeps_nothing_ends_the_search_at_the_lowest_rate() {
        assert_eq!(search(1000.0, 30.0, 0.0, 0.0).0, Step::None);
    }

    proptest! {
        #[test]
        fn the_highest_rate_is_found_within_its_precision(
            start in 1.0f64..1e6, truth in 4.0f64..1e7, share in 0.5f64..1.0
        ) {
            let (ended, steps) = search(start, 1.0, truth, truth);
            let Step::Found(rate) = ended else { panic!("{ended:?}") };
            prop_assert!(rate <= truth && rate >= truth / (1.0 + PRECISION) / 1.0001, "{} of {}", rate, truth);
            prop_assert!(steps <= 40);
            // What holds in long runs is less: it is found from above, never overstated.
            let (ended, _) = search(start, 1.0, truth, truth * share);
            let Step::Found(rate) = ended else { panic!("{ended:?}") };
            prop_assert!(rate <= truth * share && rate >= truth * share * LOWERED * 0.979, "{} of {}", rate, truth * share);
        }
    }
}
