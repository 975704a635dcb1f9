//! How long to wait before the next try.

use std::time::Duration;

/// First wait.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// A connection that held this long was a good one: the next wait is the first again.
const GOOD: Duration = Duration::from_secs(30);

/// Exponential back-off with full jitter: a thousand gateways that lose one broker must not come back in step.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after a try that failed or a connection that held for `held`. `random` is uniform.
    ///
    /// It lies between a quarter of the step and the whole step; steps double from 0.5 s to 60 s.
    pub fn next(&mut self, held: Duration, random: u64) -> Duration {
        if held >= GOOD {
            self.failures = 0;
        }
        let step = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let share = 0.25 + 0.75 * (random as f64 / u64::MAX as f64);
        step.mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_start_anew_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let longest: Vec<_> = (0..9).map(|_| backoff.next(Duration::ZERO, u64::MAX).as_secs_f64()).collect();
        assert_eq!(longest, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        assert_eq!(backoff.next(Duration::from_secs(31), u64::MAX), FIRST);
    }

    #[test]
    fn no_wait_is_shorter_than_a_quarter_of_its_step() {
        assert_eq!(Backoff::default().next(Duration::ZERO, 0), FIRST / 4);
    }
}
