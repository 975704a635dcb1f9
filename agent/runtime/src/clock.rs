//! Moments on CLOCK_BOOTTIME, and a clock that recordings can be played on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A moment in nanoseconds since boot, suspended time counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// The end of time: a deadline that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// Now, by the kernel.
    pub fn now() -> Self {
        let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        // Both parts are positive: boot time starts at zero.
        Self(at.tv_sec as u64 * 1_000_000_000 + at.tv_nsec as u64)
    }

    /// The moment `duration` later; the end of time if that lies beyond it.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// The moment `duration` earlier; boot if that lies before it.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// Time since `earlier`; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whole microseconds since `earlier`; zero if that is later.
    pub fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1000
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Tells the time: the kernel's, or a recording's.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    virtual_time: Option<Arc<Mutex<Played>>>,
}

#[derive(Debug)]
struct Played {
    /// Time of the recording when it was last set…
    at: Moment,
    /// …and the kernel's time then.
    set: Moment,
}

impl Clock {
    /// The kernel's CLOCK_BOOTTIME.
    pub fn boottime() -> Self {
        Self::default()
    }

    /// A clock that stands at `at` and goes on with real time until it is set again, so that work measured on it takes
    /// what it really takes.
    pub fn played(at: Moment) -> Self {
        Self { virtual_time: Some(Arc::new(Mutex::new(Played { at, set: Moment::now() }))) }
    }

    /// The time.
    pub fn now(&self) -> Moment {
        match &self.virtual_time {
            None => Moment::now(),
            Some(played) => {
                let played = played.lock().unwrap_or_else(PoisonError::into_inner);
                played.at.after(Moment::now().since(played.set))
            }
        }
    }

    /// Sets a played clock; the kernel's stays as it is.
    pub fn set(&self, at: Moment) {
        if let Some(played) = &self.virtual_time {
            *played.lock().unwrap_or_else(PoisonError::into_inner) = Played { at, set: Moment::now() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_played_clock_starts_where_it_is_set_and_goes_on() {
        let clock = Clock::played(Moment(0));
        clock.set(Moment(1_000_000_000));
        let (one, two) = (clock.now(), clock.now());
        assert!(one >= Moment(1_000_000_000) && two >= one);
        assert!(two < Moment(600_000_000_000));
    }

    #[test]
    fn moments_saturate() {
        assert_eq!(Moment(5).before(Duration::from_secs(1)), Moment(0));
        assert_eq!(Moment::NEVER.after(Duration::from_secs(1)), Moment::NEVER);
        assert_eq!(Moment(5).since(Moment(7)), Duration::ZERO);
    }
}
